"""The report as a page: its content, its safety, its forms."""

import base64
import hashlib
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.evaluation.result import MetricValue, Subgroup, read_result
from graphhalu.evaluation.transfer import TransferCell, TransferResult
from graphhalu.evaluation.univariate import HeadMap, HeadMaps
from graphhalu.report import theme
from graphhalu.report.comparison import comparison_page, headline, small_class_warning
from graphhalu.report.page import report_html, report_markdown
from graphhalu.report.tables import markdown_cell, markdown_text
from graphhalu.report.theme import LIGHT
from graphhalu.report.write import read_transfer, transfer_page, write_report

NOISES = {"words": 9.0, "sinks": 3.0, "gat": 0.3}
HOSTILE = "<img src=x onerror=alert(1)>\"'|`[a](javascript:b)"
VERSION_1 = Path(__file__).parents[1] / "evaluation" / "fixtures" / "result_v1"
EMPTY = {"br", "img", "hr", "link", "meta", "input"}


class Parsed(HTMLParser):
    """A page whose tags are balanced; collects texts, ids, links and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def values(self, name):
        return [value for key, value in self.attributes if key == name]


def head_maps(**changes):
    """A map of 2 layers and 3 heads."""
    cells = ((0.4, None, 0.7), (0.5, 0.55, 0.9))
    q_values = ((0.2, None, 0.01), (1.0, 0.6, 0.001))
    found = HeadMap("sink_mass_k4", (1, 5), cells, q_values, (0.5, 0.6), (0.9, 0.04))
    values = {
        "maps": (found,),
        "missing": {"lookback_ratio": "these traces keep no 'span_mass'"},
        "n_traces": 97,
        "n_groups": 83,
        "prevalence": 0.4,
        "labeller": "match",
    }
    return HeadMaps(**{**values, **changes})


def stored_transfer(**changes):
    names = ("store one", "b")
    metric = MetricValue(0.7, 0.6, 0.8, 100, None, None)
    cells = tuple(
        TransferCell(
            detector,
            train,
            test,
            53.0,
            2.0,
            None if is_failed else 1.0,
            {} if is_failed else {"auroc": replace(metric, value=0.5 + 0.1 * len(detector) / 3)},
            "UsageError: other layers" if is_failed else None,
        )
        for detector in ("gat", "length")
        for train in names
        for test in names
        for is_failed in [detector == "gat" and train == "b" and test != "b"]
    )
    configuration = {"dataset": {"name": "triviaqa"}}
    stores = {name: {"path": "/x/y.zarr", "configuration": configuration} for name in names}
    values = {"config": {"seeds": [0]}, "provenance": {}, "stores": stores, "cells": cells}
    return TransferResult(**{**values, **changes})


@pytest.fixture(scope="module")
def full(make_calibrated, against, failed_row):
    """A result with everything that a report can show."""
    result = against(make_calibrated(NOISES, seeds=(0, 1)), "sinks")
    rows = [replace(r, is_control=r.detector == "words") for r in result.rows]
    metrics = {"auroc": rows[0].metrics["auroc"]}
    groups = [
        Subgroup(name, "category", category, 17.0, 0.4, metrics if category == "odd" else {})
        for name in NOISES
        for category in ("odd", "even")
    ]
    store = {
        "path": "/home/somebody/traces/tiny_triviaqa.zarr",
        "trace_ids_sha256": "abc",
        "configuration": {"model": {"name": "tiny"}, "dataset": {"name": "triviaqa"}},
    }
    provenance = {"python": "3.11.7", "git": {"commit": "0123abc", "is_changed": False}}
    return replace(
        result,
        rows=(*rows, failed_row("topology")),
        subgroups=tuple(groups),
        store=store,
        provenance=provenance,
        n_siblings=13,
    )


@pytest.fixture(scope="module")
def page(full):
    return comparison_page(full, head_maps())


@pytest.fixture(scope="module")
def html(page):
    return report_html(page)


@pytest.fixture(scope="module")
def markdown(page):
    return report_markdown(page, {figure.name: f"{figure.name}.png" for figure in page.figures})


def one_detector(make):
    """A small page, which is quick to draw."""
    return make({"sinks": 3.0})


def names_of(page):
    return [section.name for section in page.sections]


def table(page, name):
    return next(t for section in page.sections for t in section.tables if t.name == name)


def test_a_page_parses_and_every_link_leads_somewhere_on_it(html):
    page = Parsed(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [link for link in page.values("href") if not link.startswith("data:")]
    assert len(links) > 10
    assert {link.removeprefix("#") for link in links} <= set(ids)
    labels = [word for value in page.values("aria-labelledby") for word in value.split()]
    assert set(labels) <= set(ids)


def test_nothing_is_fetched_from_anywhere(html):
    page = Parsed(html)
    inside = ("#", "data:image/png;base64,")
    assert all(value.startswith(inside) for value in page.values("href"))
    assert page.values("src") == []
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "@import" not in html
    assert {"link", "iframe", "object", "embed", "img"}.isdisjoint(page.tags)


def test_the_policy_allows_only_the_one_style_and_the_one_script(html):
    (policy,) = [v for v in Parsed(html).values("content") if v.startswith("default-src")]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; ")
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert not Parsed(html).values("style")
    assert not [name for name, _ in Parsed(html).attributes if name.startswith("on")]


def test_every_detector_metric_and_interval_of_the_result_is_on_the_page(full, html):
    words = "\n".join(Parsed(html).words)
    for row in full.rows:
        assert row.detector in words
        for metric in row.metrics.values():
            assert f"{metric.value:.3f}" in words
            assert f"[{metric.low:.3f}, {metric.high:.3f}]".replace("0.", ".") in words
    for title in ("AUROC", "AUPRC", "TPR at 5 % FPR", "TPR at 1 % FPR"):
        assert title in words


def test_the_cells_sort_by_the_values_of_the_result(full, page):
    metrics = table(page, "metrics")
    assert [row[0].text for row in metrics.rows] == ["gat", "sinks †", "words °", "topology"]
    place = [column.name for column in metrics.columns].index("AUROC")
    values = [row[place].value for row in metrics.rows]
    assert values == [*(r.metric("auroc") for r in full.ranked()[:3]), None]
    assert metrics.rows[-1][place].text == "failed"


def test_the_markdown_table_equals_the_values(full, markdown):
    lines = markdown.split("### Every detector, best first\n\n")[1].split("\n\n")[0].splitlines()
    head = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    for line, row in zip(lines[2:], full.ranked(), strict=True):
        cells = dict(zip(head, (c.strip() for c in line.split("|")[1:-1]), strict=True))
        assert cells["detector"].split()[0] == row.detector
        metric = row.metrics.get("auprc")
        assert cells["AUPRC"] == (
            f"{metric.value:.3f} " + f"[{metric.low:.3f}, {metric.high:.3f}]".replace("0.", ".")
            if metric
            else "-"
        )


def test_markdown_holds_the_same_sections_and_shows_every_figure(page, markdown):
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == [s.title for s in page.sections]
    assert re.findall(r"^!\[.*\]\((.*)\)$", markdown, re.MULTILINE) == [
        f"{figure.name}.png" for figure in page.figures
    ]


def test_a_full_report_has_every_section_and_figure(page):
    assert names_of(page) == [
        "glance",
        "forest",
        "results",
        "differences",
        "curves",
        "heads",
        "subgroups",
        "costs",
        "mistakes",
        "failed",
        "protocol",
        "data",
        "reading",
        "provenance",
    ]
    assert [figure.name for figure in page.figures] == [
        "forest",
        "forest-all",
        "roc",
        "precision-recall",
        "calibration",
        "risk-coverage",
        "maps",
    ]


def test_sections_without_anything_to_say_are_left_out(make):
    page = comparison_page(one_detector(make))
    assert {"differences", "heads", "subgroups", "failed"}.isdisjoint(names_of(page))
    assert "calibration" not in {figure.name for figure in page.figures}


def test_provenance_is_a_table_with_the_json_folded_below_it(page, html):
    section = next(each for each in page.sections if each.name == "provenance")
    rows = [[cell.text for cell in row] for each in section.tables for row in each.rows]
    assert ["git · commit", "0123abc"] in rows
    assert ["git · is_changed", "no"] in rows
    assert ["model · name", "tiny"] in rows
    assert ["path", "tiny_triviaqa.zarr"] in rows
    assert not any("{" in text for row in rows for text in row)
    ((what, text),) = section.folded
    assert json.loads(text)["provenance"]["git"]["commit"] == "0123abc"
    assert f"<summary>{what}</summary>" in html
    assert "/home/somebody" not in html


def test_the_facts_say_what_was_left_out_and_what_a_1_means(page):
    facts = dict(page.facts)
    assert facts["left out"] == "11 without a valid label, 13 other beams"
    assert facts["answers"] == "97 to 83 questions"
    assert facts["detectors"] == "4 (1 failed)"
    assert "the model's own output is wrong" in facts["labels"]


def test_a_class_of_few_answers_is_warned_of(full, page):
    n_hallucinated = round(97 * full.prevalence)
    counts = f"{n_hallucinated} hallucinated, {97 - n_hallucinated} correct"
    assert dict(page.facts)["tested in a seed"] == counts
    (results,) = (section for section in page.sections if section.name == "results")
    assert results.paragraphs == ()
    rows = full.samples.to_pylist()
    kept = [r for r in rows if r["label"] == 1 or int(r["trace_id"][1:-2]) < 20]
    n_correct = len({r["trace_id"] for r in kept if r["label"] == 0})
    few = replace(full, samples=full.samples.from_pylist(kept, full.samples.schema))
    assert f"Only {n_correct} correct answers" in (small_class_warning(few) or "")


def test_the_licence_of_the_data_and_its_faults_are_told_and_folders_are_not(page, html):
    words = "\n".join(Parsed(html).words)
    assert "tiny_triviaqa.zarr" in words
    assert "somebody" not in words
    rows = {row[0].text for row in table(page, "data-card").rows}
    assert {"licence", "source", "citation"} <= rows


def test_subgroups_without_both_classes_have_no_number(page):
    groups = table(page, "by-group")
    assert [row[0].text for row in groups.rows] == ["odd", "even"]
    assert all(cell.text == "-" for cell in groups.rows[1][3:])
    assert all(cell.detail for cell in groups.rows[0][3:])


def test_the_worst_mistakes_are_the_highest_correct_and_the_lowest_hallucinated(full, page):
    rows = table(page, "worst").rows
    samples = [s for s in full.samples.to_pylist() if s["detector"] == "gat" and s["seed"] == 0]
    correct = max((s for s in samples if s["label"] == 0), key=lambda s: s["score"])
    missed = min((s for s in samples if s["label"] == 1), key=lambda s: s["score"])
    assert (rows[0][0].text, rows[0][1].text) == (correct["trace_id"], "correct")
    assert (rows[5][0].text, rows[5][1].text) == (missed["trace_id"], "hallucinated")


def with_method(result, **changes):
    method = replace(result.method("gat"), difference=0.05, low=0.01, high=0.09, p_holm=0.01)
    return replace(result, methods=(replace(method, **changes),))


def test_only_a_method_is_said_to_win_with_its_interval_its_baseline_and_its_rule(full):
    won = with_method(full)
    first, second = headline(won)
    assert first.startswith("gat beats the baseline sinks as a method")
    assert "over 10 fits a mean difference of +0.050 [+0.010, +0.090] (Holm p 0.010)" in first
    assert second.startswith("The baseline is sinks: named before the comparison.")
    first, _ = headline(with_method(full, metric="auprc"))
    assert "a mean difference in average precision of +0.050" in first


def test_fitted_scorers_are_counted_apart_and_win_nothing(full):
    test = replace(full.comparison("gat"), low=0.01)
    first, second = headline(replace(with_method(full, p_holm=0.2), comparisons=(test,)))
    assert first.startswith("No detector is shown to beat the baseline sinks as a method")
    assert "As fitted scorers, 1 of 1 are above it on these answers" in second


def test_one_fit_a_detector_says_nothing_of_methods(full):
    first, _ = headline(replace(full, methods=()))
    assert first.startswith("One fit a detector says nothing of methods")
    assert "beat" not in first


def test_the_tests_of_methods_come_first_with_their_verdict(page, full):
    rows = table(page, "methods").rows
    assert [row[0].text for row in rows] == [
        each.detector for each in sorted(full.methods, key=lambda each: -each.difference)
    ]
    assert {row[-1].text for row in rows} <= {"better", "worse", "no worse", "not decided"}


def test_without_a_baseline_nothing_is_said_to_win(make):
    first, second = headline(make(NOISES))
    assert first.startswith("The highest AUROC is")
    assert "says nothing of chance" in second


def test_where_all_failed_the_page_says_so(make, failed_row):
    page = comparison_page(make({}, rows=[failed_row("gat"), failed_row("length")]))
    assert page.headline[0] == "No detector has a score: all of them failed."
    assert page.figures == ()
    Parsed(report_html(page))


def test_hostile_names_are_text_in_html_and_in_markdown(full, make_calibrated, against):
    result = against(make_calibrated({HOSTILE: 0.3, "sinks": 3.0}), "sinks")
    rows = result.samples.to_pylist()
    samples = [{**r, "trace_id": f"{HOSTILE}{n}"} for n, r in enumerate(rows)]
    result = replace(
        result,
        samples=result.samples.from_pylist(samples, result.samples.schema),
        subgroups=(Subgroup("sinks", HOSTILE, HOSTILE, 3.0, 0.5, {}),),
        store={"configuration": {"model": {"name": HOSTILE}, "dataset": {"name": HOSTILE}}},
        labeller={"name": HOSTILE},
        provenance={HOSTILE: HOSTILE},
        config={HOSTILE: [HOSTILE]},
    )
    page = comparison_page(result)
    html = report_html(page)
    parsed = Parsed(html)
    assert "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert HOSTILE in "".join(parsed.words)
    markdown = report_markdown(page, {figure.name: "x.png" for figure in page.figures})
    assert not re.search(r"(?<!\\)<", markdown)
    assert "](javascript" not in markdown


def test_markdown_of_a_hostile_text_stays_one_cell_and_one_paragraph():
    assert markdown_cell("a|b\n<img> [x](y) `c`") == r"a\|b \<img> [x]\(y) \`c\`"
    assert markdown_text("# a\nb") == r"\# a b"
    assert markdown_text("1. a") == r"1\. a"
    assert markdown_text("54.7% of them") == "54.7% of them"


def test_the_style_has_the_colours_of_the_figures_in_light_dark_and_print():
    css = (theme.TEMPLATES / "page.css").read_text()
    light, dark, printed = re.split(r"@media \(prefers-color-scheme: dark\)|@media print", css)
    for part in (light, printed):
        assert LIGHT.items() <= dict(re.findall(r"--(\w+): (#\w{6});", part)).items()
    assert LIGHT.keys() <= dict(re.findall(r"--(\w+): (#\w{6});", dark)).keys()
    style = (theme.TEMPLATES / "figures.mplstyle").read_text()
    assert {f"#{colour}" for colour in re.findall(r": (\w{6})$", style, re.MULTILINE)} <= set(LIGHT.values())


def test_results_of_version_1_are_reported():
    page = comparison_page(read_result(VERSION_1))
    Parsed(report_html(page))
    assert {"results", "failed", "provenance"} <= set(names_of(page))


def test_a_run_folder_gets_html_markdown_and_figures(full, tmp_path):
    full.write(tmp_path / "run")
    head_maps().write(tmp_path / "run")
    files = write_report(tmp_path / "run")
    assert files.html == tmp_path / "run" / "report.html"
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.md", "roc.png", "forest.png", "maps.png"} <= names
    assert "Single heads" in files.html.read_text()


def test_a_report_elsewhere_takes_its_figures_along_under_its_name(full, tmp_path):
    full.write(tmp_path / "run")
    files = write_report(tmp_path / "run", tmp_path / "out" / "first.html", has_svg=True)
    assert {path.suffix for path in files.figures} == {".png", ".svg"}
    assert all(path.name.startswith("first-") for path in files.figures)
    assert "(first-roc.png)" in files.markdown.read_text()
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(DataFileError, match=r"neither result\.json nor transfer\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def write_transfer(folder, found, **changes):
    values = {
        "format": "graphhalu-transfer",
        "format_version": 1,
        **vars(found),
        "cells": [asdict(cell) for cell in found.cells],
        "files": {},
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "transfer.json").write_text(json.dumps(values))


def test_a_transfer_alone_is_reported_with_its_matrix_and_its_failures(tmp_path):
    found = stored_transfer()
    write_transfer(tmp_path, found)
    assert read_transfer(tmp_path) == found
    page = transfer_page(found)
    assert names_of(page)[:2] == ["transfer", "transfer-failed"]
    assert page.headline[0].startswith("The best transfer is that of length: mean AUROC 0.700")
    assert len(table(page, "transfer-table").rows) == 8
    assert "transfer" in {figure.name for figure in page.figures}
    files = write_report(tmp_path)
    words = "\n".join(Parsed(files.html.read_text()).words)
    assert "UsageError: other layers" in words
    assert [s.name for s in page.sections].count("data-0") == 1


def test_a_transfer_without_any_metric_still_has_a_page():
    cells = tuple(
        replace(cell, metrics={}, coverage=None, failure="NotEnoughDataError: too few")
        for cell in stored_transfer().cells
    )
    page = transfer_page(stored_transfer(cells=cells))
    assert page.figures == ()
    assert page.headline[0] == "No detector could be tested on another store."
    Parsed(report_html(page))


def test_a_transfer_beside_a_comparison_is_one_report(full, tmp_path):
    full.write(tmp_path)
    write_transfer(tmp_path, stored_transfer())
    words = write_report(tmp_path).html.read_text()
    assert 'id="results"' in words
    assert 'id="transfer"' in words


@pytest.mark.parametrize("changes", [{"format": "x"}, {"format_version": 2}, {"cells": [3]}])
def test_a_transfer_of_another_format_is_refused(tmp_path, changes):
    write_transfer(tmp_path, stored_transfer(), **changes)
    with pytest.raises(DataFileError, match=r"transfer\.json"):
        read_transfer(tmp_path)


def test_the_first_section_shows_the_five_best_and_every_control_and_says_what_is_covered(page, full):
    first = page.sections[0]
    (table,) = first.tables
    done = [row for row in full.ranked() if row.failure is None]
    expected = [row.detector for row in done if not row.is_control][:5]
    expected += [row.detector for row in done if row.is_control]
    assert [row[0].text.rstrip(" °†") for row in table.rows] == expected
    assert f"{full.n_traces} answers of one model to {full.n_groups} questions" in first.paragraphs[0]
    assert "as a method" in table.heads
