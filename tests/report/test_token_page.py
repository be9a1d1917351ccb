"""The page of a comparison of token detectors, of this version and of the first."""

from pathlib import Path

from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.labels.planted import planted_token_traces
from graphhalu.labels.stated import label_tokens
from graphhalu.report.write import read_page


def test_a_comparison_of_token_detectors_has_a_page_of_its_own(tmp_path):
    traces = planted_token_traces(20, seed=1)
    config = CompareConfig(detectors=("token-attention",), quick=True, seeds=(0,), n_resamples=100)
    result = compare(traces, label_tokens([trace.record for trace in traces]), config=config)
    result.write(tmp_path)
    page = read_page(tmp_path)
    assert page.title.endswith("detectors of hallucinated tokens")
    assert "2" in dict(page.facts)["tokens"]
    by_name = {section.name: section for section in page.sections}
    assert any(text.startswith("Off-policy") for text in by_name["glance"].paragraphs)
    (table,) = by_name["results"].tables
    names = [column.name for column in table.columns]
    assert {"AUROC", "AUROC in answer", "char F1", "span F1"} <= set(names)
    assert {row[0].text for row in table.rows} == {"token-attention", "token-position °†"}
    (worst,) = by_name["mistakes"].tables
    assert all(", token " in row[0].text for row in worst.rows)
    assert {figure.name for figure in page.figures} >= {"forest", "roc"}


def test_a_comparison_of_token_detectors_of_the_first_version_has_a_page():
    page = read_page(Path(__file__).parents[1] / "evaluation" / "fixtures" / "tokens_v1")
    assert dict(page.facts)["tokens"] == "227, of them 32 in 8 marked spans"
    assert "forest" in {figure.name for figure in page.figures}
