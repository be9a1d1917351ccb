"""A program that writes a store part by part; the tests run it in order to kill it.

Usage: write_store.py PLACE N_PARTS [SHARD]
"""

import sys

from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.store import open_or_create

ARRAYS = ("token_ids", "span_code", "attention", "row_entropy", "hidden")
PART_SIZE = 3


def part(index):
    """Traces of a part, always the same, with question ids of their own."""
    traces, _ = planted_traces(PART_SIZE, seed=index)
    return [_named(trace, f"q{index * PART_SIZE + place}") for place, trace in enumerate(traces)]


def _named(trace, name):
    from dataclasses import replace

    record = replace(trace.record, trace_id=f"{name}#0", question_id=name, group_id=name)
    return replace(trace, record=record)


def write(place, n_parts, shard=None):
    """Write what the store does not have yet; a shard writes its own parts only."""
    store = open_or_create(
        place, configuration={"model": {"name": "planted"}}, shape=PLANTED_SHAPE, arrays=ARRAYS, provenance={}
    )
    number, n_shards = map(int, shard.split("/")) if shard else (1, 1)
    name = f"shard-{number}-of-{n_shards}" if shard else "main"
    with store.writer(name) as writer:
        done = writer.store.done_question_ids()
        for index in range(number - 1, n_parts, n_shards):
            names = [f"q{index * PART_SIZE + place}" for place in range(PART_SIZE)]
            if not done.issuperset(names):
                writer.write_part(index * PART_SIZE, part(index), names)


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
