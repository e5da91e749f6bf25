r"""A web page that runs programs and shows their output while they run: FastAPI, uvicorn and server-sent events.

    pip install 'faasrt[local,prometheus]' 'fastapi>=0.118' uvicorn
    python -m faasrt.examples.fastapi_streaming
    curl -N http://127.0.0.1:8080/run -H 'Content-Type: application/json' -d '{"code": "print(6 * 7)"}'

`GET /` is the page. `POST /run` answers with the events `output`, `result` and `failed`. A program ends when its client
disconnects. Each user can run two programs at once. `GET /live`, `/health` and `/metrics` are for the operator.
`faasrt/docs/web-applications.md` explains the parts.

Endpoints come from the environment (COZE_LOOP_FAAS_URL and the like). If there are none, the embedded FaaS is used.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from pydantic import BaseModel, Field

from faasrt import FaasrtError, LimiterSettings, RetrySettings, RuntimeManager, StreamedRun

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter as Metric, generate_latest

    from faasrt.examples import grader
    from faasrt.telemetry.prometheus import PrometheusSink
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"this example needs {error.name}: pip install 'faasrt[local,prometheus]' 'fastapi>=0.118' uvicorn",
        name=error.name,
    ) from None

PROGRAMS_PER_USER = 2
TIME_LIMIT_MS = 10_000
KEEP_ALIVE_S = 15  # proxies close connections that are silent for a minute


def limiter(at_once: int = 16, mean_s: float = 0.5, patience_s: float = 2) -> LimiterSettings:
    """Return a queue that is as long as the programs that can start while a user waits.

    Args:
        at_once: The programs that this process may run at the same time.
        mean_s: How long a program takes in the mean: `faasrt_call_duration_seconds` in `/metrics`.
        patience_s: How long a user waits for the start of a program.
    """
    max_queue = math.ceil(at_once / mean_s * patience_s)
    return LimiterSettings(max_concurrency=at_once, max_queue=max_queue, queue_timeout_s=patience_s)


def make_manager(**options: Any) -> RuntimeManager:
    """Create the manager, with a bounded queue. Calls fail at once while the servers are down."""
    return grader.make_manager(limiter=limiter(), retry=RetrySettings(connect_retry_s=0), **options)


class RunRequest(BaseModel, extra="forbid"):
    """A program to run."""

    code: str = Field(min_length=1, max_length=100_000)


def user_of(request: Request) -> str:
    """Return who sends a request: the address. Return the account instead if your users log in."""
    return request.client.host if request.client else ""


async def take_place(request: Request) -> AsyncIterator[AsyncExitStack]:
    """Yield a stack for a program, and count it. FastAPI closes the stack when the response has ended, or its client
    has gone.
    """
    user, running = user_of(request), request.state.running
    if running[user] >= PROGRAMS_PER_USER:
        request.state.refused.inc()
        raise HTTPException(429, f"you already run {PROGRAMS_PER_USER} programs", {"Retry-After": "1"})
    running[user] += 1
    try:
        async with AsyncExitStack() as stack:
            yield stack
    finally:
        running[user] -= 1
        if not running[user]:
            del running[user]


async def events(run: StreamedRun) -> AsyncIterator[str]:
    """Yield the output of a program and how it ended. The status 200 is already sent, so failures are events too."""
    try:
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    chunk = await anext(run)
            except TimeoutError:
                yield ": the program runs\n\n"
            else:
                yield event("output", stream=chunk.stream, text=chunk.text)
    except StopAsyncIteration:
        result = run.result
        message = f"{result.error.name}: {result.error.message}" if result.error else ""
        yield event("result", outcome=result.outcome, message=message)
    except FaasrtError as error:
        body, status, _ = grader.describe_error(error)
        yield event("failed", status=status, **body)


def event(name: str, **data: Any) -> str:
    """Return a server-sent event. JSON escapes line ends, and surrogates, which UTF-8 cannot encode."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def create_app(make_manager: Callable[..., RuntimeManager] = make_manager) -> FastAPI:
    """Create the application. `uvicorn --factory` accepts this function.

    Args:
        make_manager: Creates the manager from the argument `telemetry`. The application opens and closes the manager.
    """
    registry = CollectorRegistry()
    refused = Metric("app_refused_users_total", "Programs beyond the limit of a user", registry=registry)
    running: Counter[str] = Counter()  # the programs of each user in this process

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with make_manager(telemetry=[PrometheusSink(registry)]) as manager:
            yield {"manager": manager, "running": running, "refused": refused}

    app = FastAPI(title="programs", lifespan=lifespan)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(FaasrtError)
    async def refuse(request: Request, error: RequestValidationError | FaasrtError) -> Response:
        return JSONResponse(*grader.describe_error(error))

    @app.post("/run")
    async def run(
        body: RunRequest, request: Request, stack: Annotated[AsyncExitStack, Depends(take_place)]
    ) -> StreamingResponse:
        manager: RuntimeManager = request.state.manager
        program = await stack.enter_async_context(manager.stream_code(body.code, "python", timeout_ms=TIME_LIMIT_MS))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx passes each event on at once
        return StreamingResponse(events(program), media_type="text/event-stream", headers=headers)

    @app.get("/live")
    async def live() -> str:
        return "ok"

    @app.get("/health")
    async def health(request: Request) -> JSONResponse:
        return JSONResponse(*await grader.health(request.state.manager))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    return app


