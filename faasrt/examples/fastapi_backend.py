r"""A web backend with FastAPI: one manager for all requests, typed answers, health and metrics.

    pip install 'faasrt[local,prometheus]' fastapi uvicorn
    python -m faasrt.examples.fastapi_backend
    curl http://127.0.0.1:8080/grade -H 'Content-Type: application/json' -d '{"answer": "42", "expected": "42",
        "grader": "def grade(answer, expected): return {\"score\": float(answer == expected)}"}'

`POST /grade` runs an untrusted grader; `faasrt.examples.grader` has its models and the status of each error. When the
client disconnects, the grader is stopped.

Endpoints come from the environment (COZE_LOOP_FAAS_URL and the like). If there are none, the embedded FaaS is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable

from faasrt import FaasrtError, RuntimeManager
from faasrt.web import run_until_disconnect

try:
    import uvicorn
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess

    from faasrt.examples import grader
    from faasrt.telemetry.prometheus import PrometheusSink
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this example needs {error.name}: pip install 'faasrt[local,prometheus]' fastapi uvicorn", name=error.name
    ) from None


def create_app(make_manager: Callable[..., RuntimeManager] = grader.make_manager) -> FastAPI:
    """Create the application. `uvicorn --factory` accepts this function.

    Args:
        make_manager: Creates the manager from the argument `telemetry`. The application opens and closes the manager.
    """
    registry = shown = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # the sums over all workers
        shown = CollectorRegistry()
        multiprocess.MultiProcessCollector(shown)  # type: ignore[no-untyped-call]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, RuntimeManager]]:
        async with make_manager(telemetry=[PrometheusSink(registry)]) as manager:
            yield {"manager": manager}

    app = FastAPI(title="graders", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(FaasrtError)
    async def refuse(request: Request, error: RequestValidationError | FaasrtError) -> Response:
        return JSONResponse(*grader.describe_error(error))

    @app.post("/grade")
    async def grade(body: grader.GradeRequest, request: Request) -> grader.GradeResponse:
        return await run_until_disconnect(request, grader.grade(request.state.manager, body))

    @app.get("/health")
    async def health(request: Request) -> JSONResponse:
        return JSONResponse(*await grader.health(request.state.manager))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(shown), media_type=CONTENT_TYPE_LATEST)

    return app


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    uvicorn.run(create_app(), **vars(grader.parse_address()), timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
