"""The ablation check: are the chosen heads needed more than random ones of the same layers?

A head's contribution is its slice of what goes into the output projection of its attention. The
slice is set to zero, so the head is gone and all others are as they were. Setting attention
logits to zero instead would leave a uniform head, and one that sees the future.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from graphhalu.core.errors import ModelRefusedError, UsageError
from graphhalu.datasets.registry import load_questions
from graphhalu.extract.generate import beam_search
from graphhalu.extract.hooks import find_attention_modules
from graphhalu.heads.retrieval import hidden_needles
from graphhalu.heads.runs import METRICS, Item, answer_quality, known_item, prompt_form, question_items
from graphhalu.heads.settings import AblationSettings, RetrievalSettings
from graphhalu.heads.table import (
    HeadMask,
    HeadTable,
    heads_above,
    mean_of_present,
    percentile_interval,
    resampled_means,
    stable_heads,
    top_k_heads,
)
from graphhalu.models.attention import eager_attention
from graphhalu.models.load import LoadedModel

_N_PROBE: Final = 5
Measure = Callable[[Sequence[Item]], Float[np.ndarray, "item metric"]]
"""Quality of the model's answers, as it is when called."""


def choose_heads(table: HeadTable, settings: AblationSettings) -> HeadMask:
    """The heads that the settings ask for.

    Raises:
        UsageError: If there are fewer heads than asked for.
        NotEnoughDataError: If the rule chooses none.
    """
    if settings.threshold is not None:
        return heads_above(table, settings.threshold)
    k = settings.top_k or 10
    if settings.stable_share is not None:
        return stable_heads(table, k, min_share=settings.stable_share, seed=settings.seed)
    return top_k_heads(table, k)


