"""The HTTP side of the embedded FaaS: its paths, and what each answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt._version import __version__
from faasrt.config import SandboxConfig
from faasrt.emitter import Emitter
from faasrt.languages import Language
from faasrt.local import metrics
from faasrt.local.answers import OVERLOADED_HEADERS, answer, failure
from faasrt.local.connections import log_failure
from faasrt.local.engines.base import EngineError, Job, NotStartedError, Verdict
from faasrt.local.executions import execute
from faasrt.local.guard import Guard
from faasrt.local.limits import Budget, Share
from faasrt.local.notices import notice_of
from faasrt.local.openapi import document
from faasrt.local.pool import BusyError, Pool
from faasrt.local.requests import BadRequestError, decode_body, read_body, read_job, read_language
from faasrt.protocol.frames import is_frame
from faasrt.protocol.messages import NOT_STARTED_HEADER
from faasrt.protocol.streams import cut_text
from faasrt.results import Diagnostic, Outcome, ValidationResult

_CAPABILITIES = ("faithful", "enforces_timeouts", "cancels_on_disconnect", "validates")
_ENVELOPE_BYTES = 250_000
# What a refusal may need beside its words.
_REFUSAL_HEADERS = ("Allow", "WWW-Authenticate", "Accept-Encoding", "Connection", NOT_STARTED_HEADER)
_Handler = Callable[[web.BaseRequest, Share], Awaitable[web.Response]]


class Service:
    """Answers requests out of the pools.

    Args:
        pools: The pool of each language; JavaScript and TypeScript share one.
        sandbox: The server's own limits.
        guard: Says who may call.
        emit: Takes the events of executions.
    """

    def __init__(self, pools: Mapping[Language, Pool], *, sandbox: SandboxConfig, guard: Guard, emit: Emitter) -> None:
        self._pools = pools
        self._sandbox = sandbox
        self._guard = guard
        self._emit = emit
        self._budget = Budget()
        self._document = document(pools, sandbox)
        # Compared with the target as it was sent: what would have to be decoded or normalized first is no path here.
        self._routes: dict[str, tuple[str, _Handler]] = {
            "/run_code": ("POST", self._run_code),
            "/validate_code": ("POST", self._validate_code),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._openapi),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever it is.

        Cancellation: ends the program that runs for it.
        """
        with self._budget.share() as share:
            response = await self._respond(request, share)
            share.take_anyway(response.content_length or 0)
            # Sent here, so that the answer counts until the client has taken it.
            await response.prepare(request)
            await response.write_eof()
            return response

    async def _respond(self, request: web.BaseRequest, share: Share) -> web.Response:
        try:
            self._guard.check(request)
            return await self._route(request)(request, share)
        except BadRequestError as error:
            return failure(400, "bad request", str(error))
        except BusyError as error:
            return failure(
                error.status, "overloaded" if error.status == 429 else "not ready", str(error), OVERLOADED_HEADERS
            )
        except NotStartedError as error:
            return failure(503, "the engine failed", str(error), OVERLOADED_HEADERS)
        except EngineError as error:
            return failure(500, "the engine failed", str(error))
        except web.HTTPException as error:
            headers = {name: error.headers[name] for name in _REFUSAL_HEADERS if name in error.headers}
            return failure(error.status, error.reason, error.text or "", headers)
        except ConnectionError:
            raise
        except Exception as error:
            log_failure(error)
            return failure(500, "internal error", f"the server failed with {type(error).__name__}; see its log")

    def _route(self, request: web.BaseRequest) -> _Handler:
        method, handler = self._routes.get(request.raw_path.partition("?")[0], ("", None))
        if handler is None:
            raise web.HTTPNotFound(text=f"there are only {', '.join(self._routes)}")
        allowed = ["GET", "HEAD"] if method == "GET" else [method]
        if request.method not in allowed:
            raise web.HTTPMethodNotAllowed(request.method, allowed, text=f"use {' or '.join(allowed)}")
        if method == "POST" and request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="the Content-Type must be application/json")
        return handler

    async def _run_code(self, request: web.BaseRequest, share: Share) -> web.Response:
        fields = decode_body(await read_body(request, share))
        language = read_language(fields, tuple(self._pools))
        pool = self._pools[language]
        job = read_job(fields, language, pool.engine, self._sandbox)
        if not job.code.strip():
            raise BadRequestError("'code' must not be empty")
        task_id, verdict = await execute(pool, job, request=request, emit=self._emit)
        return _within(_run_fields(job, task_id, verdict, pool), job)

    async def _validate_code(self, request: web.BaseRequest, share: Share) -> web.Response:
        fields = decode_body(await read_body(request, share))
        language = read_language(fields, tuple(self._pools))
        pool = self._pools[language]
        job = attrs.evolve(read_job(fields, language, pool.engine, self._sandbox), check=True)
        if not job.code.strip():
            return answer(200, attrs.asdict(ValidationResult.empty_code()))
        _, verdict = await execute(pool, job, request=request, emit=self._emit)
        if verdict.outcome is Outcome.OK:
            result = ValidationResult(True, (), pool.engine.runtime)
        elif verdict.outcome is Outcome.SYNTAX_ERROR:
            message = verdict.error.message if verdict.error else "invalid syntax"
            result = ValidationResult(False, (Diagnostic(message, verdict.line, verdict.column),), pool.engine.runtime)
        else:
            # The parser ran out of time, memory or stack, as the program's own run would.
            message = f"too complex for the parser ({verdict.outcome})"
            result = ValidationResult(False, (Diagnostic(message),), pool.engine.runtime)
        return answer(200, attrs.asdict(result))

    async def _health(self, request: web.BaseRequest, share: Share) -> web.Response:
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
            "capabilities": dict.fromkeys(_CAPABILITIES, True),
            "limits": attrs.asdict(self._sandbox),
            "languages": languages,
        }
        return answer(200 if ready else 503, body)

    async def _metrics(self, request: web.BaseRequest, share: Share) -> web.Response:
        pools = list(dict.fromkeys(self._pools.values()))
        accepted = request.headers.get("Accept", "")
        # A scraper never asks for JSON; programs that do may name text as their second choice.
        if "application/json" not in accepted and ("text/plain" in accepted or "openmetrics" in accepted):
            headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            return web.Response(body=metrics.as_prometheus(pools).encode(), headers=headers)
        return answer(200, metrics.as_json(pools))

    async def _openapi(self, request: web.BaseRequest, share: Share) -> web.Response:
        return answer(200, self._document)


