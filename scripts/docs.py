"""Documentation: pages of the reference from the registries, notebooks with their outputs, the site.

scripts/docs              # build/site, from docs/ and generated pages
scripts/docs run FILE …   # executes notebooks and writes their outputs into them
scripts/docs notebooks    # build/notebooks/*.ipynb
"""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DOCS, SOURCE, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"
COMPARISONS = ROOT / "tests" / "benchmarks" / "comparisons"
REFERENCE = ("detectors", "features", "datasets", "labellers", "commands")
OUTPUT = '```text title="output"'
NOT_RUN = re.compile(r"<!-- not executed: (.+?) -->\s*$")
FENCE = re.compile(r"^```(\w+)?.*$")


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: As the fence says; empty for none.
        text: What stands inside.
        line: Line of the fence, from 1.
        reason: Why it is not executed, if it is marked so.
    """

    language: str
    text: str
    line: int
    reason: str | None


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines, place = text.splitlines(), 0
    while place < len(lines):
        fence = FENCE.match(lines[place])
        if fence is None or not lines[place].startswith("```"):
            place += 1
            continue
        end = next(n for n in range(place + 1, len(lines)) if lines[n].startswith("```"))
        before = next((lines[n] for n in range(place - 1, -1, -1) if lines[n].strip()), "")
        marked = NOT_RUN.search(before)
        reason = marked[1] if marked else None
        yield Block(fence[1] or "", "\n".join(lines[place + 1 : end]), place + 1, reason)
        place = end + 1


def copied() -> None:
    """The written pages, and those that live beside the code."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(DOCS, SOURCE)
    beside = {
        "trace-format.md": ROOT / "graphhalu/traces/FORMAT.md",
        "cost.md": ROOT / "graphhalu/extract/COST.md",
        "changelog.md": ROOT / "CHANGELOG.md",
        "contributing.md": ROOT / "CONTRIBUTING.md",
        "figures.md": ROOT / "tests/benchmarks/RESULTS.md",
    }
    for name, path in beside.items():
        text = path.read_text(encoding="utf-8").replace("](docs/", "](")
        (SOURCE / name).write_text(text, encoding="utf-8")


def figures() -> dict[str, list[tuple[str, Mapping[str, str]]]]:
    """Measured rows of each detector by store."""
    found: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
    for path in sorted(COMPARISONS.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["detector"], []).append((path.stem.replace("_", " "), row))
    return found


