"""The page of the server in a real browser, and bodies that nobody should send."""

import json
import os

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from graphhalu.scoring.ready import ServeConfig
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.scoring.server import create_app
from tests.scoring.test_server import Running


@pytest.fixture(scope="module")
def running(live):
    where = {"name": str(live["model"]), "threads": 1}
    scorers = (AnswerScorer(live[kind].folder, **where) for kind in ("answers", "tokens"))
    config = ServeConfig(max_new_tokens=9, max_batch=3, queue_size=64, max_total_tokens=100)
    with Running(create_app(*scorers, config)) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        except api.Error:
            pytest.skip("there is no chromium")
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_question_is_answered_on_the_page_with_the_risk_of_each_token(
    running, browser, width, scheme, tmp_path
):
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    said = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(running.url + "/")
    page.fill("#question", "What is 3 plus 3?")
    page.click("#ask")
    page.wait_for_selector("#verdict:has-text('probability')", timeout=30_000)
    tokens = page.query_selector_all("#answer .token")
    assert len(tokens) >= 3
    assert all(0 <= float(each.get_attribute("data-risk")) <= 1 for each in tokens)
    tokens[1].click()
    assert page.is_visible("#attention")
    assert len(page.query_selector_all("#bars meter")) >= 3
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth + 1")
    page.fill("#question", "a" * 500)
    page.click("#ask")
    page.wait_for_selector("#verdict.error", timeout=30_000)
    assert "tokens" in page.inner_text("#verdict")
    assert [each for each in said if "400" not in each] == []


N_BODIES = int(os.environ.get("GRAPHHALU_BODIES", "40"))
"""For each path; scripts/nightly tries more."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "messages",
    "prompt",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "n",
    "seed",
    "stream",
    "model",
    "items",
]
FIELDS += ["question", "answer", "context", "graphhalu", "stream_options"]
BODIES = st.one_of(
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/score"])
@settings(max_examples=N_BODIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES)
def test_no_body_makes_the_server_fail(running, path, body):
    status, _, _ = running.call(path, raw=body)
    event(f"status {status}")
    assert status < 500
    assert running.app.state.engine.is_alive
