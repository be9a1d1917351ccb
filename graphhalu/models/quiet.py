"""Loading without the progress bars, warnings and logs of the libraries below."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

_NOISY: Final = ("transformers", "huggingface_hub", "bitsandbytes", "accelerate")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without progress bars, warnings and logs of transformers and what it loads with.

    Bars of a download stay: it can take an hour, and they show only on a terminal.
    """
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
            _show_downloads()
        yield


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """As :func:`quiet_loading`, and without the GGUF reader's bar, which has no switch."""
    with quiet_loading(), contextlib.redirect_stderr(io.StringIO()):
        yield


def silence_int8_casts() -> None:
    """Drop bitsandbytes' note that int8 casts its inputs: it comes with every layer and call."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def _show_downloads() -> None:
    from huggingface_hub.utils.tqdm import enable_progress_bars

    enable_progress_bars()
