"""``answers.jsonl``: 300 answers of smollm2 and gemma3-270m to bundled questions, read one by one.

Each has the kind that a reader gives it. The rule of echoes was settled on these answers, so its
agreement with them is that of its best case.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from graphhalu.labels.match import KINDS, AliasMatch, kind_of
from graphhalu.traces.schema import TraceRecord

ANSWERS: Final[list[dict[str, Any]]] = [
    json.loads(line)
    for line in Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines()
]
DISAGREEMENTS: Final = {
    # true, but no answer: only the world knows
    "capital-mauritius": ("partial", "wrong"),
    "island-country-rhodes": ("partial", "wrong"),
    "city-country-novi-sad": ("partial", "wrong"),
    "animal-young-goose": ("partial", "wrong"),
    "city-country-toulouse": ("partial", "wrong"),
    "element-symbol-bismuth": ("partial", "wrong"),
    "landmark-country-persepolis": ("partial", "wrong"),
    "landmark-country-ruins-of-carthage": ("partial", "wrong"),
    "instrument-family-lyre": ("partial", "wrong"),
    # names the author in passing, and somebody else as the author
    "book-author-odyssey": ("wrong", "right"),
    # "Belize City", where both words are in the question
    "capital-belize": ("wrong", "echo"),
}
"""Kind by the reader, and by the rule, of every answer where they differ."""


def kind(answer: dict[str, Any]) -> str:
    record = TraceRecord(
        "q#0",
        "q",
        "q",
        answer["question"],
        tuple(answer["aliases"]),
        answer["answer"],
        "",
        2,
        3,
        is_finished=answer["is_finished"],
        metadata={"expected": answer["expected"]} if "expected" in answer else {},
    )
    return kind_of(AliasMatch().label(record).reason)


def test_match_agrees_with_the_reader_on_96_percent_and_every_disagreement_is_listed() -> None:
    found = {a["id"]: (a["kind"], kind(a)) for a in ANSWERS if a["kind"] != kind(a)}
    assert found == DISAGREEMENTS
    assert len(found) <= 0.04 * len(ANSWERS)


def test_the_answers_are_of_two_models_and_of_most_kinds() -> None:
    assert len(ANSWERS) == 300
    assert len({(a["model"], a["id"]) for a in ANSWERS}) == 300
    assert Counter(a["model"] for a in ANSWERS).keys() == {"smollm2", "gemma3-270m"}
    kinds = Counter(a["kind"] for a in ANSWERS)
    assert kinds.keys() <= KINDS.keys()
    assert len(kinds) >= 6
    assert min(kinds["right"], kinds["wrong"]) >= 100
