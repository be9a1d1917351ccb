import inspect

import pytest

from graphhalu.core import errors
from graphhalu.core.errors import GraphhaluError

ALL = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, Exception) and found.__module__ == errors.__name__
]


def test_there_are_errors_to_sweep():
    assert len(ALL) > 10


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_one_clause_catches_every_error_and_the_message_is_kept(kind):
    with pytest.raises(GraphhaluError) as caught:
        raise kind("expected 3, got 5\n  Way out: ask for 3")
    # a KeyError would show the quoted representation
    assert str(caught.value) == "expected 3, got 5\n  Way out: ask for 3"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_exit_code_is_2_for_misuse_and_1_for_the_rest(kind):
    assert kind.exit_code == (2 if issubclass(kind, errors.UsageError) else 1)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_tree_in_the_module_names_every_error(kind):
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.UsageError, ValueError),
        (errors.UnknownNameError, LookupError),
        (errors.ModelUnavailableError, OSError),
        (errors.StoreNotFoundError, FileNotFoundError),
        (errors.TraceNotFoundError, LookupError),
        (errors.StoreFullError, OSError),
        (errors.NotEnoughDataError, ValueError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_an_error_is_the_fitting_builtin_too(kind, builtin):
    assert issubclass(kind, builtin)
