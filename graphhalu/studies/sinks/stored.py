"""Sink mass from a trace store: no model is run again if row statistics are kept.

An answer of the model's own is measured at the row that begins it (mode ``last``), the last row
that the model saw before it answered, or over all stored rows after the sink (mode ``range``). A
given answer, whose label speaks of it, is measured after its last token.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from graphhalu.core.errors import UsageError
from graphhalu.core.provenance import provenance
from graphhalu.datasets.registry import DATASETS
from graphhalu.extract.run import extract
from graphhalu.features.block import TraceBlock, blocks
from graphhalu.features.sinks import row_sink_share
from graphhalu.labels.labels import Labels
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_records, read_labels, stored_labellers
from graphhalu.studies.sinks.passes import SinkMass, record_of
from graphhalu.studies.sinks.records import (
    FORMAT,
    FORMAT_VERSION,
    MeasuredRun,
    QueryMode,
    SinkRecord,
    SinkRun,
    run_name,
    run_stem,
    write_run,
)
from graphhalu.studies.sinks.settings import SinkMeasureConfig
from graphhalu.traces.schema import N_SINK_KEYS, TraceRecord
from graphhalu.traces.store import TraceStore, open_traces

DEFAULT_RULE: Final = "match"
_RULES: Final = ("match", "choice", "given", "premise", "rouge")
_LOG: Final = logging.getLogger(__name__)


def measure_generated(config: SinkMeasureConfig, folder: Path) -> list[MeasuredRun]:
    """Let the model answer in words into a trace store of row statistics, and read the store.

    Raises:
        UsageError: If a window is larger than a store keeps.
        GraphhaluError: From the extraction.
    """
    _check_ks(config.ks)
    path = folder / f"{run_stem(config.task, Path(config.model.name).name)}.zarr"
    _LOG.info("the model answers in words: traces go to %s", path)
    extract(config.extraction(), path)
    return measure_store(path, folder, config)


def measure_store(
    path: Path, folder: Path, config: SinkMeasureConfig, *, labeller: str | None = None
) -> list[MeasuredRun]:
    """Write the records of a trace store, one file for each window and query mode.

    Args:
        path: The store; it keeps ``sink_keys`` and ``token_entropy``.
        folder: Folder of the files.
        config: Windows and query modes; settings of the model play no part.
        labeller: Rule of the label of the model's own output; by default that of the data set.

    Raises:
        UsageError: If a window is larger than a store keeps.
        StoreError: If there is no such store.
        TraceNotFoundError: If it keeps no sinks.
    """
    _check_ks(config.ks)
    store = open_traces(path)
    if labeller is None:
        name = str(store.configuration.get("dataset", {}).get("name", ""))
        rule = DATASETS.get(name).card.label_rule if name in DATASETS else DEFAULT_RULE
        labeller = rule if rule in _RULES else DEFAULT_RULE
    if labeller in stored_labellers(store):
        labels = read_labels(store, labeller)
    else:
        labels = label_records(store.records, make_labeller(labeller))
    return [
        MeasuredRun.of(write_run(folder, run), run, is_new=True, cpu_s=0.0)
        for run in store_runs(store, labels, config)
    ]


def store_runs(store: TraceStore, labels: Labels, config: SinkMeasureConfig) -> Iterator[SinkRun]:
    """The runs of a store in memory."""
    configuration = store.configuration
    model, prompt = configuration.get("model", {}), configuration.get("prompt", {})
    name = str(configuration.get("dataset", {}).get("name") or store.path.stem)
    source = {
        "task": name.split(".", maxsplit=1)[0],
        "model": str(model.get("name") or "unknown"),
        "chat": "on" if prompt.get("chat") else "off",
        "quantization": str(model.get("quantization") or "none"),
    }
    for k in config.ks:
        for mode in config.modes:
            cell = {"sink_tokens": k, "query_mode": mode, "query_start": config.query_start}
            records = _records(store, labels, {**source, **cell})
            meta = {
                **source,
                **cell,
                "dataset": source["task"],
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "pose": "generated",
                "configuration": dict(configuration),
                "provenance": provenance(),
                "labeller": labels.labeller,
                "n_records": len(records),
                "n_failed": dict(Counter(item["reason"] for item in store.failures)),
            }
            yield SinkRun(records, meta, run_name(source["task"], source["model"], k, mode))


def _records(store: TraceStore, labels: Labels, run: Mapping[str, Any]) -> tuple[SinkRecord, ...]:
    mode, is_output = run["query_mode"], labels.meaning == "hallucinated"
    found: dict[int, SinkRecord] = {}
    for placed in blocks(store):
        block = placed.block
        masses = block_mass(block, run["sink_tokens"], mode, run["query_start"])
        # of the distribution that gave the first token of an own answer, or the last of a given one
        rows = np.array([r.prompt_length if r.is_on_policy else r.length - 1 for r in block.records])
        entropy = block.stream("token_entropy")[block.tokens.offsets[:-1] + rows]
        for index, within in zip(placed.indices.tolist(), placed.within.tolist(), strict=True):
            record, mass = block.records[within], masses[within]
            stated = record.input_label if record.given_label is None else record.given_label
            is_known = is_output and bool(labels.is_valid[index])
            found[index] = record_of(
                mass,
                run,
                idx=index,
                target=record.answers[0] if record.answers else None,
                pred=record.answer,
                labels={
                    "hallucinated": int(labels.values[index]) if is_known else None,
                    "input": None if stated is None else int(stated),
                },
                entropy=float(entropy[within]),
                seq_len=record.length if mode == "range" else _last(record) + 1,
                meta={
                    "question_id": record.question_id,
                    "group_id": record.group_id,
                    "source": run["task"],
                    "trace_id": record.trace_id,
                },
            )
    return tuple(found[index] for index in sorted(found))


def block_mass(block: TraceBlock, k: int, mode: QueryMode, query_start: int = 0) -> list[SinkMass]:
    """Sink mass of every trace of a block."""
    rows = block.all_rows
    share = row_sink_share(rows, k)
    last = np.array([_last(record) for record in block.records], dtype=np.int64)
    chosen = rows.token == last[rows.ragged.trace] if mode == "last" else rows.token >= query_start
    counts: Bool[np.ndarray, "layer row"] = share.is_defined & chosen
    mass = rows.ragged.mean(share.values, counts[:, None])
    is_seen = rows.ragged.sum(counts) > 0
    return [SinkMass(k, mode, values, seen) for values, seen in zip(mass, is_seen, strict=True)]


def _last(record: TraceRecord) -> int:
    """The row of the mode ``last``."""
    return record.prompt_length - 1 if record.is_on_policy else record.length - 1


def _check_ks(ks: Sequence[int]) -> None:
    if max(ks) > N_SINK_KEYS:
        raise UsageError(
            f"a trace store keeps the first {N_SINK_KEYS} tokens, a sink of {max(ks)} was asked "
            f"for\n  Use --k up to {N_SINK_KEYS}, or a data set whose questions have options"
        )
