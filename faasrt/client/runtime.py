"""Runs programs in one language.

Every call that runs a program comes here: its arguments are checked, and an executor gets the `Program`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self, Unpack

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt._endpoint_urls import configured_url
from faasrt._run_option_checks import check_args, check_flag, check_kwargs
from faasrt.client.assert_tests import FirstCalls, judge_by_asserts
from faasrt.client.cache import ResultCache
from faasrt.client.executor import CachingExecutor, Executor
from faasrt.client.judge import Judge, check_arguments, compare_result, function_job, options_of, program_job
from faasrt.client.session import Session, SessionHost, SessionOptions
from faasrt.client.streaming import StreamedRun
from faasrt.client.syntax import PythonChecker, Where, check_where, validates_locally
from faasrt.config import SandboxConfig, Settings
from faasrt.errors import InvalidRequestError, UnsupportedLanguageError
from faasrt.judging import AssertTest, Compare, Judgement, Tests
from faasrt.languages import Language, LanguageOption, OtherLanguage, family_of, parse_language
from faasrt.protocol.cases import check_function, check_keywords, encode_case, encode_cases
from faasrt.protocol.envelope import GuestJob
from faasrt.protocol.execution import Execution
from faasrt.protocol.program import Program
from faasrt.protocol.return_val import check_has_return_val, return_val_function
from faasrt.protocol.sessions import IDLE_TIMEOUT_S
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.tasks import CallOptions, JudgeOptions, Priority, RunOptions, check_options
from faasrt.telemetry.metrics import Metrics
from faasrt.transport.endpoint_registry import unsupported_error
from faasrt.transport.lifecycle import CallsInFlight
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.requests import validation
from faasrt.transport.transport import Transport


@list_attributes
@attrs.define(eq=False, repr=False, kw_only=True, slots=False)
class Runtime:
    """Runs code in one language, and in other languages that have the same endpoints.

    `RuntimeFactory` and `RuntimeManager` create runtimes. Any number of tasks in one event loop may share a runtime.

    Example:
        >>> python = await manager.get_runtime("python")
        >>> results = await asyncio.gather(*(python.run_code(f"print({n} ** 2)") for n in range(5)))
        >>> [result.stdout.strip() for result in results]
        ['0', '1', '4', '9', '16']
    """

    language: Language | OtherLanguage
    """The default language of calls."""
    _transport: Transport
    _checker: PythonChecker = attrs.field(factory=PythonChecker, init=False)
    _first_calls: FirstCalls = attrs.field(factory=FirstCalls, init=False)
    _closing: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        # These three are for the manager, and no part of the interface.
        self.calls = CallsInFlight()
        self.executor: Executor | CachingExecutor = Executor(self._transport, self.calls)
        self.sessions = SessionHost(Executor(self._transport, self.calls))
        self._transport.registry.retain()

    async def run_code(
        self,
        code: str,
        language: LanguageOption | None = None,
        timeout_ms: float | None = None,
        ext: Mapping[str, str] | None = None,
        *,
        sandbox: SandboxConfig | None = None,
        priority: Priority = "normal",
        idempotent: bool | None = None,
        stdin: str | bytes = "",
        argv: Sequence[str] = (),
        files: Mapping[str, str | bytes] | None = None,
        collect: Sequence[str] = (),
        displays: bool = False,
    ) -> ExecutionResult:
        r"""Run a program, at most once, and return the result.

        Args:
            code: The program; not empty.
            language: A `Language` with the same endpoints, or a name such as "py". For a string that is read from
                elsewhere, use `Language.parse`. `OtherLanguage("ruby")` is a further language of a SandboxFusion or
                Piston server. Default: None, which means the `language` of the runtime.
            timeout_ms: The time limit of the program in milliseconds, above 0 and at most the limit of the sandbox.
                Default: None, which means the time limit of the sandbox.
            ext: Further fields for the server; coze-loop sends trace ids in them. Default: None, no fields.
            sandbox: The limits of this call. They can lower the limits of the server, not raise them. Default: None,
                which means the limits in the settings.
            priority: A priority for the server's scheduler; the known servers ignore it. Any text that is not empty is
                sent, although type checkers accept only the usual names. Default: "normal".
            idempotent: Whether the program may run again if an answer is lost or a server fails. A call whose
                code cannot have run is retried in any case. Default: None, which means `RetrySettings.idempotent`.
            stdin: The standard input; a str is sent as UTF-8. Default: "", an empty input.
            argv: The command-line arguments, at most 1,000. Default: no arguments.
            files: The contents of files in the working folder of the program, by relative path such as "data/in.csv"; a
                str is sent as UTF-8. Modules among them can be imported. At most 1,000 files; the embedded FaaS accepts
                requests of up to 8 MiB. Default: None, no files.
            collect: Patterns of files to return in `result.files` after the program has ended, for every outcome; at
                most 100, with at most 1,000 parts between slashes in total. `*` does not match "/" or a leading dot;
                `**` matches any number of folders. At most 1,000 files are returned, which may total at most
                `max_output_bytes`, and only those that are found within one second. Default: no files.
            displays: Whether to return what the program displays in `result.displays`: the value of its last
                expression, open figures of matplotlib, and the arguments of `display`, a function that it can call.
                All displays of a run may total at most `max_output_bytes`. In JavaScript and TypeScript, the last
                statement counts as the expression, unless the program can only be a module, because it uses
                `import.meta`, for example. Default: False.

        Returns:
            The result. A program that fails is an outcome, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong, or the server does not support `stdin`, `argv`, `files`,
                `collect` or `displays`; nothing was sent.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            ConfigurationError: The runtime belongs to another event loop, or `Settings.http_session` is closed.
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
        program = self._program(
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
            displays=displays,
        )
        return await self._run(program)

    def stream_code(
        self, code: str, language: LanguageOption | None = None, **options: Unpack[RunOptions]
    ) -> StreamedRun:
        r"""Run a program, at most once, and yield its output while it runs.

        A slow reader slows the program down. The time limit of the program includes the time for which it waits; the
        deadline of the call does not. A call is retried as by `run_code`, but not after the first output.

        Args:
            code: The program; not empty.
            language: See `run_code`.
            **options: The other arguments of `run_code`. The chunks have all output, up to twice `max_output_bytes`.
                `result.stdout` and `result.stderr` are cut to `max_output_bytes`, and to 1 MiB at most.

        Returns:
            A `StreamedRun`: an asynchronous context manager, and an iterator of `OutputChunk`. After the iteration,
            `result` is the result of the program. If it was not cut, the joined chunks equal the text in the result.

        Raises:
            FaasrtError: See `run_code`. Wrong arguments are refused at once. All other errors are raised by the
                iteration.

        Cancellation: as for `run_code`.

        Example:
            >>> code = "import time\nfor n in range(3): print(n, flush=True); time.sleep(0.05)"
            >>> async with runtime.stream_code(code) as run:
            ...     async for chunk in run:
            ...         print(chunk.text, end="")
            0
            1
            2
            >>> run.result.outcome
            <Outcome.OK: 'OK'>
        """
        check_options("stream_code", options, RunOptions)
        return StreamedRun(functools.partial(self._run, self._program(code, language, **options)))

    def session(
        self,
        language: LanguageOption | None = None,
        *,
        sandbox: SandboxConfig | None = None,
        files: Mapping[str, str | bytes] | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> Session:
        r"""Return a session: a program whose variables, imports and files live on between runs.

        Entering its `async with` statement opens it on one of the endpoints, and leaving ends it. Opening is retried as
        a program that was not started. The guide is `faasrt/docs/sessions.md`.

        Args:
            language: See `run_code`. The server must have sessions of the language: the embedded FaaS has them for
                Python, JavaScript and TypeScript.
            sandbox: The limits of the session. Its memory limit holds for all that the session keeps, and its time and
                output limits hold for each run. Default: None, which means the limits in the settings.
            files: The contents of files in the working folder at the start; see `run_code`. Default: None, no files.
            idle_timeout_s: The seconds without a call after which the server ends the session, above 0 and at most
                86,400. A server may have a lower maximum, which then holds. Default: 600.

        Raises:
            InvalidRequestError: An argument is wrong, or, on entering, no endpoint has such sessions.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed.
            OverloadedError: On entering: the server has too many sessions.
            ServiceError: On entering: the infrastructure failed in another way.

        Cancellation: if you cancel while entering, the server ends the session. If the message that asks for this is
            lost, the session ends after `idle_timeout_s`.

        Example:
            >>> async with manager.session("python", files={"a.csv": "n\n20\n22"}) as session:
            ...     result = await session.run_code("import csv; rows = list(csv.DictReader(open('a.csv')))")
            ...     result = await session.run_code("sum(int(row['n']) for row in rows)")
            >>> result.displays[0].text
            '42'
        """

        async def find_host() -> SessionHost:
            return self.sessions

        options = SessionOptions.checked(sandbox=sandbox, files=files, idle_timeout_s=idle_timeout_s)
        return Session(self._language(language), options, find_host)

    async def call_function(
        self,
        code: str,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        language: LanguageOption | None = None,
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
                string keys; with `kwargs` at most 8 MiB of JSON. Default: no arguments.
            kwargs: The keyword arguments; Python only. Default: None, no arguments.
            language: See `run_code`.
            **options: `timeout_ms` (the limit for the definitions and the call in total), `ext`, `sandbox`, `priority`,
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
        check_options("call_function", options, CallOptions)
        check_has_return_val(self._language(language), "call_function")
        program = self._program(code, language, **options)
        keywords = check_kwargs({} if kwargs is None else kwargs)
        check_keywords(keywords, program.language)
        name = check_function(function, program.language)
        case = encode_case(check_args(args), keywords, program.language)
        execution = Execution(program=program, job=GuestJob(function=name, cases=[case]))
        return await self.executor.run(execution)

    async def run_cases(
        self,
        code: str,
        function: str,
        cases: Iterable[Sequence[Any]],
        *,
        language: LanguageOption | None = None,
        isolate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[ExecutionResult]:
        """Call a function of a program once for each case, with many cases in one execution.

        Each case has its own outcome, output, value and duration. An execution first runs the program once, which
        defines the function (below, "the definitions"), and then calls the function for each case. So a case sees the
        globals and caches that earlier cases changed, unless `isolate` is true. The output of every case begins with
        the output of the definitions, cut to 8 KiB.

        If a case reaches its time limit, exits or crashes, the execution ends. That case gets the outcome, and the
        remaining cases run in a new execution. If k cases end their execution, k + 1 executions are needed. Large
        arguments (over 1 MiB in total) or results (over 64 KiB), and long run times, need more.

        A case that took longer than its limit is always a TIMEOUT. Some servers, such as the embedded FaaS, stop it
        late, and its output is then lost: see "Time limits of cases" in `faasrt/docs/programs.md`.

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
                false, all cases of the execution get its outcome, and their error says so.

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
        check_options("run_cases", options, CallOptions)
        check_has_return_val(self._language(language), "run_cases")
        program = self._program(code, language, **options)
        name = check_function(function, program.language)
        check_flag("isolate", isolate, optional=False)
        encoded = encode_cases(cases, program.language)
        job = GuestJob(function=name, cases=encoded, single=False, isolate=isolate)
        results: dict[int, ExecutionResult] = {}
        async for found in self.executor.run_cases(program, job):
            results |= found
        return [results[index] for index in range(len(results))]

    async def judge(
        self,
        code: str,
        tests: Tests,
        *,
        function: str | None = None,
        language: LanguageOption | None = None,
        compare: Compare | None = None,
        stop_on_failure: bool = False,
        concurrency: int | None = None,
        **options: Unpack[JudgeOptions],
    ) -> Judgement:
        """Run a program once for each test, and compare what it prints, or what its function returns, with the expected
        output or value.

        Args:
            code: The program; not empty.
            tests: The tests, at least one, all of one class: `TestCase`; `FunctionTest`, which share executions as the
                cases of `run_cases` do; or `AssertTest`, which share at least three executions, or two if their test
                programs have run before.
            function: The name of the function that `FunctionTest` or `AssertTest` calls. Default: None, for `TestCase`,
                or for `AssertTest` if its test program uses only one name that it does not define.
            language: See `run_code`. `AssertTest` needs Python.
            compare: The comparison; see `faasrt.judging`. Default: None, which means "lines", or "equal" for
                `FunctionTest`. It must be None for `AssertTest`.
            stop_on_failure: Whether the tests after the first test that does not pass are skipped. They may have run.
                Default: False.
            concurrency: The largest number of executions in flight, from 1 to 100,000. Default: None, which means 64.
                Where tests share executions, there is first one for each time limit. After a TIMEOUT, the remaining
                tests are divided between two, so that tests that hang run at the same time.
            **options: `timeout_ms` (for each test), `ext`, `sandbox`, `priority` and `idempotent`; see `run_code`, and
                for `idempotent` where tests share executions also `run_cases`.

        Returns:
            The verdicts. A wrong answer, or a program that fails, is a verdict, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong, and nothing was sent; or the test program of an `AssertTest`
                fails for every judged program, and the judged program was not sent.
            CompareError: The function `compare` failed.
            FaasrtError: See `run_code`. The verdicts on other tests are then lost.

        Cancellation: as for `run_code`.

        Example:
            >>> judgement = await runtime.judge("print(int(input()) * 2)", [TestCase("2", "4"), TestCase("3", "7")])
            >>> judgement.score, judgement.results[1].difference
            (0.5, "line 1: expected '7', got '6'")
            >>> tests = [FunctionTest([2], 4), FunctionTest([3], 7)]
            >>> judgement = await runtime.judge("def double(n): return n * 2", tests, function="double")
            >>> judgement.score, judgement.results[1].difference
            (0.5, 'value: expected 7, got 6')
        """
        check_options("judge", options, JudgeOptions)
        parsed = self._language(language)
        checked = check_arguments(tests, function, compare, stop_on_failure, concurrency)
        if function is not None:
            check_has_return_val(parsed, "judge with a function")
        programs = [self._program(code, parsed, **options_of(test, options)) for test in checked]
        judge = Judge(self._run, self.executor.run_cases, stop_on_failure, concurrency)
        if isinstance(checked[0], AssertTest):
            max_bytes = self._transport.registry.max_cases_bytes(parsed)
            with self.calls.track():
                return await judge_by_asserts(judge, checked, function, programs, self._first_calls, max_bytes)
        job = None if function is None else function_job(checked, function, parsed)
        with self.calls.track():
            shares = job is None and parsed is Language.PYTHON and self._settings.envelope != "never"
            if shares and await self._transport.registry.starts_slowly(parsed):
                job = program_job(programs)
            return await judge.run_tests(checked, programs, job, functools.partial(compare_result, compare=compare))

    async def validate_code(
        self, code: str, language: LanguageOption | None = None, *, where: Where = "auto"
    ) -> ValidationResult:
        """Check the syntax of a program, without running it.

        Args:
            code: The program. An empty program is not valid.
            language: A language with the same endpoints. Default: None, which means the runtime's `language`.
            where: "local" checks Python with `ast`, in a separate process on this machine, by the grammar of this
                Python. "remote" sends the program to the FaaS. "auto" means "remote". For Python it means "local" if
                this Python and the Python of the FaaS have the same version, or if the FaaS cannot validate programs or
                does not answer. Default: "auto".

        Returns:
            The result, with lines and columns, and the name of the parser. The local check covers only the grammar; for
            example, it accepts a `return` outside a function.

        Raises:
            InvalidRequestError: An argument is wrong, or the program is too large for the local check (2 MiB).
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The runtime was closed, before the call or during it.
            ConfigurationError: The runtime belongs to another event loop, or `Settings.http_session` is closed.
            RejectedError: The FaaS cannot validate programs. python-faas and js-faas cannot.
            ServiceError: The infrastructure failed in another way.

        Cancellation: returns the permit and closes the connection, or ends the process.

        Example:
            >>> (await runtime.validate_code("def f(:")).diagnostics
            (Diagnostic(message='invalid syntax', line=1, column=7),)
        """
        parsed = self._language(language)
        self._transport.registry.loop.check()
        check_where(where, parsed)
        if not isinstance(code, str):
            raise InvalidRequestError(f"code must be a str, got {type(code).__name__}")
        if not code.strip():
            return ValidationResult.empty_code()
        with self.calls.track():
            if await validates_locally(self._transport.registry, where, parsed):
                return await self._checker.check(code)
            request = validation(parsed, code, self._transport.settings)
            return await self._transport.run(self._transport.call(self.calls, parsed), request)

    def get_return_val_function(self) -> str:
        """Return the source of `return_val`.

        It is needed only on js-faas with `envelope="never"`. Everywhere else `return_val` is defined.

        Raises:
            InvalidRequestError: The language is not Python, JavaScript or TypeScript.

        Example:
            >>> runtime.get_return_val_function().splitlines()[0]
            'def return_val(value):'
        """
        check_has_return_val(self.language, "return_val")
        return return_val_function(Language.parse(self.language))

    def get_supported_languages(self) -> tuple[Language | OtherLanguage, ...]:
        """Return the languages that this runtime's endpoints serve."""
        own = self._transport.registry.urls(self.language)
        if not own:
            return ()
        languages = [parse_language(name) for name, urls in self._settings.endpoints.items() if urls == own]
        return tuple(dict.fromkeys((*languages, self.language)))

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints of this runtime concurrently, each within `TimeoutSettings.health_s`.

        A failed probe is an unhealthy entry in the result, not an exception.

        Raises:
            RuntimeClosedError: The runtime was closed.
        """
        with self.calls.track():
            return await self._transport.registry.probe_all(self._transport.registry.urls(self.language))

    def get_metrics(self) -> Metrics:
        """Return the metrics of this runtime's languages since the factory was created."""
        registry = self._transport.registry
        own = registry.urls(self.language)
        languages = (self.language, *self.get_supported_languages())  # it may have left the settings
        families = set(map(family_of, languages))
        states = tuple(
            state for state in registry.states() if state.family in families and configured_url(state.endpoint) in own
        )
        return self._transport.counters.snapshot(
            languages,
            in_flight=sum(state.in_flight for state in states),
            queued=registry.pool.queued_for(languages),
            states=states,
        )

    @property
    def _settings(self) -> Settings:
        return self._transport.settings

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self.calls.closing

    async def aclose(self) -> None:
        """Close the runtime. The last runtime of a factory closes the connections. Closing twice is harmless.

        Calls that wait for a permit fail with `RuntimeClosedError` at once; so does a `judge` if one of its executions
        waits for a permit. Calls in flight have `TimeoutSettings.close_s` seconds to finish, and then fail with
        `RuntimeClosedError` too. Then its sessions are ended, within `TimeoutSettings.health_s`.

        Cancellation: cancels the calls in flight at once.
        """
        self._transport.fail_waiting(self.calls)
        try:
            await self.calls.close(self._settings.timeouts.close_s)
        finally:
            async with self._closing:
                if not self.calls.released:
                    try:
                        await self.sessions.aclose()
                    finally:
                        self.calls.released = True
                        try:
                            await self._checker.aclose()
                        finally:
                            await self._transport.registry.release()

    async def __aenter__(self) -> Self:
        self.calls.check_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        endpoints = ", ".join(self._transport.registry.urls(self.language))
        return f"<Runtime {self.language} at {endpoints}{' (closed)' if self.closed else ''}>"

    def _run(self, program: Program, live: LiveReader | None = None) -> Coroutine[Any, Any, ExecutionResult]:
        return self.executor.run(Execution(program, self._settings.envelope), live)

    def _program(self, code: str, language: LanguageOption | None, **options: Unpack[RunOptions]) -> Program:
        settings = self._settings
        return Program.checked(self._language(language), code, settings.sandbox, settings.retry.idempotent, **options)

    def _language(self, language: LanguageOption | None) -> Language | OtherLanguage:
        self.calls.check_open()
        parsed = self.language if language is None else parse_language(language)
        if parsed != self.language and parsed not in self.get_supported_languages():
            raise UnsupportedLanguageError(
                f"language must be one of this runtime ({', '.join(self.get_supported_languages())}), got {parsed}: "
                f"get a runtime for {parsed} from the manager"
            )
        if not self._transport.registry.urls(parsed):
            raise unsupported_error(parsed)
        return parsed


def with_cache(runtime: Runtime, cache: ResultCache) -> Runtime:
    """Return a view of a runtime that reuses stored results. Closing either closes both."""
    view = copy.copy(runtime)
    view.executor = CachingExecutor(Executor(runtime._transport, runtime.calls), cache)
    return view
