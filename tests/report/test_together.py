"""Claims of several comparisons, corrected as one family."""

import json
from dataclasses import replace

import pytest

from graphhalu.cli.main import run
from graphhalu.evaluation.result import read_result
from graphhalu.evaluation.significance import claims_together, holm, with_methods

NOISES = {"words": 9.0, "sinks": 3.0, "gat": 0.3, "probe": 2.9}


@pytest.fixture(scope="module")
def results(make, against):
    return {name: against(make(NOISES, seeds=seeds), "sinks") for name, seeds in (("a", (0, 1)), ("b", (2,)))}


def test_all_tests_of_methods_are_one_family(results):
    claims = claims_together(results)
    assert len(claims) == 6
    assert [claim["p_value"] for claim in claims] == sorted(claim["p_value"] for claim in claims)
    assert [claim["p_holm"] for claim in claims] == holm([claim["p_value"] for claim in claims])
    assert all(claim["p_holm"] >= claim["p_holm_within"] for claim in claims)
    not_worse = holm([claim["p_not_worse"] for claim in claims])
    assert [claim["p_not_worse_holm"] for claim in claims] == not_worse
    for claim in claims:
        assert claim["verdict"] != "no worse" or claim["p_not_worse_holm"] < 0.05


def test_results_of_earlier_versions_get_their_tests_from_their_scores(results):
    bare = replace(results["a"], methods=())
    assert with_methods(bare).methods == results["a"].methods
    before = tuple(replace(test, p_not_worse_holm=None) for test in results["a"].methods)
    assert all(test.verdict() != "no worse" for test in before)
    assert with_methods(replace(bare, methods=before)).methods == results["a"].methods
    assert with_methods(replace(bare, baseline=None)).methods == ()


def test_the_command_writes_one_page_and_every_claim(results, tmp_path, capsys):
    for name, result in results.items():
        result.write(tmp_path / name)
    assert read_result(tmp_path / "a").methods == results["a"].methods
    folders = [str(tmp_path / name) for name in results]
    assert run(["report", *folders, "--together", "--out", str(tmp_path / "page.html"), "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)["claims"]
    stored = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    assert stored["claims"] == claims
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "corrected as one" not in page
    assert all(claim["detector"] in page for claim in claims)
    assert run(["report", *folders, "--together", "--out", str(tmp_path / "page.html")]) == 0
    assert "verdict" in capsys.readouterr().out


def test_one_run_together_and_two_apart_are_refused(results, tmp_path, capsys):
    results["a"].write(tmp_path / "a")
    assert run(["report", str(tmp_path / "a"), "--together"]) == 2
    assert "two comparisons or more" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "or add --together" in capsys.readouterr().err
