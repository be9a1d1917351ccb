"""Answers that the data set gives, options by their letters, and the system prompt."""

import json

import numpy as np
import pytest

from graphhalu.core.axes import Span
from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.extract import run
from graphhalu.extract.prompts import prompt_template_name
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import open_traces

QUESTIONS = [
    Question(
        f"q{n}",
        f"What is {n} plus one?",
        (str(n + 1),),
        given=(
            GivenAnswer(str(n + 1), is_hallucinated=False, source="a person"),
            GivenAnswer(f"It is {n}, sure.", is_hallucinated=True, spans=((6, 7),)),
            GivenAnswer("who knows"),
        )[: 3 - n % 2],
    )
    for n in range(5)
]
CHOICES = [
    Question("c0", "Which is a city?", (), choices=("Rome", "salt", "seven"), correct_choices=(0,)),
    Question("c1", "Which is a number?", (), choices=("Rome", "seven"), correct_choices=(1,)),
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture
def extracted(model_folder, tmp_path, monkeypatch):
    def run_on(questions, **changes):
        monkeypatch.setattr(run, "load_questions", lambda *_, **__: questions)
        values = {
            "model": {"name": str(model_folder), "threads": 1},
            "generation": {"num_beams": 2, "max_new_tokens": 3},
            **changes,
        }
        summary = extract(ExtractConfig.model_validate(values), tmp_path / "a.zarr")
        return open_traces(tmp_path / "a.zarr"), summary

    return run_on


GIVEN = {"answers": "given"}


def test_every_given_answer_is_one_trace_marked_as_not_the_models_own(extracted):
    store, summary = extracted(QUESTIONS, generation=GIVEN)
    assert summary.n_traces == sum(len(q.given) for q in QUESTIONS)
    given = {f"{q.question_id}#{n}": a for q in QUESTIONS for n, a in enumerate(q.given)}
    assert set(store.trace_ids) == set(given)
    for trace in store:
        stated, record = given[trace.trace_id], trace.record
        assert not record.is_on_policy
        assert record.beam_score is None
        assert record.answer == stated.text
        assert record.given_spans == stated.spans
        label = stated.is_hallucinated
        assert record.given_label == (None if label is None else int(label))
        assert record.metadata.get("given") == ({"source": "a person"} if stated.source else None)
    assert store.configuration["generation"]["answers"] == "given"


def test_tokens_of_a_given_answer_are_spans_of_its_text(extracted):
    store, _ = extracted(QUESTIONS, generation=GIVEN)
    for trace in store:
        record = trace.record
        assert len(record.answer_offsets) == trace.answer_length
        text = "".join(record.answer[start:stop] for start, stop in record.answer_offsets)
        assert text == record.answer


def test_the_replay_of_the_models_own_answer_as_a_given_one_is_the_same(extracted, tmp_path):
    own, _ = extracted(QUESTIONS)
    stated = [
        Question(r.question_id, r.question, r.answers, given=(GivenAnswer(r.answer),))
        for r in own.records
        if r.answer
    ]
    (tmp_path / "a.zarr").rename(tmp_path / "own.zarr")
    given, _ = extracted(stated, generation=GIVEN)
    compared = 0
    for trace in open_traces(tmp_path / "own.zarr"):
        other = given.trace(trace.trace_id) if trace.record.answer else None
        # the model may spell a text with other tokens than the tokenizer
        if other is None or other.token_ids.tolist() != trace.token_ids.tolist():
            continue
        compared += 1
        np.testing.assert_allclose(other.attention(1), trace.attention(1), rtol=2e-3, atol=1e-5)
        assert other.span_code.tolist() == trace.span_code.tolist()
    assert compared or len(given)


def test_a_question_without_given_answers_is_refused_before_anything_is_written(extracted, tmp_path):
    with pytest.raises(UsageError, match="states no answer to replay"):
        extracted([Question("q", "Why?", ("x",))], generation=GIVEN)
    assert not (tmp_path / "a.zarr").exists()


def test_given_answers_that_are_empty_or_too_long_are_failures_and_the_others_stay(extracted):
    question = Question(
        "q", "Why?", ("x",), given=(GivenAnswer(" "), GivenAnswer("so"), GivenAnswer("a " * 99))
    )
    store, summary = extracted([question], generation=GIVEN)
    assert store.trace_ids == ("q#1",)
    reasons = list(summary.failures)
    assert reasons[0] == "the given answer is empty"
    assert "context has 128" in reasons[1]


def test_a_question_all_of_whose_given_answers_fail_is_done_and_said_so(extracted):
    store, summary = extracted([Question("q", "Why?", ("x",), given=(GivenAnswer(""),))], generation=GIVEN)
    assert (summary.n_traces, summary.failures) == (0, {"the given answer is empty": 1})
    assert store.done_question_ids() == {"q"}


def test_letters_of_options_get_their_probability_as_first_answer_token(extracted):
    store, _ = extracted([*CHOICES, QUESTIONS[0]], capture={"rows": "answer"})
    by_name = {record.question_id: record for record in store.records}
    assert len(by_name["c0"].choice_logprobs) == 3
    assert by_name["c1"].correct_choices == (1,)
    assert by_name["q0"].choice_logprobs == ()
    for name in ("c0", "c1"):
        assert all(value < 0 for value in by_name[name].choice_logprobs)
        assert sum(np.exp(by_name[name].choice_logprobs)) < 1


def test_published_choices_get_through_the_whole_run(model_folder, tmp_path):
    path = tmp_path / "mc.json"
    rows = [
        {
            "question": f"Is {n} odd?",
            "mc1_targets": {"Yes": n % 2, "No": 1 - n % 2},
            "mc2_targets": {"Yes": n % 2, "No": 1 - n % 2},
        }
        for n in range(3)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    config = ExtractConfig.model_validate(
        {
            "model": {"name": str(model_folder), "threads": 1},
            "dataset": {"name": "truthfulqa_mc1", "path": str(path)},
            "generation": {"num_beams": 2, "max_new_tokens": 3},
        }
    )
    extract(config, tmp_path / "a.zarr")
    for record in open_traces(tmp_path / "a.zarr").records:
        assert len(record.choice_logprobs) == len(record.choices) == 2
        assert record.choices[record.correct_choices[0]] in {"Yes", "No"}


def test_a_system_prompt_is_a_span_with_and_without_chat(extracted, tmp_path):
    for chat in ("off", "on"):
        store, _ = extracted(
            QUESTIONS[:1], generation=GIVEN, prompt={"system": "Be brief.", "chat": chat, "template": "bare"}
        )
        trace = store[0]
        is_system = trace.span_code == Span.SYSTEM
        assert is_system.sum() == len("Be brief.")
        (tmp_path / "a.zarr").rename(tmp_path / f"{chat}.zarr")


def test_the_prompt_template_is_the_data_sets_own_unless_one_is_asked_for():
    def template(**changes):
        return prompt_template_name(ExtractConfig.model_validate(changes))

    assert template() == "concise"
    assert template(dataset={"name": "ragtruth"}) == "published"
    assert template(dataset={"name": "ragtruth"}, prompt={"template": "bare"}) == "bare"
    assert template(dataset={"name": "my.csv"}) == "concise"


def test_the_users_own_file_is_known_by_its_content_and_not_by_its_path(model_folder, tmp_path):
    stored = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "mine.csv"
        path.write_text("ask,gold\nWhat is two?,2\nWhat is one?,1\n", encoding="utf-8")
        config = ExtractConfig.model_validate(
            {
                "model": {"name": str(model_folder), "threads": 1},
                "dataset": {"name": str(path), "fields": {"question": "ask", "answers": "gold"}},
                "generation": {"num_beams": 2, "max_new_tokens": 3},
            }
        )
        extract(config, tmp_path / f"{place}.zarr")
        stored.append(open_traces(tmp_path / f"{place}.zarr").configuration["dataset"])
    assert stored[0] == stored[1]
    assert stored[0]["name"] == "mine.csv"
    assert stored[0]["fields"] == {"question": "ask", "answers": "gold"}
    assert len(stored[0]["file_sha256"]) == 64
