"""Pages of weight profiles: one model with its validation, or two models side by side."""

import json
from collections import Counter
from functools import partial
from typing import Any, Final

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.report.page import Page, Section, figure_words, frame, make_page, say
from graphhalu.report.plots import DOTS, REFERENCE, WIDTH_IN, heat_maps, lines, look
from graphhalu.report.tables import Cell, Row, cell
from graphhalu.report.theme import LIGHT
from graphhalu.studies.weights.agreement import PAIRS, Agreement, counts
from graphhalu.studies.weights.validation import Validation, paired_values
from graphhalu.weights.risk import reads_mixed
from graphhalu.weights.tables import (
    HEAD_DESCRIPTIONS,
    LAYER_DESCRIPTIONS,
    MEASURED_DESCRIPTIONS,
    ProfileComparison,
    WeightProfile,
)

_SHOWN: Final = (
    *("logit_variance", "valid_share", "peaked_share", "value_norm", "value_amplification"),
    *("ov_norm", "copying", "attention_gain", "mlp_gain", "gain_ratio", "tail_alpha"),
)
_say = partial(say, "weights")
_words = partial(figure_words, "weights")


def profile_page(profile: WeightProfile, found: Validation | None) -> Page:
    """A profile, with its validation where there is one; the risk is never shown without."""
    descriptions = HEAD_DESCRIPTIONS | LAYER_DESCRIPTIONS | (MEASURED_DESCRIPTIONS if found else {})
    figures = {"depth": partial(depth_figure, [profile]), "heads": partial(heads_figure, profile)}
    tables: dict[str, list[Row]] = {
        "mixed": _mixed(profile),
        "layers": _layers(profile),
        "meanings": [{"quantity": name, "meaning": said} for name, said in descriptions.items()],
    }
    measured, sizes = list[str](), profile.architecture
    if found is not None:
        missing = {**found.missing, **found.untested}
        tables["verdicts"] = [_verdict_row(row) for row in found.rows]
        tables["missing"] = [{"what": name, "why": why} for name, why in missing.items()]
        tables["components"] = _components(found)
        figures["scatter"] = partial(scatter_figure, profile, found)
        figures["risk"] = partial(risk_figure, found)
        measured = _measured(found)
    of = "" if found is None else f"{found.measured.n_traces} traces of {found.store.get('name', 'a store')}"
    return make_page(
        "weights",
        _headline(profile, found),
        figures=figures,
        tables=tables,
        paragraphs={"storage": profile.notes, "scatter-section": measured},
        ready=_made_with(profile, found),
        depth="by layer",
        title=_say("one", profile=profile),
        family=sizes["family"],
        size=_say("size", **sizes),
        stored=_types(profile),
        validated=of or "nothing",
        first="",
        second="",
    )


def comparison_page(first: WeightProfile, second: WeightProfile, found: ProfileComparison) -> Page:
    """Two profiles side by side."""
    zeros: list[Row] = [
        {"part": part, "first": f"{one:.2%}", "second": f"{other:.2%}"}
        for part, (one, other) in found.zeros.items()
    ]
    zeros += [{"part": part, "first": "refused", "second": why} for part, why in found.refused.items()]
    return make_page(
        "weights",
        _compared_headline(found),
        figures={"depth": partial(depth_figure, [first, second])},
        tables={"compared": [{"row": row} for row in found.rows], "zeros": zeros},
        paragraphs={"types": found.warnings},
        ready=frame({}, first.provenance, {}),
        depth="over depth",
        title=_say("two", names=found.names),
        first=f"{found.names[0]}: {_types(first)}",
        second=f"{found.names[1]}: {_types(second)}",
        **dict.fromkeys(("family", "size", "stored", "validated"), ""),
    )


def depth_figure(profiles: list[WeightProfile]) -> Figure:
    """Quantities by layer; several profiles share the panels, over depth as a share.

    An open mark stands where the quantity reads parts that are stored in more than one way.
    """
    is_shared, panels = len(profiles) > 1, []
    for quantity, title in _words("depth").items():
        drawn = []
        for rank, profile in enumerate(profiles):
            values, style = profile.of_layers(quantity), look(rank)
            face = LIGHT["paper"] if reads_mixed(profile, quantity) else style["color"]
            layers = np.arange(len(values)) / (max(1, len(values) - 1) if is_shared else 1)
            label = f"{profile.name} ({rank + 1})" if is_shared else ""
            style |= {"label": label, "markersize": 4.5, "markerfacecolor": face}
            drawn.append({"x": layers, "y": values, **style})
        known = np.concatenate([line["y"] for line in drawn])
        is_log = quantity != "copying" and np.nanmin(known, initial=np.inf) > 0
        scale = {"yscale": "log"} if is_log and np.isfinite(known).any() else {}
        xlabel = "depth (first to last layer)" if is_shared else "layer"
        panels.append({"lines": drawn, "title": title, "xlabel": xlabel, **scale})
    return lines(panels)


