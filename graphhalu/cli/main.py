"""Entry point: commands by name, errors as one clear text with an exit code.

Nothing heavy is imported here or in the command modules, so that ``graphhalu --help`` is instant:
what a command needs comes from :mod:`graphhalu.cli.library` when it runs.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any

import typer

from graphhalu import __version__
from graphhalu.cli.options import APPS
from graphhalu.cli.output import say, show_notes
from graphhalu.core.errors import GraphhaluError, UsageError, missing_extra

_STOPPED = 130
"""Exit code after Ctrl-C."""
_ArgumentError: Any = typer.BadParameter.mro()[2]
"""What typer raises for options and arguments that cannot be used: click's own base of errors."""

app = typer.Typer(
    name="graphhalu",
    help="Find hallucinations of language models in the graphs that their attention draws.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _before_commands(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Take the options that stand before any command."""
    if version:
        print(f"graphhalu {__version__}")
        raise typer.Exit


# in the order of the help
for _module in ("store", "evaluate", "score", "pages", "new", "heads", "show", "weights", "studies"):
    import_module(f"graphhalu.cli.{_module}")
for _group in APPS.values():
    app.add_typer(_group)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failure, 2 usage, 130 stopped by the user."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; faults of a user give no traceback."""
    show_notes()
    try:
        code: int = app(args=with_address(arguments), standalone_mode=False) or 0
    except _ArgumentError as error:  # as plain text: what draws help takes half of the time to load
        error.show()
        return int(error.exit_code)
    except GraphhaluError as error:
        return _report(type(error).__name__, error, error.exit_code)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        return _report(type(missing).__name__, missing, missing.exit_code)
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        return _report("Error", f"{error.strerror}: {error.filename}", UsageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _STOPPED
    if code == _STOPPED:
        say("Stopped. Run the same command again to go on.")
    return code


def with_address(arguments: Sequence[str]) -> list[str]:
    """The same with ``--ray local`` for a ``--ray`` without an address."""
    return [
        "--ray=local" if word == "--ray" and after.startswith("-") else word
        for word, after in pairwise([*arguments, "-"])
    ]


def _report(kind: str, error: object, exit_code: int) -> int:
    say(f"{kind}: {error}")
    for note in getattr(error, "__notes__", ()):
        say(f"  {note}")
    return exit_code
