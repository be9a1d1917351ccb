"""``graphhalu serve``: an HTTP server that answers and says how likely each answer is hallucinated."""

import os

from graphhalu.cli import library
from graphhalu.cli.options import Options, command
from graphhalu.cli.output import say
from graphhalu.cli.score import chosen_scorer
from graphhalu.core.errors import UsageError


@command("serve", config=Options("ServeConfig", "*"))
def serve(
    config: "library.ServeConfig",
    *,
    detector: str | None = None,
    token_detector: str | None = None,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Serve completions as OpenAI's, with the probability that they are hallucinated, and scores.

    It listens on this machine alone unless --host says otherwise, which needs a key in GRAPHHALU_API_KEY.

    Args:
        detector: Of answers: the name of a ready one, or what graphhalu train saved.
        token_detector: Of tokens, of the same model; none to leave tokens without scores.
        model: Place of the detector's model now; by default as trained.
        device: auto, cpu, cuda …
    """
    if config.host not in library.LOOPBACK and not os.environ.get(library.API_KEY):
        raise UsageError(
            f"listening on {config.host} lets others on the network in, and no key is asked for\n"
            f"  Set one:  export {library.API_KEY}=…   or listen on this machine alone:  --host 127.0.0.1"
        )
    where = {"name": model, "device": device, "threads": threads}
    scorer = chosen_scorer(detector, where)
    tokens = None
    if token_detector != "none":  # noqa: S105
        named = token_detector or library.ready_of_tokens(scorer.identity.model)
        tokens = None if named is None else chosen_scorer(named, where)
    app = library.create_app(scorer, tokens, config)
    names = [each.detector.card.name for each in (scorer, tokens) if each is not None]
    say(f"{scorer.identity.model} is loaded; answers are scored by {' and '.join(names)}")
    try:
        library.serve_app(app, config, lambda url: say(f"serving {url}; Ctrl-C stops it"))
    except OSError as error:
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None
