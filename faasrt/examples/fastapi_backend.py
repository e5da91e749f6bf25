r"""A web backend with FastAPI: one manager for all requests, typed answers, health and metrics.

    pip install 'faasrt[local,prometheus]' fastapi uvicorn
    python -m faasrt.examples.fastapi_backend
    curl http://127.0.0.1:8080/grade -H 'Content-Type: application/json' -d '{"answer": "42", "expected": "42",
        "grader": "def grade(answer, expected): return {\"score\": float(answer == expected)}"}'

`POST /grade` runs a grader that nobody has vetted. What the grader does wrong is part of the answer, with status 200.
What goes wrong with the request or the infrastructure is another status: 422 for a wrong request, 503 with
`Retry-After` where there is no room, 502 for everything else. A client that goes away has its grader ended.

The servers are those of the environment (COZE_LOOP_FAAS_URL and the like), and the embedded FaaS where it names none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from faasrt import (
    ExecutionResult,
    FaasrtError,
    InvalidRequestError,
    Language,
    Outcome,
    OverloadedError,
    QueueFullError,
    ReturnValueError,
    RuntimeClosedError,
    RuntimeManager,
    UnsupportedLanguageError,
)

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from pydantic import BaseModel, Field, ValidationError

    from faasrt.telemetry.prometheus import PrometheusSink
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this example needs {error.name}: pip install 'faasrt[local,prometheus]' fastapi uvicorn", name=error.name
    ) from None

T = TypeVar("T")
log = logging.getLogger(__name__)


class GradeRequest(BaseModel, extra="forbid"):
    """A grader, and what it is to judge."""

    grader: str = Field(max_length=100_000, description="A program with a function grade(answer, expected).")
    language: Language = Language.PYTHON
    answer: str = Field(max_length=100_000)
    expected: str = Field(max_length=100_000)
    timeout_ms: int = Field(default=5_000, gt=0, le=30_000)


class Score(BaseModel, extra="forbid"):
    """What a grader has to return."""

    score: float = Field(ge=0, le=1, strict=True)
    reason: str = ""


class GradeResponse(BaseModel):
    """The grade, or what the grader did instead."""

    outcome: Outcome
    grade: Score | None = None
    problem: str = ""
    stdout: str = ""

    @classmethod
    def of(cls, result: ExecutionResult) -> GradeResponse:
        """Read a verdict. What the grader returned is the word of a stranger, and checked as a request is."""
        answer = cls(outcome=result.outcome, stdout=readable(result.stdout))
        if result.error is not None:
            answer.problem = readable(f"{result.error.name}: {result.error.message}")
        elif result.ok:
            try:
                answer.grade = Score.model_validate(result.value)
            except (ReturnValueError, ValidationError):
                answer.problem = "the grader returned no score from 0 to 1"
        return answer


def readable(text: str) -> str:
    """Replace lone surrogates: programs can print them, and UTF-8 cannot hold them."""
    return text.encode("utf-8", "replace").decode()


class Health(BaseModel):
    """Whether every server can run code, and what each one says."""

    healthy: bool
    endpoints: dict[str, str]


def create_app(make_manager: Callable[..., RuntimeManager] = RuntimeManager.from_env) -> FastAPI:
    """Make the application; `uvicorn --factory` takes it from here.

    Args:
        make_manager: Makes the manager, given `telemetry`. It is opened and closed with the application.
    """
    registry = CollectorRegistry()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, RuntimeManager]]:
        async with make_manager(telemetry=[PrometheusSink(registry)]) as manager:
            yield {"manager": manager}

    app = FastAPI(title="graders", lifespan=lifespan)
    app.add_exception_handler(FaasrtError, refuse)
    app.add_exception_handler(RequestValidationError, refuse)

    @app.post("/grade")
    async def grade(body: GradeRequest, request: Request, manager: Manager) -> GradeResponse:
        runtime = await manager.get_runtime(body.language)
        call = runtime.call_function(body.grader, "grade", body.answer, body.expected, timeout_ms=body.timeout_ms)
        return GradeResponse.of(await unless_gone(request, call))

    @app.get("/health")
    async def health(response: Response, manager: Manager) -> Health:
        status = await manager.get_health_status()
        response.status_code = 200 if status.healthy else 503
        return Health(
            healthy=status.healthy, endpoints={endpoint.endpoint: endpoint.status for endpoint in status.endpoints}
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def get_manager(request: Request) -> RuntimeManager:
    """Give a handler the manager that `lifespan` has opened."""
    manager: RuntimeManager = request.state.manager
    return manager


Manager = Annotated[RuntimeManager, Depends(get_manager)]


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error. Its words may name a server or quote a program: those stay out of answers and logs."""
    name, headers = type(error).__name__, {}
    if isinstance(error, RequestValidationError):
        words = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors())
        return JSONResponse({"error": name, "detail": readable(words)}, 422)
    if isinstance(error, (InvalidRequestError, UnsupportedLanguageError)):
        return JSONResponse({"error": name, "detail": str(error)}, 422)
    if isinstance(error, (QueueFullError, OverloadedError, RuntimeClosedError)):
        status, detail = 503, "no room at the moment; try again"
        headers["Retry-After"] = str(math.ceil(getattr(error, "retry_after_s", None) or 1))
    else:
        status, detail = 502, "the code could not be run"
    log.warning("%s: %s at %s", request.url.path, name, getattr(error, "endpoint", "") or "no server")
    return JSONResponse({"error": name, "detail": detail}, status, headers)


async def unless_gone(request: Request, call: Coroutine[Any, Any, T]) -> T:
    """Await a call, and cancel it when the client goes away: FastAPI itself would let it run to its end."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    running, watching = asyncio.create_task(call), asyncio.create_task(gone())
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise HTTPException(499, "the client is gone")  # which nobody hears
    finally:
        running.cancel()
        watching.cancel()
        await asyncio.gather(running, watching, return_exceptions=True)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Grade answers over HTTP, with FastAPI.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    configured = any(name.startswith("COZE_LOOP_") and "_FAAS_" in name for name in os.environ)
    app = create_app(RuntimeManager.from_env if configured else RuntimeManager.local)
    uvicorn.run(app, host=arguments.host, port=arguments.port, timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
