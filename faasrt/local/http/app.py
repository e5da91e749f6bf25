"""The HTTP routes of the embedded FaaS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt._version import __version__
from faasrt.inputs import INPUT_FIELDS
from faasrt.languages import Language
from faasrt.local.engines.engine import Engine, EngineJob
from faasrt.local.http.access import AccessPolicy
from faasrt.local.http.access_log import CLIENT_GONE, begin_line, log_request
from faasrt.local.http.admission import AdmissionQueue, BusyError, execute_with_events
from faasrt.local.http.body_memory import Share
from faasrt.local.http.connections import BoundedConnection, Listener, RequestCounter
from faasrt.local.http.exposition import collect_metrics, format_metrics
from faasrt.local.http.foreign_protocols import CLIENT_SETTINGS, ForeignProtocols
from faasrt.local.http.live_answer import LineResponse
from faasrt.local.http.openapi import build_document
from faasrt.local.http.page import ROUTES as PAGE_ROUTES
from faasrt.local.http.patience import read_patience
from faasrt.local.http.refusals import RefusalLog
from faasrt.local.http.request_body import BadRequestError, parse_job, parse_language, read_fields
from faasrt.local.http.responses import Handler, json_response, send_response
from faasrt.local.http.run_answers import RunAnswers, failure_response, server_timing
from faasrt.local.http.session_routes import SessionRoutes, template_of
from faasrt.local.http.sessions import Sessions
from faasrt.local.sandbox_limits import SandboxLimits
from faasrt.protocol.answer import max_answer_bytes
from faasrt.protocol.json_lines import media_type
from faasrt.results import Diagnostic, Outcome, ValidationResult
from faasrt.telemetry.dispatch import EventDispatcher

_CAPABILITIES = ("lossless", "enforces_timeouts", "cancels_on_disconnect", "validates", "streams")
# The first two reveal nothing but their status, and the page nothing about the server.
_WITHOUT_TOKEN = frozenset({"/livez", "/readyz", *PAGE_ROUTES})
_WITH_BODY = ("POST", "PUT")
# They start nothing, and a program that is interrupted ends sooner.
_WHILE_DRAINING = ("/sessions/{id}/interrupt", "/sessions/{id}/files")


@attrs.define(eq=False)
class Router:
    """Answers HTTP requests. JavaScript and TypeScript share one queue."""

    _queues: Mapping[Language, AdmissionQueue]
    _missing: Mapping[Language, str]
    _limits: SandboxLimits
    _access: AccessPolicy
    _emit: EventDispatcher
    _listener: Listener
    _sessions: Sessions
    _refusals: RefusalLog
    _access_log: Any = None
    requests: RequestCounter = attrs.field(factory=RequestCounter, init=False)
    _document: dict[str, Any] = attrs.field(init=False)
    _runs: RunAnswers = attrs.field(init=False)
    _foreign: ForeignProtocols = attrs.field(init=False)
    _routes: dict[str, dict[str, Handler]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        engines = {language: queue.engine for language, queue in self._queues.items()}
        usual, largest = (
            max_answer_bytes(sandbox.max_output_bytes, collects=True, displays=True)
            for sandbox in (self._limits.default, self._limits.largest)
        )
        # Enough for the answers of all programs that can run at once with the default limit.
        capacity = sum(engine.capacity for engine in {*engines.values()})
        self._listener.memory.max_answer_bytes = max(largest, usual * capacity)
        self._document = build_document(engines, self._limits.largest)
        self._runs = RunAnswers(self._limits, self._emit)
        self._foreign = ForeignProtocols(self._queues, self._missing, self._limits, self._emit, self._sessions)
        # Compared with the raw request target: an encoded or unnormalized path matches none of them.
        self._routes = {
            "/run_code": {"POST": self._run_code},
            "/validate_code": {"POST": self._validate_code},
            "/health": {"GET": self._health},
            "/livez": {"GET": self._livez},
            "/readyz": {"GET": self._readyz},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
            **SessionRoutes(self._queues, self._missing, self._sessions, self._runs).routes,
            **self._foreign.routes,
            **PAGE_ROUTES,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request. Cancellation ends its program."""
        started, status, size = time.perf_counter(), CLIENT_GONE, 0
        if self._access_log is not None:
            begin_line(request)
        connection = request.protocol
        assert isinstance(connection, BoundedConnection)
        try:
            with self.requests, self._listener.memory.share() as share:
                response = await self._respond(request, share)
                size = response.sent_bytes if isinstance(response, LineResponse) else response.content_length or 0
                connection.begin_answer(share, size)
                if self._listener.draining or connection.is_spare:
                    response.force_close()
                # Sent here, so that the bytes of the answer count until the client has read it.
                await send_response(response, request, share, size)
                if isinstance(response, web.Response):
                    response.body = None  # aiohttp keeps the response until the next request on this connection
                status = response.status
                return response
        finally:
            connection.end_answer()
            if self._access_log is not None:
                elapsed_s = time.perf_counter() - started
                log_request(self._access_log, request, status=status, elapsed_s=elapsed_s, size=size)

    async def _respond(self, request: web.BaseRequest, share: Share) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        try:
            self._access.check(request, needs_token=path not in _WITHOUT_TOKEN)
            return await self._route(request, path)(request, share)
        except ConnectionError:
            raise
        except Exception as error:
            self._refusals.count(error, self._foreign.service_of(request, path))
            return self._foreign.failure(path, error) or failure_response(error)

    def _route(self, request: web.BaseRequest, path: str) -> Handler:
        method = request.method
        methods = self._routes.get(path) or self._routes.get(template_of(path))
        if methods is None:
            raise web.HTTPNotFound(text=f"the path must be one of {', '.join(self._routes)}")
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = [*methods, "HEAD"] if "GET" in methods else [*methods]
            raise web.HTTPMethodNotAllowed(method, allowed, text=f"use {' or '.join(allowed)}")
        if method in _WITH_BODY:
            if media_type(request.headers) != "application/json":
                raise web.HTTPUnsupportedMediaType(text="the Content-Type must be application/json")
            if self._listener.draining and not (method == "POST" and template_of(path) in _WHILE_DRAINING):
                self._listener.refused_while_draining += 1
                raise BusyError("the server is about to stop", kind="stopping")
        return handler

    async def _run_code(self, request: web.BaseRequest, share: Share) -> web.StreamResponse:
        job = await self._read_job(request, share)
        if not job.code.strip():
            raise BadRequestError("'code' must not be empty")
        return await self._runs.answer(request, share, job, self._queues[job.language])

    async def _validate_code(self, request: web.BaseRequest, share: Share) -> web.Response:
        job = attrs.evolve(await self._read_job(request, share), check=True)
        if not job.code.strip():
            return json_response(200, attrs.asdict(ValidationResult.empty_code()))
        queue = self._queues[job.language]
        _, result = await execute_with_events(
            queue.execute, job, request=request, emit=self._emit, patience_s=read_patience(request)
        )
        diagnostics: tuple[Diagnostic, ...] = ()
        if result.diagnostics:
            diagnostics = result.diagnostics
        elif result.outcome is Outcome.SYNTAX_ERROR:
            message = result.error.message if result.error else "invalid syntax"
            diagnostics = (Diagnostic(message, result.line, result.column),)
        elif result.outcome is not Outcome.OK:
            # The parser ran out of time, memory or stack, as it also would before a run.
            diagnostics = (Diagnostic(f"too complex for the parser ({result.outcome})"),)
        validation = ValidationResult(not diagnostics, diagnostics, queue.engine.runtime)
        return json_response(200, attrs.asdict(validation), {"Server-Timing": server_timing(result)})

    async def _read_job(self, request: web.BaseRequest, share: Share) -> EngineJob:
        fields = await read_fields(request, share)
        language = parse_language(fields, tuple(self._queues), self._missing)
        return parse_job(fields, language, self._queues[language].engine, self._limits)

    def health(self) -> dict[str, Any]:
        languages = {}
        for language, queue in self._queues.items():
            engine = queue.engine
            languages[language] = {
                "status": _status(engine),
                "detail": engine.background if engine.ready else engine.problem or engine.activity,
                "runtime": engine.runtime,
                "engine": engine.name,
                "fingerprint": engine.fingerprint(self._limits.largest),
                "level": engine.level,
                "level_reason": engine.level_reason,
                "level_remedy": engine.options.level_remedy,
                "input": list(engine.input_fields),
                "compile_limit_s": engine.compile_limit_s,
                "max_wall_factor": engine.max_wall_factor,
                "sessions": list(self._sessions.features(engine)),
                "displays": engine.has_displays,
                "cgroup": engine.cgroups is not None,
                "capacity": engine.capacity,
                "active": engine.active,
                "idle": engine.idle,
                "queued": queue.queued,
            }
        statuses = self._statuses()
        if "ready" in statuses:
            status = "healthy" if len(statuses) == 1 else "degraded"
        else:
            status = "unhealthy" if "failed" in statuses else "starting"
        return {
            "status": status,
            "version": f"faasrt {__version__}",
            "uptime_s": round(self._listener.uptime_s),
            "capabilities": dict.fromkeys(_CAPABILITIES, True) | self._engine_capabilities(),
            "limits": attrs.asdict(self._limits.default),
            "max_limits": attrs.asdict(self._limits.largest),
            "languages": languages,
            "missing": self._missing,
            "clients": CLIENT_SETTINGS,
        }

    async def _health(self, request: web.BaseRequest, share: Share) -> web.Response:
        report = self.health()
        return json_response(200 if report["status"] in ("healthy", "degraded") else 503, report)

    def _statuses(self) -> set[str]:
        """Return the statuses of the engines. One that starts when it is needed does not affect the others."""
        engines = [queue.engine for queue in self._queues.values()]
        return {
            _status(engine) for engine in [engine for engine in engines if not engine.starts_when_needed] or engines
        }

    async def _livez(self, request: web.BaseRequest, share: Share) -> web.Response:
        return json_response(200, {"status": "alive"})

    async def _readyz(self, request: web.BaseRequest, share: Share) -> web.Response:
        statuses = self._statuses()
        if self._listener.draining:
            status = "draining"
        elif "starting" in statuses:
            status = "starting"
        else:
            status = "ready" if "ready" in statuses else "failed"
        return json_response(200 if status == "ready" else 503, {"status": status})

    def _engine_capabilities(self) -> dict[str, bool]:
        engines = [queue.engine for queue in self._queues.values()]
        fields = {name: all(name in engine.input_fields for engine in engines) for name in INPUT_FIELDS}
        return {
            **fields,
            "sessions": any(self._sessions.features(engine) for engine in engines),
            "displays": any(engine.has_displays for engine in engines),
        }

    async def _metrics(self, request: web.BaseRequest, share: Share) -> web.Response:
        metrics = collect_metrics(dict.fromkeys(self._queues.values()), self._listener, self._sessions)
        accepted = request.headers.get("Accept", "")
        # Prometheus never asks for JSON. A client that does may accept text as its second choice.
        if "application/json" in accepted or not ("text/plain" in accepted or "openmetrics" in accepted):
            return json_response(200, metrics)
        body, content_type = await asyncio.to_thread(format_metrics, metrics)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _openapi(self, request: web.BaseRequest, share: Share) -> web.Response:
        return json_response(200, self._document)


@attrs.define(eq=False)
class RouterSwitch:
    """Hands each request to the router in use. A router that is replaced goes on with the requests that it has."""

    _router: Router | None = None
    _former: set[Router] = attrs.field(factory=set)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.current.handle(request)

    @property
    def current(self) -> Router:
        assert self._router is not None
        return self._router

    def select(self, router: Router) -> None:
        if self._router is not None:
            self._former.add(self._router)
        self._router = router

    async def until_former_are_idle(self) -> None:
        former = [*self._former]
        for router in former:
            await router.requests.until_idle()
        self._former.difference_update(former)

    async def until_idle(self) -> None:
        await self.until_former_are_idle()
        if self._router is not None:
            await self._router.requests.until_idle()


def _status(engine: Engine) -> str:
    return "ready" if engine.ready else "failed" if engine.problem else "starting"
