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
from graphhalu.report.frame import frame
from graphhalu.report.page import Page, Section, sections
from graphhalu.report.plots import DOTS, REFERENCE, WIDTH_IN, heat_maps, lines, look
from graphhalu.report.tables import ABSENT, Cell, Row, cell
from graphhalu.report.theme import LIGHT
from graphhalu.studies.weights.agreement import PAIRS, Agreement, counts
from graphhalu.studies.weights.validation import Validation, paired_values
from graphhalu.weights.compare import ProfileComparison
from graphhalu.weights.risk import reads_mixed
from graphhalu.weights.tables import (
    HEAD_DESCRIPTIONS,
    LAYER_DESCRIPTIONS,
    MEASURED_DESCRIPTIONS,
    WeightProfile,
)

_SHOWN: Final = (
    *("logit_variance", "valid_share", "peaked_share", "value_norm", "value_amplification"),
    *("ov_norm", "copying", "attention_gain", "mlp_gain", "gain_ratio", "tail_alpha"),
)
_CURVES: Final = {
    "logit_variance": "logit variance s², mean of heads",
    "value_norm": "expected norm of values",
    "copying": "copying score, mean of heads",
    "gain_ratio": "gain: feed-forward / attention",
}
"""Curves over depth; all but the copying score are logarithmic."""
_MAPS: Final = {
    "logit_variance": "logit variance s²; a dot: peaked, no estimate of entropy",
    "copying": "copying score",
    "ov_norm": "norm of the OV circuit",
}
_ZONE_MARKS: Final = {"valid": ("o", "probe"), "rough": ("s", "scalar"), "peaked": ("^", "graph")}
_S2: Final = "s² of the head"
_NORMS: Final = ("expected norm of values", "measured norm of values")
_RATIOS: Final = ("gain ratio of the layer (estimate)", "measured ratio of outputs")
_SCATTERS: Final = {
    ("logit_variance", "entropy", "head"): (_S2, "measured entropy / log n", "x"),
    ("logit_variance", "sink_share", "head"): (_S2, "measured sink share", "x"),
    ("v_norm", "value_norm", "kv_head"): (*_NORMS, "xy"),
    ("gain_ratio", "output_ratio", "layer"): (*_RATIOS, "xy"),
}
"""Pairs that are drawn: labels of both axes, and which of them are logarithmic."""


def profile_page(profile: WeightProfile, found: Validation | None) -> Page:
    """A profile, with its validation where there is one; the risk is never shown without."""
    descriptions = HEAD_DESCRIPTIONS | LAYER_DESCRIPTIONS | (MEASURED_DESCRIPTIONS if found else {})
    figures = {"depth": partial(depth_figure, [profile]), "heads": partial(heads_figure, profile)}
    tables: dict[str, list[Row]] = {
        "mixed": _mixed(profile),
        "layers": _layers(profile),
        "meanings": [{"quantity": name, "meaning": said} for name, said in descriptions.items()],
    }
    measured: list[str] = []
    traces = "nothing"
    if found is not None:
        missing = {**found.missing, **found.untested}
        tables["verdicts"] = [_verdict_row(row) for row in found.rows]
        tables["missing"] = [{"what": name, "why": why} for name, why in missing.items()]
        tables["components"] = _components(found)
        figures["scatter"] = partial(scatter_figure, profile, found)
        figures["risk"] = partial(risk_figure, found)
        measured = _measured(found)
        traces = f"{found.measured.n_traces} traces of {found.store.get('name', 'a store')}"
    made = sections(
        "weights",
        figures=figures,
        tables=tables,
        paragraphs={"storage": profile.notes, "scatter-section": measured},
        ready={"provenance": _made_with(profile, found)},
        depth="by layer",
    )
    sizes = profile.architecture
    facts = {
        "family": str(sizes["family"]),
        "size": (
            f"{sizes['n_layers']} layers of {sizes['n_heads']} heads, "
            f"{sizes['n_kv_heads']} key heads of {sizes['head_dim']}"
        ),
        "stored as": _types(profile),
        "validated on": traces,
    }
    return Page(f"{profile.name}: its weights and its attention", _headline(profile, found), facts, made)


def comparison_page(first: WeightProfile, second: WeightProfile, found: ProfileComparison) -> Page:
    """Two profiles side by side."""
    # two ways of storing one model have one name
    one, other = (f"{name} ({which})" for name, which in zip(found.names, "12", strict=True))
    compared: list[Row] = [
        {
            "quantity": row.quantity,
            "of": row.level,
            one: cell(row.first, ".3g"),
            other: cell(row.second, ".3g"),
            "rank correlation": cell(row.correlation, "+.3f"),
            "median change": cell(row.change, ".1%"),
        }
        for row in found.rows
    ]
    zeros: list[Row] = [
        {"part": part, one: f"{share:.2%}", other: f"{second_share:.2%}"}
        for part, (share, second_share) in found.zeros.items()
    ]
    zeros += [{"part": part, one: "refused", other: why} for part, why in found.refused.items()]
    made = sections(
        "weights",
        figures={"depth": partial(depth_figure, [first, second])},
        tables={"compared": compared, "zeros": zeros},
        paragraphs={"types": found.warnings},
        ready=frame({}, first.provenance, {}),
        depth="over depth",
    )
    facts = {"first": _types(first), "second": _types(second)}
    return Page(
        f"{found.names[0]} and {found.names[1]}: weights side by side", _compared_headline(found), facts, made
    )


