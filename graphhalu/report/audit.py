"""The page of an audit: what ranks the answers of a store without a detector."""

from functools import partial

from matplotlib.figure import Figure

from graphhalu.evaluation.audit import Audit
from graphhalu.report.frame import data, frame
from graphhalu.report.page import Page, figure_words, make_page, say
from graphhalu.report.plots import intervals

_say = partial(say, "audit")


def audit_page(found: Audit) -> Page:
    """The page of an audit."""
    smallest = found.smallest or {}
    worst = found.signals[0] if found.signals else None
    rows = [{"signal": each, "clear": "yes" if each.is_clear else "no"} for each in found.signals]
    kinds = [{"kind": kind, "count": n, "share": n / found.n_traces} for kind, n in found.kinds.items()]
    categories = found.categories or {"rule": "nothing names one", "n": 0}
    ready = {**frame({}, {}, found.store), "data": [data(found.store)]}
    return make_page(
        "audit",
        headline(found),
        figures={"signals": partial(signals_figure, found)} if worst else {},
        tables={"signals": rows, "kinds": kinds},
        ready=ready,
        found=found,
        meaning=found.labeller["meaning"],
        rule=found.labeller["name"],
        categories=categories,
        n_pairs=int(found.duplicates["n_pairs"]),
        in_pairs=found.duplicates["share"],
        threshold=found.duplicates["threshold"],
        overlap="not known" if found.overlap is None else f"{found.overlap:.1%}",
        scorers=f"{smallest['scorers']:.3f}" if smallest else "not known",
        methods=f"{smallest['methods']:.3f}" if smallest else "not known",
    )


def headline(found: Audit) -> tuple[str, str]:
    """What ranks the answers best without a detector, and what the store can show."""
    clear = [each for each in found.signals if each.is_clear]
    first = _say("worst", worst=clear[0], n_clear=len(clear)) if clear else _say("fine")
    if found.smallest is None:
        return first, _say("unknown")
    return first, _say("smallest", **found.smallest)


def signals_figure(found: Audit) -> Figure:
    """AUROC of each signal with its interval; chance is the line."""
    rows = [{"name": each.name, "signal": each} for each in found.signals]
    texts = [f"{each.auroc:.3f}" for each in found.signals]
    return intervals(rows, figure_words("audit", "signals"), texts=texts)
