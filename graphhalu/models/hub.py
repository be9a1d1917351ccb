"""Models of the hub: asked for once, then taken from the hub or from the local cache, and loaded quietly.

Left alone, the hub client asks again for every file, and for each of them it tries five times
over 23 seconds when there is no network.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from graphhalu.core.errors import ModelUnavailableError

ANSWER_S: Final = 10.0
"""Timeout of a question to the hub, in seconds."""
_NOISY: Final = ("transformers", "huggingface_hub", "bitsandbytes", "accelerate")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without progress bars, warnings and logs of transformers and what it loads with.

    Bars of a download stay: it can take an hour, and they show only on a terminal.
    """
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    with ExitStack() as stack:
        for name in _NOISY:
            logger = logging.getLogger(name)
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        has_bars = transformers_logging.is_progress_bar_enabled()
        if has_bars:
            stack.callback(transformers_logging.enable_progress_bar)
        stack.enter_context(warnings.catch_warnings())
        # the switch of the bars warns when the environment has already set it
        warnings.simplefilter("ignore")
        if has_bars:
            transformers_logging.disable_progress_bar()
            enable_progress_bars()
        yield


def find_on_hub(hub_id: str, revision: str | None, *, is_gated: bool = False) -> dict[str, Any]:
    """Ask the hub for a model; where it does not give it, fall back to the local cache.

    Returns:
        Options for ``from_pretrained``: the exact ``revision``, and whether ``local_files_only``.

    Raises:
        ModelUnavailableError: If the model is neither on the hub nor in the cache; says why and
            names the ways out.
    """
    answer = _ask(hub_id, revision)
    if isinstance(answer, str):
        return {"revision": answer, "local_files_only": False}
    cached = _cached_commit(hub_id, revision)
    if cached is not None:
        return {"revision": cached, "local_files_only": True}
    raise unavailable(hub_id, _reason(answer, revision), is_gated=is_gated)


def unavailable(hub_id: str, reason: str, *, is_gated: bool = False) -> ModelUnavailableError:
    """The error for a model that the hub does not give, with three ways out."""
    licence = f" and accept its licence at https://huggingface.co/{hub_id}" if is_gated else ""
    return ModelUnavailableError(
        f"the model {hub_id} cannot be had: {reason}, and its files are not in the local cache\n"
        f"  Three ways out:\n"
        f"  - log in with `hf auth login`{licence}\n"
        f"  - set HF_HOME to a folder into which its files were downloaded\n"
        f"  - give a folder that holds it:  --model FOLDER"
    )


def _ask(hub_id: str, revision: str | None) -> str | Exception | None:
    """The commit, or why there is none; gives up after ``ANSWER_S``.

    The question runs in a thread of its own because neither a name server nor a firewall that
    drops packets keeps to a timeout.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    late = TimeoutError(f"no answer within {ANSWER_S:g} s")
    answers: list[str | Exception | None] = []

    def ask() -> None:
        try:
            url = hf_hub_url(hub_id, "config.json", revision=revision)
            answers.append(get_hf_file_metadata(url, timeout=ANSWER_S).commit_hash)
        except Exception as error:  # noqa: BLE001  in a thread nobody would see it; it is the answer
            answers.append(error)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return answers[0] if answers else late


def _cached_commit(hub_id: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    except HFValidationError:
        return None
    # …/snapshots/<commit>/config.json; other values say that it is not there
    return Path(path).parent.name if isinstance(path, str) else None


def _reason(error: Exception | None, revision: str | None) -> str:
    from huggingface_hub import errors

    known: tuple[tuple[type[Exception], str], ...] = (
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set"),
        (errors.GatedRepoError, "it is gated, and the hub does not let you in"),
        (errors.RepositoryNotFoundError, "the hub has no such model, or it is private"),
        (errors.RevisionNotFoundError, f"it has no revision {revision!r}"),
        (errors.EntryNotFoundError, "it has no config.json"),
        (errors.HFValidationError, "that is not a valid name on the hub"),
    )
    for kind, text in known:
        if isinstance(error, kind):
            return text
    return f"the hub was not reached ({' '.join(str(error).split())[:120]})"
