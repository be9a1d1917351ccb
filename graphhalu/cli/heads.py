"""Commands ``graphhalu heads``: roles of attention heads, and a model without them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import file_word, number_text, print_json, print_table, progress_line, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphhalu.heads.ablation import AblationResult
    from graphhalu.heads.table import HeadTable
    from graphhalu.models.load import LoadedModel

app = typer.Typer(
    help="Roles of attention heads: retrieval, reasoning, patterns; and the model without them.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
Top = Annotated[int, typer.Option(min=1, help="Heads to show of each role.")]
Model = Annotated[str | None, typer.Option(help="Alias, hub id, folder or GGUF file. [default: smollm2]")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. [default: the free cores]")]
Out = Annotated[Path | None, typer.Option(help="JSON file. [default: data/heads/<model>_<role>.json]")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as gate=40.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Chat = Annotated[str | None, typer.Option(help="Chat template: off, on or auto.")]
Template = Annotated[str | None, typer.Option(help="Prompt template.")]
Lengths = Annotated[str | None, typer.Option(help="Lengths of prompts in tokens, as 256,512.")]
HaystackFile = Annotated[
    Path | None, typer.Option(help="Text to hide needles in. [default: the bundled one]")
]
Needles = Annotated[Path | None, typer.Option(help="JSON Lines with needle, question, real_needle.")]


@app.command()
def retrieval(
    model: Model = None,
    lengths: Lengths = None,
    depths: Annotated[
        int | None, typer.Option(help="Depths at which a needle is hidden. [default: 5]")
    ] = None,
    haystack: HaystackFile = None,
    needles: Needles = None,
    rule: Annotated[
        str | None, typer.Option(help="set: a copied token counts once; sum: every time.")
    ] = None,
    gate: Annotated[
        float | None, typer.Option(help="ROUGE-1 recall above which a trial counts, in percent.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.")] = None,
    chat: Chat = None,
    template: Template = None,
    device: Device = None,
    threads: Threads = None,
    set_: Set = None,
    out: Out = None,
    top: Top = 10,
    json: Json = False,
) -> None:
    """Find the heads that copy a needle out of a haystack into the answer."""
    from graphhalu.heads.retrieval import find_retrieval_heads
    from graphhalu.heads.settings import RetrievalSettings

    settings = _settings(
        RetrievalSettings,
        set_,
        lengths=_lengths(lengths),
        n_depths=depths,
        haystack=haystack,
        needles=needles,
        rule=rule,
        gate=gate,
        max_new_tokens=max_new_tokens,
        chat=chat,
        template=template,
    )
    loaded = _loaded(model, device, threads)
    with progress_line("trials") as progress:
        tables = find_retrieval_heads(loaded, settings, progress.count)
    _finish(tables, _place(out, loaded.identity, "retrieval"), top, json)


@app.command()
def reasoning(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    gate: Annotated[
        float | None, typer.Option(help="ROUGE-1 recall above which a trace counts, in percent.")
    ] = None,
    labeller: Annotated[str | None, typer.Option(help="A labeller in place of the gate, as match.")] = None,
    num_traces: Annotated[int | None, typer.Option(min=1, help="Only the first traces.")] = None,
    set_: Set = None,
    out: Out = None,
    top: Top = 10,
    json: Json = False,
) -> None:
    """Find the heads that look back at generated tokens and at the question, on stored traces."""
    from graphhalu.cli.analyse import open_store
    from graphhalu.heads.reasoning import find_reasoning_heads
    from graphhalu.heads.settings import ReasoningSettings

    settings = _settings(ReasoningSettings, set_, gate=gate, labeller=labeller)
    store = open_store(traces)
    with progress_line("traces") as progress:
        tables = find_reasoning_heads(store[:num_traces], settings, progress.count)
    identity = store.configuration.get("model", {})
    named = identity if identity.get("name") else {"name": store.path.stem}
    _finish(tables, _place(out, named, "reasoning"), top, json)


@app.command()
def patterns(
    model: Model = None,
    sequences: Annotated[int | None, typer.Option(help="Random sequences. [default: 20]")] = None,
    period: Annotated[
        int | None, typer.Option(help="Random tokens that are repeated once. [default: 50]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the tokens.")] = None,
    device: Device = None,
    threads: Threads = None,
    set_: Set = None,
    out: Out = None,
    top: Top = 5,
    json: Json = False,
) -> None:
    """Find previous-token, self, duplicate, induction, sink and local heads."""
    from graphhalu.heads.patterns import find_pattern_heads
    from graphhalu.heads.settings import PatternSettings

    settings = _settings(PatternSettings, set_, n_sequences=sequences, period=period, seed=seed)
    loaded = _loaded(model, device, threads)
    with progress_line("sequences") as progress:
        tables = find_pattern_heads(loaded, settings, progress.count)
    _finish(tables, _place(out, loaded.identity, "patterns"), top, json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A file of heads, ours or a published one.")],
    role: Annotated[str | None, typer.Option(help="Only this role.")] = None,
    top: Top = 20,
    json: Json = False,
) -> None:
    """Show the best heads of a file with interval and chance level."""
    from graphhalu.heads.files import read_heads, read_table

    tables = read_heads(file) if role is None else [read_table(file, role)]
    _print_tables([table.require_trials() for table in tables], top, json, file)


@app.command()
def ablate(
    file: Annotated[Path, typer.Argument(help="A file of heads.")],
    model: Model = None,
    role: Annotated[str | None, typer.Option(help="Role. [default: the first]")] = None,
    top_k: Annotated[int | None, typer.Option(help="So many best heads. [default: 10]")] = None,
    threshold: Annotated[float | None, typer.Option(help="Heads whose mean is at least this.")] = None,
    stable_share: Annotated[
        float | None, typer.Option(help="Of the best, those that stay so in this share.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="needle or questions. [default: by the role]")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set. [default: worldfacts]")] = None,
    data_path: Annotated[
        Path | None, typer.Option(help="File of the data set in a published layout.")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="Questions, or needles. [default: 50]")] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of random heads. [default: 5]")] = None,
    lengths: Lengths = None,
    haystack: HaystackFile = None,
    needles: Needles = None,
    chat: Chat = None,
    template: Template = None,
    device: Device = None,
    threads: Threads = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Answer without the chosen heads, and without random heads of the same layers."""
    from graphhalu.heads.ablation import check_heads
    from graphhalu.heads.files import read_table
    from graphhalu.heads.settings import AblationSettings

    table = read_table(file, role).require_trials()
    by_role = "needle" if table.role.startswith("retrieval") else "questions"
    settings = _settings(
        AblationSettings,
        set_,
        top_k=top_k,
        threshold=threshold,
        stable_share=stable_share,
        task=task or by_role,
        dataset=dataset,
        data_path=data_path,
        num_samples=num_samples,
        draws=draws,
        lengths=_lengths(lengths),
        haystack=haystack,
        needles=needles,
        chat=chat,
        template=template,
    )
    loaded = _loaded(model, device, threads)
    with progress_line("answers") as progress:
        result = check_heads(loaded, table, settings, progress.count)
    if json:
        from dataclasses import asdict

        print_json(asdict(result))
        return
    _print_ablation(result, table.role)