# The page reads the events with `fetch`. An EventSource would connect again after a failure, and run the program twice.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Run a program</title>
<link rel="icon" href="data:,">
<style>
  body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem system-ui; color-scheme: light dark }
  textarea { box-sizing: border-box; width: 100%; height: 12rem; font: 0.9rem monospace }
  pre { min-height: 6rem; white-space: pre-wrap; overflow-wrap: anywhere; font: 0.9rem monospace }
</style>
<h1>Run a program</h1>
<label for="code">Python</label>
<textarea id="code" spellcheck="false">import time
for number in range(5):
    print(number)
    time.sleep(0.5)</textarea>
<button id="run">Run</button> <button id="stop" disabled>Stop</button> <output id="state"></output>
<pre id="output" aria-label="Output"></pre>
<script type="module">
const [code, run, stop, state, output] =
    ["code", "run", "stop", "state", "output"].map((id) => document.getElementById(id));
let aborter;

const show = {
    output: ({text}) => output.append(text),  // as text, never as HTML: it is the output of a stranger's program
    result: ({outcome, message}) => { state.value = message ? `${outcome}: ${message}` : outcome; },
    failed: ({detail}) => { state.value = `failed: ${detail}`; },
};

async function receive(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const events = (text + part.value).split("\\n\\n");
        text = events.pop();  // the beginning of the next event
        for (const [, name, data] of events.map((event) => event.match(/^event: (.*)\\ndata: (.*)$/) ?? [])) {
            show[name]?.(JSON.parse(data));
        }
    }
}

run.onclick = async () => {
    aborter = new AbortController();
    [run.disabled, stop.disabled, state.value] = [true, false, "running"];
    output.replaceChildren();
    try {
        const headers = {"Content-Type": "application/json"};
        const body = JSON.stringify({code: code.value});
        const response = await fetch("run", {method: "POST", headers, body, signal: aborter.signal});
        await (response.ok ? receive(response) : response.json().then(show.failed));
        if (state.value === "running") state.value = "failed: the connection was lost";
    } catch (error) {
        state.value = aborter.signal.aborted ? "stopped" : `failed: ${error.message}`;
    }
    [run.disabled, stop.disabled] = [false, true];
};
stop.onclick = () => aborter.abort();
window.onpagehide = () => aborter?.abort();  // browsers keep a page that was left, and its connection, for a while
</script>
"""


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    uvicorn.run(create_app(), **vars(grader.parse_address()), timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
