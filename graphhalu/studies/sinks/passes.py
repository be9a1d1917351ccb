"""Passes of questions through a model that sum attention to the first tokens, and their journal.

Three kinds of questions need no generation. With *options* the model's own choice is the likeliest
letter. An *answer that the data set gives* is read by the model after the question; its label speaks of
the input. A question of which the data set says whether its *premise* is false is put as a choice between
yes and no: the model's choice and the data set's word give one label each.

Every window and query mode comes from one pass, whose attention is discarded chunk by chunk. NaN is
kept: a model that overflows gives a record that says so.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from graphhalu.core.axes import RowRange, Span
from graphhalu.core.errors import UsageError
from graphhalu.core.files import MAX_TABLE_BYTES, parse_json, read_bytes, reading
from graphhalu.datasets.question import LETTERS, Question
from graphhalu.extract.capture import capturing
from graphhalu.extract.extraction import grouped
from graphhalu.extract.forward import DeferredPass, Replayed, TokenSequence, body_below_head, read_likelihood
from graphhalu.extract.prompts import question_prompt, resolved_config
from graphhalu.labels.stated import likeliest
from graphhalu.models.load import LoadedModel
from graphhalu.studies.rows import require_same
from graphhalu.studies.sinks.records import QueryMode, SinkCell, SinkRecord, plain_record
from graphhalu.studies.sinks.settings import SinkMeasureConfig

Windows = Sequence[int | None]
_META_FIELDS: Final = ("category", "subject", "subset")
Kind = Literal["choice", "given", "premise", "generated"]
PREMISE_QUESTION: Final = "Does this question rest on a false premise?"


class SinkPrompt(NamedTuple):
    """One sequence to measure.

    Attributes:
        idx: Its number.
        question: As it is put to the model.
        place: Which of the given answers; 0 for all other kinds.
        sequence: Its tokens, and one token after them in place of the answer: the row before it
            is the last that is measured, and no row sees later tokens.
    """

    idx: int
    question: Question
    place: int
    sequence: TokenSequence


def kind_of(questions: Sequence[Question], name: str) -> Kind:
    """Kind of the questions of a data set.

    Raises:
        UsageError: If they are of several kinds.
    """
    kinds = set[Kind]()
    for question in questions:
        premise: Kind = "generated" if question.input_label is None else "premise"
        kinds.add("choice" if question.choices else "given" if question.given else premise)
    if len(kinds) > 1:
        fault = f"the questions of {name} are of several kinds ({', '.join(sorted(kinds))})"
        raise UsageError(f"{fault}, and one run asks them all alike\n  Split the file by kind")
    return kinds.pop()


def sink_prompts(
    questions: Sequence[Question], kind: Kind, config: SinkMeasureConfig, loaded: LoadedModel
) -> tuple[list[SinkPrompt], list[str]]:
    """Every sequence to measure, and why a question, or a given answer of it, has none.

    Raises:
        UsageError: If the settings do not fit the data set or the model.
    """
    settings = config.model_copy(update={"max_new_tokens": 1})
    extraction = resolved_config(settings.extraction("given" if kind == "given" else "generated"), loaded)
    prompts, failures = list[SinkPrompt](), list[str]()
    for question in questions:
        shown = replace(question, examples=question.examples[: config.n_examples])
        prompt = question_prompt(as_choice(shown) if kind == "premise" else shown, extraction, loaded)
        failures += prompt.failures
        answers = [(each.rank, each.token_ids) for each in prompt.answers]
        for place, answer in answers or [(0, ())] * bool(prompt.length):
            ids = np.array([*prompt.encoded.token_ids, *answer], dtype=np.int32)
            after, n = np.full(len(answer) + 1, Span.ANSWER, dtype=np.uint8), len(ids)
            codes = np.append(prompt.encoded.span_code, after)
            sequence = TokenSequence(np.append(ids, ids[-1]), codes, n, n - 1, prompt.option_ids)
            prompts.append(SinkPrompt(len(prompts), prompt.question, place, sequence))
    return prompts, failures


def as_choice(question: Question) -> Question:
    """Yes or no to a false premise, in an order that depends on the question's id alone."""
    digest = hashlib.sha256(f"{question.question_id}\npremise".encode()).digest()
    choices = ("Yes", "No") if digest[0] % 2 else ("No", "Yes")
    right = choices.index("Yes" if question.input_label else "No")
    text = f"{question.text}\n{PREMISE_QUESTION}"
    return replace(question, text=text, choices=choices, correct_choices=(right,))