def heads_figure(profile: WeightProfile) -> Figure:
    """Maps of heads: logit variance, copying, norm of the OV circuit; a dot marks peaked heads.

    Raises:
        NotEnoughDataError: If no head has a number.
    """
    panels = []
    for quantity, title in _words("heads").items():
        values = profile.of_heads(quantity).T
        there = values[np.isfinite(values)]
        if not there.size:
            raise NotEnoughDataError("no head has a number: there is nothing to draw")
        positive = there[there > 0]
        reach = max(float(np.abs(there).max()), 1e-9)
        norm: Normalize = Normalize(-reach, reach)
        if quantity != "copying" and positive.size:
            norm = LogNorm(float(np.quantile(positive, 0.02)), float(positive.max()))
        panels.append({"values": values, "title": title, "norm": norm, "bar": title.partition(";")[0]})
    panels[0]["dots"] = (_zones(profile) == "peaked").T
    return heat_maps(panels, cell_in=0.17 if profile.n_heads <= 16 else 0.09)  # noqa: PLR2004


def scatter_figure(profile: WeightProfile, found: Validation) -> Figure:
    """Static quantities against measured ones, with the correlation of each.

    Raises:
        NotEnoughDataError: If nothing was measured.
    """
    words, panels = _words("scatter"), []
    for pair in PAIRS:
        names = (pair.static, pair.measured, pair.level)
        axes = words["pairs"].get(" ".join(names))
        static, measured = paired_values(pair, profile, found.measured)
        both = np.isfinite(static) & np.isfinite(measured)
        if axes is None or not both.any():
            continue
        zones = _zones(profile) if pair.level == "head" else np.full(static.shape, "valid")
        marks = []
        for zone, (marker, colour) in words["marks"].items():
            here = both & (zones == zone)
            style = {"marker": marker, "color": LIGHT[colour], "markersize": 4, "alpha": 0.75, **DOTS}
            label = f"estimate of entropy: {zone}" if pair.level == "head" else ""
            marks.append({"x": static[here], "y": measured[here], "label": label, **style})
        logarithmic, xlabel, ylabel = axes
        rows = [row for row in found.rows if (row.static, row.measured, row.level) == names]
        title = "".join(f"{_rho(row)}: {row.verdict}" for row in rows[:1])
        labels = {"title": title, "xlabel": xlabel, "ylabel": ylabel}
        panels.append({"lines": marks, **labels, **{f"{axis}scale": "log" for axis in logarithmic}})
    if not panels:
        raise NotEnoughDataError("no quantity was measured: there is nothing to draw")
    return lines(panels, size_in=(WIDTH_IN, 3.3))


def risk_figure(found: Validation) -> Figure:
    """The risk curve with its components, and below it what it should predict.

    Raises:
        NotEnoughDataError: If it was not validated: it is never shown alone.
    """
    if not found.detection:
        reason = found.missing.get("detection by layer") or "; ".join(found.missing.values())
        raise NotEnoughDataError(_say("unvalidated", reason=reason))
    layers, words = np.arange(len(found.risk.values)), _words("risk")
    risk = []
    for rank, (name, values) in enumerate(found.risk.components.items(), start=1):
        style = {**look(rank), "marker": "", "linewidth": 1.1}
        risk.append({"x": layers, "y": values, "label": name.replace("_", " "), **style})
    style = {"label": "risk", "color": LIGHT["graph"], "linewidth": 2.6}
    risk.append({"x": layers, "y": found.risk.values, **style})
    verdicts = {row.measured: f"{_rho(row)}\n{row.verdict}" for row in found.rows if row.static == "risk"}
    detected = []
    for rank, each in enumerate(found.detection):
        shifted = layers + 0.12 * (2 * rank - len(found.detection) + 1)
        label = f"by {each.inputs}\n{verdicts.get(f'AUROC by {each.inputs}', '')}"
        style = {**look(2 - rank % 2), "label": label, "linewidth": 1.4, "markersize": 4.5, "bars": True}
        detected.append({"x": shifted, "y": each.auroc, "low": each.low, "high": each.high, **style})
    detected.append({"x": layers[[0, -1]], "y": [0.5, 0.5], **REFERENCE})
    panels = [{"lines": risk, **words["above"]}, {"lines": detected, **words["below"]}]
    return lines(panels, n_columns=1, size_in=(WIDTH_IN, 3.2), key="right")


