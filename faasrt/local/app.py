"""The HTTP side of the embedded FaaS.

A web page in somebody's browser must not be able to run code here: a `Host` that is not this server's (DNS rebinding),
any `Origin`, and a body that is not declared as JSON (a form) are refused.
"""

from __future__ import annotations

import hmac
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt._version import __version__
from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.local.engines.base import EngineError, Job, Verdict
from faasrt.local.pool import BusyError, Pool
from faasrt.local.requests import BadRequestError, decode_body, read_code, read_job, read_language
from faasrt.protocol.frames import is_frame
from faasrt.protocol.messages import NOT_STARTED_HEADER
from faasrt.protocol.streams import cut_text
from faasrt.results import Diagnostic, Outcome, ValidationResult

MAX_BODY_BYTES = 8 * 2**20
_RETRY_AFTER_S = 1
_ENVELOPE_BYTES = 250_000
_task_numbers = itertools.count(1)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Service:
    """Answers requests out of the pools.

    Args:
        pools: The pool of each language; JavaScript and TypeScript share one.
        sandbox: The server's own limits.
        hosts: The host names under which it may be called; any when None.
        token: What callers must show, or None.
    """

    def __init__(
        self, pools: Mapping[Language, Pool], *, sandbox: SandboxConfig, hosts: frozenset[str] | None, token: str | None
    ) -> None:
        self._pools = pools
        self._sandbox = sandbox
        self._hosts = hosts
        self._authorization = f"Bearer {token}".encode() if token else None

    def application(self) -> web.Application:
        """Make the aiohttp application."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/run_code", self._run_code)
        app.router.add_post("/validate_code", self._validate_code)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check(request)
            return await handler(request)
        except BadRequestError as error:
            return _failure(400, "bad request", str(error))
        except BusyError as error:
            headers = {"Retry-After": str(_RETRY_AFTER_S), NOT_STARTED_HEADER: "1"}
            return _failure(error.status, "overloaded" if error.status == 429 else "not ready", str(error), headers)
        except EngineError as error:
            return _failure(500, "the engine failed", str(error))
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _failure(error.status, error.reason, error.text or "", headers)

    def _check(self, request: web.Request) -> None:
        if self._hosts is not None and _host_name(request.headers.get("Host", "")) not in self._hosts:
            raise web.HTTPForbidden(text="the Host header does not name this server")
        if "Origin" in request.headers:
            raise web.HTTPForbidden(text="requests from web pages are refused")
        if self._authorization is not None:
            shown = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(shown, self._authorization):
                raise web.HTTPUnauthorized(text="this server wants its token, as 'Authorization: Bearer ...'")
        if request.method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the Content-Type must be application/json")

    async def _run_code(self, request: web.Request) -> web.Response:
        fields = decode_body(await request.read())
        language = read_language(fields, tuple(self._pools))
        pool = self._pools[language]
        job = read_job(fields, language, pool.engine, self._sandbox)
        verdict = await pool.execute(job)
        return _within(_run_fields(job, verdict, pool), job)

    async def _validate_code(self, request: web.Request) -> web.Response:
        fields = decode_body(await request.read())
        language = read_language(fields, tuple(self._pools))
        pool = self._pools[language]
        if not read_code(fields).strip():
            return _answer(200, attrs.asdict(ValidationResult.empty_code()))
        job = attrs.evolve(read_job(fields, language, pool.engine, self._sandbox), check=True)
        verdict = await pool.execute(job)
        if verdict.outcome is Outcome.OK:
            result = ValidationResult(True, (), pool.engine.runtime)
        elif verdict.outcome is Outcome.SYNTAX_ERROR:
            message = verdict.error.message if verdict.error else "invalid syntax"
            result = ValidationResult(False, (Diagnostic(message, verdict.line, verdict.column),), pool.engine.runtime)
        else:
            # The parser ran out of time, memory or stack, as the program's own run would.
            message = f"too complex for the parser ({verdict.outcome})"
            result = ValidationResult(False, (Diagnostic(message),), pool.engine.runtime)
        return _answer(200, attrs.asdict(result))

    async def _health(self, request: web.Request) -> web.Response:
        engines = [pool.engine for pool in self._pools.values()]
        ready = sum(engine.ready for engine in engines)
        if ready == len(engines):
            status = "healthy"
        elif ready:
            status = "degraded"
        else:
            status = "unhealthy" if any(engine.problem for engine in engines) else "starting"
        languages = {
            language: {
                "status": "ready" if pool.engine.ready else "failed" if pool.engine.problem else "starting",
                "detail": "" if pool.engine.ready else pool.engine.problem or pool.engine.activity,
                "runtime": pool.engine.runtime,
                "capacity": pool.engine.capacity,
                "active": pool.engine.active,
                "idle": pool.engine.idle,
                "queued": pool.queued,
            }
            for language, pool in self._pools.items()
        }
        body = {
            "status": status,
            "version": f"faasrt {__version__}",
            "capabilities": {"faithful": True, "enforces_timeouts": True, "validates": True},
            "limits": attrs.asdict(self._sandbox),
            "languages": languages,
        }
        return _answer(200 if ready else 503, body)

    async def _metrics(self, request: web.Request) -> web.Response:
        accepted = request.headers.get("Accept", "")
        if "text/plain" in accepted or "openmetrics" in accepted:
            return web.Response(text=_prometheus(self._unique_pools()), content_type="text/plain", charset="utf-8")
        engines = {
            pool.engine.name: {
                "executions": _by_language(pool),
                "refused": pool.refused,
                "failed": pool.failed,
                "active": pool.engine.active,
                "idle": pool.engine.idle,
                "queued": pool.queued,
                "capacity": pool.engine.capacity,
            }
            for pool in self._unique_pools()
        }
        return _answer(200, {"engines": engines})

    def _unique_pools(self) -> list[Pool]:
        return list(dict.fromkeys(self._pools.values()))


def _run_fields(job: Job, verdict: Verdict, pool: Pool) -> dict[str, Any]:
    engine = pool.engine
    return {
        "output": {"stdout": verdict.stdout, "stderr": verdict.stderr, "ret_val": verdict.ret_val},
        "metadata": {
            "language": job.language,
            "runtime": engine.runtime,
            "duration": round(verdict.duration_ms),
            "status": "success" if verdict.outcome is Outcome.OK else "error",
            "exit_code": verdict.exit_code,
            "timed_out": verdict.outcome is Outcome.TIMEOUT,
            "task_id": f"task-{next(_task_numbers)}",
            "instance_id": verdict.instance_id,
            "pool_stats": {
                "totalInstances": engine.active + engine.idle,
                "idleInstances": engine.idle,
                "activeInstances": engine.active,
            },
        },
        "outcome": verdict.outcome,
        "error_info": attrs.asdict(verdict.error) if verdict.error else None,
        "truncated": list(verdict.truncated),
    }


def _within(fields: dict[str, Any], job: Job) -> web.Response:
    """Answer a run, with a body that a client reads to its end.

    What JSON escapes grows up to six times, and clients stop reading at four times the limit on output: then the
    streams are cut further, and named, rather than lost as a whole.
    """
    limit = job.max_output_bytes
    response = _answer(200, fields)
    while len(response.body) > 4 * job.max_output_bytes + _ENVELOPE_BYTES and limit > 1:  # type: ignore[arg-type]
        limit //= 2
        if fields["error_info"]:
            fields["error_info"]["message"] = cut_text(fields["error_info"]["message"], limit)[0]
        for name, text in fields["output"].items():
            if is_frame(text, job.max_output_bytes):
                continue  # it is no larger than it may be, and of no use in pieces
            fields["output"][name], was_cut = cut_text(text, limit)
            if was_cut and name not in fields["truncated"]:
                fields["truncated"].append(name)
        response = _answer(200, fields)
    return response


def _by_language(pool: Pool) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for (language, outcome), count in sorted(pool.outcomes.items()):
        counts.setdefault(language, {})[outcome] = count
    return counts


def _prometheus(pools: list[Pool]) -> str:
    """Write the Prometheus text format."""
    lines = [
        "# HELP faasrt_local_executions_total Programs that were run, by how they ended.",
        "# TYPE faasrt_local_executions_total counter",
    ]
    for pool in pools:
        for (language, outcome), count in sorted(pool.outcomes.items()):
            lines.append(f'faasrt_local_executions_total{{language="{language}",outcome="{outcome}"}} {count}')
    for name, kind, words, read in _SERIES:
        lines += [f"# HELP faasrt_local_{name} {words}", f"# TYPE faasrt_local_{name} {kind}"]
        lines += [f'faasrt_local_{name}{{engine="{pool.engine.name}"}} {read(pool)}' for pool in pools]
    return "\n".join(lines) + "\n"


_SERIES: tuple[tuple[str, str, str, Callable[[Pool], int]], ...] = (
    ("refused_total", "counter", "Programs that were refused before they ran.", lambda pool: pool.refused),
    ("failed_total", "counter", "Programs whose engine failed.", lambda pool: pool.failed),
    ("active", "gauge", "Programs that run now.", lambda pool: pool.engine.active),
    ("idle", "gauge", "Processes that wait for a program.", lambda pool: pool.engine.idle),
    ("queued", "gauge", "Programs that wait for a sandbox.", lambda pool: pool.queued),
    ("capacity", "gauge", "Programs that can run at once.", lambda pool: pool.engine.capacity),
)


def _host_name(host: str) -> str:
    """Take the port off a Host header; an IPv6 address stands in brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, _, port = host.partition(":")
    return name.lower() if port.isdecimal() or not port else ""


def _answer(status: int, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> web.Response:
    try:
        body = json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # A program may print lone surrogates, which only an escape can carry.
        body = json.dumps(fields).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _failure(status: int, error: str, details: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return _answer(status, {"error": error, "details": details}, headers)