def _run_fields(job: Job, task_id: str, verdict: Verdict, pool: Pool) -> dict[str, Any]:
    engine = pool.engine
    notice = "" if verdict.stderr else notice_of(job, verdict)
    return {
        "output": {"stdout": verdict.stdout, "stderr": verdict.stderr or notice, "ret_val": verdict.ret_val},
        "metadata": {
            "language": job.language,
            "runtime": engine.runtime,
            "duration": round(verdict.duration_ms),
            "status": "success" if verdict.outcome is Outcome.OK else "error",
            "exit_code": verdict.exit_code,
            "timed_out": verdict.outcome is Outcome.TIMEOUT,
            "task_id": task_id,
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
        **({"notice": notice} if notice else {}),
    }


def _within(fields: dict[str, Any], job: Job) -> web.Response:
    """Return the response to a run, with a body that clients read to its end.

    JSON escapes can make a stream six times as long, and clients stop reading at four times the output limit. Streams
    that do not fit are cut further, and named in `truncated`, rather than lost as a whole.
    """
    response = answer(200, fields)
    most = 4 * job.max_output_bytes + _ENVELOPE_BYTES
    if response.content_length is None or response.content_length <= most:
        return response
    output, error = fields["output"], fields["error_info"]
    # A frame is no larger than it may be, and useless when cut; and `notice` repeats the server's own line.
    whole = {name for name, text in output.items() if is_frame(text, job.max_output_bytes)}
    whole |= {"stderr"} if "notice" in fields else set()
    texts = {name: text for name, text in output.items() if name not in whole}
    if error:
        texts["message"] = error["message"]
    body = response.body
    escaped = isinstance(body, bytes) and body.isascii()  # as all of it is where one text holds a lone surrogate
    sizes = {name: _json_size(text, escaped=escaped) for name, text in texts.items()}
    room = most - (response.content_length - sum(sizes.values()))
    truncated = set(fields["truncated"])
    for index, name in enumerate(sorted(sizes, key=sizes.__getitem__)):
        share = max(0, room // (len(sizes) - index))
        if sizes[name] > share:
            text, sizes[name] = _fit(texts[name], sizes[name], share, escaped=escaped)
            if name == "message":
                error["message"] = text
            else:
                output[name] = text
                truncated.add(name)
        room -= sizes[name]
    return answer(200, {**fields, "truncated": sorted(truncated)})


def _fit(text: str, size: int, share: int, *, escaped: bool) -> tuple[str, int]:
    """Cut a text whose JSON has a size so that its JSON has at most a share of it; return both."""
    length = len(text.encode("utf-8", "surrogatepass"))
    # As its average byte grows; then as a byte grows at most, where head and tail grow more than the rest.
    for limit in (share * length // size, share // 6):
        kept = cut_text(text, max(1, limit))[0]
        size = _json_size(kept, escaped=escaped)
        if size <= share:
            break
    return kept, size


def _json_size(text: str, *, escaped: bool) -> int:
    """Return the bytes of a text as JSON in UTF-8."""
    return len(json.dumps(text)) if escaped else len(json.dumps(text, ensure_ascii=False).encode())
