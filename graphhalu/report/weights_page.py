"""Pages of weight profiles: one model with its validation, or two models side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphhalu.atomic import replace_file
from graphhalu.errors import NotEnoughDataError
from graphhalu.report.drawing import save_figure
from graphhalu.report.frame import provenance_section
from graphhalu.report.html import report_html
from graphhalu.report.page import (
    ABSENT,
    Cell,
    Column,
    Page,
    PageFigure,
    PageTable,
    Section,
    number,
    text_rows,
)
from graphhalu.report.weights_figures import (
    depth_figure,
    heads_figure,
    risk_figure,
    scatter_figure,
)
from graphhalu.report.write import ReportFiles
from graphhalu.studies.weights.agreement import Agreement, counts
from graphhalu.studies.weights.measure import MEASURED_MEANINGS
from graphhalu.studies.weights.result import Validation
from graphhalu.weights.compare import ProfileComparison
from graphhalu.weights.tables import HEAD_DESCRIPTIONS, LAYER_DESCRIPTIONS, WeightProfile

REPORT_FILE: Final = "report.html"
_SHOWN: Final = (
    "logit_variance", "valid_share", "peaked_share", "value_norm", "value_amplification",
    "ov_norm", "copying", "attention_gain", "mlp_gain", "gain_ratio", "tail_alpha",
)  # fmt: skip


def profile_page(profile: WeightProfile, found: Validation | None) -> Page:
    """A profile, with its validation where there is one; the risk is never shown without."""
    sections = [
        _storage(profile),
        *([_verdicts(found), *_measured(profile, found), _risk(found)] if found else []),
        _depth(profile),
        _heads(profile),
        _reading(found),
        _made_with(profile, found),
    ]
    name = str(profile.model.get("name", "a model"))
    sizes = profile.architecture
    return Page(
        f"{name}: what its weights say of its attention",
        _headline(profile, found),
        (
            ("family", str(sizes["family"])),
            ("size", (f"{sizes['n_layers']} layers of {sizes['n_heads']} heads, "
                     f"{sizes['n_kv_heads']} key heads of {sizes['head_dim']}")),
            ("stored as", _types(profile)),
            ("validated on", _traces(found)),
        ),
        tuple(s for s in sections if s.paragraphs or s.figures or s.tables),
    )  # fmt: skip


def comparison_page(first: WeightProfile, second: WeightProfile, found: ProfileComparison) -> Page:
    """Two profiles side by side."""
    columns = (
        Column("quantity"), Column("of"), Column(found.names[0], is_number=True),
        Column(found.names[1], is_number=True), Column("rank correlation", is_number=True),
        Column("median change", is_number=True),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(row.quantity), Cell(row.level), _figure(row.first), _figure(row.second),
            _figure(row.correlation, "+.3f"), _figure(row.change, ".1%"),
        )
        for row in found.rows
    )  # fmt: skip
    table = PageTable(
        "compared", "Medians, and agreement head by head or layer by layer", columns, rows,
        () if found.is_same_shape else ("Shapes differ: heads and layers do not correspond.",),
    )  # fmt: skip
    zeros = [[part, f"{one:.2%}", f"{other:.2%}"] for part, (one, other) in found.zeros.items()]
    zeros += [[part, "refused", reason] for part, reason in found.refused.items()]
    zero_columns = (Column("part"), *(Column(name) for name in found.names))
    notes = (("Types differ in whether they hold an exact zero, so zeros are compared within a "
             "type only."),)  # fmt: skip
    caption = (
        "Four quantities over depth; open marks stand where a quantity reads parts that the model "
        "stores in more than one way."
    )
    return Page(
        f"{found.names[0]} and {found.names[1]}: weights side by side",
        _compared_headline(found),
        (("first", _types(first)), ("second", _types(second))),
        (
            Section("types", "Storage types", tuple(found.warnings)),
            Section("depth", "Over depth",
                    figures=(PageFigure("depth", "Over depth", caption,
                                        depth_figure([first, second])),)),
            Section("compared-section", "Every quantity", tables=(table,)),
            Section("zeros-section", "Exact zeros",
                    tables=(PageTable("zeros", "Share of exact zeros", zero_columns,
                                      text_rows(zeros), notes),)),
            provenance_section(first.provenance, {}),
        ),
    )  # fmt: skip


def write_page(page: Page, folder: Path, *, has_svg: bool = False) -> ReportFiles:
    """Write the HTML page and its figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = (".png", ".svg") if has_svg else (".png",)
    figures = [
        save_figure(figure.figure, folder / f"{figure.name}{suffix}")
        for figure in page.figures
        for suffix in suffixes
    ]
    target = folder / REPORT_FILE
    replace_file(target, report_html(page).encode())
    return ReportFiles(target, target, tuple(figures))


