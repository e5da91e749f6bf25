r"""A web backend with aiohttp: one manager for all requests, typed requests, health and metrics.

    pip install 'faasrt[local,prometheus]' pydantic
    python -m faasrt.examples.aiohttp_backend
    curl http://127.0.0.1:8080/grade -H 'Content-Type: application/json' -d '{"answer": "42", "expected": "42",
        "grader": "def grade(answer, expected): return {\"score\": float(answer == expected)}"}'

`POST /grade` runs an untrusted grader; `faasrt.examples.grader` has its models and the status of each error. When the
client disconnects, `handler_cancellation` cancels the handler, which stops the grader.

Endpoints come from the environment (COZE_LOOP_FAAS_URL and the like). If there are none, the embedded FaaS is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from faasrt import FaasrtError, RuntimeManager

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from pydantic import ValidationError

    from faasrt.examples import grader
    from faasrt.telemetry.prometheus import PrometheusSink
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this example needs {error.name}: pip install 'faasrt[local,prometheus]' pydantic", name=error.name
    ) from None

MANAGER = web.AppKey("manager", RuntimeManager)


def create_app(make_manager: Callable[..., RuntimeManager] = grader.make_manager) -> web.Application:
    """Create the application. Run it with `handler_cancellation=True`.

    Args:
        make_manager: Creates the manager from the argument `telemetry`. The application opens and closes the manager.
    """
    registry = CollectorRegistry()

    async def manager_of_app(app: web.Application) -> AsyncIterator[None]:
        async with make_manager(telemetry=[PrometheusSink(registry)]) as manager:
            app[MANAGER] = manager
            yield

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(middlewares=[handle_errors])
    app.cleanup_ctx.append(manager_of_app)
    app.add_routes([web.post("/grade", grade), web.get("/health", health), web.get("/metrics", metrics)])
    return app


async def grade(request: web.Request) -> web.Response:
    """Run a grader."""
    body = grader.GradeRequest.model_validate_json(await request.read())
    response = await grader.grade(request.app[MANAGER], body)
    return web.json_response(text=response.model_dump_json())


async def health(request: web.Request) -> web.Response:
    """Return the health of every endpoint."""
    body, status = await grader.health(request.app[MANAGER])
    return web.json_response(body, status=status)


@web.middleware
async def handle_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the status of an error."""
    try:
        return await handler(request)
    except (ValidationError, FaasrtError) as error:
        body, status, headers = grader.describe_error(error)
        return web.json_response(body, status=status, headers=headers)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    web.run_app(create_app(), **vars(grader.parse_address()), handler_cancellation=True, shutdown_timeout=10)


if __name__ == "__main__":
    main()
