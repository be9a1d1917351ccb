"""The specification of the store says what is true."""

import re
from pathlib import Path

import numpy as np

import graphhalu.traces
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.schema import ARRAYS, FORMAT, FORMAT_VERSION
from graphhalu.traces.store import TraceStore

TEXT = (Path(graphhalu.traces.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")


def test_the_example_reads_the_attention_of_a_trace(tmp_path):
    traces, _ = planted_traces(3)
    path = tmp_path / "a.zarr"
    store = TraceStore.create(path, configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names = {"PATH": str(path)}
    exec(compile(code, "FORMAT.md", "exec"), names)
    np.testing.assert_array_equal(names["square"], traces[1].attention(2))


def test_every_array_has_its_row_with_axes_and_format():
    for spec in ARRAYS.values():
        row = next(line for line in TEXT.splitlines() if f"`{spec.name}`" in line and "|" in line)
        assert f"| {', '.join(spec.axes)} | {spec.dtype} |" in row


def test_the_format_and_its_version_are_named():
    assert f"`{FORMAT}`" in TEXT
    assert f"`format_version` ({FORMAT_VERSION})" in TEXT
