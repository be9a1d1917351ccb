"""Measure all prompts of a study into a folder; a killed run goes on where it stopped."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphhalu.core.config import config_hash
from graphhalu.core.errors import UsageError
from graphhalu.models.load import LoadedModel
from graphhalu.studies.instability.measurer import Measurer
from graphhalu.studies.instability.prompts import StudyPrompt
from graphhalu.studies.instability.series import SeriesFolder
from graphhalu.studies.instability.settings import GatherSettings


def gather(
    loaded: LoadedModel,
    settings: GatherSettings,
    prompts: Sequence[StudyPrompt],
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> SeriesFolder:
    """Measure prompts step by step.

    Args:
        loaded: The model.
        settings: System prompt, denominator, decoding.
        prompts: Attacks and benign prompts, with different ids.
        folder: Is made, or gone on with if it was made with the same model, settings and prompts.
        on_progress: Called with the number of answers done, and of all.

    Raises:
        UsageError: If there is no prompt, two have one id, or there is no system prompt.
        StoreMismatchError: If the folder was made with something else; names the fields.
    """
    _check_prompts(prompts)
    measurer = Measurer(loaded, settings)
    measurer.encode(prompts[0])  # a missing span is found before the folder is made
    jobs = [(prompt, i) for i in range(settings.iterations) for prompt in prompts]
    size = settings.batch_size
    n_parts = -(-len(jobs) // size)
    store = SeriesFolder.create(folder, _configuration(measurer, prompts, n_parts))
    missing = store.missing_parts()
    n_done = sum(len(jobs[n * size : (n + 1) * size]) for n in range(n_parts) if n not in missing)
    on_progress(n_done, len(jobs))
    for number in missing:
        batch = jobs[number * size : (number + 1) * size]
        store.write_part(number, measurer.measure(batch))
        n_done += len(batch)
        on_progress(n_done, len(jobs))
    return store


def _configuration(measurer: Measurer, prompts: Sequence[StudyPrompt], n_parts: int) -> dict[str, Any]:
    settings, loaded = measurer.settings, measurer.loaded
    return {
        "model": dict(loaded.identity),
        "prompt": settings.prompt_recipe(is_chat=measurer.is_chat),
        "gather": settings.model_dump(mode="json"),
        "prompts": config_hash({"prompts": [asdict(prompt) for prompt in prompts]}),
        "n_prompts": len(prompts),
        "n_parts": n_parts,
        "n_layers": loaded.n_layers,
        "n_heads": loaded.n_heads,
    }


def _check_prompts(prompts: Sequence[StudyPrompt]) -> None:
    names = [prompt.prompt_id for prompt in prompts]
    if not names:
        message = "there is no prompt to measure"
        raise UsageError(message)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        message = f"two prompts have the id {repeated[0]!r}"
        raise UsageError(message)
