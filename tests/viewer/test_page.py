"""The page as a file: what it holds, and what it can never do."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError, UsageError
from graphhalu.report.theme import json_block
from graphhalu.viewer.heads import MOST_EDGES, fitting_edges
from graphhalu.viewer.page import ASSETS, SCRIPTS, embedded_page, served_page, write_view
from graphhalu.viewer.view import ViewRequest, make_view

HOSTILE = "<img src=x onerror=alert(1)>"
EMPTY = {"br", "meta", "input", "img"}


class Parsed(HTMLParser):
    """A page whose tags are balanced; collects elements and the texts of scripts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.scripts = [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("script", "style"):
            name = self.open[-1][1].get("id", self.open[-1][0])
            self.scripts[name] = self.scripts.get(name, "") + data


def policy_of(page):
    meta = [a for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    return dict(part.split(" ", 1) for part in meta[0]["content"].split("; "))


@pytest.fixture(scope="module")
def page(stores, plain_view):
    return Parsed(embedded_page(plain_view(stores["full"])))


def test_the_page_holds_everything_and_loads_nothing(page):
    loads = {"src", "href", "action", "formaction", "data", "poster", "srcset"}
    named = [(tag, key) for tag, attributes in page.elements for key in attributes if key in loads]
    assert named == [("a", "href")]  # the link to the content of the page itself
    assert {"overview", "trace-0", "trace-6", "layer-0-0", "layer-6-4"} <= page.scripts.keys()


def test_no_text_of_a_trace_is_markup(page, stores):
    assert "img" not in {tag for tag, _ in page.elements}
    trace = json.loads(page.scripts["trace-0"])
    assert HOSTILE in trace["texts"]
    assert trace["question"] == f"{HOSTILE}</script>?"


def test_the_policy_allows_this_style_and_this_script_alone(page):
    policy = policy_of(page)
    assert policy["default-src"] == "'none'"
    assert "connect-src" not in policy
    for kind, text in (("script-src", page.scripts["script"]), ("style-src", page.scripts["style"])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[kind] == f"'sha256-{digest}'"


def test_a_served_page_may_ask_its_server_and_nobody_else(stores, plain_view):
    found = Parsed(served_page(plain_view(stores["full"])))
    assert policy_of(found)["connect-src"] == "'self'"
    assert "trace-0" not in found.scripts


def test_no_script_writes_markup_or_runs_text():
    text = "".join((ASSETS / name).read_text() for name in SCRIPTS)
    assert set(SCRIPTS) == {path.name for path in ASSETS.glob("*.js")}
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        'setTimeout("',
        "http:",
        "https:",
    ):
        assert word not in text, word


def test_what_is_shown_first_stands_before_the_script(stores, plain_view):
    found = embedded_page(plain_view(stores["full"]))
    places = [found.index(f'id="{name}"') for name in ("trace-0", "layer-0-2", "overview")]
    assert places == sorted(places)
    script = found.index("<script>")
    assert max(places) < script < found.index('id="layer-0-0"')


def test_json_in_a_page_cannot_end_its_element():
    block = json_block({"a": "</script><!-- & \u2028", "b": float("nan")})
    assert not re.search(r"[<>&\u2028]", block)
    assert json.loads(block) == {"a": "</script><!-- & \u2028", "b": None}


def test_only_the_chosen_traces_are_in_a_page(stores, tmp_path):
    store = stores["full"]
    view = make_view(store, ViewRequest(trace_ids=("q5", "q2#0"), features=("sink_rate",)))
    written = write_view(view, tmp_path / "deep" / "page.html")
    assert written == tmp_path / "deep" / "page.html"
    overview = json.loads(Parsed(written.read_text()).scripts["overview"])
    assert [entry["id"] for entry in overview["answers"]] == ["q5#0", "q2#0"]


def test_fewer_edges_are_kept_the_longer_the_texts_are(stores):
    shape, record = stores["full"].shape, stores["full"].records[0]
    assert fitting_edges(shape, [record]) == MOST_EDGES
    assert fitting_edges(shape, [record] * 1_000_000) == 4
    middle = fitting_edges(shape, [record] * 4_000)
    assert 4 < middle < MOST_EDGES


def test_what_cannot_be_shown_is_said(stores, tmp_path, plain_view):
    store = stores["full"]
    with pytest.raises(TraceNotFoundError, match="no trace for question 'nobody'"):
        make_view(store, ViewRequest(trace_ids=("nobody",)))
    with pytest.raises(UsageError, match="at least one edge"):
        make_view(store, ViewRequest(n_edges=0))
    with pytest.raises(NotEnoughDataError, match="no trace to show"):
        make_view(store[:0], ViewRequest())
    assert list(tmp_path.iterdir()) == []
