"""Runtime: run programs of one family of languages on the endpoints that serve it."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from faasrt.batch import CodeTask
from faasrt.config import SandboxConfig, Settings
from faasrt.emitter import Emitter
from faasrt.errors import InvalidRequestError, UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.metrics import Metrics
from faasrt.protocol.cases import Plan, check_function, check_kwargs, encode_case, encode_cases
from faasrt.protocol.executions import Batch, Program
from faasrt.protocol.messages import RunRequest, check_flag, encode_json
from faasrt.protocol.return_val import return_val_function
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.transport.caller import Caller
from faasrt.transport.calls import CallsInFlight
from faasrt.transport.counters import Counters
from faasrt.transport.dispatcher import Dispatcher
from faasrt.transport.trace import CallTrace
from faasrt.validation import PythonChecker, Where, check_where


class Runtime:
    """Runs code in one language, and in those that the same FaaS serves. Made by `RuntimeFactory` or `RuntimeManager`.

    Safe to share between any number of tasks of one event loop.

    Attributes:
        language: The language that is meant when a call names none.

    Example:
        >>> python = await manager.get_runtime("python")
        >>> results = await asyncio.gather(*(python.run_code(f"print({n} ** 2)") for n in range(5)))
        >>> [result.stdout.strip() for result in results]
        ['0', '1', '4', '9', '16']
    """

    def __init__(
        self,
        language: Language,
        *,
        settings: Settings,
        dispatcher: Dispatcher,
        counters: Counters,
        emit: Emitter,
    ) -> None:
        self.language = language
        self._settings = settings
        self._dispatcher = dispatcher
        self._counters = counters
        self._emit = emit
        self._calls = CallsInFlight()
        self._caller = Caller(settings, dispatcher, self._calls, emit, counters)
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
        r"""Run a program, at most once, and give the verdict.

        Args:
            code: The program; not empty.
            language: A language of the same FaaS; this runtime's own when None.
            timeout_ms: Milliseconds that the program may run, above 0; clamped to the sandbox's limit, which is also
                the default.
            ext: Strings for the server's use; coze-loop sends trace ids there.
            sandbox: Limits for this call; those of the settings when None. A server only ever lowers its own.
            priority: A word for the server's scheduler; the known servers ignore it.
            idempotent: Whether the program may run more than once, when an answer is lost or a server fails. The
                settings' word when None. Whatever is said here, it is sent again when it cannot have run.

        Returns:
            The verdict; a program that fails is a result, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong; nothing was sent.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            ConfigurationError: The runtime belongs to another event loop.
            QueueFullError: Too many callers wait already.
            ServiceError: The infrastructure failed; its class says how.

        Cancellation: gives the permit and the connection back. The embedded FaaS ends the program; another server may
            run it to its time limit, and until then it counts as one of the calls at its endpoint.

        Example:
            >>> (await runtime.run_code("print(6 * 7)", timeout_ms=5_000)).stdout
            '42\n'
        """
        request = self._request(code, language, timeout_ms, sandbox, ext, priority)
        check_flag("idempotent", idempotent)
        program = Program(request, self._settings.envelope)
        return await self._caller.run(program, idempotent, lambda result, stamp: stamp(result))

    async def call_function(
        self,
        code: str,
        function: str,
        /,
        *args: Any,
        language: str | Language | None = None,
        timeout_ms: float | None = None,
        **kwargs: Any,
    ) -> ExecutionResult:
        """Define a program's functions, call one of them, at most once, and give what it returns.

        Arguments and return value travel as JSON. An awaitable that the function returns is awaited. In JavaScript and
        TypeScript the function may be a declaration, a constant, or an export ("default" too).

        What a Python function returns is encoded so: tuples, sets (sorted where that can be), NumPy arrays and pandas
        columns as lists; dataclasses, attrs classes, other mappings and objects with a `__dict__` as objects of their
        fields; a DataFrame as a list of rows; enums as their value; dates and times in ISO 8601, time deltas as
        seconds; NumPy scalars as numbers; Decimal, UUID and paths as text; keys that are numbers, booleans or None as
        text, as `json` has it. In JavaScript: `undefined` as null and left out of objects, Map as an object, Set and
        typed arrays as lists, `toJSON` honoured, other objects by their own fields. Anything else (NaN, bytes,
        functions, BigInt, what contains itself) is a USER_ERROR that names the place in the value.

        Args:
            code: The program; not empty.
            function: The name of the function.
            *args: Its arguments: None, bools, numbers, strings, lists, tuples (as lists) and dicts with string keys.
            language: A language of the same FaaS; this runtime's own when None.
            timeout_ms: Milliseconds for definitions and call together, above 0; clamped to the sandbox's limit, which
                is also the default.
            **kwargs: Its keyword arguments; Python only.

        Returns:
            The verdict; `value` is what the function returned. A function that is missing, raises or exits is a
            USER_ERROR. What the program gives to `return_val` does not count.

        Raises:
            InvalidRequestError: An argument is wrong, or not JSON; nothing was sent.
            FaasrtError: What else `run_code` raises.

        Cancellation: as for `run_code`.

        Example:
            >>> (await runtime.call_function("def add(a, b): return a + b", "add", 1, b=2)).value
            3
        """
        named = self.language if language is None else language
        called = CodeTask(code, named, timeout_ms=timeout_ms, function=function, args=args, kwargs=kwargs)
        return await self._call(called)

    async def run_cases(
        self,
        code: str,
        function: str,
        cases: Iterable[Sequence[Any]],
        *,
        language: str | Language | None = None,
        timeout_ms: float | None = None,
        isolate: bool = False,
        sandbox: SandboxConfig | None = None,
        idempotent: bool | None = None,
    ) -> list[ExecutionResult]:
        """Call a program's function once for each case, many of them in one execution.

        Each case has its own verdict, output, value and duration; what the program prints while it is defined stands at
        the beginning of every case's output, cut to 8 KiB. The program is defined once in an execution: what one case
        leaves behind in it (globals, caches) the next one sees, unless `isolate` is true. A case that ends the
        execution (at its time limit, by an exit or a crash) gets that verdict, and those behind it go on in a further
        execution: N cases with k of that kind take k + 1. More are taken where arguments (1 MiB), results (64 KiB) or
        the sandbox's time limit ask for it.

        Where a server ends programs at their limit itself, as the embedded FaaS does, it ends executions, not cases: a
        case that does not end by itself is then ended later than at its limit (at 2.5 times its limit at the latest),
        or a tenth earlier where the server's own limit leaves no more; what it printed is lost. One that took longer
        than its limit is a TIMEOUT all the same.

        Args:
            code: The program; not empty.
            function: The name of the function.
            cases: A tuple or list of arguments for each case; see `call_function` for what they may hold.
            language: A language of the same FaaS; this runtime's own when None.
            timeout_ms: Milliseconds for each case, above 0; clamped to the sandbox's limit, which is also the default.
            isolate: Whether every case gets a fresh namespace, in which the program is defined anew; imported modules
                stay.
            sandbox: Limits for this call; those of the settings when None.
            idempotent: Whether cases may run more than once; the settings' word when None. They do only when an
                execution ends without telling in which case (js-faas, out of memory): then it is halved until the case
                is found. Otherwise all cases of that execution get its verdict, with an error that says so.

        Returns:
            A result for each case, in order.

        Raises:
            InvalidRequestError: An argument is wrong, or not JSON; nothing was sent.
            FaasrtError: What else `run_code` raises, in one of the executions; what the others gave is lost.

        Cancellation: as for `run_code`.

        Example:
            >>> results = await runtime.run_cases("def double(n): return 2 * n", "double", [(1,), (2,)])
            >>> [result.value for result in results]
            [2, 4]
        """
        request = self._request(code, language, timeout_ms, sandbox, None, "normal")
        name = check_function(function, request.language)
        check_flag("idempotent", idempotent)
        check_flag("isolate", isolate, optional=False)
        plan = Plan(
            encode_cases(cases, request.language),
            limit=request.sandbox.max_output_bytes,
            isolate=isolate,
            rerun=self._settings.retry.idempotent if idempotent is None else idempotent,
        )
        # All executions are one call: closing waits for the last of them.
        with self._calls.one_call():
            while (indices := plan.next_batch()) is not None:
                batch = Batch(
                    run=request,
                    function=name,
                    cases=[plan.cases[index] for index in indices],
                    first=indices.start,
                    isolate=isolate,
                    definition_ms=plan.definition_ms,
                )
                await self._caller.run(batch, idempotent, functools.partial(plan.take, indices))
        return plan.all_results()

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

        Example:
            >>> (await runtime.validate_code("def f(:")).diagnostics
            (Diagnostic(message='invalid syntax', line=1, column=7),)
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
            trace = CallTrace(self._emit, self._counters, self._dispatcher.clock, spoken)
            return await self._dispatcher.validate(self._settings.endpoints[spoken], body, trace=trace)

    def get_return_val_function(self) -> str:
        """Give the source text that defines `return_val`, for programs on servers which do not, as js-faas.

        Example:
            >>> runtime.get_return_val_function().splitlines()[0]
            'def return_val(value):'
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
            return await self._dispatcher.probe_all(self._settings.endpoints.get(self.language, ()))

    def get_metrics(self) -> Metrics:
        """Give the figures of this runtime's languages, counted since the factory was made."""
        own = self._settings.endpoints.get(self.language, ())
        return self._counters.snapshot(
            self.get_supported_languages(),
            in_flight=self._dispatcher.in_flight,
            queued=self._dispatcher.queued,
            states=tuple(state for state in self._dispatcher.states() if state.endpoint in own),
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
                    try:
                        await self._checker.aclose()
                    finally:
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

    async def run_task(self, task: CodeTask) -> ExecutionResult:
        """Run a task: short for `run_code`, or for `call_function` where the task names a function."""
        if task.function is None:
            return await self.run_code(task.code, task.language, task.timeout_ms, task.ext)
        return await self._call(task)

    async def _call(self, task: CodeTask) -> ExecutionResult:
        request = self._request(task.code, task.language, task.timeout_ms, None, task.ext, "normal")
        check_kwargs(task.kwargs, request.language)
        name = check_function(task.function, request.language)
        case = encode_case(task.args, task.kwargs, request.language)
        call = Batch(run=request, function=name, cases=[case], single=True)
        limit = request.sandbox.max_output_bytes
        return await self._caller.run(call, None, lambda reading, stamp: stamp(reading.only(limit)))

    def patiently(self) -> Self:
        """Give this runtime for calls whose number is bounded, and which wait for a permit without limit."""
        other = copy.copy(self)
        other._caller = self._caller.patiently()
        return other

    def _request(
        self,
        code: object,
        language: str | Language | None,
        timeout_ms: object,
        sandbox: SandboxConfig | None,
        ext: object,
        priority: object,
    ) -> RunRequest:
        self._calls.refuse_when_closing()
        spoken = self._language(language)
        limits = self._settings.sandbox if sandbox is None else sandbox
        return RunRequest.checked(spoken, code, timeout_ms, limits, ext, priority)

    def _language(self, language: str | Language | None) -> Language:
        spoken = self.language if language is None else Language.parse(language)
        if spoken is not self.language and spoken not in self.get_supported_languages():
            raise UnsupportedLanguageError(
                f"this runtime serves {self.language}, not {spoken}: get a runtime for {spoken} from the manager"
            )
        return spoken
