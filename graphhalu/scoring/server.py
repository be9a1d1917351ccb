"""An HTTP server: completions as OpenAI's, with the probability that they are hallucinated; and scores."""

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hmac import compare_digest
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import Counter, generate_latest
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import graphhalu
from graphhalu.core.numerics import json_ready
from graphhalu.core.web import OTHER_SITE, SAFE_HEADERS, content_security_policy, is_of_other_site
from graphhalu.datasets.question import Question
from graphhalu.scoring.asked import AnswerScore
from graphhalu.scoring.bodies import (
    ChatRequest,
    CompletionRequest,
    Frame,
    ScoreRequest,
    TextRequest,
    error_body,
    faults_of,
    hallucination,
)
from graphhalu.scoring.engine import Engine, Job
from graphhalu.scoring.ready import API_KEY, LOOPBACK, ServeConfig, read_card
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.scoring.stream import ScoredToken

PAGE: Final = Path(__file__).with_name("server.html")
BODY_S: Final = 30.0
"""Seconds in which a body must arrive."""
POLL_S: Final = 0.25
_OPEN: Final = ("/", "/health")
"""Paths that need no key."""
_log = logging.getLogger("graphhalu.server")


class Guard:
    """Refuses requests before anything of them is read: of other sites, without the key, or too large.

    Args:
        app: What is guarded.
        config: Of the server.
        n_requests: Counts them by path and status.
        tracer: Of OpenTelemetry, or ``None``.
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, n_requests: Counter, tracer: Any) -> None:
        self.app, self.config, self.n_requests, self.tracer = app, config, n_requests, tracer
        self.key = os.environ.get(API_KEY) or None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 499
        path = scope["path"] if scope["path"] in _PATHS else "other"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        span = self.tracer.start_span(f"{scope['method']} {path}") if self.tracer is not None else None
        body = b""
        try:
            refused = self._refused(scope)
            if refused is None:
                body, refused = await self._body(scope, receive)
            if refused is not None:
                await error_response(*refused)(scope, receive, noted)
            else:
                await self.app(scope, _replayed(body, receive), noted)
        finally:
            seconds = time.monotonic() - started
            self.n_requests.labels(path, str(status)).inc()
            entry = {"event": "request", "path": path, "status": status, "ms": round(1000 * seconds, 1)}
            _log.info(json.dumps(entry))
            if span is not None:
                span.set_attribute("http.response.status_code", status)
                span.end()

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").rpartition(":")[0].strip("[]") or headers.get("host", "")
        if self.key is None and host.lower() not in (*LOOPBACK, self.config.host):
            return 403, f"refused: call it {LOOPBACK[0]}, or set {API_KEY}"
        if is_of_other_site(headers.get("sec-fetch-site")):
            return 403, OTHER_SITE
        if self.key is not None and scope["path"] not in _OPEN:
            given = headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not compare_digest(given, self.key.encode()):
                return 401, "expected the API key as Authorization: Bearer KEY"
        return None

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, tuple[int, str] | None]:
        """The whole body, or why it is refused."""
        limit, body = self.config.max_body_bytes, b""
        if scope["method"] in ("GET", "HEAD"):
            return body, None
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > limit:
                        return b"", (413, f"the body is larger than {limit} bytes")
                    if not message.get("more_body"):
                        return body, None
        except TimeoutError:
            return b"", (408, f"the body did not arrive within {BODY_S:g} seconds")


_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
_PATHS: Final = (
    *("/", "/health", "/metrics", "/detectors", "/score"),
    *("/v1/models", "/v1/completions", "/v1/chat/completions"),
)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body first, and then what comes."""
    is_given = False

    async def again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def error_response(status: int, message: str, **headers: str) -> JSONResponse:
    """An error as OpenAI writes it."""
    return JSONResponse(error_body(status, message), status, headers=headers)


