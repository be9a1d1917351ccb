"""The viewer in a real browser: what a person sees, points at and presses.

Playwright drives Debian's Chromium. Times are those of the page's main thread: on a machine
that others use too, the clock on the wall says more of them than of the page.
"""

import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.axes import Span
from graphhalu.features.registry import FeatureSpec
from graphhalu.labels.labels import Labels
from graphhalu.labels.planted import PLANTED_SHAPE, planted_token_traces
from graphhalu.traces.schema import N_SINK_KEYS, TraceRecord, TraceShape
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace
from graphhalu.viewer.heads import fitting_edges
from graphhalu.viewer.page import ViewServer, write_view
from graphhalu.viewer.scores import ShownTokenScores
from graphhalu.viewer.view import View, ViewRequest, make_view

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.slow

NOTE = "the tokenizer of <b>this</b> model is not here"
HOSTILE = "<img src=x onerror=alert(1)>"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = "html[data-ready-ms]"


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page and fails if it said anything to the console, or asked anybody for anything."""
    said, asked, contexts = [], [], []

    def open_page(url, **settings):
        context = browser.new_context(viewport={"width": 1400, "height": 1000}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector(READY, state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert len({url.split("/traces/")[0].rstrip("/") for url in asked}) <= 1


@pytest.fixture(scope="module")
def written(stores, tmp_path_factory):
    """A page of all planted traces, with a label of each kind."""
    store = stores["full"]
    n = len(store)
    labels = Labels(
        trace_ids=store.trace_ids,
        values=np.arange(n) % 2,
        is_valid=np.arange(n) != 3,
        reasons=(HOSTILE,) * n,
        labeller="match",
    )
    features = ("sink_mass_k4", "head_std_sink", "answer_length")
    view = make_view(store, ViewRequest(labeller=None, limit=n, features=features))
    view = replace(view, labels=(labels, True), notes=(NOTE,))
    path = tmp_path_factory.mktemp("browser") / "page.html"
    write_view(view, path)
    return path.as_uri()


def choose(page, name, value):
    page.select_option(f"#{name}", str(value))


def hovered_weight(page, token):
    page.hover(f'[data-token="{token}"]')
    return float(page.get_attribute("#reading", "data-weight"))


def test_a_hovered_token_shows_the_stored_weight_of_any_head(opened, written, planted):
    page, trace = opened(written), planted[0]
    row = trace.length - 2
    for place, head in ((2, 0), (4, 2)):
        choose(page, "layer", place)
        choose(page, "head", head)
        assert page.text_content("#head-title") == f"Layer {place}, head {head}"
        page.click(f'[data-token="{row}"]')
        for token in range(row):
            stored = trace.attention(place)[head, row, token]
            assert np.float32(hovered_weight(page, token)) == stored


def test_hidden_sinks_leave_shares_of_the_rest_and_say_so(opened, written, planted):
    page, trace = opened(written), planted[0]
    row = trace.length - 2
    page.click(f'[data-token="{row}"]')
    assert page.text_content("#hidden-words") == ""
    choose(page, "hidden", 4)
    assert "first four tokens are hidden" in page.text_content("#hidden-words")
    weights = trace.attention(2)[0, row].astype(np.float64)
    cells = page.eval_on_selector_all(
        "#pays tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent))"
    )
    shares = {int(cell[0].split()[0]): float(cell[3]) for cell in cells}
    assert min(shares) >= N_SINK_KEYS
    for token, share in shares.items():
        assert share == pytest.approx(weights[token] / weights[N_SINK_KEYS:].sum(), rel=1e-4)
    page.hover('[data-token="5"]')
    assert f"of the {weights[4:].sum():.3f}"[:10] in page.text_content("#reading")
    page.hover('[data-token="0"]')
    assert "hidden now" in page.text_content("#reading")


def test_a_text_that_looks_like_markup_stays_text_everywhere(opened, written, planted):
    page = opened(written)
    token = planted[0].prompt_length
    assert page.text_content(f'[data-token="{token}"]') == HOSTILE
    page.click("summary")
    for name in ("answer-facts", "answers"):
        assert HOSTILE in page.text_content(f"#{name}")
    for view in ("matrix", "spans", "pieces", "arcs"):
        page.click(f"#{view}-tab")
    page.hover(f'[data-token="{token}"]')
    assert HOSTILE in page.text_content("#reading")
    assert page.eval_on_selector_all("img, iframe, object", "found => found.length") == 0


def test_the_map_shows_a_feature_and_the_arrow_keys_choose_a_head(opened, written, planted):
    page, trace = opened(written), planted[0]
    choose(page, "feature", "sink_mass_k4")
    rows = trace.answer_rows
    mass = trace.attention(2)[:, rows, :N_SINK_KEYS].sum(-1).mean(-1)
    label = page.get_attribute('#map [data-row="2"][data-column="1"]', "aria-label")
    assert label.startswith("layer 2, head 1: ")
    assert float(label.split(": ")[1]) == pytest.approx(mass[1], rel=1e-3)
    page.focus('#map [tabindex="0"]')
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.text_content("#head-title") == "Layer 3, head 2"
    assert page.eval_on_selector_all('#map [tabindex="0"]', "cells => cells.length") == 1
    page.check("#numbers")
    number = page.text_content('#map [data-row="2"][data-column="1"]')
    assert float(number) == pytest.approx(mass[1], abs=0.006)


def test_tokens_are_walked_through_and_chosen_with_the_keyboard(opened, written, planted):
    page, trace = opened(written), planted[0]
    page.focus('.token[tabindex="0"]')
    page.keyboard.press("Home")
    for key in ("ArrowRight", "ArrowRight", "Enter", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.get_attribute('[data-token="2"]', "aria-selected") == "true"
    stored = trace.attention(2)[0, 2, 1]
    assert np.float32(page.get_attribute("#reading", "data-weight")) == stored
    page.focus("#arcs")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute('[data-token="3"]', "aria-selected") == "true"
    page.focus("#arcs-tab")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#matrix-tab", "aria-selected") == "true"


def test_spans_and_pieces_are_means_of_the_stored_rows(opened, written, planted):
    page, trace = opened(written), planted[0]
    attention = trace.attention(2)[0].astype(np.float64)
    page.click("#spans-tab")
    names = page.eval_on_selector_all("#span-grid tbody th", "heads => heads.map(h => h.textContent)")
    assert names == ["bos", "question", "template", "answer"]
    is_answer, is_question = (trace.span_code == code for code in (Span.ANSWER, Span.QUESTION))
    expected = attention[is_answer][:, is_question].sum(-1).mean()
    label = page.get_attribute('#span-grid [data-row="3"][data-column="1"]', "aria-label")
    assert label.startswith("rows of answer on question: ")
    assert float(label.split(": ")[1]) == pytest.approx(expected, abs=1e-4)
    choose(page, "hidden", 4)
    rest = attention[is_answer][:, N_SINK_KEYS:]
    expected = (rest[:, is_question[N_SINK_KEYS:]].sum(-1) / rest.sum(-1)).mean()
    label = page.get_attribute('#span-grid [data-row="3"][data-column="1"]', "aria-label")
    assert float(label.split(": ")[1]) == pytest.approx(expected, abs=1e-4)
    page.click("#pieces-tab")
    assert page.locator("#span-grid tbody tr").count() >= 4


def test_the_matrix_is_pointed_at_and_clicked(opened, written, planted):
    page, trace = opened(written), planted[0]
    page.click("#matrix-tab")
    box = page.locator("#matrix").bounding_box()
    step = (box["width"] - 8) / trace.length
    row, key = trace.length - 3, 2
    at = {"x": 8 + (key + 0.5) * step, "y": 8 + (row + 0.5) * step}
    page.hover("#matrix", position=at)
    stored = trace.attention(2)[0, row, key]
    assert np.float32(page.get_attribute("#reading", "data-weight")) == stored
    page.click("#matrix", position=at)
    assert page.get_attribute(f'[data-token="{row}"]', "aria-selected") == "true"


def test_answers_are_filtered_and_another_one_is_opened(opened, written, planted):
    page = opened(written)
    choose(page, "filter", "hallucinated")
    listed = "items => items.map(i => i.dataset.answer)"
    assert page.eval_on_selector_all("#answers li", listed) == ["1", "5"]
    assert page.text_content("#answers .chip") == "1 hallucinated"
    page.click('[data-answer="5"]')
    assert page.text_content("#answer-title") == planted[5].trace_id
    assert page.locator(".token").count() == planted[5].length
    choose(page, "filter", "none")
    assert "no label" in page.text_content("#answers .chip")
    page.fill("#search", "q2")
    choose(page, "filter", "all")
    assert page.locator("#answers li").count() == 1


def test_prompt_and_answer_stand_apart_and_colours_have_numbers(opened, written, planted):
    page, trace = opened(written), planted[0]
    assert page.locator("#prompt-tokens .token").count() == trace.prompt_length
    assert page.locator("#answer-tokens .token").count() == trace.answer_length
    choose(page, "colour", "entropy")
    shown = page.get_attribute('[data-token="2"]', "data-number")
    assert float(shown) == pytest.approx(float(trace.stream("token_entropy")[2]), abs=0.06)
    assert page.evaluate("document.querySelector('[data-token=\"2\"]').style.backgroundColor") != ""
    choose(page, "colour", "nothing")
    assert page.get_attribute('[data-token="2"]', "data-number") is None


def test_token_scores_colour_the_answer_with_numbers_and_marked_spans_stand_out(opened, tmp_path):
    traces = planted_token_traces(2, seed=1)
    arrays = (
        "token_ids",
        "span_code",
        "token_logprob",
        "attention",
        "span_mass",
        "self_attention",
        "sink_keys",
    )
    store = TraceStore.create(tmp_path / "a.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=arrays)
    with store.writer() as writer:
        writer.write_part(0, traces, list(dict.fromkeys(t.record.question_id for t in traces)))
    scores = {trace.trace_id: np.linspace(-3, 2, trace.answer_length) for trace in traces}
    scores[traces[0].trace_id][1] = np.nan
    shown = ShownTokenScores("tokens-run", {"token-probe": scores}, {"token-probe": (-1.0, 1.0)})
    view = make_view(store, ViewRequest(labeller=None, features=("answer_length",)))
    write_view(replace(view, token_scores=shown), tmp_path / "page.html")
    page = opened((tmp_path / "page.html").as_uri())
    assert page.input_value("#colour") == "token-probe"
    assert "out-of-fold score of token-probe in tokens-run" in page.text_content("#colour-words")
    for trace in traces:
        page.click(f'[data-answer="{traces.index(trace)}"]')
        page.wait_for_function(f"document.getElementById('answer-title').textContent === '{trace.trace_id}'")
        first = trace.prompt_length
        assert page.get_attribute(f'[data-token="{first - 1}"]', "data-number") is None
        for place, score in enumerate(scores[trace.trace_id]):
            token = page.locator(f'[data-token="{first + place}"]')
            told = token.get_attribute("data-number")
            if np.isnan(score):
                assert told is None
                continue
            assert float(told.replace("<", "")) == pytest.approx(score, abs=0.06)
            start, stop = trace.record.answer_offsets[place]
            is_marked = any(start < b and a < stop for a, b in trace.record.given_spans)
            assert ("hallucinated" in token.get_attribute("class")) == is_marked
    last = traces[1].length - 1
    page.click(f'[data-token="{last}"]')
    assert "token-probe 2" in page.text_content("#reading")


def test_what_a_reader_should_know_is_told(opened, written):
    assert opened(written).text_content("#notes") == NOTE


def test_the_page_follows_the_choice_of_light_or_dark(opened, written):
    page = opened(written, color_scheme="light")
    drawn = "document.getElementById('matrix').getContext('2d')"
    pixel = f"() => [...{drawn}.getImageData(9, 9, 1, 1).data]"
    page.click("#matrix-tab")
    light = page.evaluate(pixel)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        f"before => [...{drawn}.getImageData(9, 9, 1, 1).data].join() !== before.join()", arg=light
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"


def test_a_served_store_is_looked_at_answer_by_answer(opened, stores, plain_view, planted):
    with ViewServer(plain_view(stores["fixed16"])) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        page = opened(server.url)
        page.click('[data-answer="4"]')
        page.wait_for_selector(f'#answer-title:text-is("{planted[4].trace_id}")')
        choose(page, "layer", 1)
        page.wait_for_selector('#head-title:text-is("Layer 1, head 0")')
        row = planted[4].prompt_length - 1
        stored = stores["fixed16"][4].attention(1)[0, row, 1]
        assert np.float32(hovered_weight(page, 1)) == stored
        server.shutdown()
        thread.join()


# -- a long text

N_TOKENS = 2003
LONG_SHAPE = replace(
    PLANTED_SHAPE,
    n_layers=11,
    n_heads=9,
    n_kv_heads=3,
    attention_layers=tuple(range(11)),
    hidden_layers=(),
    layer_windows=(None,) * 11,
    n_edges=13,
)


def long_trace(shape: TraceShape) -> Trace:
    """A trace of a store of edges, as long as the longest that must stay quick."""
    generator = np.random.default_rng(0)
    prompt_length = N_TOKENS - 53
    size = (len(shape.attention_layers), shape.n_heads, N_TOKENS)
    tokens = np.arange(N_TOKENS)
    key = np.sort(generator.integers(0, np.maximum(tokens, 1)[:, None], (*size, shape.n_edges)))
    is_new = np.diff(key, axis=-1, prepend=-1) > 0
    weight = np.sort(generator.random((*size, shape.n_edges), dtype=np.float32) / 40)[..., ::-1]
    span_code = np.full(N_TOKENS, Span.CONTEXT, dtype=np.uint8)
    span_code[0], span_code[prompt_length:] = Span.BOS, Span.ANSWER
    record = TraceRecord(
        trace_id="long#0",
        question_id="long",
        group_id="long",
        question="Long?",
        answers=("yes",),
        answer="a" * 53,
        prompt="",
        prompt_length=prompt_length,
        length=N_TOKENS,
        answer_offsets=tuple((n, n + 1) for n in range(53)),
    )
    arrays = {
        "token_ids": generator.integers(0, 97, N_TOKENS).astype(np.int32),
        "span_code": span_code,
        "token_entropy": generator.exponential(size=N_TOKENS).astype(np.float32),
        "span_mass": np.full((*size, 6), 1 / 6, dtype=np.float16),
        "self_attention": np.full(size, 0.125, dtype=np.float16),
        "sink_keys": np.full((*size, 4), 0.0625, dtype=np.float16),
        "edge_key": np.where(is_new & (key < tokens[:, None]), key, -1).astype(np.int32),
        "edge_weight": np.where(is_new, weight, 0).astype(np.float16),
        "dropped_mass": np.full(size, 0.25, dtype=np.float16),
    }
    return Trace(record, shape, arrays)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    trace = long_trace(LONG_SHAPE)
    store = TraceStore.create(
        folder / "a.zarr", configuration={}, shape=LONG_SHAPE, arrays=tuple(trace.arrays), provenance={}
    )
    with store.writer() as writer:
        writer.write_part(0, [trace], ["long"])
    n_edges = fitting_edges(store.shape, store.records)
    view = View(store=store, features=(FeatureSpec("sink_mass_k4"),), n_edges=n_edges)
    write_view(view, folder / "page.html")
    return (folder / "page.html").as_uri()


ACTIONS = (
    "pickToken(1500)",
    "lookAt(301)",
    "await openHead(7, 3)",
    "state.hidden = 4; showHead()",
    "openView('matrix')",
    "pickToken(1201)",
    "showMap()",
    "state.colour = 'entropy'; colourTokens()",
)


def test_two_thousand_tokens_are_all_drawn_and_every_action_works_on_them(browser, long):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(long, wait_until="commit")
    page.wait_for_selector(READY, state="attached")
    page.wait_for_load_state("load")
    assert page.locator(".token").count() == N_TOKENS
    frame = "await new Promise((go) => requestAnimationFrame(() => setTimeout(go)))"
    for act in ACTIONS:
        page.evaluate(f"async () => {{ {act}; {frame} }}")
    assert page.evaluate("state.token") == 1201
    assert page.evaluate("state.colour") == "entropy"
    context.close()
    assert faults == []