def depth_figure(profiles: list[WeightProfile]) -> Figure:
    """Quantities by layer; several profiles share the panels, over depth as a share.

    An open mark stands where the quantity reads parts that are stored in more than one way.
    """
    is_shared = len(profiles) > 1
    panels = []
    for quantity, title in _CURVES.items():
        drawn = [
            _depth_line(profile, quantity, rank, is_shared=is_shared) for rank, profile in enumerate(profiles)
        ]
        values = np.concatenate([line["y"] for line in drawn])
        known = values[np.isfinite(values)]
        is_log = quantity != "copying" and known.size and (known > 0).all()
        panels.append(
            {
                "lines": drawn,
                "title": title,
                "yscale": "log" if is_log else "linear",
                "xlabel": "depth (first to last layer)" if is_shared else "layer",
            }
        )
    return lines(panels, key="figure" if is_shared else "none")


def heads_figure(profile: WeightProfile) -> Figure:
    """Maps of heads: logit variance, copying, norm of the OV circuit; a dot marks peaked heads.

    Raises:
        NotEnoughDataError: If no head has a number.
    """
    panels = []
    for quantity, title in _MAPS.items():
        values = profile.of_heads(quantity).T
        there = values[np.isfinite(values)]
        if not there.size:
            message = "no head has a number: there is nothing to draw"
            raise NotEnoughDataError(message)
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
    panels = []
    for pair in (pair for pair in PAIRS if pair[:3] in _SCATTERS):
        static, measured = paired_values(pair, profile, found.measured)
        zones = _zones(profile) if pair.level == "head" else np.full(static.shape, "")
        both = np.isfinite(static) & np.isfinite(measured)
        if not both.any():
            continue
        marks = [
            {
                "x": static[here],
                "y": measured[here],
                "label": f"estimate of entropy: {zone}" if pair.level == "head" else "",
                "marker": marker,
                "color": LIGHT[colour],
                "markersize": 4,
                "alpha": 0.75,
                **DOTS,
            }
            for zone, (marker, colour) in _ZONE_MARKS.items()
            if (here := both & ((zones == zone) | ((zones == "") & (zone == "valid")))).any()
        ]
        xlabel, ylabel, logarithmic = _SCATTERS[pair[:3]]
        rows = [row for row in found.rows if (row.static, row.measured, row.level) == pair[:3]]
        scales = {f"{axis}scale": "log" for axis in logarithmic}
        title = "".join(f"{_rho(row)}: {row.verdict}" for row in rows[:1])
        panels.append({"lines": marks, "title": title, "xlabel": xlabel, "ylabel": ylabel, **scales})
    if not panels:
        message = "no quantity was measured: there is nothing to draw"
        raise NotEnoughDataError(message)
    return lines(panels, size_in=(WIDTH_IN, 3.3), key="figure")


def risk_figure(found: Validation) -> Figure:
    """The risk curve with its components, and below it what it should predict.

    Raises:
        NotEnoughDataError: If it was not validated: it is never shown alone.
    """
    if not found.detection:
        message = (
            "the risk curve has no validation, and is never shown alone "
            f"({found.missing.get('detection by layer') or '; '.join(found.missing.values())})"
        )
        raise NotEnoughDataError(message)
    layers = np.arange(len(found.risk.values))
    risk = [
        {
            "x": layers,
            "y": values,
            "label": name.replace("_", " "),
            **look(rank),
            "marker": "",
            "linewidth": 1.1,
        }
        for rank, (name, values) in enumerate(found.risk.components.items(), start=1)
    ]
    risk.append(
        {"x": layers, "y": found.risk.values, "label": "risk", "color": LIGHT["graph"], "linewidth": 2.6}
    )
    verdicts = {row.measured: f"{_rho(row)}\n{row.verdict}" for row in found.rows if row.static == "risk"}
    detected = [
        {
            "x": layers + 0.12 * (2 * place - len(found.detection) + 1),
            "y": each.auroc,
            "low": each.low,
            "high": each.high,
            "bars": True,
            "label": f"by {each.inputs}\n{verdicts.get(f'AUROC by {each.inputs}', '')}",
            "linewidth": 1.4,
            "markersize": 4.5,
            **look(2 - place % 2),
        }
        for place, each in enumerate(found.detection)
    ]
    detected.append({"x": layers[[0, -1]], "y": [0.5, 0.5], **REFERENCE})
    above = {"title": "a hypothesis: risk from weights alone", "ylabel": "share of layers below"}
    below = {"title": "its validation: what each layer alone detects", "ylabel": "AUROC of one layer alone"}
    panels = [
        {**above, "lines": risk, "ylim": (-0.03, 1.03)},
        {**below, "lines": detected, "xlabel": "layer"},
    ]
    return lines(panels, n_columns=1, size_in=(WIDTH_IN, 3.2), key="right")


