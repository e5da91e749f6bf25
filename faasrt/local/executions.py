"""One execution of the embedded FaaS, with the events that tell of it, and of the trace that it belongs to."""

from __future__ import annotations

import itertools
import re
import time

from aiohttp import web

from faasrt.emitter import Emitter
from faasrt.events import ExecutionFinished, ExecutionStarted, hash_code
from faasrt.local.engines.base import Job, NotStartedError, Verdict
from faasrt.local.pool import BusyError, Pool

_task_numbers = itertools.count(1)
_TRACESTATE = re.compile(r"[ -~\t]{1,512}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


async def execute(pool: Pool, job: Job, *, request: web.BaseRequest, emit: Emitter) -> tuple[str, Verdict]:
    """Run one program, tell of it, and give its task id and the verdict.

    Args:
        pool: Where it runs.
        job: The program.
        request: What it came with.
        emit: Takes the events.

    Raises:
        BusyError: It was not started.
        NotStartedError: The engine failed before it began.
        EngineError: The engine failed.

    Cancellation: ends the program.
    """
    started, task_id = time.monotonic(), f"task-{next(_task_numbers)}"
    if emit.hears(ExecutionStarted):
        code = job.code.encode("utf-8", "surrogatepass")
        traceparent = _read_traceparent(request)
        emit(
            ExecutionStarted(
                execution_id=task_id,
                language=job.language.value,
                path=request.path,
                code_bytes=len(code),
                code_hash=hash_code(code),
                timeout_ms=job.timeout_ms,
                traceparent=traceparent,
                tracestate=None if traceparent is None else _read_tracestate(request),
            )
        )
    outcome = failure = status = None
    try:
        verdict = await pool.execute(job)
        outcome, status = verdict.outcome.value, 200
        return task_id, verdict
    except BaseException as error:
        failure = type(error).__name__
        if isinstance(error, Exception):
            not_started = isinstance(error, NotStartedError)
            status = error.status if isinstance(error, BusyError) else 503 if not_started else 500
        raise
    finally:
        if failure is not None or emit.hears(ExecutionFinished):
            emit(
                ExecutionFinished(
                    execution_id=task_id,
                    language=job.language.value,
                    outcome=outcome,
                    error=failure,
                    status=status,
                    total_s=time.monotonic() - started,
                )
            )


def _read_traceparent(request: web.BaseRequest) -> str | None:
    """Read the trace that the caller wants to be continued; what W3C does not allow is as good as nothing."""
    given = request.headers.getall("traceparent", ())
    return given[0] if len(given) == 1 and _TRACEPARENT.fullmatch(given[0]) else None


def _read_tracestate(request: web.BaseRequest) -> str | None:
    """Read what vendors have added to it, which may be spread over several headers; see what W3C asks to be kept."""
    given = ",".join(request.headers.getall("tracestate", ()))
    return given if _TRACESTATE.fullmatch(given) else None
