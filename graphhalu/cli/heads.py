"""Commands ``graphhalu heads``: roles of attention heads, and a model without them."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graphhalu.cli.options import MODEL, Count, Options, command
from graphhalu.cli.output import Shown, file_word, progress_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphhalu.heads.settings import (
        AblationSettings,
        PatternSettings,
        ReasoningSettings,
        RetrievalSettings,
    )
    from graphhalu.heads.table import HeadTable
    from graphhalu.models.cards import ModelSpec
    from graphhalu.models.load import LoadedModel

app = typer.Typer(
    help="Roles of attention heads: retrieval, reasoning, patterns; and the model without them.",
    no_args_is_help=True,
)

_SETTINGS = "graphhalu.heads.settings"
_RETRIEVAL = Options(f"{_SETTINGS}:RetrievalSettings", "*", depths="n_depths", set_wins=True)
_REASONING = Options(f"{_SETTINGS}:ReasoningSettings", "gate", "labeller", set_wins=True)
_PATTERNS = Options(f"{_SETTINGS}:PatternSettings", "period", "seed", sequences="n_sequences", set_wins=True)
_ABLATION = Options(f"{_SETTINGS}:AblationSettings", "*", set_wins=True)


@command(app, settings=_RETRIEVAL, spec=MODEL)
def retrieval(
    settings: "RetrievalSettings", spec: "ModelSpec", *, out: Path | None = None, top: Count = 10
) -> Shown:
    """Find the heads that copy a needle out of a haystack into the answer.

    Args:
        out: JSON file; by default data/heads/<model>_<role>.json.
        top: Heads to show of each role.
    """
    from graphhalu.heads.retrieval import find_retrieval_heads

    loaded = load_checked(spec)
    with progress_line("trials") as progress:
        tables = find_retrieval_heads(loaded, settings, progress)
    return _finish(tables, "retrieval", out, loaded.identity, top)


@command(app, settings=_REASONING)
def reasoning(
    settings: "ReasoningSettings",
    traces: Path | None = None,
    *,
    num_traces: int | None = None,
    out: Path | None = None,
    top: Count = 10,
) -> Shown:
    """Find the heads that look back at generated tokens and at the question, on stored traces.

    Args:
        out: JSON file; by default data/heads/<model>_<role>.json.
        top: Heads to show of each role.
    """
    from graphhalu.cli.store import open_store
    from graphhalu.heads.reasoning import find_reasoning_heads

    store = open_store(traces)
    with progress_line("traces") as progress:
        tables = find_reasoning_heads(store[:num_traces], settings, progress)
    identity = store.configuration.get("model", {})
    named = identity if identity.get("name") else {"name": store.path.stem}
    return _finish(tables, "reasoning", out, named, top)


@command(app, settings=_PATTERNS, spec=MODEL)
def patterns(
    settings: "PatternSettings", spec: "ModelSpec", *, out: Path | None = None, top: Count = 5
) -> Shown:
    """Find previous-token, self, duplicate, induction, sink and local heads.

    Args:
        out: JSON file; by default data/heads/<model>_<role>.json.
        top: Heads to show of each role.
    """
    from graphhalu.heads.patterns import find_pattern_heads

    loaded = load_checked(spec)
    with progress_line("sequences") as progress:
        tables = find_pattern_heads(loaded, settings, progress)
    return _finish(tables, "patterns", out, loaded.identity, top)


@command(app, name="show")
def show_heads(file: Path, *, role: str | None = None, top: Count = 20) -> Shown:
    """Show the best heads of a file with interval and chance level.

    Args:
        file: A file of heads, ours or a published one.
        role: Only this role.
        top: Heads to show of each role.
    """
    from graphhalu.heads.files import read_heads, read_table

    tables = read_heads(file) if role is None else [read_table(file, role)]
    return _shown([table.require_trials() for table in tables], file, top)


@command(app, settings=_ABLATION, spec=MODEL)
def ablate(settings: "AblationSettings", spec: "ModelSpec", file: Path, *, role: str | None = None) -> Shown:
    """Answer without the chosen heads, and without random heads of the same layers.

    Args:
        file: A file of heads.
        role: Role; by default the first.
    """
    from graphhalu.heads.ablation import check_heads
    from graphhalu.heads.files import read_table

    table = read_table(file, role).require_trials()
    if "task" not in settings.model_fields_set and table.role.startswith("retrieval"):
        settings = settings.model_copy(update={"task": "needle"})
    loaded = load_checked(spec)
    with progress_line("answers") as progress:
        result = check_heads(loaded, table, settings, progress)
    return Shown(asdict(result), "heads_ablate", {"result": result, "role": table.role})


def load_checked(spec: "ModelSpec") -> "LoadedModel":
    """Load a model and check its attention."""
    from graphhalu.models.check import check_model
    from graphhalu.models.load import load_model

    loaded = load_model(spec)
    check_model(loaded)
    return loaded


def _finish(
    tables: "Sequence[HeadTable]", role: str, out: Path | None, identity: dict[str, Any], top: int
) -> Shown:
    """Write the tables, and show them."""
    from graphhalu.heads.files import write_heads

    path = out or Path("data/heads") / f"{file_word(str(identity['name']))}_{role}.json"
    write_heads(path, tables)
    return _shown(tables, path, top, is_new=True)


def _shown(tables: "Sequence[HeadTable]", path: Path, top: int, *, is_new: bool = False) -> Shown:
    described = [
        {
            "role": table.role,
            "model": table.model,
            "settings": table.settings,
            "n_accepted": len(table.trials),
            "rejected": dict(Counter(reason for _, reason in table.rejected).most_common()),
            "heads": [_head(table, row) for row in table.ranked()[:top]],
        }
        for table in tables
    ]
    return Shown({"file": str(path), "tables": described}, "heads", {"is_new": is_new})


def _head(table: "HeadTable", row: Any) -> dict[str, Any]:
    """A head with its statistics, and the further columns of its table."""
    index = table.layers.index(row.layer)
    return asdict(row) | {name: float(values[index, row.head]) for name, values in table.columns.items()}