def _depth_line(profile: WeightProfile, quantity: str, rank: int, *, is_shared: bool) -> dict[str, Any]:
    values = profile.of_layers(quantity)
    layers, style = np.arange(len(values)), look(rank)
    return {
        "x": layers / max(1, len(values) - 1) if is_shared else layers,
        "y": values,
        "label": profile.name,
        "markersize": 4.5,
        "markerfacecolor": LIGHT["paper"] if reads_mixed(profile, quantity) else style["color"],
        **style,
    }


def _zones(profile: WeightProfile) -> Any:
    zones = np.array(profile.heads["entropy_zone"].to_pylist())
    return zones.reshape(profile.n_layers, profile.n_heads)


def _rho(row: Agreement) -> str:
    return f"rho = {row.rho:+.2f}" if np.isfinite(row.rho) else "no correlation"


def _headline(profile: WeightProfile, found: Validation | None) -> tuple[str, str]:
    mixed = profile.mixed()
    warning = "Every part is stored in one type."
    if mixed:
        warning = (
            f"{len(mixed)} parts are stored in more than one type: differences between their "
            "layers may be those of the types."
        )
    if found is None:
        return "Nothing here was held against the running model: these are hypotheses.", warning
    verdicts = counts(found.rows)
    claims = (
        f"Of {len(found.rows)} claims that the weights make, the running model supports "
        f"{verdicts['supported']} and contradicts {verdicts['contradicted']}; "
        f"{verdicts['unsupported']} are unsupported, {verdicts['not tested']} not tested."
    )
    return claims, warning


def _compared_headline(found: ProfileComparison) -> tuple[str, str]:
    kind = "Heads and layers correspond." if found.is_same_shape else "The shapes differ."
    known = [r for r in found.rows if r.level == "head" and np.isfinite(r.correlation)]
    if not known:
        return kind, "Only medians and depth can be compared."
    least = min(known, key=lambda row: row.correlation)
    agreed = (
        f"{kind} Head by head, {len(known)} quantities agree with a rank correlation of "
        f"{least.correlation:+.3f} or more."
    )
    return agreed, f"The least agreement is that of {least.quantity}."


def _mixed(profile: WeightProfile) -> list[Row]:
    return [
        {"part": found.part, "type": kind, "tensors": str(len(names)), "names": ", ".join(names)}
        for found in profile.mixed()
        for kind, names in found.types.items()
    ]


def _layers(profile: WeightProfile) -> list[Row]:
    values = {name: profile.of_layers(name) for name in _SHOWN}
    known = {name: column for name, column in values.items() if np.isfinite(column).any()}
    return [
        {
            "layer": cell(layer, "d"),
            **{name: cell(float(column[layer]), ".3g") for name, column in known.items()},
        }
        for layer in range(profile.n_layers)
    ]


def _components(found: Validation) -> list[Row]:
    curve = found.risk
    known: list[Row] = [
        {"name": name, "weight": weight, "reason": curve.reasons[name], "mixed": name in curve.mixed_types}
        for name, weight in curve.weights.items()
    ]
    return known + [
        {"name": name, "weight": None, "reason": reason, "mixed": None}
        for name, reason in curve.left_out.items()
    ]


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
    zones = ", ".join(f"{share:.0%} {zone}" for zone, share in entropy.shares.items())
    errors = ", ".join(f"{error:.2f} where {zone}" for zone, error in entropy.errors.items())
    entropy_text = (
        f"Entropy estimate at {entropy.n_keys} keys: {zones}. Mean of the estimate "
        f"{entropy.mean_estimate:.2f}, measured {entropy.mean_measured:.2f}, both over log n; "
        f"mean distance head by head {errors}."
    )
    paragraphs = [entropy_text]
    share = found.measured.layers.get("top_share", np.zeros(0))
    there = share[np.isfinite(share)]
    if there.size:
        paragraphs.append(
            f"All of it supposes isotropic inputs. In {there.size} layers they were looked at: one "
            f"direction holds {there.min():.0%} to {there.max():.0%} of their second moment."
        )
    return paragraphs


def _made_with(profile: WeightProfile, found: Validation | None) -> list[Section]:
    said = {"model": profile.model, "profile": profile.settings}
    if found is not None:
        said |= {"validation": found.settings, "store": found.store}
    texts = {name: json.dumps(dict(value), ensure_ascii=False) for name, value in said.items()}
    return frame({}, {**profile.provenance, **texts}, {})["provenance"]


def _types(profile: WeightProfile) -> str:
    kinds = Counter(profile.tensors["storage"].to_pylist())
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
