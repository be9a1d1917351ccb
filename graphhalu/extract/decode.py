"""Decoding steps for all beams of a question at once.

The beams of a question share its prompt, and most of them share their first answer tokens. So a
question is one sequence of the batch: its prompt is prefilled once, the beams are the query
positions of a step, and a mask lets every beam see its own ancestors only. Nothing in the cache
is ever repeated or reordered.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from graphhalu.extract.capture import own_eager_attention
from graphhalu.extract.forward import Replayed
from graphhalu.models.attention import attention_implementation, is_on_interface
from graphhalu.models.load import token_positions

DECODE_NAME: Final = "graphhalu_decode"

GROWTH: Final = 64
"""Positions by which a layer's buffers grow when they are full."""


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in buffers that grow, so that a step copies only itself."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new positions and return all of them as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.n_used = 0
            self.buffers = [states[:, :, :0] for states in (key_states, value_states)]
        start, self.n_used = self.n_used, self.n_used + key_states.shape[2]
        new = zip(self.buffers, (key_states, value_states), strict=True)
        self.buffers = [_appended(buffer, states, start) for buffer, states in new]
        self.keys, self.values = (buffer[:, :, : self.n_used] for buffer in self.buffers)
        return self.keys, self.values

    def keep(self, questions: Sequence[int]) -> None:
        """Drop the others; what has its place already is not copied."""
        moved = [place for place, question in enumerate(questions) if place != question]
        for buffer in self.buffers if moved else ():
            buffer[moved, :, : self.n_used] = buffer[[questions[place] for place in moved], :, : self.n_used]
        self._replace([buffer[: len(questions)] for buffer in self.buffers], self.n_used)

    def join(self, other: "GrowingLayer") -> None:
        """Add the sequences of another cache; the shorter ones are padded on the left."""
        n_used = max(self.n_used, other.n_used)
        pairs = zip(self.buffers, other.buffers, strict=True)
        joined = [
            torch.cat([_padded(a, self.n_used, n_used), _padded(b, other.n_used, n_used)]) for a, b in pairs
        ]
        self._replace(joined, n_used)

    def trim(self, n_positions: int) -> None:
        """Take away the first positions, which are padding in every sequence."""
        self._replace([buffer[:, :, n_positions:] for buffer in self.buffers], self.n_used - n_positions)

    def _replace(self, buffers: list[Tensor], n_used: int) -> None:
        self.buffers, self.n_used = buffers, n_used
        self.keys, self.values = (buffer[:, :, :n_used] for buffer in buffers)


def _padded(buffer: Tensor, n_used: int, n_wanted: int) -> Tensor:
    return nn.functional.pad(buffer[:, :, :n_used], (0, 0, n_wanted - n_used, 0))


def _appended(buffer: Tensor, states: Tensor, start: int) -> Tensor:
    stop = start + states.shape[2]
    if stop > buffer.shape[2]:
        n_positions = buffer.shape[2] + states.shape[2] + GROWTH
        larger = states.new_empty(*states.shape[:2], n_positions, states.shape[3])
        larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start:stop] = states
    return buffer


class PromptPass(NamedTuple):
    """A prompt that has run, behind which answers are searched for and replayed.

    Attributes:
        result: What is kept of its rows, or why they failed.
        keys_values: Keys and values of each layer, ``1 kv_head key channel``.
        logits: After its last token.
    """

    result: Replayed
    keys_values: tuple[tuple[Tensor, Tensor], ...]
    logits: Float[Tensor, "vocabulary"]


def joined_cache(passes: Sequence[PromptPass]) -> Cache:
    """The keys and values of several prompts, padded on the left, in a cache of their own."""
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    for layer, of_prompts in enumerate(zip(*(each.keys_values for each in passes), strict=True)):
        for_all = []
        for states in zip(*of_prompts, strict=True):
            n_keys = max(each.shape[2] for each in states)
            for_all.append(torch.cat([_padded(each, each.shape[2], n_keys) for each in states]))
        cache.update(*for_all, layer)
    return cache


