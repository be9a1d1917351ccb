"""A server for the viewer of a large store: this machine only, and it only reads.

A page of another site must not read answers through a visitor's browser. So the server listens
on the loopback address alone, answers only when it is called by a name of this machine (a name
that an attacker's DNS points here is refused), and refuses requests that a browser marks as
coming from another site.
"""

import json
import re
import threading
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from graphhalu.core.errors import GraphhaluError
from graphhalu.core.numerics import json_ready
from graphhalu.core.web import OTHER_SITE, SAFE_HEADERS, is_of_other_site
from graphhalu.viewer.page import served_page
from graphhalu.viewer.view import View

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