def sink_fields(
    k: int, mode: QueryMode, values: Float[np.ndarray, "layer head"], is_seen: Bool[np.ndarray, "layer"]
) -> dict[str, Any]:
    """Sink mass of one sequence as fields of its record.

    Args:
        k: Leading tokens that form the sink.
        mode: Which rows count.
        values: Mean attention of these rows to the sink, in [0, 1]; NaN where the model gave NaN,
            0 where no row counts.
        is_seen: Layers in which at least one row counts.

    Returns:
        Beside them ``sink_mass``, the mean over heads, then over the layers that can see the sink;
        NaN without such a layer.
    """
    by_layer = values.mean(axis=1)[is_seen]
    mass = float(by_layer.mean()) if by_layer.size else float("nan")
    return {"sink_tokens": k, "query_mode": mode, "by_head": values, "is_seen": is_seen, "sink_mass": mass}


class SinkObserver:
    """Sums attention to the first tokens over the rows that count.

    A row counts if it comes after the sink and sees all of it: rows ``i < K`` can look at little
    else, and a row further than a sliding window away cannot look at the sink.

    Args:
        last: The last row of each sequence, which the mode ``last`` counts; padding is on the
            right.
        cells: Sinks with query modes, several at once.
        start: First row that may count in the mode ``range``.
        windows: Sliding window of each layer, or ``None``.
        n_heads: Heads of a layer.
    """

    def __init__(
        self, last: Sequence[int], cells: Sequence[SinkCell], *, start: int, windows: Windows, n_heads: int
    ) -> None:
        self.last, self.start, self.windows = torch.tensor(last), start, tuple(windows)
        has_range = any(mode == "range" for _, mode in cells)
        self.wanted = RowRange(min(start, *last) if has_range else min(last), max(last) + 1)
        size = (len(self.windows), len(last), n_heads)
        self.sums = {c: (torch.zeros(size, dtype=torch.float64), torch.zeros(size[:2])) for c in cells}

    def wanted_rows(self, layer: int) -> RowRange | None:
        """From the first row that counts anywhere to the last."""
        return self.wanted

    def rows(self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]) -> None:
        """Add a chunk of rows."""
        stop = row_start + weights.shape[2]
        position, last = torch.arange(row_start, stop), self.last[:, None]
        is_asked = {"last": position == last, "range": (position >= self.start) & (position <= last)}
        for (k, mode), (total, count) in self.sums.items():
            sees_sink = (position >= k) & (position < (self.windows[layer] or stop))
            counts = is_asked[mode] & sees_sink
            if bool(counts.any()):
                share = weights[..., :k].float().sum(-1).cpu()
                kept = torch.where(counts[:, None], share, torch.zeros(()))
                total[layer] += kept.double().sum(-1)
                count[layer] += counts.sum(-1)

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Value vectors play no part."""

    def mass(self, index: int, k: int, mode: QueryMode) -> dict[str, Any]:
        """The sink mass of one sequence, as :func:`sink_fields` gives it."""
        total, count = (part[:, index] for part in self.sums[k, mode])
        mean = total / count.clamp_min(1)[:, None]
        return sink_fields(k, mode, mean.numpy(), (count > 0).numpy())


def measure_prompts(
    prompts: Sequence[SinkPrompt], loaded: LoadedModel, config: SinkMeasureConfig, run: Mapping[str, Any]
) -> Iterator[list[SinkRecord]]:
    """Records of each sequence, one a cell; those of about equal length go together.

    Args:
        prompts: The sequences.
        loaded: The model.
        config: Sinks, query rows and size of a batch.
        run: Description of the run.
    """

    def fits(batch: list[SinkPrompt]) -> bool:
        return len(batch) * batch[-1].sequence.length <= config.batch_tokens

    for batch in grouped(sorted(prompts, key=lambda prompt: prompt.sequence.length), fits):
        for prompt, likely, masses in _observed(batch, loaded, config):
            fields = _about(prompt, likely, run)
            yield [SinkRecord.of(run, **mass, **fields) for mass in masses]


@torch.inference_mode()
def _observed(
    batch: Sequence[SinkPrompt], loaded: LoadedModel, config: SinkMeasureConfig
) -> list[tuple[SinkPrompt, Replayed, list[dict[str, Any]]]]:
    """One pass over a batch that is padded on the right: likelihoods, and the sink masses of each cell."""
    model, sequences = loaded.model, [prompt.sequence for prompt in batch]
    device = next(model.parameters()).device
    lengths = torch.tensor([each.length for each in sequences], device=device)
    how: dict[str, Any] = {"start": config.query_start, "windows": loaded.layer_windows}
    observer = SinkObserver((lengths - 2).tolist(), config.cells, **how, n_heads=loaded.n_heads)
    tokens = [torch.from_numpy(each.token_ids.astype(np.int64)) for each in sequences]
    token_ids = pad_sequence(tokens, batch_first=True).to(device)
    position = torch.arange(token_ids.shape[1], device=device).expand(len(batch), -1)
    # found by a pass of its own, whose attention must not be observed
    body = body_below_head(model)
    inputs = {"input_ids": token_ids, "position_ids": position}
    inputs["attention_mask"] = (position < lengths[:, None]).long()
    with capturing(model, observer):
        done = DeferredPass(model, body, **inputs, use_cache=False)
    masses = [[observer.mass(index, *cell) for cell in observer.sums] for index in range(len(batch))]
    return list(zip(batch, read_likelihood(done, sequences), masses, strict=True))


def _about(prompt: SinkPrompt, likely: Replayed, run: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in all records of a sequence."""
    question, right = prompt.question, prompt.question.correct_choices
    found, is_given = likeliest(likely.option_logprobs), run["pose"] == "given"
    pred = found if isinstance(found, int) else None
    stated = question.given[prompt.place].is_hallucinated if is_given else question.input_label
    meta: dict[str, Any] = {"question_id": question.question_id, "group_id": question.group_id}
    meta |= {"source": run["dataset"], "pose": run["pose"], "place": prompt.place}
    known = {key: question.metadata[key] for key in _META_FIELDS if key in question.metadata}
    return {
        "idx": prompt.idx,
        "target": None if is_given else ",".join(LETTERS[place] for place in right),
        "pred": None if pred is None else LETTERS[pred],
        "labels": {"hallucinated": None if pred is None else pred not in right, "input": stated},
        "entropy": float(likely.arrays["token_entropy"][-1]),
        "seq_len": prompt.sequence.prompt_length,
        "meta": {**meta, **known},
    }