class Decoder:
    """A batch of questions whose beams take one step after another.

    Args:
        model: A causal language model on the attention interface.
        layer_windows: Sliding window of each model layer, or ``None``.
        n_beams: Beams a question.
    """

    def __init__(self, model: Any, layer_windows: tuple[int | None, ...], n_beams: int) -> None:
        self.model = model
        self.windows = tuple(sorted({w for w in layer_windows if w is not None}))
        self.has_full_layers = None in layer_windows
        self.n_beams = n_beams
        config = model.config.get_text_config()
        n_heads = getattr(config, "num_attention_heads", 1)
        self.n_groups = max(1, n_heads // (getattr(config, "num_key_value_heads", None) or n_heads))

    def prefill(
        self, token_ids: Int[Tensor, "question token"], is_token: Bool[Tensor, "question token"]
    ) -> Float[Tensor, "question vocabulary"]:
        """Run left-padded prompts once.

        Returns:
            Logits after the last prompt token.
        """
        self.begin(Cache(layer_class_to_replicate=GrowingLayer), is_token)
        output = self._forward(token_ids, is_token.long(), self.positions.clamp(min=0), logits_to_keep=1)
        return output.logits[:, -1]

    def begin(self, cache: Cache, is_token: Bool[Tensor, "question token"]) -> None:
        """Go on behind left-padded prompts.

        Args:
            cache: Their keys and values; those of the beams are added to it.
            is_token: Which positions are tokens.
        """
        self.cache = cache
        positions = token_positions(is_token)
        self.positions = torch.where(is_token, positions, -1)
        self.n_prompt = is_token.shape[1]
        self.next_position = positions[:, -1:].expand(-1, self.n_beams) + 1
        self.is_visible = is_token[:, None].expand(-1, self.n_beams, -1)

    def step(
        self, parents: Int[Tensor, "question beam"], token_ids: Int[Tensor, "question beam"]
    ) -> Float[Tensor, "question beam vocabulary"]:
        """Feed the newest token of every beam, inside :func:`decoding`.

        Args:
            parents: The beam that each beam continues.
            token_ids: Its newest token.

        Returns:
            Logits of the token after it.
        """
        own = torch.eye(self.n_beams, dtype=torch.bool, device=token_ids.device)
        own = own.expand(len(token_ids), -1, -1)
        inherited = self.is_visible.take_along_dim(parents[:, :, None], dim=1)
        self.is_visible = torch.cat([inherited, own], dim=2)
        positions = self.next_position
        self.positions = torch.cat([self.positions, positions], dim=1)
        self.next_position = self.next_position + 1
        return self._forward(token_ids, self._masks(), positions).logits

    def restart(self, beams: Bool[Tensor, "question beam"]) -> None:
        """Let some beams begin anew behind the prompt; what they fed before is out of their sight."""
        is_answer = torch.arange(self.is_visible.shape[2], device=beams.device) >= self.n_prompt
        self.is_visible = self.is_visible & ~(beams[:, :, None] & is_answer)
        first = self.positions[:, self.n_prompt - 1, None] + 1
        self.next_position = torch.where(beams, first, self.next_position)

    def keep(self, questions: Sequence[int]) -> None:
        """Drop the questions that are done; the others come in the order of ``questions``."""
        for layer in self.cache.layers:
            layer.keep(questions)
        self.positions = self.positions[questions]
        self.next_position = self.next_position[questions]
        self.is_visible = self.is_visible[questions]

    def _forward(self, token_ids: Tensor, mask: Any, positions: Tensor, **settings: Any) -> Any:
        given = {"input_ids": token_ids, "attention_mask": mask, "position_ids": positions}
        return self.model(**given, past_key_values=self.cache, use_cache=True, **settings)

    def _masks(self) -> Tensor | dict[str, Tensor]:
        if not self.windows:
            return self._additive(self.is_visible)
        newest = self.next_position[:, :, None] - 1
        near = self.is_visible & (newest - self.positions[:, None] < self.windows[0])
        if not self.has_full_layers:
            return self._additive(near)
        return {"full_attention": self._additive(self.is_visible), "sliding_attention": self._additive(near)}

    def _additive(
        self, is_visible: Bool[Tensor, "question beam key"]
    ) -> Float[Tensor, "question 1 beam key"]:
        dtype = self.model.dtype
        mask = torch.where(is_visible, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
        # made once for all layers
        mask.of_groups = mask.repeat(1, 1, self.n_groups, 1)  # type: ignore[attr-defined]
        return mask


@contextmanager
def decoding(model: Any) -> Iterator[None]:
    """Give the model the attention of decoding steps, then restore its own.

    A model off the attention interface keeps its own.
    """
    if not is_on_interface(model):
        yield
        return
    AttentionInterface.register(DECODE_NAME, decode_attention)
    AttentionMaskInterface.register(DECODE_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = attention_implementation(model)
    model.set_attn_implementation(DECODE_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def decode_attention(
    module: nn.Module,
    query: Float[Tensor, "question head beam channel"],
    key: Float[Tensor, "question kv_head key channel"],
    value: Float[Tensor, "question kv_head key value_channel"],
    attention_mask: Float[Tensor, "question 1 beam key"],
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention of a few query rows, without repeating keys and values over grouped heads.

    The query heads that share a key head become further rows of that head. A model with a
    softcap or a learned sink takes its own eager attention.
    """
    if settings.get("softcap") is not None or settings.get("s_aux") is not None:
        eager = own_eager_attention(module)
        return eager(module, query, key, value, attention_mask, **settings)[0], None
    n_questions, n_heads, n_beams, _ = query.shape
    n_groups = n_heads // key.shape[1]
    rows = query.reshape(n_questions, key.shape[1], n_groups * n_beams, -1)
    mask = getattr(attention_mask, "of_groups", None)
    if mask is None or mask.shape[2] != rows.shape[2] or mask.device != rows.device:
        mask = attention_mask.repeat(1, 1, n_groups, 1)
    scale = settings.get("scaling")
    output = nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return output.reshape(n_questions, n_heads, n_beams, -1).transpose(1, 2).contiguous(), None


def one_row_attention(
    module: nn.Module,
    query: Float[Tensor, "sequence head 1 channel"],
    key: Float[Tensor, "sequence kv_head key channel"],
    value: Float[Tensor, "sequence kv_head key value_channel"],
    attention_mask: Float[Tensor, "sequence 1 1 key"],
    **settings: Any,
) -> tuple[Tensor, Float[Tensor, "sequence head 1 key"]]:
    """As :func:`decode_attention`, of one row a sequence, with its weights.

    At 160 keys it takes a third of the time of the eager attention of llama, which repeats all keys.
    """
    if settings.get("softcap") is not None or settings.get("s_aux") is not None:
        return own_eager_attention(module)(module, query, key, value, attention_mask, **settings)
    rows = query.reshape(len(query), key.shape[1], -1, query.shape[3])
    scale = settings.get("scaling") or query.shape[3] ** -0.5
    scores = rows @ key.transpose(2, 3) * scale + attention_mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = (weights @ value).reshape(*query.shape[:3], -1)
    return output.transpose(1, 2).contiguous(), weights.reshape(*query.shape[:3], -1)