async def _delivered(job: Job, events: "asyncio.Queue[Any]", request: Request) -> AsyncIterator[Any]:
    """Each event of a job, which is cancelled when the client leaves."""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), POLL_S)
            except TimeoutError:
                if await request.is_disconnected():
                    return
                continue
            yield event
            if not isinstance(event, ScoredToken):
                return
    finally:
        job.is_cancelled = True


class Api:
    """The endpoints.

    Args:
        engine: Answers and scores.
        config: Of the server.
    """

    def __init__(self, engine: Engine, config: ServeConfig) -> None:
        self.engine, self.config = engine, config
        self.page, self.policy = _page()

    def _events(self, request: Request, questions: list[Question], **settings: Any) -> AsyncIterator[Any]:
        """Queue a job; its events come from the engine's thread to the server's."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def deliver(event: Any) -> None:
            with suppress(RuntimeError):  # the server has gone
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(questions, deliver, time.monotonic() + self.config.timeout_s, **settings)
        self.engine.submit(job)
        return _delivered(job, events, request)

    def _answer(
        self, body: CompletionRequest, question: Question, request: Request, **prompt: str
    ) -> AsyncIterator[Any]:
        if body.model not in (None, "", self.engine.model_name):
            raise HTTPException(
                404, f"no model {body.model!r} is served; the model is {self.engine.model_name!r}"
            )
        settings: dict[str, Any] = {"settings": body.settings(), "stop": body.stops, "prompt": prompt}
        return self._events(request, [question], **settings, wants_attention=body.graphhalu.attention)

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await self._completed("chat.completion", body, [self._answer(body, body.asked, request)])

    async def complete(self, body: TextRequest, request: Request) -> Response:
        """Go on with a text."""
        plain = {"template": "published", "chat": "off"}
        asked = [Question("asked", text, ()) for text in body.prompts]
        answers = [self._answer(body, question, request, **plain) for question in asked]
        return await self._completed("text_completion", body, answers)

    async def _completed(
        self, kind: str, body: CompletionRequest, answers: list[AsyncIterator[Any]]
    ) -> Response:
        frame = Frame(kind, self.engine, body)
        if body.stream:
            return StreamingResponse(frame.stream(answers[0]), media_type="text/event-stream")
        found = []
        for events in answers:
            found.append(await self._collected(events))
            self._log_texts(found[-1][1].score)
        return JSONResponse(frame.whole(found))

    async def _collected(self, events: AsyncIterator[Any]) -> tuple[list[ScoredToken], Any]:
        """The tokens of a job and its last event."""
        tokens: list[ScoredToken] = []
        async for event in events:
            if isinstance(event, HTTPException):
                raise event
            if not isinstance(event, ScoredToken):
                return tokens, event
            tokens.append(event)
        raise HTTPException(499, "the client has left")

    async def score(self, body: ScoreRequest, request: Request) -> Response:
        """Score given answers."""
        _, scored = await self._collected(self._events(request, [item.asked for item in body.items]))
        for score, _ in scored:
            self._log_texts(score)
        found = [{**hallucination(self.engine, *pair), "answer": pair[0].answer} for pair in scored]
        return JSONResponse({"scores": found})

    def _log_texts(self, score: AnswerScore) -> None:
        if self.config.log_prompts:
            texts = {"event": "answer", "question": score.question, "answer": score.answer}
            _log.info(json.dumps({**texts, "probability": score.probability}, ensure_ascii=False))

    async def models(self) -> dict[str, Any]:
        """The one model, as OpenAI lists models."""
        model = {"id": self.engine.model_name, "object": "model", "created": 0, "owned_by": "graphhalu"}
        return {"object": "list", "data": [model]}

    async def health(self) -> JSONResponse:
        """Whether requests are worked on."""
        engine = self.engine
        state: dict[str, Any] = {"status": "ok" if engine.is_alive else "stopped", "model": engine.model_name}
        state |= {"waiting": len(engine.waiting), "growing": len(engine.growing)}
        return JSONResponse(state, 200 if engine.is_alive else 503)

    async def metrics(self) -> PlainTextResponse:
        """Counts and times for Prometheus."""
        text = generate_latest(self.engine.registry)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def root(self) -> HTMLResponse:
        """A page to ask a question on."""
        return HTMLResponse(self.page, headers={"content-security-policy": self.policy})

    async def detectors(self) -> dict[str, Any]:
        """What scores answers and tokens here."""
        found: list[dict[str, Any]] = []
        for scorer in (self.engine.scorer, self.engine.token_scorer):
            if scorer is not None:
                card = scorer.detector.card
                about: dict[str, Any] = {"name": card.name, "level": card.level, "summary": card.summary}
                about |= {
                    "model": scorer.identity.model,
                    "threshold_probability": scorer.threshold_probability,
                }
                found.append({**about, "card": read_card(scorer.folder)})
        return {"detectors": json_ready(found)}


def _page() -> tuple[str, str]:
    """The page, and a policy that lets its own script and style run and no others."""
    text = PAGE.read_text(encoding="utf-8")
    parts = [re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("style", "script")]
    (style,), (script,) = parts
    return text, f"{content_security_policy(style, script, has_server=True)}; frame-ancestors 'none'"


def tracer() -> Any:
    """A tracer of OpenTelemetry where its variables ask for one, or ``None``.

    ``OTEL_TRACES_EXPORTER`` (otlp or console) or an address in ``OTEL_EXPORTER_OTLP_ENDPOINT`` switches it
    on; the further variables are those of its SDK.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER")
    wanted = exporter or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not wanted or exporter == "none":
        return None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    made: Any = ConsoleSpanExporter()
    if exporter != "console":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        made = OTLPSpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(made))
    return provider.get_tracer("graphhalu", graphhalu.__version__)


