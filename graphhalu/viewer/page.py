"""The page itself: one file with everything in it, or the shell that a server fills.

A page of another site must not read answers through a visitor's browser. So the server listens
on the loopback address alone, answers only when it is called by a name of this machine (a name
that an attacker's DNS points here is refused), and refuses requests that a browser marks as
coming from another site.
"""

import json
import re
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from graphhalu.core.errors import GraphhaluError
from graphhalu.core.files import replace_file
from graphhalu.core.numerics import json_ready
from graphhalu.core.web import OTHER_SITE, SAFE_HEADERS, is_of_other_site
from graphhalu.report.theme import json_block, render
from graphhalu.viewer.view import View

ASSETS: Final = Path(__file__).parent / "assets"
_NAMES: Final = "decode draw grid tokens arcs matrix answers state sources answer maps spans reading app"
SCRIPTS: Final = tuple(f"{name}.js" for name in _NAMES.split())
"""In the order in which they run."""

Blocks = Mapping[str, tuple[str, Markup]]
"""Data inside a page, which a browser does not run: by the id of its element its type, and its
content, which holds no markup."""


def write_view(view: View, out: Path) -> Path:
    """Write all traces of a view as one self-contained page.

    Args:
        view: What is shown.
        out: The HTML file; its folder is made if it is missing.

    Raises:
        UsageError: If a trace is too long to be shown.
    """
    replace_file(out, embedded_page(view).encode())
    return out


def embedded_page(view: View) -> str:
    """A page that holds everything it shows; what it shows first stands first."""
    places = range(len(view.store))
    blocks = {f"trace-{index}": ("application/json", json_block(view.trace(index))) for index in places}
    # layers outside, as a store keeps them
    layers = {
        (index, place): Markup(view.layer(index, layer))  # noqa: S704  # base64
        for place, layer in enumerate(view.layers)
        for index in places
    }
    blocks |= {
        f"layer-{index}-{place}": ("text/plain", layers[index, place]) for index, place in sorted(layers)
    }
    # the layer in the middle is the one that is shown first
    names = [name for name in ("trace-0", f"layer-0-{len(view.layers) // 2}") if name in blocks]
    first = {name: blocks.pop(name) for name in names}
    return _page(view, first, blocks, is_served=False)


def served_page(view: View) -> str:
    """A page that asks its server for each answer."""
    return _page(view, {}, {}, is_served=True)


def _page(view: View, first: Blocks, rest: Blocks, *, is_served: bool) -> str:
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    css = (ASSETS / "viewer.css").read_text(encoding="utf-8")
    return render(
        "viewer.html",
        ASSETS,
        css=css,
        script=script,
        has_server=is_served,
        title=view.title,
        overview=json_block(view.overview(is_served=is_served)),
        first=first,
        rest=rest,
    )


HOST: Final = "127.0.0.1"
KEPT_LAYERS: Final = 64
"""Layers of answers that stay packed in memory."""

_TRACE: Final = re.compile(r"/traces/(\d{1,9})\.json")
_LAYER: Final = re.compile(r"/traces/(\d{1,9})/layers/(\d{1,5})\.txt")

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"


class ViewServer(ThreadingHTTPServer):
    """Answers ``/``, ``/traces/N.json`` and ``/traces/N/layers/P.txt``.

    Args:
        view: What is shown; listed are all traces of its store.
        port: On the loopback address; 0 takes a free one.

    Raises:
        OSError: If the port is taken.
    """

    daemon_threads = True

    def __init__(self, view: View, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.view = view
        self._page = served_page(view)
        # a store's cache of chunks is for one reader at a time
        self._reading = threading.Lock()
        self._layer = lru_cache(maxsize=KEPT_LAYERS)(view.layer)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """What a browser opens."""
        return f"http://{HOST}:{self.port}/"

    @property
    def names(self) -> frozenset[str]:
        """What the ``Host`` of a request may say."""
        return frozenset(f"{name}:{self.port}" for name in (HOST, "localhost"))

    def content(self, path: str) -> tuple[str, str] | None:
        """Type and text of what lies at a path; ``None`` if nothing does."""
        if path == "/":
            return _HTML, self._page
        with self._reading:
            if found := _TRACE.fullmatch(path):
                index = int(found[1])
                if index < len(self.view.store):
                    values = json_ready(self.view.trace(index))
                    return _JSON, json.dumps(values, allow_nan=False)
            elif found := _LAYER.fullmatch(path):
                index, place = int(found[1]), int(found[2])
                if index < len(self.view.store) and place < len(self.view.layers):
                    return _TEXT, self._layer(index, self.view.layers[place])
        return None


class _Handler(BaseHTTPRequestHandler):
    """One request; everything but GET and HEAD is refused by the base class."""

    server: ViewServer
    server_version = "graphhalu"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer with the content of the path."""
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        """Answer with the head alone."""
        self._answer(has_body=False)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing of single requests."""

    def _answer(self, *, has_body: bool) -> None:
        status, kind, text = self._found()
        body = text.encode()
        self.send_response(status)
        for name, value in SAFE_HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def _found(self) -> tuple[HTTPStatus, str, str]:
        if self.headers.get("Host", "").lower() not in self.server.names:
            return HTTPStatus.FORBIDDEN, _TEXT, f"call it {self.server.url}\n"
        if is_of_other_site(self.headers.get("Sec-Fetch-Site")):
            return HTTPStatus.FORBIDDEN, _TEXT, f"{OTHER_SITE}\n"
        try:
            found = self.server.content(self.path)
        except GraphhaluError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, f"{error}\n"
        if found is None:
            return HTTPStatus.NOT_FOUND, _TEXT, "there is nothing here\n"
        return HTTPStatus.OK, *found


def serve(view: View, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until the process is interrupted.

    Args:
        view: What is shown.
        port: On the loopback address; 0 takes a free one.
        on_ready: Told the address.

    Raises:
        OSError: If the port is taken.
    """
    with ViewServer(view, port) as server:
        on_ready(server.url)
        server.serve_forever()
