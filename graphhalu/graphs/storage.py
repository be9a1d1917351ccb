"""Built graphs in contiguous tensors: a block of neighbouring traces at a time, built once.

The first blocks stay in memory, up to a limit; further ones lie in files that are mapped into
memory, so that a data set larger than the memory is built once too. A file is safetensors with a
checksum of its content in the header; one that does not fit its checksum counts as absent.
"""

import copy
import hashlib
import json
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.collate import collate
from torch_geometric.data.separate import separate

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.core.files import MALFORMED, parse_json, replace_file
from graphhalu.graphs.build import TokenGraph, iter_graphs
from graphhalu.graphs.edges import GraphRecipe
from graphhalu.traces.part import LazyArray
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

BLOCK_TRACES: Final = 32
"""Traces that are built and kept together."""
MEMORY_BYTES: Final = 2**30
"""Graphs of one recipe that stay in memory; further ones are mapped from files."""
FORMAT: Final = "graphhalu-graphs"
FORMAT_VERSION: Final = 3


Names = tuple[tuple[str, ...], tuple[str, ...]]


class TokenGraphData(Data):
    """A token graph; indices of traces and layers stay as they are in a batch."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What a batch adds: PyG shifts every attribute with ``index`` in its name."""
        is_fixed = key in {"trace_index", "layer_index"}
        return 0 if is_fixed else super().__inc__(key, value, *args, **kwargs)


class _Block(NamedTuple):
    """Graphs of some traces in contiguous tensors.

    Attributes:
        first_graph: Graphs before those of each trace; a trace without any is in ``failures``.
        question_ids: Question of each trace.
        failures: Why a trace has no graph, by its place in the block.
        names: Columns of ``x`` and of ``edge_attr``.
        data: All graphs side by side; ``None`` where no trace gave any.
        slices: Where each graph starts, for each attribute.
        n_bytes: Bytes in memory; 0 for a block that is mapped from a file.
        separated: Graphs that were asked for before, as views of the tensors; ``None`` where they are
            mapped from a file, of which nothing stays in memory.
    """

    first_graph: list[int]
    question_ids: list[str]
    failures: Mapping[int, GraphhaluError]
    names: Names
    data: Data | None = None
    slices: Mapping[str, Tensor] = {}
    n_bytes: int = 0
    separated: dict[int, Data] | None = None

    def graph(self, number: int) -> Data:
        """One graph; a copy that shares the tensors."""
        if self.separated is not None and number in self.separated:
            return copy.copy(self.separated[number])
        found = separate(TokenGraphData, self.data, idx=number, slice_dict=self.slices, decrement=False)
        found.edge_attr = found.edge_attr.float()
        if self.separated is None:
            return found
        self.separated[number] = found
        return copy.copy(found)


