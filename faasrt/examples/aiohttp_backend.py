r"""A web backend with aiohttp: one manager for all requests, typed requests, health and metrics.

    pip install 'faasrt[local,prometheus]'
    python -m faasrt.examples.aiohttp_backend
    curl http://127.0.0.1:8080/grade -H 'Content-Type: application/json' -d '{"answer": "42", "expected": "42",
        "grader": "def grade(answer, expected): return {\"score\": float(answer == expected)}"}'

`POST /grade` runs a grader that nobody has vetted. What the grader does wrong is part of the answer, with status 200.
What goes wrong with the request or the infrastructure is another status: 422 for a wrong request, 503 with
`Retry-After` where there is no room, 502 for everything else. A client that goes away has its grader ended: that is
what `handler_cancellation` is for.

The servers are those of the environment (COZE_LOOP_FAAS_URL and the like), and the embedded FaaS where it names none.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
from aiohttp import web
from aiohttp.typedefs import Handler
from attrs.validators import and_, ge, instance_of, le, max_len

from faasrt import (
    ExecutionResult,
    FaasrtError,
    InvalidRequestError,
    OverloadedError,
    QueueFullError,
    ReturnValueError,
    RuntimeClosedError,
    RuntimeManager,
    UnsupportedLanguageError,
)

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

    from faasrt.telemetry.prometheus import PrometheusSink
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this example needs {error.name}: pip install 'faasrt[local,prometheus]'", name=error.name
    ) from None

MANAGER = web.AppKey("manager", RuntimeManager)
REGISTRY = web.AppKey("registry", CollectorRegistry)
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class GradeRequest:
    """A grader, which is a program with a function grade(answer, expected), and what it is to judge."""

    grader: str = attrs.field(validator=and_(instance_of(str), max_len(100_000)))
    language: str = "python"
    answer: str = attrs.field(validator=and_(instance_of(str), max_len(100_000)))
    expected: str = attrs.field(validator=and_(instance_of(str), max_len(100_000)))
    timeout_ms: int = attrs.field(default=5_000, validator=[instance_of(int), ge(1), le(30_000)])


@attrs.frozen(kw_only=True)
class Score:
    """What a grader has to return."""

    score: float = attrs.field()
    reason: str = attrs.field(default="", validator=instance_of(str))

    @score.validator
    def _check_score(self, attribute: object, score: object) -> None:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ValueError("no score from 0 to 1")


def create_app(make_manager: Callable[..., RuntimeManager] = RuntimeManager.from_env) -> web.Application:
    """Make the application; run it with `handler_cancellation=True`.

    Args:
        make_manager: Makes the manager, given `telemetry`. It is opened and closed with the application.
    """

    async def manager_of_app(app: web.Application) -> AsyncIterator[None]:
        async with make_manager(telemetry=[PrometheusSink(app[REGISTRY])]) as manager:
            app[MANAGER] = manager
            yield

    app = web.Application(middlewares=[refuse])
    app[REGISTRY] = CollectorRegistry()
    app.cleanup_ctx.append(manager_of_app)
    app.add_routes([web.post("/grade", grade), web.get("/health", health), web.get("/metrics", metrics)])
    return app


async def grade(request: web.Request) -> web.Response:
    """Run a grader, and answer with the grade, or with what the grader did instead."""
    try:
        body = GradeRequest(**await request.json())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(str(error)) from None
    runtime = await request.app[MANAGER].get_runtime(body.language)
    result = await runtime.call_function(body.grader, "grade", body.answer, body.expected, timeout_ms=body.timeout_ms)
    return web.json_response(describe(result))


def describe(result: ExecutionResult) -> dict[str, Any]:
    """Read a verdict. What the grader returned is the word of a stranger, and checked as a request is."""
    given, problem = None, ""
    if result.error is not None:
        problem = f"{result.error.name}: {result.error.message}"
    elif result.ok:
        try:
            given = attrs.asdict(Score(**result.value))
        except (ReturnValueError, TypeError, ValueError):
            problem = "the grader returned no score from 0 to 1"
    return {"outcome": result.outcome, "grade": given, "problem": problem, "stdout": result.stdout}


async def health(request: web.Request) -> web.Response:
    """Tell whether every server can run code, and what each one says."""
    status = await request.app[MANAGER].get_health_status()
    endpoints = {endpoint.endpoint: endpoint.status for endpoint in status.endpoints}
    return web.json_response({"healthy": status.healthy, "endpoints": endpoints}, status=200 if status.healthy else 503)


async def metrics(request: web.Request) -> web.Response:
    """Answer a scraper."""
    return web.Response(body=generate_latest(request.app[REGISTRY]), headers={"Content-Type": CONTENT_TYPE_LATEST})


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with an error. Its words may name a server or quote a program: those stay out of answers and logs."""
    try:
        return await handler(request)
    except (InvalidRequestError, UnsupportedLanguageError) as error:
        return web.json_response({"error": type(error).__name__, "detail": str(error)}, status=422)
    except FaasrtError as error:
        name, headers = type(error).__name__, {}
        if isinstance(error, (QueueFullError, OverloadedError, RuntimeClosedError)):
            status, detail = 503, "no room at the moment; try again"
            headers["Retry-After"] = str(math.ceil(getattr(error, "retry_after_s", None) or 1))
        else:
            status, detail = 502, "the code could not be run"
        log.warning("%s: %s at %s", request.path, name, getattr(error, "endpoint", "") or "no server")
        return web.json_response({"error": name, "detail": detail}, status=status, headers=headers)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Grade answers over HTTP, with aiohttp.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    configured = any(name.startswith("COZE_LOOP_") and "_FAAS_" in name for name in os.environ)
    app = create_app(RuntimeManager.from_env if configured else RuntimeManager.local)
    web.run_app(app, host=arguments.host, port=arguments.port, handler_cancellation=True, shutdown_timeout=10)


if __name__ == "__main__":
    main()
