"""The routes for the clients of SandboxFusion and Piston. Their protocols are in `faasrt.protocol`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import attrs
from aiohttp import web

from faasrt.errors import InvalidRequestError
from faasrt.languages import Language
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.deno.node_program import as_node_program
from faasrt.local.engines.engine import Engine, EngineJob, EngineResult
from faasrt.local.errors import EngineError, NotStartedError, SuspectError
from faasrt.local.http.admission import AdmissionQueue, execute_with_events
from faasrt.local.http.body_memory import Share
from faasrt.local.http.notebooks import NotebookRun
from faasrt.local.http.patience import is_coze_loop
from faasrt.local.http.request_body import BadRequestError, check_job, read_fields
from faasrt.local.http.responses import OVERLOADED_HEADERS, Handler, copied_headers, json_response
from faasrt.local.http.sessions import Sessions
from faasrt.local.sandbox_limits import SandboxLimits
from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.processes import ProcessEnd
from faasrt.protocol.program import COUNTS_RUNNING_TIME_HEADER
from faasrt.protocol.served import RefusedError, ServedLanguage, ServedProtocol, ServedResult, ServedRun, ServerProfile
from faasrt.results import Outcome
from faasrt.telemetry.dispatch import EventDispatcher

# The services queue programs without a limit, and many of their clients count a refusal as a failure of the program. So
# a program waits at least this long, although its client may then leave before a program that takes all of its time.
MIN_QUEUE_TIMEOUT_S = 8.0
_PROTOCOLS: tuple[ServedProtocol, ...] = (sandboxfusion.SERVER, piston.SERVER)
_DOMAIN, _PORT = "COZE_LOOP_{}_FAAS_DOMAIN={{domain}}", "COZE_LOOP_{}_FAAS_PORT={{port}}"
# By client: the lines that configure it for this server, whose address is `{url}`, with `{domain}` and `{port}`.
CLIENT_SETTINGS = {
    "faasrt": "COZE_LOOP_FAAS_URL={url}",
    **{client: line for protocol in _PROTOCOLS for client, line in protocol.settings.items()},
    "coze-loop": "\n".join(line.format(name) for name in ("PYTHON", "JS") for line in (_DOMAIN, _PORT)),
}
_VERSION = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?(?:\.([0-9]{1,9}))?")
_CHECKED_ONLY = frozenset({Language.BASH})  # its "compiler" only checks the syntax
_NODE_INPUT = ("stdin", "argv", "files")


class ForeignProtocols:
    def __init__(
        self,
        queues: Mapping[Language, AdmissionQueue],
        missing: Mapping[Language, str],
        limits: SandboxLimits,
        emit: EventDispatcher,
        sessions: Sessions,
    ) -> None:
        self._queues, self._missing, self._limits, self._emit = queues, missing, limits, emit
        self._sessions = sessions
        self.routes: dict[str, dict[str, Handler]] = {
            f"{protocol.prefix}{protocol.run_path}": {"POST": partial(self._run, protocol)} for protocol in _PROTOCOLS
        }
        self.routes |= {
            f"{sandboxfusion.SERVER.prefix}/run_jupyter": {"POST": self._run_jupyter},
            f"{sandboxfusion.SERVER.prefix}/v1/ping": {"GET": self._ping},
            f"{piston.SERVER.prefix}/runtimes": {"GET": self._runtimes},
            f"{piston.SERVER.prefix}/packages": {"GET": self._packages},
        }
        # Where clients look whose URL lacks the prefix. /run_code is a path of this server.
        bare_paths = {f"/{path.split('/', 2)[2]}": _protocol_at(path) for path in self.routes}
        self._without_prefix = {path: protocol for path, protocol in bare_paths.items() if path != "/run_code"}

    def service_of(self, request: web.BaseRequest, path: str) -> str:
        """Return the name of the service whose client has sent a request, or ""."""
        protocol = _protocol_at(path) or self._without_prefix.get(path)
        if protocol is not None:
            return protocol.service
        return "coze-loop" if is_coze_loop(request) else ""

    def failure(self, path: str, error: Exception) -> web.Response | None:
        """Return the answer of a service to a failed request; None for other paths and unexpected errors."""
        protocol = _protocol_at(path)
        if protocol is None:
            return None
        not_started = isinstance(error, NotStartedError)
        match error:
            case RefusedError():
                response = json_response(error.status, error.body)
                response.set_status(error.status, error.reason)
                return response
            case BadRequestError():
                status, body = protocol.encode_failure(400, str(error), not_started=False)
            case EngineError():
                status, body = protocol.encode_failure(error.status, str(error), not_started=not_started)
            case web.HTTPNotFound():
                status, body = protocol.encode_failure(404, "Not Found", not_started=False)
            case web.HTTPException():
                status, body = protocol.encode_failure(error.status, error.text or error.reason, not_started=False)
                return json_response(status, body, copied_headers(error))
            case _:
                return None
        return json_response(status, body, OVERLOADED_HEADERS if not_started else None)

    async def _run(self, protocol: ServedProtocol, request: web.BaseRequest, share: Share) -> web.Response:
        fields, server = await read_fields(request, share), self._profile()
        run = protocol.read_run(fields, server)
        queue, waited_s = self._queues[run.language], 0.0
        if not queue.engine.ready:
            waited_s = await queue.wait_ready(max(MIN_QUEUE_TIMEOUT_S, run.patience_s - run.timeout_ms / 1000))
            server = self._profile()  # with the version of the language, which the request may restrict
            run = protocol.read_run(fields, server)
        try:
            job = await self._job(run, queue.engine)
        except InvalidRequestError as error:
            raise BadRequestError(str(error)) from None
        check_job(job, queue.engine)
        result = _without_time(run)
        if result is None:
            try:
                _, executed = await execute_with_events(
                    queue.execute,
                    job,
                    request=request,
                    emit=self._emit,
                    min_timeout_s=MIN_QUEUE_TIMEOUT_S,
                    waited_s=waited_s,
                    patience_s=run.patience_s,
                )
            except SuspectError:  # as if the service had seen that the program was killed
                executed = EngineResult(outcome=Outcome.CRASHED)
            result = _served_result(executed, run)
        return json_response(200, protocol.encode_result(result, run, server))

    async def _run_jupyter(self, request: web.BaseRequest, share: Share) -> web.Response:
        fields = await read_fields(request, share)
        queue = self._queues.get(Language.PYTHON)
        if queue is None or not self._sessions.features(queue.engine):
            message = "this server has no sessions of Python, which /run_jupyter needs"
            raise RefusedError(
                200,
                sandboxfusion.SERVER.notebook_failure(message),
                logged="had notebooks, which need Python and sessions: --language python, --max-sessions above 0",
            )
        notebook = sandboxfusion.SERVER.read_notebook(fields, self._profile())
        run = NotebookRun(notebook, self._sessions, queue, self._limits.default)
        check_job(run.job, queue.engine)
        await execute_with_events(
            run.execute, run.job, request=request, emit=self._emit, min_timeout_s=MIN_QUEUE_TIMEOUT_S
        )
        return json_response(200, sandboxfusion.SERVER.encode_notebook(run.result, notebook))

    async def _ping(self, request: web.BaseRequest, share: Share) -> web.Response:
        if not any(queue.engine.ready for queue in self._queues.values()):
            raise NotStartedError("no language can run now")
        return json_response(200, "pong", self._time_headers())

    async def _runtimes(self, request: web.BaseRequest, share: Share) -> web.Response:
        return json_response(200, piston.SERVER.runtimes(self._profile()), self._time_headers())

    async def _packages(self, request: web.BaseRequest, share: Share) -> web.Response:
        return json_response(200, piston.SERVER.packages(self._profile()))

    def _time_headers(self) -> dict[str, str] | None:
        counts = any(queue.engine.max_wall_factor is not None for queue in self._queues.values())
        return {COUNTS_RUNNING_TIME_HEADER: "1"} if counts else None

    def _profile(self) -> ServerProfile:
        languages, missing = {}, dict(self._missing)
        for language, queue in self._queues.items():
            engine = queue.engine
            if language is Language.JAVASCRIPT and not all(name in engine.input_fields for name in _NODE_INPUT):
                missing[language] = f"it needs the level namespaces: {engine.level_reason or 'another was chosen'}"
                continue
            version = _VERSION.search(engine.runtime) if engine.ready else None
            limits = None if language in _CHECKED_ONLY else engine.compile_limits
            languages[language] = ServedLanguage(
                version=".".join(part or "0" for part in version.groups()) if version else "",
                compile_timeout_ms=limits.timeout_ms if limits else 0,
                compile_memory_mb=limits.memory_limit_mb if limits else 0,
            )
        default, largest = self._limits.default, self._limits.largest
        return ServerProfile(
            languages=languages,
            missing=missing,
            timeout_ms=default.timeout_limit_s * 1000,
            memory_limit_mb=default.memory_limit_mb,
            max_timeout_ms=largest.timeout_limit_s * 1000,
            max_memory_limit_mb=largest.memory_limit_mb,
        )

    async def _job(self, run: ServedRun, engine: Engine) -> EngineJob:
        limits = ExecutionLimits(
            timeout_ms=max(1.0, run.timeout_ms),
            memory_limit_mb=run.memory_limit_mb,
            max_output_bytes=self._limits.default.max_output_bytes,
        )
        compile_limits = engine.compile_limits
        if compile_limits is not None:
            compile_limits = attrs.evolve(
                compile_limits,
                timeout_ms=run.compile_timeout_ms or compile_limits.timeout_ms,
                memory_limit_mb=run.compile_memory_mb or compile_limits.memory_limit_mb,
            )
            if compile_limits == engine.compile_limits:
                compile_limits = None
        job = EngineJob(
            language=run.language, code=run.code, limits=limits, input=run.input, compile_limits=compile_limits
        )
        return await as_node_program(job) if isinstance(engine, DenoEngine) else job


def _protocol_at(path: str) -> ServedProtocol | None:
    return next((each for each in _PROTOCOLS if path.startswith(f"{each.prefix}/")), None)


def _without_time(run: ServedRun) -> ServedResult | None:
    if run.compile_timeout_ms == 0:
        end = ProcessEnd(stdout="", stderr="", outcome=Outcome.TIMEOUT, compiling=True)
        return ServedResult(end=end, compile_ms=0.0)
    if run.timeout_ms == 0:
        return ServedResult(end=ProcessEnd(stdout="", stderr="", outcome=Outcome.TIMEOUT))
    return None


def _served_result(result: EngineResult, run: ServedRun) -> ServedResult:
    compiling = result.compile_outcome is not None and run.language not in _CHECKED_ONLY
    outcome, code, killed_by, memory_bytes = result.outcome, result.exit_code, "", None
    if result.compile_outcome is not None:
        outcome = result.compile_outcome
    elif outcome is Outcome.MEMORY_LIMIT and _printed_memory_error(result.stderr):
        code = 1
    elif outcome is Outcome.MEMORY_LIMIT:
        killed_by, memory_bytes = "SIGKILL", run.memory_limit_mb * 2**20
    elif outcome is Outcome.CRASHED and code is None:
        killed_by = result.signal or "SIGKILL"
    if killed_by:
        code = None
    is_limit = outcome in (Outcome.TIMEOUT, Outcome.OUTPUT_LIMIT)
    end = ProcessEnd(
        stdout=result.stdout,
        stderr=result.stderr,
        exit_code=None if is_limit else code,
        signal=killed_by,
        outcome=outcome if is_limit else None,
        compiling=compiling,
        truncated=result.truncated,
        duration_ms=result.duration_ms,
    )
    compile_ms = None if run.language in _CHECKED_ONLY else result.compile_ms
    return ServedResult(end=end, compile_ms=compile_ms, files=result.files, memory_bytes=memory_bytes)


def _printed_memory_error(stderr: str) -> bool:
    """Return whether an uncaught MemoryError of Python, and not the kernel, has ended the program."""
    return stderr.rstrip("\n").rpartition("\n")[2].startswith("MemoryError")