class GraphStorage:
    """The graphs of a sequence of traces by one recipe.

    Args:
        layers: Model layers.
        recipe: How edges and node features are chosen.
        folder: Where every block is kept; by default only those beyond the limit go to files, in
            a temporary folder.
        memory_bytes: Blocks that stay in memory.
    """

    def __init__(
        self,
        layers: Sequence[int],
        recipe: GraphRecipe,
        *,
        folder: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.layers, self.recipe, self.folder = tuple(layers), recipe, folder
        self.memory_bytes = memory_bytes
        self.n_bytes = 0
        self.names: Names = ((), ())
        """Columns of ``x`` and of ``edge_attr``, known from the first graph on."""
        self._blocks: dict[int, _Block] = {}
        self._temporary: Path | None = None

    @property
    def graphs_per_trace(self) -> int:
        """One a layer in the view ``layers``, else one."""
        return len(self.layers) if self.recipe.view == "layers" else 1

    def get(self, traces: Sequence[Trace], trace_index: int, place: int = 0) -> Data:
        """One graph of a trace, as views of the block's tensors.

        Args:
            traces: The same sequence at every call.
            trace_index: Which trace.
            place: Which of its graphs.

        Raises:
            GraphhaluError: Why the trace has no graph; see
                :func:`graphhalu.graphs.build.build_graphs`.
        """
        number, within = divmod(trace_index, BLOCK_TRACES)
        if number not in self._blocks:
            made = self._blocks[number] = self._made(traces, number)
            self.n_bytes += made.n_bytes
            self.names = made.names if made.names[0] else self.names
        block = self._blocks[number]
        if within in block.failures:
            raise block.failures[within]
        data = block.graph(block.first_graph[within] + place)
        data.trace_index = trace_index
        data.question_id = block.question_ids[within]
        return data

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: built blocks do not go along."""
        return {**self.__dict__, "_blocks": {}, "_temporary": None, "n_bytes": 0}

    def _made(self, traces: Sequence[Trace], number: int) -> _Block:
        first = number * BLOCK_TRACES
        members = range(first, min(first + BLOCK_TRACES, len(traces)))
        path = None if self.folder is None else self.folder / self._name(traces, members)
        block = None if path is None else _read(path)
        if block is None:
            block = _block(traces, members, self.layers, self.recipe)
            if path is None and self.n_bytes + block.n_bytes > self.memory_bytes:
                path = self._temporary_folder() / f"{number}.safetensors"
            if path is not None:
                _write(path, block)
                block = _read(path) or block
        return block

    def _name(self, traces: Sequence[Trace], members: range) -> str:
        """A file name by the content of the parts that the traces lie in, layers and recipe.

        Raises:
            UsageError: If a trace is of no store.
        """
        digest = hashlib.sha256(
            json.dumps([FORMAT_VERSION, list(self.layers), self.recipe.digest()]).encode()
        )
        for index in members:
            trace = traces[index]
            array = next(iter(trace.arrays.values()), None)
            if not isinstance(array, LazyArray):
                raise UsageError(
                    f"graphs are cached by the store that their trace lies in; trace "
                    f"{trace.trace_id!r} is in memory\n  Leave cache=… out, or open a store"
                )
            files = sorted((name, meta["sha256"]) for name, meta in array.part.commit.files.items())
            digest.update(json.dumps([trace.trace_id, files]).encode())
        return f"{digest.hexdigest()[:32]}.safetensors"

    def _temporary_folder(self) -> Path:
        if self._temporary is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="graphhalu-graphs-"))
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        return self._temporary


_SHARED: Final[weakref.WeakKeyDictionary[TraceStore, dict[Any, GraphStorage]]] = weakref.WeakKeyDictionary()


def storage_of(
    traces: Sequence[Trace], layers: Sequence[int], recipe: GraphRecipe, folder: Path | None = None
) -> GraphStorage:
    """The storage of these graphs: of an open store the same for every data set, fold and detector.

    Args:
        traces: A store, or traces in memory, which share nothing.
        layers: Model layers.
        recipe: How edges and node features are chosen.
        folder: As of :class:`GraphStorage`.
    """
    if not isinstance(traces, TraceStore):
        return GraphStorage(layers, recipe, folder=folder)
    made = GraphStorage(layers, recipe, folder=folder)
    return _SHARED.setdefault(traces, {}).setdefault((made.layers, recipe, folder), made)


OF_NODE: Final = ("x", "is_answer", "is_readout", "span", "token_id", "layer_index", "kept_mass")
"""Attributes of a graph with one entry a node."""


def _graph_data(graph: TokenGraph, place: int) -> TokenGraphData:
    is_answer = torch.from_numpy(graph.is_answer)
    return TokenGraphData(
        x=torch.from_numpy(graph.x),
        edge_index=torch.from_numpy(graph.edge_index),
        edge_attr=torch.from_numpy(graph.edge_attr),
        is_answer=is_answer,
        # the row of the last prompt token produces the first answer token
        is_readout=is_answer | torch.cat([is_answer[1:], is_answer.new_zeros(1)]),
        span=torch.from_numpy(graph.span).long(),
        token_id=torch.from_numpy(graph.token_id),
        layer_index=torch.full((len(graph.x),), place),
        kept_mass=torch.from_numpy(graph.kept_mass),
    )


def _block(traces: Sequence[Trace], members: range, layers: Sequence[int], recipe: GraphRecipe) -> _Block:
    """The graphs of some traces, or why a trace has none."""
    names: Names = ((), ())
    graphs: list[TokenGraphData] = []
    first_graph: list[int] = []
    failures: dict[int, GraphhaluError] = {}
    while len(first_graph) < len(members):
        try:
            for _, built in iter_graphs(traces, layers, recipe, members[len(first_graph) :]):
                first_graph.append(len(graphs))
                names = (built[0].node_feature_names, built[0].edge_feature_names)
                data = [_graph_data(graph, place) for place, graph in enumerate(built)]
                if recipe.view == "stacked":  # the layers side by side
                    data = [collate(TokenGraphData, data, increment=True, add_batch=False)[0]]
                graphs += data
        except GraphhaluError as error:
            # its traceback would keep the arrays of the block
            failures[len(first_graph)] = error.with_traceback(None)
            first_graph.append(len(graphs))
    block = _Block(first_graph, [traces[index].record.question_id for index in members], failures, names)
    if not graphs:
        return block
    data, slices, _ = collate(TokenGraphData, graphs, increment=False, add_batch=False)
    n_bytes, half = sum(value.nbytes for value in data.to_dict().values()), data.edge_attr.half()
    if torch.equal(half.float(), data.edge_attr):
        # half precision where that loses nothing, as with attention that was stored so; graphs that are
        # asked for are kept in single precision beside it
        data.edge_attr, n_bytes = half, n_bytes + half.nbytes
    return block._replace(data=data, slices=slices, n_bytes=n_bytes, separated={})


def _write(path: Path, block: _Block) -> None:
    tensors = {} if block.data is None else dict(block.data.to_dict())
    tensors |= {f"slices.{name}": value for name, value in block.slices.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    kept = {name: getattr(block, name) for name in ("names", "first_graph", "question_ids")}
    failures = [[place, str(error)] for place, error in block.failures.items()]
    about = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **kept, "failures": failures})
    metadata = {"about": about, "crc32": str(_checksum(about, tensors))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(tensors, metadata))
    except OSError as error:
        raise UsageError(
            f"graphs cannot be kept in {path.parent}: {error.strerror}\n"
            f"  Make room there, or name another folder: cache=… or TMPDIR"
        ) from None


def _read(path: Path) -> _Block | None:
    """The block in a file, mapped into memory; ``None`` if there is none that is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if int(metadata["crc32"]) != _checksum(metadata["about"], tensors):
            return None
        about = parse_json(metadata["about"])
        slices = {n.partition(".")[2]: v for n, v in tensors.items() if n.startswith("slices.")}
        data = TokenGraphData.from_dict({name: tensors[name] for name in slices}) if slices else None
        failures = {int(place): GraphhaluError(reason) for place, reason in about["failures"]}
        nodes, edges = (tuple(map(str, names)) for names in about["names"])
        questions = list(map(str, about["question_ids"]))
        return _Block(list(about["first_graph"]), questions, failures, (nodes, edges), data, slices)
    except (OSError, SafetensorError, *MALFORMED):
        return None


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> int:
    value = zlib.crc32(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), value)
        value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return value
