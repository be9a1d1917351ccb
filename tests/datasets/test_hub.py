import sys
from types import SimpleNamespace
from typing import Any

import pytest

from graphhalu.core.errors import DataFileError, MissingExtraError
from graphhalu.datasets.base import hub_rows
from graphhalu.datasets.reading import TriviaQA
from graphhalu.datasets.registry import load_questions


def install(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


def test_the_missing_package_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "graphhalu\[hf\]"(?s:.*)--data-path'):
        list(hub_rows(TriviaQA.card))


def test_a_hub_out_of_reach_names_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        message = "no route to host\nlong story"
        raise ConnectionError(message)

    install(monkeypatch, load)
    with pytest.raises(DataFileError, match=r"trivia_qa .*no route to host\n.*--data-path FILE"):
        list(hub_rows(TriviaQA.card))


def test_hub_rows_of_one_question_become_one_with_all_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def row(name: str, aliases: list[str]) -> dict[str, Any]:
        answer = {"value": "Paris", "aliases": aliases, "normalized_aliases": []}
        return {"question": "Capital of France?", "question_id": name, "answer": answer}

    def load(hub_id: str, config: str, *, split: str) -> list[dict[str, Any]]:
        asked.append((hub_id, config, split))
        return [row("tc_2", ["Paree"]), row("tc_2", ["Lutetia", "Paree"])]

    install(monkeypatch, load)
    (question,) = load_questions("triviaqa")
    assert question.answers == ("Paris", "Paree", "Lutetia")
    assert asked == [("mandarjoshi/trivia_qa", "rc.nocontext", "validation")]
