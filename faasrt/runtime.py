"""Runtime: run programs of one family of languages on the endpoints that serve it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from faasrt.config import SandboxConfig, Settings
from faasrt.errors import InvalidRequestError, UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.metrics import Metrics
from faasrt.protocol.messages import (
    RunRequest,
    check_code,
    check_ext,
    check_priority,
    check_timeout_ms,
    encode_json,
)
from faasrt.protocol.return_val import return_val_function
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.telemetry.counters import CountersSink
from faasrt.transport.calls import CallsInFlight
from faasrt.transport.dispatcher import Dispatcher
from faasrt.transport.trace import CallTrace, Emitter
from faasrt.validation import PythonChecker

Where = Literal["local", "remote", "auto"]


class Runtime:
    """Runs code in one language, and in those that the same FaaS serves. Made by `RuntimeFactory` or `RuntimeManager`.

    Safe to share between any number of tasks of one event loop.

    Attributes:
        language: The language that is meant when a call names none.

    Example:
        >>> async with RuntimeManager.from_env() as manager:
        ...     runtime = await manager.get_runtime("python")
        ...     result = await runtime.run_code("print(6 * 7)")
    """

    def __init__(
        self,
        language: Language,
        *,
        settings: Settings,
        dispatcher: Dispatcher,
        counters: CountersSink,
        emit: Emitter,
    ) -> None:
        self.language = language
        self._settings = settings
        self._dispatcher = dispatcher
        self._counters = counters
        self._emit = emit
        self._calls = CallsInFlight()
        self._checker = PythonChecker()
        self._closing = asyncio.Lock()
        self._released = False
        dispatcher.retain()

    async def run_code(
        self,
        code: str,
        language: str | Language | None = None,
        timeout_ms: float | None = None,
        ext: Mapping[str, str] | None = None,
        *,
        sandbox: SandboxConfig | None = None,
        priority: str = "normal",
        idempotent: bool | None = None,
    ) -> ExecutionResult:
        """Run a program, at most once, and give the verdict.

        Args:
            code: The program; not empty.
            language: A language of the same FaaS; this runtime's own when None.
            timeout_ms: Milliseconds that the program may run, above 0; clamped to the sandbox's limit, which is also
                the default.
            ext: Strings for the server's use; coze-loop sends trace ids there.
            sandbox: Limits for this call; those of the settings when None. A server only ever lowers its own.
            priority: A word for the server's scheduler; the known servers ignore it.
            idempotent: Whether the program may run more than once when its first answer is lost. Nothing is sent
                twice yet, whatever is said here.

        Returns:
            The verdict; a program that fails is a result, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong; nothing was sent.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            ConfigurationError: The runtime belongs to another event loop.
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed; its class says how.

        Cancellation: gives the permit and the connection back; the embedded FaaS ends the program, others may run it
            to its end.
        """
        self._calls.refuse_when_closing()
        spoken = self._language(language)
        limits = self._sandbox(sandbox)
        if idempotent is not None and not isinstance(idempotent, bool):
            raise InvalidRequestError(f"idempotent must be True, False or None, got {idempotent!r}")
        request = RunRequest(
            language=spoken,
            code=check_code(code),
            timeout_ms=check_timeout_ms(timeout_ms, limits),
            sandbox=limits,
            priority=check_priority(priority),
            ext=check_ext(ext),
        )
        body = request.encode()
        trace = CallTrace(self._emit, self._dispatcher.clock, spoken)
        trace.call_started(request.code, request.timeout_ms)
        try:
            with self._calls.one_call():
                result = await self._dispatcher.run(
                    self._settings.endpoints[spoken],
                    body,
                    timeout_ms=request.timeout_ms,
                    max_output_bytes=limits.max_output_bytes,
                    trace=trace,
                )
        except BaseException as error:
            trace.call_finished(None, error)
            raise
        trace.call_finished(result, None)
        return result

    async def validate_code(
        self, code: str, language: str | Language | None = None, *, where: Where = "auto"
    ) -> ValidationResult:
        """Tell whether a program parses; it is not run.

        Args:
            code: The program. An empty one is not valid.
            language: A language of the same FaaS; this runtime's own when None.
            where: "local" checks here, which only Python can: by `ast`, in a process of its own. "remote" asks the
                FaaS. "auto" is "local" for Python and "remote" for the others.

        Returns:
            The judgement, with lines and columns, and who made it. The local check is about syntax alone: a `return`
            outside a function parses.

        Raises:
            InvalidRequestError: An argument is wrong, or the program is too large to be checked here (2 MiB).
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            RejectedError: The FaaS cannot validate, as the reference servers cannot.
            ServiceError: The infrastructure failed in another way; this never reads as "invalid".

        Cancellation: gives the permit and the connection back, or ends the process.
        """
        self._calls.refuse_when_closing()
        spoken = self._language(language)
        locally = check_where(where, spoken)
        if not isinstance(code, str):
            raise InvalidRequestError(f"code must be a str, got {type(code).__name__}")
        if not code.strip():
            return ValidationResult.empty_code()
        with self._calls.one_call():
            if locally:
                return await self._checker.check(code)
            body = encode_json({"language": spoken.value, "code": code})
            trace = CallTrace(self._emit, self._dispatcher.clock, spoken)
            return await self._dispatcher.validate(self._settings.endpoints[spoken], body, trace=trace)

    def get_return_val_function(self) -> str:
        """Give the definition of `return_val` in this runtime's language, as source text.

        Put it before a program that must run on servers which do not define the function themselves (js-faas). The
        embedded FaaS and python-faas define it.
        """
        return return_val_function(self.language)

    def get_supported_languages(self) -> tuple[Language, ...]:
        """Give the languages that this runtime's endpoints serve."""
        own = self._settings.endpoints.get(self.language)
        return tuple(language for language, urls in self._settings.endpoints.items() if urls == own)

    async def get_health_status(self) -> HealthStatus:
        """Probe every endpoint of this runtime at once; a failure is an unhealthy entry, never an exception.

        Each probe has a deadline of its own, `TimeoutSettings.health_s`.

        Raises:
            RuntimeClosedError: The runtime was closed.
        """
        self._calls.refuse_when_closing()
        with self._calls.one_call():
            return await probe_all(self._dispatcher, self._settings.endpoints.get(self.language, ()))

    def get_metrics(self) -> Metrics:
        """Give the figures of this runtime's languages, counted since the factory was made."""
        return self._counters.snapshot(
            self.get_supported_languages(), in_flight=self._dispatcher.in_flight, queued=self._dispatcher.queued
        )

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._calls.closing

    async def aclose(self) -> None:
        """Close the runtime; the sessions go with the last runtime that shares them. Closing twice is harmless.

        Calls in flight get `TimeoutSettings.close_s` to end; then they are ended with `RuntimeClosedError`.

        Cancellation: ends them at once.
        """
        await self.close_within(self._settings.timeouts.close_s)

    async def close_within(self, seconds: float | None) -> None:
        """Close as `aclose` does, after another time; None waits for calls in flight for as long as they take."""
        try:
            await self._calls.close(seconds)
        finally:
            async with self._closing:
                if not self._released:
                    self._released = True
                    await self._checker.aclose()
                    await self._dispatcher.release()

    async def __aenter__(self) -> Self:
        self._calls.refuse_when_closing()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        endpoints = ", ".join(self._settings.endpoints.get(self.language, ()))
        return f"<Runtime {self.language} at {endpoints}{' (closed)' if self.closed else ''}>"

    def _language(self, language: str | Language | None) -> Language:
        spoken = self.language if language is None else Language.parse(language)
        if spoken is not self.language and spoken not in self.get_supported_languages():
            raise UnsupportedLanguageError(
                f"this runtime serves {self.language}, not {spoken}: get a runtime for {spoken} from the manager"
            )
        return spoken

    def _sandbox(self, sandbox: SandboxConfig | None) -> SandboxConfig:
        if sandbox is None:
            return self._settings.sandbox
        if not isinstance(sandbox, SandboxConfig):
            raise InvalidRequestError(f"sandbox must be a SandboxConfig, got {type(sandbox).__name__}")
        return sandbox


def check_where(where: Where, language: Language) -> bool:
    """Tell whether a program is to be checked locally.

    Raises:
        InvalidRequestError: `where` is none of its values, or asks for what cannot be.
    """
    if where not in ("local", "remote", "auto"):
        raise InvalidRequestError(f"where must be 'local', 'remote' or 'auto', got {where!r}")
    if where == "local" and language is not Language.PYTHON:
        raise InvalidRequestError(f"only Python can be checked locally: check {language} with where='remote'")
    return language is Language.PYTHON and where != "remote"


async def probe_all(dispatcher: Dispatcher, endpoints: tuple[str, ...]) -> HealthStatus:
    """Probe several endpoints at once, each under its own deadline."""
    async with asyncio.TaskGroup() as group:
        probes: list[asyncio.Task[Any]] = [group.create_task(dispatcher.probe(endpoint)) for endpoint in endpoints]
    return HealthStatus(tuple(probe.result() for probe in probes))
