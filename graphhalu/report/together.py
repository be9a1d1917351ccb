"""The page of several comparisons whose claims are corrected together."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from graphhalu.evaluation.result import Result
from graphhalu.report.frame import named, protocol_text
from graphhalu.report.page import Page, make_page, say

_DIFFERENT: Final = ("better", "worse")
_say = partial(say, "together")


def together_page(results: Mapping[str, Result], claims: Sequence[Mapping[str, Any]]) -> Page:
    """The page of comparisons and of the claims that they make together.

    Args:
        results: Comparisons by name.
        claims: What :func:`graphhalu.evaluation.methods.claims_together` gives for them.
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
