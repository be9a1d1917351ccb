"""Pages of weight profiles: one model with its validation, or two models side by side."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.report.frame import provenance_section
from graphhalu.report.page import ABSENT, Cell, Page, PageText, Row, Section, number
from graphhalu.report.weights_figures import depth_figure, heads_figure, risk_figure, scatter_figure
from graphhalu.studies.weights.agreement import Agreement, counts
from graphhalu.studies.weights.validation import Validation
from graphhalu.weights.compare import ProfileComparison
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


def profile_page(profile: WeightProfile, found: Validation | None) -> Page:
    """A profile, with its validation where there is one; the risk is never shown without."""
    text = PageText("weights", depth="by layer")
    validated = [] if found is None else list(_validated(text, profile, found))
    descriptions = HEAD_DESCRIPTIONS | LAYER_DESCRIPTIONS | (MEASURED_DESCRIPTIONS if found else {})
    meanings: list[Row] = [{"quantity": n, "meaning": said} for n, said in descriptions.items()]
    sections = [
        text.section("storage", tables={"mixed": _mixed(profile)}, paragraphs=profile.notes),
        *validated,
        text.section(
            "depth-section", figures={"depth": depth_figure([profile])}, tables={"layers": _layers(profile)}
        ),
        text.section("heads-section", figures={"heads": heads_figure(profile)}),
        text.section("reading", tables={"meanings": meanings}),
        _made_with(profile, found),
    ]
    sizes = profile.architecture
    traces = "nothing"
    if found is not None:
        traces = f"{found.measured.n_traces} traces of {found.store.get('name', 'a store')}"
    facts = {
        "family": str(sizes["family"]),
        "size": (
            f"{sizes['n_layers']} layers of {sizes['n_heads']} heads, "
            f"{sizes['n_kv_heads']} key heads of {sizes['head_dim']}"
        ),
        "stored as": _types(profile),
        "validated on": traces,
    }
    return Page(
        f"{profile.name}: what its weights say of its attention",
        _headline(profile, found),
        tuple(facts.items()),
        tuple(s for s in sections if s.paragraphs or s.figures or s.tables),
    )


def comparison_page(first: WeightProfile, second: WeightProfile, found: ProfileComparison) -> Page:
    """Two profiles side by side."""
    text = PageText("weights", depth="over depth")
    # two ways of storing one model have one name
    one, other = (f"{n} ({which})" for n, which in zip(found.names, ("1", "2"), strict=True))
    rows: list[Row] = [
        {
            "quantity": row.quantity,
            "of": row.level,
            one: number(row.first, ".3g"),
            other: number(row.second, ".3g"),
            "rank correlation": number(row.correlation, "+.3f"),
            "median change": number(row.change, ".1%"),
        }
        for row in found.rows
    ]
    zeros: list[Row] = [
        {"part": part, one: f"{share:.2%}", other: f"{second_share:.2%}"}
        for part, (share, second_share) in found.zeros.items()
    ]
    zeros += [{"part": p, one: "refused", other: why} for p, why in found.refused.items()]
    return Page(
        f"{found.names[0]} and {found.names[1]}: weights side by side",
        _compared_headline(found),
        (("first", _types(first)), ("second", _types(second))),
        (
            text.section("types", paragraphs=found.warnings),
            text.section("depth-section", figures={"depth": depth_figure([first, second])}),
            text.section("compared-section", tables={"compared": rows}),
            text.section("zeros-section", tables={"zeros": zeros}),
            provenance_section(first.provenance, {}),
        ),
    )


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
            "layer": number(layer, ".0f"),
            **{name: number(float(column[layer]), ".3g") for name, column in known.items()},
        }
        for layer in range(profile.n_layers)
    ]


def _validated(text: PageText, profile: WeightProfile, found: Validation) -> Iterator[Section]:
    """What is true of a profile: verdicts, static against measured, risk."""
    missing: list[Row] = [
        {"what": name, "why": why} for name, why in {**found.missing, **found.untested}.items()
    ]
    verdicts = [_verdict_row(row) for row in found.rows]
    yield text.section("verdicts-section", tables={"verdicts": verdicts, "missing": missing})
    try:
        figures = {"scatter": scatter_figure(profile, found)}
    except NotEnoughDataError:
        figures = {}
    yield text.section("scatter-section", figures=figures, paragraphs=_measured(found))
    curve, reasons = found.risk, []
    components: list[Row] = [
        {
            "name": name,
            "weight": weight,
            "reason": curve.reasons[name],
            "mixed": "yes" if name in curve.mixed_types else "no",
        }
        for name, weight in curve.weights.items()
    ]
    components += [
        {"name": name, "weight": None, "reason": reason, "mixed": ABSENT}
        for name, reason in curve.left_out.items()
    ]
    try:
        figures = {"risk": risk_figure(found)}
    except NotEnoughDataError as error:
        figures, reasons = {}, [f"Not shown: {error}."]
    yield text.section("risk-section", figures=figures, tables={"components": components}, paragraphs=reasons)


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


def _made_with(profile: WeightProfile, found: Validation | None) -> Section:
    said = {"model": profile.model, "profile": profile.settings}
    if found is not None:
        said |= {"validation": found.settings, "store": found.store}
    texts = {name: json.dumps(dict(value), ensure_ascii=False) for name, value in said.items()}
    return provenance_section({**profile.provenance, **texts}, {})


def _types(profile: WeightProfile) -> str:
    kinds = Counter(profile.tensors["storage"].to_pylist())
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