def _headline(profile: WeightProfile, found: Validation | None) -> tuple[str, str]:
    mixed = profile.mixed()
    warning = (
        f"{len(mixed)} parts are stored in more than one type: differences between their layers "
        "may be those of the types."
        if mixed
        else "Every part is stored in one type."
    )
    if found is None:
        return ("Nothing here was held against the running model: these are hypotheses.", warning)
    verdicts = counts(found.rows)
    return (
        (
            f"Of {len(found.rows)} claims that the weights make, the running model supports "
            f"{verdicts['supported']} and contradicts {verdicts['contradicted']}; "
            f"{verdicts['unsupported']} are unsupported, {verdicts['not tested']} not tested."
        ),
        warning,
    )


def _compared_headline(found: ProfileComparison) -> tuple[str, str]:
    kind = "Heads and layers correspond." if found.is_same_shape else "The shapes differ."
    known = [r for r in found.rows if r.level == "head" and np.isfinite(r.correlation)]
    if not known:
        return kind, "Only medians and depth can be compared."
    least = min(known, key=lambda row: row.correlation)
    return (
        (
            f"{kind} Head by head, {len(known)} quantities agree with a rank correlation of "
            f"{least.correlation:+.3f} or more."
        ),
        f"The least agreement is that of {least.quantity}.",
    )


def _storage(profile: WeightProfile) -> Section:
    mixed = profile.mixed()
    if not mixed:
        return Section("storage", "How the weights are stored", (*profile.notes,))
    rows = [
        [found.part, kind, str(len(names)), ", ".join(names)]
        for found in mixed
        for kind, names in found.types.items()
    ]
    columns = (Column("part"), Column("type"), Column("tensors"), Column("names"))
    notes = (
        (
            "A mix comes from the recipe of the quantisation, not from the model. Zeros are not "
            "compared across types, and what reads these parts is marked as mixed below."
        ),
    )
    table = PageTable(
        "mixed", "Parts stored in more than one type", columns, text_rows(rows), notes
    )
    return Section("storage", "How the weights are stored", (*profile.notes,), tables=(table,))


def _verdicts(found: Validation) -> Section:
    columns = (
        Column("from weights"), Column("measured"), Column("of"), Column("expected"),
        Column("rank correlation", is_number=True), Column("beyond depth", is_number=True),
        Column("n", is_number=True), Column("q", is_number=True), Column("verdict"),
    )  # fmt: skip
    rows = tuple(_row(row) for row in found.rows)
    untested = [[name, reason] for name, reason in found.untested.items()]
    missing = [[name, reason] for name, reason in found.missing.items()]
    notes = (
        (
            "Spearman's correlation with a 95 % interval over layers; q is the p-value of a "
            "permutation of layers and of heads within them, after Benjamini and Hochberg over all "
            "rows. Supported: q below 0.05 with the expected sign; contradicted: with the other."
        ),
        (
            "Beyond depth: mean correlation within layers, or given the place of the layer. A "
            "quantity that only follows depth has none."
        ),
    )
    tables = [PageTable("verdicts", "Weights against the running model", columns, rows, notes)]
    if missing or untested:
        tables.append(
            PageTable(
                "missing",
                "What could not be tested",
                (Column("what"), Column("why")),
                text_rows(missing + untested),
            )
        )
    return Section("verdicts-section", "What is true of it", tables=tuple(tables))


def _row(row: Agreement) -> tuple[Cell, ...]:
    name = row.static + (" (published)" if row.is_control else "")
    name += " (mixed types)" if row.is_mixed else ""
    if not np.isfinite(row.rho):
        return (
            Cell(name), Cell(row.measured), Cell(row.level), Cell(_sign(row)), Cell(ABSENT),
            Cell(ABSENT), number(row.n, ".0f"), Cell(ABSENT), Cell(row.verdict, row.reason),
        )  # fmt: skip
    interval = f"[{row.low:+.2f}, {row.high:+.2f}]" if np.isfinite(row.low) else ""
    return (
        Cell(name), Cell(row.measured), Cell(row.level), Cell(_sign(row)),
        Cell(f"{row.rho:+.2f}", interval, row.rho), _figure(row.beyond_depth, "+.2f"),
        number(row.n, ".0f"), _figure(row.q_value), Cell(row.verdict),
    )  # fmt: skip


