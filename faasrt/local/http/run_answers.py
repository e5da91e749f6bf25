"""Turns the result or the failure of a run into an answer, for programs and sessions alike."""

from __future__ import annotations

from typing import Any

import attrs
from aiohttp import web

from faasrt.config import SandboxConfig
from faasrt.inputs import files_to_wire
from faasrt.local.engines.engine import Engine, EngineJob, EngineResult
from faasrt.local.engines.session import SessionError
from faasrt.local.errors import EngineError, NotStartedError, SuspectError
from faasrt.local.http.admission import AdmissionQueue, execute_with_events
from faasrt.local.http.body_memory import Share
from faasrt.local.http.connections import log_failure
from faasrt.local.http.live_answer import answer_live
from faasrt.local.http.notices import notice_of
from faasrt.local.http.patience import read_patience
from faasrt.local.http.request_body import BadRequestError
from faasrt.local.http.responses import (
    OVERLOADED_HEADERS,
    copied_headers,
    error_response,
    fit_displays,
    fit_response,
)
from faasrt.local.http.sessions import OpenSession
from faasrt.local.sandbox_limits import SandboxLimits
from faasrt.protocol.json_lines import accepts_lines
from faasrt.protocol.program import PROGRAM_SUSPECT_HEADER
from faasrt.results import Outcome
from faasrt.telemetry.dispatch import EventDispatcher

SESSION_RUN_PATH = "/sessions/{id}/run"


@attrs.frozen
class RunAnswers:
    """Runs programs, and answers with their results: JSON, or lines of JSON if the request accepts them."""

    limits: SandboxLimits
    emit: EventDispatcher

    async def answer(
        self,
        request: web.BaseRequest,
        share: Share,
        job: EngineJob,
        queue: AdmissionQueue,
        session: OpenSession | None = None,
    ) -> web.StreamResponse:
        patience_s = read_patience(request)

        async def execute(job: EngineJob) -> web.Response:
            if session is None:
                task_id, result = await execute_with_events(
                    queue.execute, job, request=request, emit=self.emit, patience_s=patience_s
                )
            else:
                # The path of the request has the id, and anyone with the id can use the session.
                path = SESSION_RUN_PATH
                async with session.turn() as waited_s:
                    task_id, result = await execute_with_events(
                        queue.execute,
                        job,
                        request=request,
                        emit=self.emit,
                        path=path,
                        run=session.run,
                        waited_s=waited_s,
                        patience_s=patience_s,
                    )
            if job.live is not None:
                job.live.release(result.stdout)
            if result.error is None:
                result.error = job.limits.error(result.outcome)
            fields = _run_fields(job, task_id, result, queue.engine, self.limits.largest)
            if session is not None:
                fields["session"] = {"ended": session.ending}
            response = fit_response(fields, job)
            response.headers["Server-Timing"] = server_timing(result)
            return response

        if accepts_lines(request.headers.get("Accept", "")):
            return await answer_live(request, job, execute, failure_response, share)
        return await execute(job)


def server_timing(result: EngineResult) -> str:
    compiled = "" if result.compile_ms is None else f"compile;dur={result.compile_ms:.3f}, "
    return f"queue;dur={result.queued_ms:.3f}, {compiled}run;dur={result.duration_ms:.3f}"


def failure_response(error: Exception) -> web.Response:
    match error:
        case BadRequestError():
            return error_response(400, "bad request", str(error))
        case SuspectError():
            return error_response(error.status, error.kind, str(error), {PROGRAM_SUSPECT_HEADER: "1"})
        case EngineError():
            headers = OVERLOADED_HEADERS if isinstance(error, NotStartedError) else {}
            return error_response(error.status, error.kind, str(error), headers)
        case SessionError():
            return error_response(error.status, error.kind, str(error))
        case web.HTTPException():
            return error_response(error.status, error.reason, error.text or "", copied_headers(error))
    log_failure(error)
    return error_response(500, "internal error", f"{type(error).__name__} in the server; see its log")


def _run_fields(
    job: EngineJob, task_id: str, result: EngineResult, engine: Engine, largest: SandboxConfig
) -> dict[str, Any]:
    notice = "" if result.stderr else notice_of(result)
    truncated = [*result.truncated]
    displays: list[dict[str, Any]] = []
    if job.displays:
        displays, complete = fit_displays(result.displays, job.limits.max_output_bytes)
        if not complete and "displays" not in truncated:
            truncated = sorted([*truncated, "displays"])
    return {
        "output": {"stdout": result.stdout, "stderr": result.stderr or notice, "ret_val": result.ret_val},
        "metadata": {
            "language": job.language,
            "runtime": engine.runtime,
            "engine": engine.name,
            "fingerprint": engine.fingerprint(largest),
            "level": engine.level,
            "platform": engine.platform,
            "duration": round(result.duration_ms),
            **({} if engine.max_wall_factor is None else {"waited_ms": result.waited_ms}),
            **({} if result.compile_ms is None else {"compile_ms": result.compile_ms}),
            # A compiler that was stopped at a limit may need less another time.
            **({} if result.compile_outcome in (None, Outcome.SYNTAX_ERROR) else {"may_vary": True}),
            "status": "success" if result.outcome is Outcome.OK else "error",
            "exit_code": result.exit_code,
            "timed_out": result.outcome is Outcome.TIMEOUT,
            "task_id": task_id,
            "instance_id": result.instance_id,
            "pool_stats": {
                "totalInstances": engine.active + engine.idle,
                "idleInstances": engine.idle,
                "activeInstances": engine.active,
            },
        },
        "outcome": result.outcome,
        "error_info": attrs.asdict(result.error) if result.error else None,
        "truncated": truncated,
        **({"files": files_to_wire(result.files)} if job.input.collect else {}),
        **({"displays": displays} if job.displays else {}),
        **({"notice": notice} if notice else {}),
    }
