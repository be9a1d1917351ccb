import math

import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.rows import Row, is_missing, is_short, labels_cell, places_cell, text_cell, texts_cell


def row(value: object) -> Row:
    return Row("f.csv, row 7", {"col": value})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" Ann ", "Ann"),
        ("", None),
        ("  ", None),
        (None, None),
        (math.nan, None),
        (5, "5"),
        (1969.0, "1969"),
        (2.5, "2.5"),
        (0, "0"),
    ],
)
def test_a_text_cell_reads_texts_and_numbers(value: object, text: str | None) -> None:
    assert text_cell(row(value), "col") == text
    assert text_cell(row(value), "absent") is None


@pytest.mark.parametrize("value", [True, ["x"], {"x": 1}, math.inf])
def test_a_text_cell_refuses_everything_else(value: object) -> None:
    with pytest.raises(DataFileError, match=r"f\.csv, row 7: col must be a text, got"):
        text_cell(row(value), "col")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (["Ann", " Bo "], ("Ann", "Bo")),
        (("Ann", 5, 1969.0), ("Ann", "5", "1969")),
        (["Ann", "", None, math.nan], ("Ann",)),
        ('["Ann", "Bo \\"B\\" Lee", 5]', ("Ann", 'Bo "B" Lee', "5")),
        (" ['Ann', \"Bo's\", 5, None] ", ("Ann", "Bo's", "5")),
        (r"['a\d', 'b']", (r"a\d", "b")),
        ("['Łódź', 'Žižek,\\n jr.']", ("Łódź", "Žižek,\n jr.")),
        ("[]", ()),
        ("", ()),
        (None, ()),
        (7, ("7",)),
        ("Paris", ("Paris",)),
        ("Paris; Rome | Bern, 'x'", ("Paris; Rome | Bern, 'x'",)),
        ("[1] as in the paper", ("[1] as in the paper",)),
    ],
)
def test_a_list_cell_is_read_in_every_notation(value: object, texts: tuple[str, ...]) -> None:
    assert texts_cell(row(value), "col") == texts


@pytest.mark.parametrize(
    ("value", "separator", "texts"),
    [
        ("Paris; Rome ;;", ";", ("Paris", "Rome")),
        ("Paris||Rome|x", "||", ("Paris", "Rome|x")),
        ("Paris\tRome", "\t", ("Paris", "Rome")),
        ("['Paris'; Rome]", ";", ("['Paris'", "Rome]")),
        (["a;b"], ";", ("a;b",)),
    ],
)
def test_a_stated_separator_divides_text_and_leaves_lists_alone(
    value: object, separator: str, texts: tuple[str, ...]
) -> None:
    assert texts_cell(row(value), "col", separator) == texts


@pytest.mark.parametrize(
    "value",
    [
        "['Ann' 'Bo']",
        "['Ann'\n 'Bo']",
        "[Ann, Bo]",
        "['Ann', 'Bo'",
        "['Ann', ['Bo']]",
        "[1 2 3]",
        "[" * 3001 + "]" * 3001,
        "[__import__('os')]",
        [["Ann"]],
        [True],
        {"text": "Ann"},
    ],
)
def test_what_is_no_list_of_texts_is_refused(value: object) -> None:
    with pytest.raises(DataFileError, match="row 7: col must be a list: a real one, JSON text"):
        texts_cell(row(value), "col")


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (1, [True]),
        ("0", [False]),
        (True, [True]),
        (0.0, [False]),
        ("Yes", [True]),
        (" no ", [False]),
        ("hallucinated", [True]),
        ("Correct", [False]),
        ("", [None]),
        (None, [None]),
        ([1, 0, None], [True, False, None]),
        ("[true, false]", [True, False]),
    ],
)
def test_labels_are_read_with_one_for_hallucinated(value: object, labels: list[bool | None]) -> None:
    assert labels_cell(row(value), "col") == labels


def test_labels_may_have_a_separator() -> None:
    assert labels_cell(row("1|0| "), "col", "|") == [True, False, None]


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", ["x"], {"a": 1}])
def test_what_is_no_label_is_refused(value: object) -> None:
    with pytest.raises(DataFileError, match="row 7: col must be 1, true, yes or hallucinated"):
        labels_cell(row(value), "col")


@pytest.mark.parametrize(
    ("value", "places"),
    [
        ("B", (1,)),
        ("blue", (1,)),
        (1, (1,)),
        (1.0, (1,)),
        ("1", (1,)),
        ("A;C", (0, 2)),
        (["C", "red"], (0, 2)),
        ("", ()),
        (None, ()),
        (0, (0,)),
    ],
)
def test_right_options_are_named_by_letter_number_or_text(value: object, places: tuple[int, ...]) -> None:
    choices = ("red", "blue", "green")
    assert places_cell(row(value), "col", choices, ";", reads_digits=True) == places


@pytest.mark.parametrize("value", ["D", 3, "-1", -1, 0.5, "Blue", "1.0", True])
def test_what_names_no_option_is_refused(value: object) -> None:
    with pytest.raises(DataFileError, match="row 7: col must be the letter, the number from 0 or"):
        places_cell(row(value), "col", ("red", "blue", "green"), reads_digits=True)


@pytest.mark.parametrize(
    ("value", "choices"), [("1", ("3", "7", "1")), ("A", ("B", "A")), (2, ("2", "5", "7"))]
)
def test_a_name_that_means_two_options_is_refused(value: object, choices: tuple[str, ...]) -> None:
    with pytest.raises(DataFileError, match="row 7: col must be the letter"):
        places_cell(row(value), "col", choices, reads_digits=True)


def test_digits_in_a_text_are_no_place_unless_that_is_said() -> None:
    choices = ("3", "7", "1")
    assert places_cell(row("1"), "col", choices, reads_digits=False) == (2,)
    with pytest.raises(DataFileError, match="row 7: col must be the letter"):
        places_cell(row("2"), "col", choices, reads_digits=False)


@pytest.mark.parametrize("value", ["x" * 13, 5, 0.5, True])
def test_short_scalars_are_told_from_the_rest(value: object) -> None:
    assert is_short(value, 13)
    assert not any(is_short(v, 13) for v in ("x" * 14, None, "", math.inf, math.nan, ["x"], {}))
    assert is_missing(math.nan)
    assert not is_missing(value)