def create_app(
    scorer: AnswerScorer, token_scorer: AnswerScorer | None = None, config: ServeConfig | None = None
) -> FastAPI:
    """The server as an ASGI application; its model is loaded here.

    Args:
        scorer: Detector of answers.
        token_scorer: Detector of tokens of the same model, if tokens are scored.
        config: Settings.

    Raises:
        UsageError: If the model cannot be streamed.
        GraphhaluError: If it cannot be loaded.
    """
    config = config or ServeConfig()
    engine = Engine(scorer, token_scorer, config)
    api = Api(engine, config)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="graphhalu", version=graphhalu.__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    labels = ["path", "status"]
    n_requests = Counter("requests", "Requests", labels, namespace="graphhalu", registry=engine.registry)
    app.add_middleware(Guard, config=config, n_requests=n_requests, tracer=tracer())
    app.state.engine = engine
    for path, asked in (("chat/completions", api.chat), ("completions", api.complete)):
        app.post(f"/v1/{path}", response_model=None)(asked)
    app.post("/score", response_model=None)(api.score)
    pages = {"/v1/models": api.models, "/detectors": api.detectors, "/health": api.health}
    for path, page in {**pages, "/metrics": api.metrics, "/": api.root}.items():
        app.get(path, response_model=None)(page)

    async def refused(_request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError | ValidationError):
            return error_response(400, faults_of(error))
        assert isinstance(error, HTTPException)
        return error_response(error.status_code, str(error.detail), **(error.headers or {}))

    handler: Callable[[Request, Exception], Awaitable[Response]] = refused
    for kind in (RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handler)
    return app


def serve(app: FastAPI, config: ServeConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until the process is interrupted.

    Args:
        app: Of :func:`create_app`.
        config: Where to listen.
        on_ready: Told the address.

    Raises:
        OSError: If the port is taken.
    """
    import socket

    import uvicorn

    kind = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(kind) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
        listening.listen()  # whoever is told the address may call it before uvicorn listens
        name = f"[{config.host}]" if ":" in config.host else config.host
        on_ready(f"http://{name}:{listening.getsockname()[1]}/")
        settings: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        settings |= {"limit_concurrency": 512, "timeout_keep_alive": 20, "timeout_graceful_shutdown": 20}
        uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listening])