def formula(text: str) -> str:
    """A plain formula as MathML, which browsers draw without a script; as code if it cannot be read."""
    from latex2mathml.converter import convert

    tex = re.sub(r"([#{}%])", r"\\\1", text)
    tex = re.sub(r"_\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"_{\1}", tex)
    tex = re.sub(r"(?<=\b[a-z])_([a-z]{2,})", r"_{\1}", tex)
    tex = re.sub(r"(?<=\b[a-z]) in (?=[a-z])", r" \\in ", tex)
    tex = re.sub(r"\b1e-(\d+)", r"10^{-\1}", tex)
    for plain, drawn in {"|": r"\vert ", ">=": r"\ge ", "<=": r"\le ", "<": r"\lt ", "…": r"\ldots "}.items():
        tex = tex.replace(plain, drawn)
    tex = re.sub(r"(?<![\\\w])[A-Za-z]{2,}(?:_[a-z0-9]{2,})*(?=([(\[_]?))(?![A-Za-z0-9])", word, tex)
    try:
        return f'<div style="overflow-x: auto">{convert(tex, display="block")}</div>'
    except Exception:  # noqa: BLE001 - any formula has a plain form
        return f"`{text}`"


def word(match: re.Match[str]) -> str:
    """A word of a formula in LaTeX: a Greek letter, a function, or text."""
    found, behind = match[0], match[1]
    if found in {"alpha", "epsilon"} or (found == "sum" and behind == "_"):
        return rf"\{found} "
    if behind or found in {"cos", "exp", "log", "max", "mean", "median", "min", "softmax", "std", "sum"}:
        return rf"\operatorname{{{found}}}"
    text = found.replace("_", r"\_")
    return rf"\text{{ {text} }}"


def page(title: str, *parts: str) -> str:
    """A page."""
    return "\n\n".join([f"# {title}", *(part for part in parts if part)]) + "\n"


def facts(rows: Mapping[str, Any]) -> str:
    """A table of two columns; empty values are left out."""
    lines = [f"| {name} | {cell(value)} |" for name, value in rows.items() if value not in (None, "", (), [])]
    return "\n".join(["| property | value |", "|---|---|", *lines])


def cell(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(f"`{each}`" for each in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def detector_pages() -> dict[str, str]:
    """A page for each detector."""
    from graphhalu.detectors.registry import DETECTORS
    from graphhalu.detectors.saved import TrainedDetector

    measured, pages = figures(), {}
    for name, kind in DETECTORS.load_all()[0].items():
        card = kind.card
        command = (
            "graphhalu tokens STORE --detectors" if card.level == "token" else "graphhalu compare --detectors"
        )
        trained = (
            f"graphhalu train {name}" if card.level == "answer" else f"graphhalu tokens STORE --save {name}"
        )
        about = facts(
            {
                "scores": f"each {card.level}",
                "reads": card.inputs,
                "stored arrays": card.reads,
                "trained on labels": card.is_supervised,
                "control": card.is_control,
                "graph network": card.is_graph,
                "needs beside one answer": card.compares,
            }
        )
        settings = ""
        if issubclass(kind, TrainedDetector):
            fields = kind.config_class.model_fields.items()
            rows = [f"| `{n}` | `{f.default!r}` | {cell(f.description or '')} |" for n, f in fields]
            settings = "\n".join(["## Settings", "", "| `--set` | default | |", "|---|---|---|", *rows])
        own = ""
        if name in measured:
            lines = [figure_row(store, row) for store, row in measured[name]]
            head = "| store | AUROC | average precision | fit, s | ms an answer |\n|---|---|---|---|---|"
            own = "\n".join(
                ["## Measured", "", head, *lines, "", "95 % over questions; [how](../../figures.md)."]
            )
        pages[name] = page(
            name,
            card.summary[:1].upper() + card.summary[1:] + ".",
            "**A control: a detector proves nothing unless it beats it.**" if card.is_control else "",
            "## Method and source\n\n" + card.source,
            f"## Command\n\n<!-- not executed: a store is named -->\n```bash\n{command} {name}\n{trained}\n```",
            about,
            settings,
            own,
        )
    return pages


def figure_row(store: str, row: Mapping[str, str]) -> str:
    """A row of measured figures."""

    def interval(metric: str) -> str:
        try:
            value, low, high = (float(row[f"{metric}{end}"]) for end in ("", "_low", "_high"))
        except (KeyError, ValueError):
            return ""
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    def number(name: str, form: str) -> str:
        return format(float(row[name]), form) if row.get(name) else ""

    cells = [store, interval("auroc"), interval("auprc"), number("fit_s", ".3g"), number("score_ms", ".3g")]
    return f"| {' | '.join(cells)} |"


def feature_pages() -> dict[str, str]:
    """A page for each feature."""
    from graphhalu.features.registry import FEATURES

    pages = {}
    for name, feature in FEATURES.load_all()[0].items():
        about = {
            "shape": f"[{', '.join(('trace' if feature.level == 'trace' else 'row', *feature.axes))}]",
            "a higher value means": feature.direction,
            "stored arrays": feature.reads,
            "cost": feature.cost,
            "parameters": ", ".join(f"{key} = {value}" for key, value in feature.parameters.items()),
            "reads several answers": feature.reads_beams,
        }
        pages[name] = page(
            name,
            feature.summary[:1].upper() + feature.summary[1:] + ".",
            "## Formula\n\n" + formula(feature.formula) + f"\n\n`{feature.formula}`",
            "## Source\n\n" + feature.source,
            facts(about),
            f"<!-- not executed: a store is named -->\n```bash\ngraphhalu features STORE --features {name}\n```",
        )
    return pages


def dataset_pages() -> dict[str, str]:
    """A page for each data set."""
    from graphhalu.datasets.registry import DATASETS

    pages = {}
    for name, kind in DATASETS.load_all()[0].items():
        card = kind.card
        about = {
            "task": card.task,
            "questions": card.size,
            "licence": card.licence,
            "source": card.source,
            "label rule": card.label_rule,
            "layout": card.layout,
            "bundled": card.is_bundled,
        }
        path = "" if card.is_bundled else " --data-path FILE"
        artefacts = "".join(f"- {each}\n" for each in card.artefacts)
        pages[name] = page(
            name,
            facts(about),
            "## Known artefacts\n\n" + artefacts if artefacts else "",
            "## Citation\n\n" + card.citation if card.citation else "",
            f"<!-- not executed: takes minutes -->\n```bash\ngraphhalu extract --dataset {name}{path}\n```",
        )
    return pages


def labeller_pages() -> dict[str, str]:
    """A page for each rule that labels answers."""
    import inspect

    from graphhalu.labels.registry import LABELLERS

    pages = {}
    for name, kind in LABELLERS.load_all()[0].items():
        said = re.sub(r"\n(Args|Source):\n", r"\n## \1\n\n", inspect.getdoc(kind) or "")
        said = re.sub(r"^    ([a-z]\w*): ", r"- `\1`: ", said, flags=re.MULTILINE)
        said = re.sub(r"^    (?=\S)", "", said, flags=re.MULTILINE).replace("## Args", "## Settings")
        said = re.sub(r":(?:func|data|class):`[~.]?([\w.]+)`", r"`\1`", said).replace("``", "`")
        command = (
            f"<!-- not executed: a store is named -->\n```bash\ngraphhalu label STORE --labeller {name}\n```"
        )
        pages[name] = page(name, said, command)
    return pages


def command_pages() -> dict[str, str]:
    """A page for each command."""
    import typer

    from graphhalu.cli.main import app

    def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        inside = getattr(command, "commands", None)
        if inside is None:
            yield " ".join(words), command
            return
        for name, each in inside.items():
            if not each.hidden:
                yield from leaves(each, (*words, name))

    pages = {}
    for words, command in leaves(typer.main.get_command(app), ()):
        context = command.make_context(words, [], resilient_parsing=True)
        rows = []
        for parameter in command.get_params(context):
            names = [*parameter.opts, *parameter.secondary_opts]
            name = ", ".join(f"`{each}`" for each in names) or f"`{parameter.name}`"
            default = parameter.default
            shown = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
            rows.append(f"| {name} | {shown} | {cell(getattr(parameter, 'help', '') or '')} |")
        table = "\n".join(["| option | default | |", "|---|---|---|", *rows])
        pages[words.replace(" ", "-")] = page(f"graphhalu {words}", command.help or "", table)
    return pages


def generated() -> None:
    """All pages of the reference, and the list of each kind."""
    makers = (detector_pages, feature_pages, dataset_pages, labeller_pages, command_pages)
    for kind, make in zip(REFERENCE, makers, strict=True):
        folder = SOURCE / "reference" / kind
        folder.mkdir(parents=True, exist_ok=True)
        pages = make()
        rows = []
        for name, text in pages.items():
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
            lines = [line for line in text.splitlines()[1:] if line and line[0] not in "|#<`*-"]
            rows.append(
                f"| [{name.replace('-', ' ') if kind == 'commands' else name}]({name}.md) | {cell(lines[0] if lines else '')} |"
            )
        text = page(kind.capitalize(), f"{len(pages)} in all.", "\n".join(["| | |", "|---|---|", *rows]))
        (folder / "index.md").write_text(text, encoding="utf-8")


def execute(path: Path, folder: Path) -> str:
    """A notebook with the outputs of its Python blocks, run one after another in a folder.

    Raises:
        Exception: What a block raises, with the line of the block in a note.
    """
    text, names = path.read_text(encoding="utf-8"), {"__name__": "__main__"}
    text = re.sub(r"\n```text title=\"output\"\n.*?```\n", "\n", text, flags=re.DOTALL)
    made, end = [], 0
    lines = text.splitlines()
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks(text):
            stop = block.line + block.text.count("\n") + 2
            made += lines[end:stop]
            end = stop
            if block.language != "python" or block.reason is not None:
                continue
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said):
                    exec(compile(block.text, f"{path.name}:{block.line}", "exec"), names)  # noqa: S102
            except Exception as error:
                error.add_note(f"in {path.name}, line {block.line}")
                raise
            if said.getvalue().strip():
                made += ["", OUTPUT, *said.getvalue().rstrip().splitlines(), "```"]
        made += lines[end:]
    finally:
        os.chdir(before)
    return "\n".join(made).rstrip() + "\n"


def as_ipynb(text: str) -> dict[str, Any]:
    """A notebook of Jupyter."""
    cells: list[dict[str, Any]] = []
    parts = re.split(rf"(^```python\n.*?^```$|^{OUTPUT}\n.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    for part in (each.strip("\n") for each in parts):
        if part.startswith("```python"):
            code = part.removeprefix("```python\n").removesuffix("\n```")
            cell_ = {
                "cell_type": "code",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": code,
            }
            cells.append(cell_)
        elif part.startswith(OUTPUT):
            output = part.removeprefix(f"{OUTPUT}\n").removesuffix("\n```")
            cells[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": output}]
        elif part.strip():
            cells.append({"cell_type": "markdown", "metadata": {}, "source": part})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}


def write_ipynb(folder: Path) -> None:
    """All notebooks as Jupyter's."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((DOCS / "notebooks").glob("[0-9]*.md")):
        made = as_ipynb(path.read_text(encoding="utf-8"))
        (folder / f"{path.stem}.ipynb").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def on_page_content(html: str, **_: Any) -> str:
    """A page without the roles that docstrings write before a name, for mkdocs."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<)", "", html)


def build() -> None:
    """The site."""
    copied()
    generated()
    write_ipynb(SOURCE / "notebooks")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(SITE)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    print(f"{sum(1 for _ in SITE.rglob('*.html'))} pages in {SITE.relative_to(ROOT)}")


def main(arguments: list[str]) -> None:
    """One step."""
    step, *paths = arguments or ["build"]
    if step == "build":
        build()
    elif step == "notebooks":
        write_ipynb(ROOT / "build" / "notebooks")
    elif step == "run":
        with tempfile.TemporaryDirectory() as folder:
            for path in map(Path, paths):
                path.write_text(execute(path.resolve(), Path(folder)), encoding="utf-8")
                print(path)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
