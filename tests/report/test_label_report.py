import json
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from graphhalu.core.errors import TraceNotFoundError, UnknownNameError
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_store, read_labels, stored_labellers
from graphhalu.labels.summary import THRESHOLDS, label_report
from graphhalu.report.audit import example_text, tables
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import TraceStore

ANSWERS = (
    "Paris",
    "It is Paris.",
    "Lyon",
    "",
    "I don't know",
    "not Paris",
    "It is Lyon.",
    "I think that it must be the city of Paris.",
    "Rome",
    "Paris!",
    "Bonn",
)


class Store(TraceStore):
    """As much of a trace store as labels need."""

    path: Path = Path()

    def __init__(self, path: Path, has_categories: bool = True) -> None:
        self.path, self.has_categories = path, has_categories

    @property
    def records(self) -> list[TraceRecord]:
        return [
            TraceRecord(
                f"q{n}#0",
                f"q{n}",
                f"q{n}",
                "What is the capital?",
                ("Paris", "b", "c", "d"),
                answer,
                "",
                2,
                3,
                is_on_policy=n != 2,
                given_label=1 if n == 2 else None,
                metadata={"category": "even" if n % 2 == 0 else "odd"} if self.has_categories else {},
            )
            for n, answer in enumerate(ANSWERS)
        ]

    @property
    def trace_ids(self) -> tuple[str, ...]:
        return tuple(record.trace_id for record in self.records)

    def publish(self, file: Path) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "s.zarr")


def test_missing_labels_of_known_rules_are_made_and_no_others(store: Store) -> None:
    report = label_report(store, ["match", "rouge"])
    assert list(report["labellers"]) == ["match", "rouge"]
    assert stored_labellers(store) == ["match", "rouge"]
    with pytest.raises(UnknownNameError, match="no labeller named 'match9'"):
        label_report(store, ["match9"])


def test_without_names_all_labels_are_looked_at_the_reference_first(store: Store) -> None:
    for name in ("given", "match", "choice"):
        label_store(store, make_labeller(name))
    assert list(label_report(store)["labellers"]) == ["match", "choice", "given"]


def test_a_store_without_labels_names_the_command_that_makes_them(store: Store) -> None:
    with pytest.raises(TraceNotFoundError, match=r"graphhalu label .*s.zarr"):
        label_report(store)


def test_the_numbers_are_those_of_the_labels(store: Store) -> None:
    report = label_report(store, ["match", "rouge", "given"])
    match = report["labellers"]["match"]
    assert (match["n_traces"], match["n_valid"]) == (11, 9)
    assert match["coverage"] == pytest.approx(9 / 11)
    assert match["prevalence"] == pytest.approx(5 / 9)
    assert match["interval"][0] < 5 / 9 < match["interval"][1]
    assert match["reasons"]["refusal"] == 1
    assert set(match["categories"]) == {"even", "odd"}
    assert match["categories"]["odd"]["n_traces"] == 5
    given = report["labellers"]["given"]
    assert (given["meaning"], given["n_valid"], given["prevalence"]) == ("input", 1, 1)


def test_every_pair_of_labellers_is_compared(store: Store) -> None:
    report = label_report(store, ["match", "rouge", "given"])
    pairs = {(each["first"], each["second"]): each for each in report["agreement"]}
    assert set(pairs) == {("match", "rouge"), ("match", "given"), ("rouge", "given")}
    match, rouge = (read_labels(store, name) for name in ("match", "rouge"))
    both = match.is_valid & rouge.is_valid
    expected = cohen_kappa_score(match.values[both], rouge.values[both])
    assert pairs["match", "rouge"]["kappa"]["value"] == pytest.approx(expected)
    undefined = pairs["match", "given"]
    assert (undefined["kappa"]["value"], undefined["is_one_meaning"]) == (None, False)


def test_the_sweep_goes_through_the_stored_threshold_as_the_labels_do(store: Store) -> None:
    label_store(store, make_labeller("rouge", metric="rouge1_recall"), "recall")
    report = label_report(store, ["match", "rouge", "recall"])
    assert list(report["sweeps"]) == ["rouge", "recall"]
    for name, threshold in (("rouge", 0.3), ("recall", 0.7)):
        (row,) = [row for row in report["sweeps"][name] if row["threshold"] == threshold]
        assert row["prevalence"] == pytest.approx(report["labellers"][name]["prevalence"])
        pair = next(a for a in report["agreement"] if (a["first"], a["second"]) == ("match", name))
        assert row["kappa"] == pair["kappa"]
    assert [row["threshold"] for row in report["sweeps"]["rouge"]] == list(THRESHOLDS)


def test_without_the_reference_there_is_no_sweep(store: Store) -> None:
    assert label_report(store, ["rouge"])["sweeps"] == {}


def test_the_values_are_plain_json_without_a_number_that_does_not_exist(store: Store) -> None:
    values = label_report(store, ["match", "rouge", "choice"])
    text = json.dumps(values, allow_nan=False)
    assert json.loads(text)["labellers"]["choice"]["prevalence"] is None
    (pair,) = [a for a in values["agreement"] if (a["first"], a["second"]) == ("match", "choice")]
    assert pair["kappa"] == {"value": None, "reason": "no answer is valid for both"}


def test_the_tables_hold_every_labeller_and_say_what_a_1_means(store: Store) -> None:
    made = {table.title: table for table in tables(label_report(store, ["match", "given"]))}
    assert [row[0] for row in made["Labels"].texts] == ["match", "given"]
    assert [row[-1] for row in made["Labels"].texts] == [
        "the model's own output is wrong",
        "what the data set says of its input",
    ]
    assert "match by category" in made
    (agreement,) = made["Agreement; 0/1 = the first says 0, the second 1"].texts
    assert agreement[-1] == "none: match gives one class only (two meanings)"
    for table in made.values():
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_without_categories_there_is_no_table_of_them(tmp_path: Path) -> None:
    report = label_report(Store(tmp_path / "s.zarr", has_categories=False), ["match"])
    assert [table.title for table in tables(report)] == ["Labels", "Reasons"]


def test_an_example_shows_question_gold_answer_and_every_verdict(store: Store) -> None:
    report = label_report(store, ["match", "rouge"], n_examples=1, seed=3)
    assert [example["verdict"] for example in report["examples"]] == ["hallucinated", "correct", "undecided"]
    lines = example_text(report["examples"][-1]).splitlines()
    assert lines[0].startswith("undecided  q")
    assert lines[1] == "  question  What is the capital?"
    assert lines[2] == "  gold      Paris; b; c (and 1 more)"
    assert lines[4].startswith("  labels    match: undecided (")