class Journal:
    """Records so far, from which a killed run resumes.

    A file of JSON lines: the identity of the run, then all records of one sequence a line.

    Args:
        path: The file; it is made if it is not there.
        identity: Model, data and settings of the run; plain JSON values.

    Attributes:
        done: Records by number of the sequence.

    Raises:
        StoreMismatchError: If the file belongs to another run; names the fields.
        DataFileError: If it is not a journal, or cannot be read.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.done = path, dict[int, list[SinkRecord]]()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append([identity])
            return
        with reading(f"{path} is not a journal of a measurement", way_out="Delete it"):
            lines = read_bytes(path, MAX_TABLE_BYTES).decode("utf-8").splitlines(keepends=True)
            # a line without an end was being written when the run was killed
            whole = [line for line in lines if line.endswith("\n")]
            head, *rows = (parse_json(line, allows_nan=True) for line in whole)
            require_same(dict(head), identity, path)
            found = [[SinkRecord.model_validate(values) for values in row] for row in rows]
            self.done = {records[0].idx: records for records in found}
        if len(whole) < len(lines):
            path.write_text("".join(whole), encoding="utf-8")

    def add(self, measured: Iterable[list[SinkRecord]]) -> None:
        """Append the records of sequences, in one write."""
        found = list(measured)
        self._append([plain_record(record) for record in records] for records in found)
        self.done |= {records[0].idx: records for records in found}

    def _append(self, lines: Iterable[Any]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with reading(f"{self.path} cannot be written"), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