def _zones(profile: WeightProfile) -> Any:
    zones = np.array(profile.heads["entropy_zone"].to_pylist())
    return zones.reshape(profile.n_layers, profile.n_heads)


def _rho(row: Agreement) -> str:
    return f"rho = {row.rho:+.2f}" if np.isfinite(row.rho) else "no correlation"


def _headline(profile: WeightProfile, found: Validation | None) -> tuple[str, str]:
    mixed = profile.mixed()
    warning = _say("mixed", n_mixed=len(mixed)) if mixed else _say("unmixed")
    if found is None:
        return _say("hypotheses"), warning
    verdicts = dict(counts(found.rows))
    return _say("verdicts", n_claims=len(found.rows), untested=verdicts["not tested"], **verdicts), warning


def _compared_headline(found: ProfileComparison) -> tuple[str, str]:
    kind = _say("same" if found.is_same_shape else "different")
    known = [row for row in found.rows if row.level == "head" and np.isfinite(row.correlation)]
    if not known:
        return kind, _say("medians")
    least = min(known, key=lambda row: row.correlation)
    return _say("agreed", kind=kind, n_known=len(known), least=least), _say("least", least=least)


def _mixed(profile: WeightProfile) -> list[Row]:
    return [
        {"part": part, "type": kind, "tensors": str(len(names)), "names": ", ".join(names)}
        for part, types in profile.mixed().items()
        for kind, names in types.items()
    ]


def _layers(profile: WeightProfile) -> list[Row]:
    columns = {name: profile.of_layers(name) for name in _SHOWN}
    known = {name: column.tolist() for name, column in columns.items() if np.isfinite(column).any()}
    return [
        {"layer": layer, **{name: cell(column[layer], ".3g") for name, column in known.items()}}
        for layer in range(profile.n_layers)
    ]


def _components(found: Validation) -> list[Row]:
    curve, nothing = found.risk, {"weight": None, "mixed": None}
    known: list[Row] = [
        {"name": name, "weight": weight, "reason": curve.reasons[name], "mixed": name in curve.mixed_types}
        for name, weight in curve.weights.items()
    ]
    return known + [{"name": name, "reason": why, **nothing} for name, why in curve.left_out.items()]


def _verdict_row(row: Agreement) -> Row:
    is_tested = bool(np.isfinite(row.rho))
    return {
        "row": row,
        "name": row.static + " (published)" * row.is_control + " (mixed types)" * row.is_mixed,
        "expected": "+" if row.sign > 0 else "-",
        "correlation": Estimate(row.rho, row.low, row.high) if is_tested else None,
        "verdict": Cell(row.verdict, row.reason),
    }


def _measured(found: Validation) -> list[str]:
    entropy = found.entropy
    zones = ", ".join(f"{share:.0%} {zone}" for zone, share in entropy.shares.model_dump().items())
    errors = ", ".join(f"{error:.2f} where {zone}" for zone, error in entropy.errors.model_dump().items())
    # a number that there is not is None after it was read
    means = {name: np.float64(getattr(entropy, name)) for name in ("mean_estimate", "mean_measured")}
    said = [_say("entropy", entropy=entropy, zones=zones, errors=errors, **means)]
    share = found.measured.layers.get("top_share", np.zeros(0))
    there = share[np.isfinite(share)]
    if there.size:
        said.append(_say("isotropy", n_layers=there.size, low=there.min(), high=there.max()))
    return said


def _made_with(profile: WeightProfile, found: Validation | None) -> dict[str, list[Section]]:
    said = {"model": profile.model, "profile": profile.settings}
    if found is not None:
        said |= {"validation": found.settings, "store": found.store}
    texts = {name: json.dumps(dict(value), ensure_ascii=False) for name, value in said.items()}
    return frame({}, {**profile.provenance, **texts}, {})


def _types(profile: WeightProfile) -> str:
    kinds = Counter(profile.tensors["storage"].to_pylist())
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
