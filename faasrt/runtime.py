"""Runtime: runs programs on the endpoints of one language."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, Unpack

import attrs

from faasrt._record_type import RecordType
from faasrt.config import SandboxConfig, Settings
from faasrt.errors import InvalidRequestError, RuntimeClosedError, UnsupportedLanguageError
from faasrt.languages import Language
from faasrt.protocol.cases import CaseScheduler, check_function, check_keywords, encode_case, encode_cases
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.program import Execution, GuestResponse
from faasrt.protocol.request import RunRequest, check_flag, encode_json
from faasrt.protocol.return_val import return_val_function
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.syntax import PythonChecker, Where, check_where
from faasrt.tasks import CallOptions, check_args, check_kwargs
from faasrt.telemetry.dispatch import EventDispatcher
from faasrt.telemetry.metrics import Counters, Metrics
from faasrt.transport.call import Transport
from faasrt.transport.context import CallContext
from faasrt.transport.lifecycle import CallsInFlight


@attrs.define(eq=False, kw_only=True, slots=False)
class Runtime(metaclass=RecordType):
    """Runs code in one language, and in other languages that have the same endpoints.

    `RuntimeFactory` and `RuntimeManager` create runtimes. Any number of tasks in one event loop may share a runtime.

    Attributes:
        language: The default language of calls.

    Example:
        >>> python = await manager.get_runtime("python")
        >>> results = await asyncio.gather(*(python.run_code(f"print({n} ** 2)") for n in range(5)))
        >>> [result.stdout.strip() for result in results]
        ['0', '1', '4', '9', '16']
    """

    language: Language
    _settings: Settings
    _transport: Transport
    _counters: Counters
    _emit: EventDispatcher
    _calls: CallsInFlight = attrs.field(factory=CallsInFlight, init=False)
    _checker: PythonChecker = attrs.field(factory=PythonChecker, init=False)
    _closing: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _released: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._transport.retain()

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
        stdin: str | bytes = "",
        argv: Sequence[str] = (),
        files: Mapping[str, str | bytes] | None = None,
        collect: Sequence[str] = (),
    ) -> ExecutionResult:
        r"""Run a program, at most once, and return the result.

        Args:
            code: The program; not empty.
            language: A language with the same endpoints. Default: None, which means the runtime's `language`.
            timeout_ms: The time limit of the program in milliseconds, above 0 and at most that of the sandbox. Default:
                None, which means the time limit of the sandbox.
            ext: Further fields for the server; coze-loop sends trace ids in them. Default: None, no fields.
            sandbox: The limits of this call. They can lower the limits of the server, not raise them. Default: None,
                which means the limits in the settings.
            priority: A priority for the server's scheduler; the known servers ignore it. Default: "normal".
            idempotent: Whether the program may run again if an answer is lost or a server fails. A call whose
                code cannot have run is retried in any case. Default: None, which means `RetrySettings.idempotent`.
            stdin: The standard input; a str is sent as UTF-8. Default: "", an empty input.
            argv: The command-line arguments, at most 1,000. Default: no arguments.
            files: The contents of files in the working folder of the program, by relative path such as "data/in.csv"; a
                str is sent as UTF-8. Modules among them can be imported. At most 1,000 files; the embedded FaaS accepts
                requests of up to 8 MiB. Default: None, no files.
            collect: Patterns of files to return in `result.files` after the program has ended, whatever the outcome, at
                most 100. `*` does not match "/" or a leading dot; `**` matches any number of folders. At most 1,000
                files, of `max_output_bytes` together, are returned. Default: no files.

        Returns:
            The result. A program that fails is an outcome, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong, or the server does not support `stdin`, `argv`, `files` or
                `collect`; nothing was sent.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            ConfigurationError: The runtime belongs to another event loop.
            QueueFullError: Too many calls are waiting already.
            ServiceError: The infrastructure failed; `faasrt.errors` lists the subclasses.

        Cancellation: returns the permit and closes the connection. The embedded FaaS then stops the program; other
            servers may run it to its end.

        Example:
            >>> (await runtime.run_code("print(6 * 7)", timeout_ms=5_000)).stdout
            '42\n'
            >>> code = "print(input(), open('b.txt').read())"
            >>> (await runtime.run_code(code, stdin="a", files={"b.txt": "b"})).stdout
            'a b\n'
        """
        request, may_rerun = self._request(
            code,
            language,
            timeout_ms=timeout_ms,
            ext=ext,
            sandbox=sandbox,
            priority=priority,
            idempotent=idempotent,
            stdin=stdin,
            argv=argv,
            files=files,
            collect=collect,
        )
        response, context = await self._run(Execution(run=request, mode=self._settings.envelope), may_rerun)
        return context.finish(context.result(response.verdict()))

    async def call_function(
        self,
        code: str,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        language: str | Language | None = None,
        **options: Unpack[CallOptions],
    ) -> ExecutionResult:
        """Run a program that defines a function, call the function, at most once, and return its value.

        Arguments and the return value are sent as JSON; see `ExecutionResult.value`. If the function returns an
        awaitable, it is awaited. In JavaScript and TypeScript the function may be a declaration, a constant, or an
        export, including "default".

        Args:
            code: The program; not empty.
            function: The name of the function.
            args: The positional arguments: None, bools, numbers, strings, lists, tuples (sent as lists), and dicts with
                string keys. Default: no arguments.
            kwargs: The keyword arguments; Python only. Default: None, no arguments.
            language: See `run_code`.
            **options: `timeout_ms` (for the definitions and the call together), `ext`, `sandbox`, `priority`,
                `idempotent`, `stdin` and `files`; see `run_code`.

        Returns:
            The result. `value` is the return value of the function. If the function is missing, raises or exits, the
            outcome is USER_ERROR. Calls of `return_val` are ignored.

        Raises:
            InvalidRequestError: An argument is wrong, or not JSON; nothing was sent.
            FaasrtError: See `run_code`.

        Cancellation: as for `run_code`.

        Example:
            >>> (await runtime.call_function("def add(a, b): return a + b", "add", [1], {"b": 2})).value
            3
        """
        request, may_rerun = self._request(code, language, **options)
        keywords = check_kwargs({} if kwargs is None else kwargs)
        check_keywords(keywords, request.language)
        name = check_function(function, request.language)
        case = encode_case(check_args(args), keywords, request.language)
        call = Execution(run=request, job=GuestJob(function=name, cases=[case]))
        response, context = await self._run(call, may_rerun)
        return context.finish(context.result(response.verdict()))

    async def run_cases(
        self,
        code: str,
        function: str,
        cases: Iterable[Sequence[Any]],
        *,
        language: str | Language | None = None,
        isolate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[ExecutionResult]:
        """Call a function of a program once for each case, with many cases in one execution.

        Each case has its own verdict, output, value and duration. An execution first runs the program once, which
        defines the function (below, "the definitions"), and then calls the function for each case. So a case sees the
        globals and caches that earlier cases changed, unless `isolate` is true. The output of every case begins with
        the output of the definitions, cut to 8 KiB.

        If a case reaches its time limit, exits or crashes, the execution ends. That case gets the verdict, and the
        remaining cases run in a new execution. If k cases end their execution, k + 1 executions are needed. Large
        arguments (over 1 MiB in total) or results (over 64 KiB), and long run times, need more.

        Some servers, such as the embedded FaaS, stop executions, not cases. On these servers a case may run for up to
        2.5 times its limit (with limits below 500 ms, twice its limit and 250 ms) before it is stopped, and its output
        is then lost. If the server's maximum time limit is close to `timeout_ms`, a case may instead be stopped after
        90 % of its limit, less the time of the definitions. A case that took longer than its limit is always a TIMEOUT.

        Args:
            code: The program; not empty.
            function: The name of the function.
            cases: A tuple or list of positional arguments for each case; see `call_function`.
            language: See `run_code`.
            isolate: Whether each case runs the definitions again, in a new namespace. Imported modules are kept.
                Default: False.
            **options: `timeout_ms` (for each case), `ext`, `sandbox`, `priority`, `stdin`, `files` and `idempotent`;
                see `run_code`. The definitions and each case read `stdin` from its start. The cases in an execution
                share the files. `idempotent` matters if an execution ends and it is unknown in which case (on js-faas,
                or out of memory). If true, the cases run again in ever smaller executions until the case is found. If
                false, all cases of the execution get its verdict, and their error says so.

        Returns:
            One result per case, in order.

        Raises:
            InvalidRequestError: An argument is wrong, or not JSON; nothing was sent.
            FaasrtError: See `run_code`. The results of earlier executions are lost.

        Cancellation: as for `run_code`.

        Example:
            >>> results = await runtime.run_cases("def double(n): return 2 * n", "double", [(1,), (2,)])
            >>> [result.value for result in results]
            [2, 4]
        """
        request, may_rerun = self._request(code, language, **options)
        name = check_function(function, request.language)
        check_flag("isolate", isolate, optional=False)
        encoded = encode_cases(cases, request.language)
        scheduler = CaseScheduler(encoded, isolate=isolate, may_rerun=may_rerun)
        # All executions count as one call, so that closing waits for the last one.
        with self._calls.track():
            while (indices := scheduler.next_batch()) is not None:
                batch = [scheduler.cases[index] for index in indices]
                job = GuestJob(function=name, cases=batch, first=indices.start, single=False, isolate=isolate)
                execution = Execution(run=request, job=job, definition_ms=scheduler.definition_ms)
                response, context = await self._run(execution, may_rerun)
                context.finish(scheduler.record_results(indices, response, context.result))
        return scheduler.all_results()

    async def validate_code(
        self, code: str, language: str | Language | None = None, *, where: Where = "auto"
    ) -> ValidationResult:
        """Check the syntax of a program, without running it.

        Args:
            code: The program. An empty program is not valid.
            language: A language with the same endpoints. Default: None, which means the runtime's `language`.
            where: "local" checks Python with `ast`, in a separate process on this machine. "remote" sends the program
                to the FaaS. "auto" means "local" for Python and "remote" for other languages. Default: "auto".

        Returns:
            The result, with lines and columns, and the name of the parser. The local check covers only the grammar; for
            example, it accepts a `return` outside a function.

        Raises:
            InvalidRequestError: An argument is wrong, or the program is too large for the local check (2 MiB).
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            RejectedError: The FaaS cannot validate programs. python-faas and js-faas cannot.
            ServiceError: The infrastructure failed in another way.

        Cancellation: returns the permit and closes the connection, or ends the process.

        Example:
            >>> (await runtime.validate_code("def f(:")).diagnostics
            (Diagnostic(message='invalid syntax', line=1, column=7),)
        """
        self._calls.check_open()
        parsed = self._language(language)
        locally = check_where(where, parsed)
        if not isinstance(code, str):
            raise InvalidRequestError(f"code must be a str, got {type(code).__name__}")
        if not code.strip():
            return ValidationResult.empty_code()
        with self._calls.track():
            if locally:
                return await self._checker.check(code)
            body = encode_json({"language": parsed.value, "code": code})
            context = CallContext(self._emit, self._counters, self._transport.clock, parsed)
            endpoints = self._settings.endpoints[parsed]
            return await self._transport.validate(context, endpoints, body, owner=self._calls)

    def get_return_val_function(self) -> str:
        """Return the source of `return_val`, for programs on servers that do not define it, such as js-faas.

        Example:
            >>> runtime.get_return_val_function().splitlines()[0]
            'def return_val(value):'
        """
        return return_val_function(self.language)

    def get_supported_languages(self) -> tuple[Language, ...]:
        """Return the languages that this runtime's endpoints serve."""
        own = self._settings.endpoints.get(self.language)
        return tuple(language for language, urls in self._settings.endpoints.items() if urls == own)

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints of this runtime concurrently, each within `TimeoutSettings.health_s`.

        A failed probe is an unhealthy entry in the result, not an exception.

        Raises:
            RuntimeClosedError: The runtime was closed.
        """
        with self._calls.track():
            return await self._transport.probe_all(self._settings.endpoints.get(self.language, ()))

    def get_metrics(self) -> Metrics:
        """Return the metrics of this runtime's languages since the factory was created."""
        own = self._settings.endpoints.get(self.language, ())
        return self._counters.snapshot(
            self.get_supported_languages(),
            in_flight=self._transport.in_flight,
            queued=self._transport.queued,
            states=tuple(state for state in self._transport.states() if state.endpoint in own),
        )

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._calls.closing

    async def aclose(self) -> None:
        """Close the runtime. The last runtime of a factory closes the sessions. Closing twice is harmless.

        Calls that wait for a permit fail with `RuntimeClosedError` at once. Calls in flight have
        `TimeoutSettings.close_s` seconds to finish, and then fail with `RuntimeClosedError` too.

        Cancellation: cancels the calls in flight at once.
        """
        error = RuntimeClosedError("this runtime was closed while the call waited for a permit; nothing was sent")
        self._transport.fail_waiting(self._calls, error)
        await self.close_within(self._settings.timeouts.close_s)

    async def close_within(self, seconds: float | None) -> None:
        """Close the runtime. Wait at most this many seconds for all calls, without a time limit if None."""
        try:
            await self._calls.close(seconds)
        finally:
            async with self._closing:
                if not self._released:
                    self._released = True
                    try:
                        await self._checker.aclose()
                    finally:
                        await self._transport.release()

    async def __aenter__(self) -> Self:
        self._calls.check_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        endpoints = ", ".join(self._settings.endpoints.get(self.language, ()))
        return f"<Runtime {self.language} at {endpoints}{' (closed)' if self.closed else ''}>"

    async def _run(self, execution: Execution, idempotent: bool) -> tuple[GuestResponse, CallContext]:
        request = execution.run
        context = CallContext(self._emit, self._counters, self._transport.clock, request.language)
        try:
            context.call_started(request.code, request.timeout_ms)
            with self._calls.track():
                response = await self._transport.run(context, execution, idempotent=idempotent, owner=self._calls)
        except BaseException as error:
            context.fail(error)
            raise
        return response, context

    def _request(
        self, code: object, language: str | Language | None, *, idempotent: bool | None = None, **options: Any
    ) -> tuple[RunRequest, bool]:
        """Return the checked request, and whether its code may run more than once."""
        self._calls.check_open()
        request = RunRequest.checked(self._language(language), code, self._settings.sandbox, **options)
        check_flag("idempotent", idempotent)
        return request, self._settings.retry.idempotent if idempotent is None else idempotent

    def _language(self, language: str | Language | None) -> Language:
        parsed = self.language if language is None else Language.parse(language)
        if parsed is not self.language and parsed not in self.get_supported_languages():
            raise UnsupportedLanguageError(
                f"language must be one of this runtime ({', '.join(self.get_supported_languages())}), got {parsed}: "
                f"get a runtime for {parsed} from the manager"
            )
        return parsed
