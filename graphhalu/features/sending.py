"""How the workers of an engine come to the traces of the process that spreads the work."""

from collections.abc import Callable, Sequence
from functools import partial

from graphhalu.engine.executors import Executor, SerialExecutor
from graphhalu.traces.store import TraceStore, open_traces
from graphhalu.traces.trace import Trace


def opener(traces: Sequence[Trace], engine: Executor) -> Callable[[], Sequence[Trace]]:
    """Gives the same traces in a worker of this engine.

    Traces of a store are opened there, so every worker must reach it at the same path or address;
    traces in memory are sent.
    """
    if isinstance(engine, SerialExecutor):
        return lambda: traces
    if isinstance(traces, TraceStore):
        return partial(_opened, traces.name, traces.trace_ids)
    return partial(list, list(traces))


def _opened(name: str, trace_ids: tuple[str, ...]) -> Sequence[Trace]:
    """The traces with these identities; the store may have grown since."""
    store = open_traces(name)
    place = {trace_id: index for index, trace_id in enumerate(store.trace_ids)}
    return store.select([place[trace_id] for trace_id in trace_ids])
