"""Pages of several results: a leaderboard, and claims that are corrected together.

On the leaderboard every detector on every store is tested anew on the stored scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.evaluation.bootstrap import EvaluationSet, percentile_interval, two_sided_p
from graphhalu.evaluation.metrics import Floats
from graphhalu.evaluation.result import Result
from graphhalu.evaluation.significance import holm
from graphhalu.report.page import Page, make_page, named, protocol_text, say

N_RESAMPLES: Final = 1000


def leaderboard_page(results: Mapping[str, Result]) -> Page:
    """The page of several results; those on the same store and labels are compared with each other.

    Each detector is tested against the best of its store by a paired bootstrap over questions, on the scores
    in ``scores.parquet`` and not on figures that a file states. A detector that several files hold on
    one store counts once, in the first of them.

    Args:
        results: Results by name.

    Raises:
        NotEnoughDataError: If no result has the scores of a detector.
    """
    rows = [row for board in _boards(results).values() for row in _ranked(board.values())]
    if not rows:
        raise NotEnoughDataError(
            "no result holds scores of a detector: keep scores.parquet beside result.json"
        )
    best = [row for row in rows if row["difference"] is None]
    values = {"n_results": len(results), "n_boards": len(best), "n_rows": len(rows)}
    names = ", ".join(f"{row['detector']} on {row['store']}" for row in best)
    headline = (say("leaderboard", "best", names=names), say("leaderboard", "tests", **values))
    return make_page("leaderboard", headline, tables={"rows": rows}, **values)


def _boards(results: Mapping[str, Result]) -> dict[Any, dict[str, dict[str, Any]]]:
    """Scores of the first seed by store and labels, and by detector."""
    boards: dict[Any, dict[str, dict[str, Any]]] = {}
    order = [("trace_id", "ascending"), ("token", "ascending")]
    for name, result in results.items():
        store = f"{named(result.store, 'model')} {named(result.store, 'dataset')}"
        for row in result.rows:
            if row.failure is not None:
                continue
            chosen = result.samples.filter(pc.field("detector") == row.detector)
            chosen = chosen.filter(pc.field("seed") == pc.min(chosen["seed"])).sort_by(order)
            labels = chosen["label"].to_numpy()
            entry = {
                "store": store,
                "result": name,
                "detector": row.detector,
                "is_control": row.is_control,
                "labels": labels.astype(np.int64),
                "groups": np.array(chosen["group"].to_pylist()),
                "scores": chosen["score"].to_numpy(zero_copy_only=False).astype(float),
            }
            key = (store, *chosen["trace_id"].to_pylist(), *labels.tolist())
            boards.setdefault(key, {}).setdefault(row.detector, entry)
    return boards


def _ranked(board: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one store, best first, each against the best that is no control."""
    first = next(iter(board))
    data = EvaluationSet(first["labels"], first["groups"], N_RESAMPLES)
    aurocs = {each["detector"]: _auroc(data, each["scores"]) for each in board}
    ordered = sorted(board, key=lambda each: -aurocs[each["detector"]][0])
    best = next((each for each in ordered if not each["is_control"]), ordered[0])["detector"]
    others = [name for name in aurocs if name != best]
    p_values = [two_sided_p((aurocs[name] - aurocs[best])[1:]) for name in others]
    corrected = dict(zip(others, holm(p_values) if others else (), strict=True))
    found = []
    for each in ordered:
        name = each["detector"]
        low, high, _ = percentile_interval(aurocs[name][1:], 0.95)
        row = {field: each[field] for field in ("store", "detector", "is_control", "result")}
        row |= {"auroc": float(aurocs[name][0]), "low": low, "high": high, "n": len(first["labels"])}
        row["difference"] = None if name == best else float(aurocs[name][0] - aurocs[best][0])
        row["p_holm"] = None if name == best else float(corrected[name])
        found.append(row)
    return found


def _auroc(data: EvaluationSet, scores: Floats) -> Float[np.ndarray, "row"]:
    """AUROC of the sample and of each resample; answers without a score count as the median."""
    filled = np.where(np.isfinite(scores), scores, np.nanmedian(scores))
    resamples = data.resample(["auroc"], filled)["auroc"]
    return np.concatenate([[auroc(filled, data.labels)], np.asarray(resamples)])


_DIFFERENT: Final = ("better", "worse")
_say = partial(say, "together")


def together_page(results: Mapping[str, Result], claims: Sequence[Mapping[str, Any]]) -> Page:
    """The page of comparisons and of the claims that they make together.

    Args:
        results: Comparisons by name.
        claims: What :func:`graphhalu.evaluation.significance.claims_together` gives for them.
    """
    compared = [
        {
            "name": name,
            "model": named(result.store, "model"),
            "dataset": named(result.store, "dataset"),
            "result": result,
            "baseline": result.baseline and result.baseline.detector,
            "protocol": protocol_text(result.config),
        }
        for name, result in results.items()
    ]
    found = [claim for claim in claims if claim["verdict"] in _DIFFERENT]
    lost = [c for c in claims if c["verdict_within"] in _DIFFERENT and c not in found]
    values = {"n_claims": len(claims), "n_found": len(found), "n_lost": len(lost), "n_results": len(results)}
    return make_page(
        "together",
        (_say("found", **values), _say("lost" if lost else "none_lost", **values)),
        tables={"claims": list(claims), "compared": compared},
        **values,
    )