def _measured(profile: WeightProfile, found: Validation) -> list[Section]:
    entropy = found.entropy
    zones = ", ".join(f"{share:.0%} {zone}" for zone, share in entropy.shares.items())
    errors = ", ".join(f"{error:.2f} where {zone}" for zone, error in entropy.errors.items())
    paragraphs = [
        (
            f"Entropy estimate at {entropy.n_keys} keys: {zones}. Mean of the estimate "
            f"{entropy.mean_estimate:.2f}, measured {entropy.mean_measured:.2f}, both over log n; "
            f"mean distance head by head {errors}."
        )
    ]
    share = found.measured.layers.get("top_share", np.zeros(0))
    there = share[np.isfinite(share)]
    if there.size:
        paragraphs.append(
            f"All of it supposes isotropic inputs. In {there.size} layers they were looked at: one "
            f"direction holds {there.min():.0%} to {there.max():.0%} of their second moment."
        )
    try:
        figure = scatter_figure(profile, found)
    except NotEnoughDataError:
        return [Section("scatter-section", "Static against measured", tuple(paragraphs))]
    caption = (
        "Every mark is a head, a key head or a layer. Circles: the entropy estimate is within 5 % "
        "for normal logits; squares: it is rough; triangles: one key takes nearly all."
    )
    drawn = PageFigure("scatter", "Static against measured", caption, figure)
    return [Section("scatter-section", "Static against measured", tuple(paragraphs), (drawn,))]


def _risk(found: Validation) -> Section:
    rows = [
        [name, f"{found.risk.weights[name]:.2f}", found.risk.reasons[name],
         "yes" if name in found.risk.mixed_types else "no"]
        for name in found.risk.components
    ]  # fmt: skip
    rows += [[name, ABSENT, reason, ABSENT] for name, reason in found.risk.left_out.items()]
    columns = (Column("component"), Column("weight"), Column("hypothesis"), Column("mixed types"))
    table = PageTable("components", "Components of the risk", columns, text_rows(rows))
    try:
        figure = risk_figure(found)
    except NotEnoughDataError as error:
        return Section("risk", "Risk by layer", (f"Not shown: {error}.",), tables=(table,))
    caption = (
        "Above, each component as the share of layers that a layer lies above, and their weighted "
        "mean. Below, the AUROC of a logistic probe on one layer alone, folds by question, with "
        "95 % intervals; the dotted line is chance."
    )
    drawn = PageFigure("risk", "Risk and its validation", caption, figure)
    return Section("risk-section", "Risk by layer", figures=(drawn,), tables=(table,))


def _depth(profile: WeightProfile) -> Section:
    caption = (
        "Four quantities by layer. Open marks: the quantity reads parts that are stored in more "
        "than one type."
    )
    names = [name for name in _SHOWN if np.isfinite(profile.of_layers(name)).any()]
    columns = (Column("layer", is_number=True), *(Column(n, is_number=True) for n in names))
    values = {name: profile.of_layers(name) for name in names}
    rows = tuple(
        (number(layer, ".0f"), *(_figure(float(values[name][layer])) for name in names))
        for layer in range(profile.n_layers)
    )
    return Section(
        "depth-section", "Over depth",
        figures=(PageFigure("depth", "Over depth", caption, depth_figure([profile])),),
        tables=(PageTable("layers", "Layer by layer", columns, rows),),
    )  # fmt: skip


def _heads(profile: WeightProfile) -> Section:
    caption = (
        "Layers across, heads down; dark blue is low, yellow is high. Scales of the first and "
        "last map are logarithmic."
    )
    drawn = PageFigure("heads", "Single heads", caption, heads_figure(profile))
    return Section("heads-section", "Single heads", figures=(drawn,))


def _reading(found: Validation | None) -> Section:
    meanings = {**HEAD_DESCRIPTIONS, **LAYER_DESCRIPTIONS, **(MEASURED_MEANINGS if found else {})}
    table = PageTable(
        "meanings", "The quantities", (Column("quantity"), Column("meaning")),
        text_rows([[name, text] for name, text in meanings.items()]),
    )  # fmt: skip
    return Section("reading", "How to read this", tables=(table,))


def _made_with(profile: WeightProfile, found: Validation | None) -> Section:
    said: dict[str, Any] = {"model": dict(profile.model), "profile": dict(profile.settings)}
    if found is not None:
        said |= {"validation": dict(found.settings), "store": dict(found.store)}
    texts: Mapping[str, Any] = {
        name: json.dumps(value, ensure_ascii=False) for name, value in said.items()
    }
    return provenance_section({**profile.provenance, **texts}, {})


def _traces(found: Validation | None) -> str:
    if found is None:
        return "nothing"
    return f"{found.measured.n_traces} traces of {found.store.get('name', 'a store')}"


def _types(profile: WeightProfile) -> str:
    kinds: dict[str, int] = {}
    for kind in profile.tensors["storage"].to_pylist():
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))


def _sign(row: Agreement) -> str:
    return "+" if row.sign > 0 else "-"


def _figure(value: float, form: str = ".3g") -> Cell:
    return Cell(f"{value:{form}}", value=value) if np.isfinite(value) else Cell(ABSENT)
