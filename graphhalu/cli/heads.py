"""Roles of attention heads: retrieval, reasoning, patterns; and the model without them."""

from collections import Counter
from pathlib import Path
from typing import Any

from graphhalu.cli import library
from graphhalu.cli.options import MODEL, Count, Options, Place, command
from graphhalu.cli.output import ProgressLine, Shown, file_word
from graphhalu.cli.store import open_store

_RETRIEVAL = Options("RetrievalSettings", "depths=n_depths *", set_wins=True)
_REASONING = Options("ReasoningSettings", "gate labeller", set_wins=True)
_PATTERNS = Options("PatternSettings", "sequences=n_sequences period seed", set_wins=True)
_ABLATION = Options("AblationSettings", "*", set_wins=True)


@command("heads retrieval", settings=_RETRIEVAL, spec=MODEL)
def retrieval(
    settings: "library.RetrievalSettings", spec: "library.ModelSpec", *, out: Place = None, top: Count = 10
) -> Shown:
    """Find the heads that copy a needle out of a haystack into the answer.

    Args:
        out: JSON file; by default data/heads/<model>_<role>.json.
        top: Heads to show of each role.
    """
    loaded = library.load_checked(spec)
    tables = library.find_retrieval_heads(loaded, settings, ProgressLine("trials"))
    return _write(tables, "retrieval", out, loaded.identity["name"], top)


@command("heads reasoning", settings=_REASONING)
def reasoning(
    settings: "library.ReasoningSettings",
    traces: Place = None,
    *,
    num_traces: int | None = None,
    out: Place = None,
    top: Count = 10,
) -> Shown:
    """Find the heads that look back at generated tokens and at the question, on stored traces.

    Args:
        out: JSON file; by default data/heads/<model>_<role>.json.
        top: Heads to show of each role.
    """
    store = open_store(traces)
    tables = library.find_reasoning_heads(store[:num_traces], settings, ProgressLine("traces"))
    name = store.configuration.get("model", {}).get("name") or store.path.stem
    return _write(tables, "reasoning", out, name, top)


@command("heads patterns", settings=_PATTERNS, spec=MODEL)
def patterns(
    settings: "library.PatternSettings", spec: "library.ModelSpec", *, out: Place = None, top: Count = 5
) -> Shown:
    """Find previous-token, self, duplicate, induction, sink and local heads.

    Args:
        out: JSON file; by default data/heads/<model>_<role>.json.
        top: Heads to show of each role.
    """
    loaded = library.load_checked(spec)
    tables = library.find_pattern_heads(loaded, settings, ProgressLine("sequences"))
    return _write(tables, "patterns", out, loaded.identity["name"], top)


@command("heads show")
def show(file: Path, *, role: str | None = None, top: Count = 20) -> Shown:
    """Show the best heads of a file with interval and chance level.

    Args:
        file: A file of heads, ours or a published one.
        role: Only this role.
        top: Heads to show of each role.
    """
    tables = library.read_heads(file) if role is None else [library.read_table(file, role)]
    return _shown([table.require_trials() for table in tables], file, top)


@command("heads ablate", settings=_ABLATION, spec=MODEL)
def ablate(
    settings: "library.AblationSettings", spec: "library.ModelSpec", file: Path, *, role: str | None = None
) -> Shown:
    """Answer without the chosen heads, and without random heads of the same layers.

    Args:
        file: A file of heads.
        role: Role; by default the first.
    """
    table = library.read_table(file, role).require_trials()
    if "task" not in settings.model_fields_set and table.role.startswith("retrieval"):
        settings = settings.model_copy(update={"task": "needle"})
    result = library.check_heads(library.load_checked(spec), table, settings, ProgressLine("answers"))
    return Shown(result, "heads_ablate", {"result": result, "role": table.role})


def _write(tables: "list[library.HeadTable]", role: str, out: Path | None, model: str, top: int) -> Shown:
    """Write the tables, and show them."""
    path = out or Path("data/heads") / f"{file_word(model)}_{role}.json"
    library.write_heads(path, tables)
    return _shown(tables, path, top, is_new=True)


def _shown(tables: "list[library.HeadTable]", path: Path, top: int, *, is_new: bool = False) -> Shown:
    described = [_described(table, top) for table in tables]
    return Shown({"file": path, "tables": described}, "heads", {"is_new": is_new})


def _described(table: "library.HeadTable", top: int) -> dict[str, Any]:
    """A table with its best heads, their statistics and the further columns."""
    values: dict[str, Any] = {name: getattr(table, name) for name in ("role", "model", "settings")}
    rejected, heads = Counter(reason for _, reason in table.rejected), []
    for row in table.ranked()[:top]:
        place = table.layers.index(row["layer"]), row["head"]
        heads.append(row | {name: float(grid[place]) for name, grid in table.columns.items()})
    values |= {"n_accepted": len(table.trials), "rejected": dict(rejected.most_common())}
    return values | {"heads": heads}
