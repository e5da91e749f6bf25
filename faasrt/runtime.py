"""Runtime: run programs of one family of languages on the endpoints that serve it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from faasrt.config import SandboxConfig, Settings
from faasrt.errors import InvalidRequestError, RuntimeClosedError, UnsupportedLanguageError
from faasrt.events import CallFinished, CallStarted, Event, Sink, hash_code
from faasrt.languages import Language
from faasrt.protocol.messages import (
    RunRequest,
    check_code,
    check_ext,
    check_priority,
    check_timeout_ms,
    encode_json,
)
from faasrt.protocol.validation import decode_validation
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.transport.dispatcher import CallTrace, Dispatcher

_call_numbers = itertools.count(1)


class Runtime:
    """Runs code in one language, and in those that the same FaaS serves. Made by `RuntimeFactory` or `RuntimeManager`.

    Safe to share between any number of tasks of one event loop.

    Example:
        >>> async with RuntimeManager.from_env() as manager:
        ...     runtime = await manager.get_runtime("python")
        ...     result = await runtime.run_code("print(6 * 7)")
    """

    def __init__(
        self, language: Language, *, settings: Settings, dispatcher: Dispatcher, sinks: tuple[Sink, ...] = ()
    ) -> None:
        self.language = language
        self._settings = settings
        self._dispatcher = dispatcher
        self._sinks = sinks
        self._closed = False
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
            RuntimeClosedError: The runtime was closed.
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed; its class says how.

        Cancellation: gives the permit and the connection back; the embedded FaaS ends the program, others may run it
            to its end.
        """
        self._check_open()
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
        endpoints = self._endpoints(spoken)
        body = request.encode()
        trace = CallTrace(started=self._dispatcher.clock())
        call_id = f"c{next(_call_numbers)}"
        self._emit_start(call_id, request)
        result, failure = None, None
        try:
            result = await self._dispatcher.run(
                endpoints,
                body,
                timeout_ms=request.timeout_ms,
                max_output_bytes=limits.max_output_bytes,
                trace=trace,
            )
            return result
        except BaseException as error:
            failure = error
            raise
        finally:
            self._emit_end(call_id, request, trace, result, failure)

    async def validate_code(self, code: str, language: str | Language | None = None) -> ValidationResult:
        """Ask the FaaS whether a program parses; it is not run.

        Args:
            code: The program. An empty one is not valid.
            language: A language of the same FaaS; this runtime's own when None.

        Returns:
            The judgement, with lines and columns.

        Raises:
            InvalidRequestError: `code` is no string; nothing was sent.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed.
            RejectedError: The FaaS cannot validate, as the reference servers cannot.
            ServiceError: The infrastructure failed in another way.

        Cancellation: gives the permit and the connection back.
        """
        self._check_open()
        spoken = self._language(language)
        endpoints = self._endpoints(spoken)
        if isinstance(code, str) and not code.strip():
            return ValidationResult.empty_code()
        body = encode_json({"language": spoken.value, "code": check_code(code)})
        trace = CallTrace(started=self._dispatcher.clock())
        return decode_validation(await self._dispatcher.validate(endpoints, body, trace=trace))

    def get_supported_languages(self) -> tuple[Language, ...]:
        """Give the languages that this runtime's endpoints serve."""
        own = self._settings.endpoints.get(self.language)
        return tuple(language for language, urls in self._settings.endpoints.items() if urls == own)

    async def get_health_status(self) -> HealthStatus:
        """Probe every endpoint of this runtime at once; a failure is an unhealthy entry, never an exception.

        Raises:
            RuntimeClosedError: The runtime was closed.
        """
        self._check_open()
        return await probe_all(self._dispatcher, self._settings.endpoints.get(self.language, ()))

    @property
    def closed(self) -> bool:
        """Whether `aclose` was called."""
        return self._closed

    async def aclose(self) -> None:
        """Close the runtime; the sessions go with the last runtime that shares them. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            await self._dispatcher.release()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosedError("this runtime is closed: get another from the manager or factory")

    def _language(self, language: str | Language | None) -> Language:
        spoken = self.language if language is None else Language.parse(language)
        if spoken is not self.language and spoken not in self.get_supported_languages():
            raise UnsupportedLanguageError(
                f"this runtime serves {self.language}, not {spoken}: get a runtime for {spoken} from the manager"
            )
        return spoken

    def _endpoints(self, language: Language) -> tuple[str, ...]:
        endpoints = self._settings.endpoints.get(language, ())
        if not endpoints:
            raise UnsupportedLanguageError(f"{language} is not supported here: no endpoint is configured for it")
        return endpoints

    def _sandbox(self, sandbox: SandboxConfig | None) -> SandboxConfig:
        if sandbox is None:
            return self._settings.sandbox
        if not isinstance(sandbox, SandboxConfig):
            raise InvalidRequestError(f"sandbox must be a SandboxConfig, got {type(sandbox).__name__}")
        return sandbox

    def _emit_start(self, call_id: str, request: RunRequest) -> None:
        if self._sinks:
            code = request.code.encode()
            self._emit(
                CallStarted(
                    call_id=call_id,
                    language=request.language.value,
                    code_bytes=len(code),
                    code_hash=hash_code(code),
                    timeout_ms=request.timeout_ms,
                )
            )

    def _emit_end(
        self,
        call_id: str,
        request: RunRequest,
        trace: CallTrace,
        result: ExecutionResult | None,
        failure: BaseException | None,
    ) -> None:
        if self._sinks:
            texts = attrs.astuple(result.output) if result else ()
            self._emit(
                CallFinished(
                    call_id=call_id,
                    language=request.language.value,
                    endpoint=trace.endpoint,
                    outcome=result.outcome.value if result else None,
                    error=type(failure).__name__ if failure else None,
                    attempts=trace.attempts,
                    queued_s=trace.queued_s,
                    total_s=self._dispatcher.clock() - trace.started,
                    output_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
                )
            )

    def _emit(self, event: Event) -> None:
        for sink in self._sinks:
            sink(event)


async def probe_all(dispatcher: Dispatcher, endpoints: tuple[str, ...]) -> HealthStatus:
    """Probe several endpoints at once, each under its own deadline."""
    async with asyncio.TaskGroup() as group:
        probes: list[asyncio.Task[Any]] = [group.create_task(dispatcher.probe(endpoint)) for endpoint in endpoints]
    return HealthStatus(tuple(probe.result() for probe in probes))
