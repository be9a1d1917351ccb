"""Labellers by name."""

import inspect
from typing import Any, Final

from graphhalu.errors import UsageError
from graphhalu.labels.base import Labeller
from graphhalu.registry import Registry

LABELLERS: Final[Registry[type[Labeller]]] = Registry(
    "labeller",
    {
        "match": "graphhalu.labels.match:AliasMatch",
        "rouge": "graphhalu.labels.rouge:RougeOverlap",
        "choice": "graphhalu.labels.choice:LetterChoice",
        "given": "graphhalu.labels.given:GivenLabel",
        "premise": "graphhalu.labels.premise:PremiseLabel",
        "spans": "graphhalu.labels.spans:SpanLabel",
        "judge": "graphhalu.labels.judge:ModelJudge",
    },
    Labeller,
)


def make_labeller(name: str, **settings: Any) -> Labeller:
    """The labeller of this name.

    Args:
        name: Name in the registry.
        settings: Arguments of its class.

    Raises:
        UnknownNameError: If no labeller has this name.
        UsageError: If it has no such setting, or refuses the value.
    """
    kind = LABELLERS.get(name)
    known = [key for key in inspect.signature(kind).parameters if key not in {"args", "kwargs"}]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        message = (
            f"labeller {name!r} has no setting {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}"
        )
        raise UsageError(message)
    try:
        return kind(**settings)
    except TypeError as error:  # a text where a number belongs
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        message = f"labeller {name!r} cannot use {given}: {error}"
        raise UsageError(message) from None