def _settings(kind: Any, set_: list[str] | None, **options: Any) -> Any:
    from graphhalu.core.config import load_config, read_overrides

    given = {name: value for name, value in options.items() if value is not None}
    return load_config(kind, None, {**given, **read_overrides(set_ or [])})


def _loaded(model: str | None, device: str | None, threads: int | None) -> "LoadedModel":
    from graphhalu.core.config import load_config
    from graphhalu.models.check import check_model
    from graphhalu.models.load import ModelSpec, load_model

    options = {"name": model, "device": device, "threads": threads}
    given = {name: value for name, value in options.items() if value is not None}
    loaded = load_model(load_config(ModelSpec, None, given))
    check_model(loaded)
    return loaded


def _lengths(text: str | None) -> list[int] | None:
    from graphhalu.core.errors import UsageError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"--lengths takes numbers with commas (256,512), got {text!r}"
        raise UsageError(message) from None


def _place(out: Path | None, identity: dict[str, Any], role: str) -> Path:
    return out or Path("data/heads") / f"{file_word(str(identity['name']))}_{role}.json"


def _finish(tables: "Sequence[HeadTable]", path: Path, top: int, json: bool) -> None:
    from graphhalu.heads.files import write_heads

    write_heads(path, tables)
    _print_tables(tables, top, json, path)
    say(f"written to {path}")


