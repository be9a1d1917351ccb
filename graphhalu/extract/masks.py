"""Masks by recipe: what a chunk of rows needs is built when it is needed.

Transformers builds one ``row x key`` mask for the whole sequence. Under the capture name it gets
a stand-in that carries how to build it, so that at long contexts no whole mask ever exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from graphhalu.errors import ModelRefusedError

_KEPT_BYTES: Final = 8 * 2**20
"""Masks of all chunks together are kept for the next layers if they are no larger than this."""


@dataclass(frozen=True)
class MaskRecipe:
    """Arguments from which transformers builds a mask.

    Attributes:
        arguments: What the mask function was called with.
    """

    arguments: Mapping[str, Any]
    _chunks: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)
    _whole: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    def rows(self, start: int, stop: int) -> Float[Tensor, "trace 1 row key"]:
        """The additive mask of rows ``start … stop - 1`` for the keys ``0 … stop - 1``."""
        if (start, stop) in self._chunks:
            return self._chunks[start, stop]
        build = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
        given = self.arguments
        mask: Tensor = build(
            **{
                **given,
                "q_offset": given.get("q_offset", 0) + start,
                "q_length": stop - start,
                "kv_length": stop,
                "attention_mask": _first_keys(given.get("attention_mask"), stop),
            }
        )
        if self._n_bytes(mask.element_size()) <= _KEPT_BYTES:
            self._chunks[start, stop] = mask
        return mask

    def whole(self, implementation: str) -> Tensor | None:
        """The mask of all rows as an attention implementation of transformers wants it."""
        if implementation not in self._whole:
            build = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
            self._whole[implementation] = build(**self.arguments)
        return self._whole[implementation]

    def _n_bytes(self, element_size: int) -> int:
        sizes = (self.arguments[name] for name in ("batch_size", "q_length", "kv_length"))
        n_bytes = element_size
        for size in sizes:
            n_bytes *= int(size)
        return n_bytes


def stand_in(*args: Any, **arguments: Any) -> Tensor:
    """The mask function of the capture name: a tensor without content that carries the recipe."""
    assert not args, "transformers gives masks their arguments by name"
    mask = torch.empty(0)
    mask.recipe = MaskRecipe(arguments)  # type: ignore[attr-defined]
    return mask


def recipe_of(mask: Tensor | None, kind: str) -> MaskRecipe:
    """The recipe that a model passed on as its mask.

    Raises:
        ModelRefusedError: If the model passes on something else than it was given.
    """
    recipe = getattr(mask, "recipe", None)
    if not isinstance(recipe, MaskRecipe):
        message = f"{kind} changes the attention mask before it attends"
        raise ModelRefusedError(message)
    return recipe


def _first_keys(
    padding: Bool[Tensor, "trace key"] | Any | None, stop: int
) -> Bool[Tensor, "trace key"] | Any | None:
    return padding[:, :stop] if isinstance(padding, Tensor) else padding
