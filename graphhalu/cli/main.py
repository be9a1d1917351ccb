"""Entry point: commands by name, errors as one clear text with an exit code.

Nothing heavy is imported here or in the command modules: each command imports what it needs
inside its body, so that ``graphhalu --help`` is instant.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from graphhalu import __version__
from graphhalu.cli import evaluate, extract, heads, instability, pages, score, show, sinks, store, weights
from graphhalu.cli.options import command
from graphhalu.cli.output import say, show_notes
from graphhalu.core.errors import GraphhaluError, UsageError

app = typer.Typer(
    name="graphhalu",
    help="Find hallucinations of language models in the graphs that their attention draws.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> bool:
    if is_asked:
        print(f"graphhalu {__version__}")
        raise typer.Exit
    return is_asked


@app.callback()
def _before_commands(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options that stand before any command."""


for _group in (extract.app, store.app, evaluate.app, score.app, pages.app, show.checks):
    app.add_typer(_group)
app.add_typer(heads.app, name="heads")
app.add_typer(show.app, name="show")
app.add_typer(store.graphs, name="graphs")
app.add_typer(weights.app, name="weights")
app.add_typer(instability.app, name="instability")
app.add_typer(sinks.app, name="sinks")
command(app, hidden=True)(show.labels)  # the name of 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 usage, 130 stopped by the user."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; faults of a user give no traceback."""
    show_notes()
    try:
        app(args=with_address(arguments))
    except SystemExit as stop:  # typer reports its own faults, and ends every command this way
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except GraphhaluError as error:
        return _report(type(error).__name__, error, error.exit_code)
    except KeyboardInterrupt:
        typer.echo("Stopped. Run the same command again to go on.", err=True)
        return 130
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return _report("Error", f"{error.strerror}: {error.filename}", UsageError.exit_code)
    return 0


def with_address(arguments: Sequence[str]) -> list[str]:
    """The same with ``--ray local`` for a ``--ray`` without an address."""
    following = [*arguments[1:], "-"]
    return [
        "--ray=local" if word == "--ray" and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _report(kind: str, error: object, exit_code: int) -> int:
    say(f"{kind}: {error}")
    for note in getattr(error, "__notes__", ()):
        say(f"  {note}")
    return exit_code