def _print_tables(tables: "Sequence[HeadTable]", top: int, json: bool, path: Path) -> None:
    from collections import Counter
    from dataclasses import asdict

    if json:
        described = []
        for table in tables:
            reasons = Counter(item.reason for item in table.rejected)
            heads = table.ranked()[:top]
            described.append(
                {
                    "role": table.role,
                    "model": table.model,
                    "settings": table.settings,
                    "n_accepted": len(table.trials),
                    "rejected": dict(reasons.most_common()),
                    "heads": [asdict(row) | _columns(table, row.layer, row.head) for row in heads],
                }
            )
        print_json({"file": str(path), "tables": described})
        return
    for table in tables:
        name = table.model.get("name", "a model")
        rows = []
        for row in table.ranked()[:top]:
            interval = f"{number_text(row.low)} … {number_text(row.high)}"
            cells = [str(row.layer), str(row.head), number_text(row.mean), interval]
            cells += [number_text(value) for value in (row.chance, row.std, row.max)]
            rows.append([*cells, str(row.count), *_contrast(table, row.layer, row.head)])
        columns = ["layer", "head", "mean", "95 % interval", "chance", "std", "max", "trials"]
        if "contrast" in table.columns:
            columns += ["right - wrong", "interval", "q"]
        title = (
            f"{table.role} heads of {name}: {len(table.trials)} trials accepted, "
            f"{len(table.rejected)} rejected"
        )
        print_table(columns, rows, title=title)
        for reason, count in Counter(item.reason for item in table.rejected).most_common(5):
            print(f"  {count:>6} rejected: {reason}")


def _columns(table: "HeadTable", layer: int, head: int) -> dict[str, float]:
    place = table.layers.index(layer)
    return {name: float(values[place, head]) for name, values in table.columns.items()}


def _contrast(table: "HeadTable", layer: int, head: int) -> list[str]:
    own = _columns(table, layer, head)
    if "contrast" not in own:
        return []
    interval = f"{number_text(own['contrast_low'])} … {number_text(own['contrast_high'])}"
    return [number_text(own["contrast"]), interval, number_text(own["contrast_q"])]


def _print_ablation(result: "AblationResult", role: str) -> None:
    rows = []
    for row in result.rows:
        means = (row.whole, row.ablated, row.random)
        effects = [(e.value, e.low, e.high) for e in (row.against_whole, row.against_random)]
        rows.append(
            [
                row.metric,
                str(row.n_items),
                *map(number_text, means),
                *("{} ({} … {})".format(*map(number_text, effect)) for effect in effects),
            ]
        )
    print_table(
        ["metric", "items", "whole", "ablated", "random", "ablated - whole", "ablated - random"],
        rows,
        title=f"without {len(result.heads)} {role} heads, and {result.n_draws} draws of random "
        f"heads of the same layers",
    )
    print(f"left out ({result.rule}): {', '.join(result.heads)}")
    if result.n_elsewhere:
        print(f"{result.n_elsewhere} random heads came from other layers: theirs has too few")