def check_heads(
    loaded: LoadedModel,
    table: HeadTable,
    settings: AblationSettings | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Leave the chosen heads of a table out and compare with random heads of their layers.

    Args:
        loaded: The model that the table was measured on.
        table: Scores of its heads.
        settings: Which heads, and on which questions.
        on_progress: Called with the number of answers given, and of all.

    Returns:
        As :func:`ablation_check`.

    Raises:
        UsageError: If the table belongs to another model, or the rule cannot be used.
        NotEnoughDataError: If the rule chooses no head, or no question states an answer.
    """
    settings = settings or AblationSettings()
    require_fitting(table, loaded.identity, loaded.n_heads)
    mask = choose_heads(table, settings)
    template, is_chat = prompt_form(loaded, settings.template, settings.chat)
    items = _items(loaded, settings, template, is_chat=is_chat)
    n_total, n_done = len(items) * (2 + settings.draws), 0

    def advance(n_items: int) -> None:
        nonlocal n_done
        n_done += n_items
        on_progress(n_done, n_total)

    search = beam_search(loaded, max_new_tokens=settings.max_new_tokens, stops_at_newline=not is_chat)
    how: dict[str, Any] = {"batch_size": settings.batch_size, "on_progress": advance}
    measure = partial(answer_quality, loaded, search, **how)
    return ablation_check(loaded.model, mask, items, measure, n_draws=settings.draws, seed=settings.seed)


def ablation_check(
    model: Any, mask: HeadMask, items: Sequence[Item], measure: Measure, *, n_draws: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Quality with all heads, without the chosen ones, and without random ones of their layers.

    Args:
        model: The model that ``measure`` asks.
        mask: The chosen heads.
        items: Prompts with gold answers.
        measure: Quality of every item.
        n_draws: How often random heads are drawn.
        seed: Seed of the draws and of the resamples.

    Returns:
        Names of the chosen ``heads``; the ``rule`` by which they were chosen; ``n_draws`` of random
        heads, and ``n_elsewhere`` of these, over all draws, that had to come from other layers; and
        ``rows``, one a metric of :data:`graphhalu.heads.runs.METRICS`: ``n_items`` on which all
        conditions have a value; the means with all heads (``whole``), without the chosen ones
        (``ablated``) and without random ones (``random``); the differences ``against_whole`` and
        ``against_random`` (below zero, the chosen heads are needed more), each a ``value`` with its
        95 % interval over groups of items (``low``, ``high``).

    Raises:
        UsageError: If the mask does not fit, or leaves too few heads to compare with.
    """
    if n_draws < 1:
        raise UsageError(f"random heads are drawn once or more often, got --draws {n_draws}")
    generator = np.random.default_rng(seed)
    drawn = [random_heads(mask, generator) for _ in range(n_draws)]
    qualities = [measure(items)]
    for each in (mask, *(heads for heads, _ in drawn)):
        with ablating(model, each):
            qualities.append(measure(items))
    return {
        "heads": mask.names,
        "rule": mask.rule,
        "n_draws": n_draws,
        "n_elsewhere": sum(n_others for _, n_others in drawn),
        "rows": tuple(_rows(np.stack(qualities, axis=1), [item.record.group_id for item in items], seed)),
    }


def require_fitting(table: HeadTable, identity: dict[str, Any], n_heads: int) -> None:
    """Refuse a table that was measured on another model.

    Raises:
        UsageError: If it was, as far as the table says.
    """
    names = ("name", "weights", "revision", "architecture")
    differing = [n for n in names if table.model and table.model.get(n) != identity.get(n)]
    if differing or table.n_heads != n_heads:
        raise UsageError(
            f"the {table.role} table belongs to {table.model.get('name', 'another model')} "
            f"({len(table.layers)} layers of {table.n_heads} heads), not to "
            f"{identity.get('name')}: {', '.join(differing) or 'the number of heads'} differ"
        )


@contextmanager
def ablating(model: Any, mask: HeadMask) -> Iterator[None]:
    """Run the model without some heads, then with them again.

    Args:
        model: A causal language model of transformers.
        mask: The heads to leave out; its layers are those of the model.

    Raises:
        UsageError: If the mask does not fit the model.
        ModelRefusedError: If the output projections cannot be found.
    """
    projections = output_projections(model)
    n_heads = _n_heads(model)
    if mask.is_chosen.shape[1] != n_heads or not set(mask.layers) <= set(range(len(projections))):
        raise UsageError(
            f"the mask is of {len(mask.layers)} layers of {mask.is_chosen.shape[1]} heads, the "
            f"model has {len(projections)} layers of {n_heads} heads"
        )
    with ExitStack() as stack:
        for layer, chosen in zip(mask.layers, mask.is_chosen, strict=True):
            if chosen.any():
                hook = projections[layer].register_forward_pre_hook(_without(chosen))
                stack.callback(hook.remove)
        yield


def output_projections(model: Any) -> tuple[nn.Module, ...]:
    """The output projection of each layer's attention, found by trying, not by name.

    It is the last module with a weight matrix that runs inside the attention module, and what
    goes into it must divide evenly into heads.

    Raises:
        ModelRefusedError: If it is not so in every layer.
    """
    last: dict[int, tuple[nn.Module, int]] = {}
    modules = find_attention_modules(model)[0]
    handles = [
        inner.register_forward_hook(partial(_note, last, place))
        for place, module in enumerate(modules)
        for inner in module.modules()
        if _is_projection(inner)
    ]
    tokens = torch.arange(1, _N_PROBE + 1, device=next(model.parameters()).device)[None]
    try:
        with torch.inference_mode(), eager_attention(model):
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    n_heads = _n_heads(model)
    is_found = len(last) == len(modules) and all(width % n_heads == 0 for _, width in last.values())
    if not is_found:
        raise ModelRefusedError(
            f"the output projection of {type(model).__name__} cannot be told apart by head: found "
            f"{len(last)} of {len(modules)} layers, {n_heads} heads"
        )
    return tuple(last[place][0] for place in range(len(modules)))


def random_heads(mask: HeadMask, generator: np.random.Generator) -> tuple[HeadMask, int]:
    """As many heads of the same layers, drawn among those that are not chosen.

    Where a layer has too few others, the rest comes from the unchosen heads of all layers.

    Returns:
        The heads, and how many of them come from other layers.

    Raises:
        UsageError: If the model has too few heads that are not chosen.
    """
    if 2 * mask.is_chosen.sum() > mask.is_chosen.size:
        raise UsageError(
            f"{mask.is_chosen.sum()} of {mask.is_chosen.size} heads are chosen: there are too few "
            f"others to compare with\n  Choose fewer, with --top-k"
        )
    drawn = np.zeros_like(mask.is_chosen)
    for place, chosen in enumerate(mask.is_chosen):
        others = np.flatnonzero(~chosen)
        n_wanted = min(int(chosen.sum()), len(others))
        drawn[place, generator.choice(others, n_wanted, replace=False)] = True
    n_missing = int(mask.is_chosen.sum() - drawn.sum())
    free = np.flatnonzero(~(mask.is_chosen | drawn))
    drawn.flat[generator.choice(free, n_missing, replace=False)] = True
    rule = "random heads of the same layers"
    return HeadMask(mask.role, mask.layers, drawn, rule), n_missing


def _rows(
    qualities: Float[np.ndarray, "item condition metric"], groups: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """One row a metric, from quality with all heads, without the chosen, without random ones."""
    for place, name in enumerate(METRICS):
        columns = qualities[..., place]
        is_there = ~np.isnan(columns).any(1)
        if not is_there.any():
            continue
        kept, own = columns[is_there], np.asarray(groups)[is_there].tolist()
        three = np.column_stack([kept[:, 0], kept[:, 1], kept[:, 2:].mean(1)])
        means = dict(zip(("whole", "ablated", "random"), mean_of_present(three).tolist(), strict=True))
        effects = {}
        for base, other in (("whole", 0), ("random", 2)):
            difference = three[:, 1] - three[:, other]
            low, high = percentile_interval(resampled_means(difference, own, seed=seed)).tolist()
            effects[f"against_{base}"] = {"value": float(difference.mean()), "low": low, "high": high}
        yield {"metric": name, "n_items": len(kept), **means, **effects}


def _items(loaded: LoadedModel, settings: AblationSettings, template: str, *, is_chat: bool) -> list[Item]:
    if settings.task == "needle":
        shared = settings.model_dump(include=set(RetrievalSettings.model_fields) - {"threshold"})
        hidden = hidden_needles(loaded, RetrievalSettings(**shared))
        if settings.num_samples is not None and settings.num_samples < len(hidden):
            generator = np.random.default_rng(settings.seed)
            drawn = sorted(generator.choice(len(hidden), settings.num_samples, replace=False))
            hidden = [hidden[place] for place in drawn]
        return [known_item(loaded, each.question, each.token_ids.tolist(), is_chat) for each in hidden]
    questions = load_questions(
        settings.dataset, settings.data_path, num_samples=settings.num_samples, seed=settings.seed
    )
    return question_items(loaded, questions, template=template, chat=is_chat)


def _without(chosen: Bool[np.ndarray, "head"]) -> Any:
    keeps = torch.from_numpy(~chosen)

    def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]
        by_head: Float[Tensor, "*token head channel"] = states.reshape(*states.shape[:-1], len(chosen), -1)
        kept = keeps.to(device=states.device, dtype=states.dtype)[:, None]
        return ((by_head * kept).flatten(-2), *args[1:])

    return cut


def _note(last: dict[int, tuple[nn.Module, int]], place: int, module: nn.Module, args: Any, _: Any) -> None:
    last[place] = (module, int(args[0].shape[-1]))


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not list(module.children())


def _n_heads(model: Any) -> int:
    return int(model.config.get_text_config().num_attention_heads)
