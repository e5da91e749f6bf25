"""The client for an application: a runtime for each language, batches, and the embedded FaaS.

It adds to `Runtime` what concerns several languages, and leaves the rest to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, Unpack

import attrs

from faasrt._setting_checks import Endpoints
from faasrt.client.cache import CacheOption, ResultCache
from faasrt.client.factory import RuntimeFactory, check_settings
from faasrt.client.local_faas import ENDPOINT, LocalManagerOptions, ManagedLocalFaaS
from faasrt.client.map import Map, StopOn, TaskResults, stop_maps
from faasrt.client.runtime import Runtime, with_cache
from faasrt.client.session import Session, SessionHost, SessionOptions, find_session
from faasrt.client.streaming import StreamedRun
from faasrt.client.syntax import Where, check_where, validates_locally
from faasrt.config import NoEndpointError, SandboxConfig, Settings, SettingsOptions
from faasrt.errors import ConfigurationError, RuntimeClosedError, UnsupportedLanguageError, safe_repr
from faasrt.judging import Compare, Judgement, Tests
from faasrt.languages import Language, LanguageOption, OtherLanguage, parse_language
from faasrt.protocol.execution import Execution
from faasrt.protocol.program import Program
from faasrt.protocol.sessions import IDLE_TIMEOUT_S, check_id
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.tasks import CallOptions, CodeTask, JudgeOptions, Priority, RunOptions, check_options
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink
from faasrt.telemetry.logs import LogSink
from faasrt.telemetry.metrics import Metrics
from faasrt.transport.lifecycle import LoopAffinity, run_for_each
from faasrt.transport.live_reader import LiveReader

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS


def _check_language(language: object) -> None:
    if language is None:
        raise UnsupportedLanguageError("a manager has no default language: pass one, such as language='python'")


async def _finish(runtime: Runtime) -> None:
    """Close a runtime after the calls in flight, however long they take."""
    try:
        await runtime.calls.close(None)
    finally:
        await runtime.aclose()


class RuntimeManager:
    r"""Keeps one runtime for each language. Create one manager per application, and share it.

    A manager belongs to the event loop in which it is first used, so create a new one in each `asyncio.run`. uvloop is
    supported.

    Args:
        factory: Creates the runtimes. Default: None, which means a `RuntimeFactory` with the other arguments.
        settings: Endpoints and limits. Must be None if `factory` is given.
        logger: A structlog or standard library logger. Must be None if `factory` is given.
        telemetry: Sinks for the events of calls, see `RuntimeFactory`. Must be empty if `factory` is given.
        cache: Where results are stored and reused: the path of a folder, a `DiskCache`, or another `Cache`; see
            `faasrt/docs/caching.md`. Default: None, which means that every program runs.

    Raises:
        ConfigurationError: Both `factory` and another argument were given, or an argument is wrong.

    Example:
        >>> async with RuntimeManager.from_env() as manager:
        ...     result = await manager.run_code("print(6 * 7)", "python")
        >>> result.stdout
        '42\n'
    """

    def __init__(
        self,
        factory: RuntimeFactory | None = None,
        *,
        settings: Settings | None = None,
        logger: Any = None,
        telemetry: Iterable[Sink] = (),
        cache: CacheOption = None,
    ) -> None:
        sinks = check_sinks(telemetry)
        if factory is None:
            factory = RuntimeFactory(settings, logger, telemetry=sinks)
        elif not isinstance(factory, RuntimeFactory):
            raise ConfigurationError(f"factory must be a RuntimeFactory, got {type(factory).__name__}")
        elif settings is not None or logger is not None or sinks:
            raise ConfigurationError("factory must not be combined with settings, logger or telemetry")
        self._factory = factory
        self._cache = ResultCache.checked(cache)
        self._local: ManagedLocalFaaS | None = None
        self._runtimes: dict[Language | OtherLanguage, Runtime] = {}
        self._closing: set[Runtime] = set()  # by `close_runtimes`
        self._lock = asyncio.Lock()
        self._maps: set[Map] = set()
        self._closed = False
        self._loop = LoopAffinity("manager")

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        local_fallback: bool = False,
        logger: Any = None,
        telemetry: Iterable[Sink] = (),
        cache: CacheOption = None,
        **options: Unpack[SettingsOptions],
    ) -> Self:
        """Return a manager for the endpoints in the environment; see `Settings.from_env`.

        Args:
            environ: The variables. Default: None, which means `os.environ`.
            local_fallback: Whether to use the embedded FaaS if no endpoint is configured; see `local`. Default: False.
            logger: A structlog or standard library logger.
            telemetry: Sinks for the events of calls.
            cache: Where results are stored and reused; see `RuntimeManager`.
            **options: Fields of `Settings`, which take precedence over the environment.

        Raises:
            ConfigurationError: No endpoint is configured, or a setting is wrong.
            TypeError: An option is unknown.

        Example:
            >>> RuntimeManager.from_env({"COZE_LOOP_PYTHON_FAAS_URL": "http://faas:8000"}, token="secret")
            <RuntimeManager of python>
        """
        if not isinstance(local_fallback, bool):
            raise ConfigurationError(f"local_fallback must be True or False, got {safe_repr(local_fallback)}")
        try:
            settings = Settings.from_env(environ, **options)
        except NoEndpointError:
            if not local_fallback:
                raise
            return cls.local(logger=logger, telemetry=telemetry, cache=cache, **options)
        return cls(settings=settings, logger=logger, telemetry=telemetry, cache=cache)

    @classmethod
    def from_url(
        cls,
        url: str | Sequence[str] | Endpoints,
        *,
        logger: Any = None,
        telemetry: Iterable[Sink] = (),
        cache: CacheOption = None,
        **options: Unpack[SettingsOptions],
    ) -> Self:
        """Return a manager for one FaaS that serves every language, or a FaaS for each; see `Settings.from_url`.

        Example:
            >>> RuntimeManager.from_url("http://faas:8000", envelope="never")
            <RuntimeManager of python, javascript, typescript, c, cpp, go, rust, java, bash>
        """
        return cls(settings=Settings.from_url(url, **options), logger=logger, telemetry=telemetry, cache=cache)

    @classmethod
    def local(
        cls,
        languages: Iterable[LanguageOption] | None = None,
        *,
        workers: int | None = None,
        settings: Settings | None = None,
        logger: Any = None,
        telemetry: Iterable[Sink] = (),
        cache: CacheOption = None,
        **options: Unpack[LocalManagerOptions],
    ) -> Self:
        r"""Return a manager with an embedded FaaS in this process. Needs the extra `local`.

        The FaaS starts with `async with`, or at the first call, and stops with `aclose`. If the start fails or is
        cancelled, the next call starts it again. Results, errors, health, logs and metrics name its endpoint
        `http://local`; `local_faas.url` is its URL. It listens on loopback. Without a `token`, other users of the
        machine can run programs on it too.

        Args:
            languages: The languages to serve. Default: None, which means Python, JavaScript, TypeScript, and every
                other language whose toolchain is installed.
            workers: The number of CPUs to use. Default: None, which means all.
            settings: The settings, without `endpoints`. `LimiterSettings.queue_timeout_s` (30 s if None) also limits
                the wait in the FaaS's queue, and is added to `TimeoutSettings.grace_s`. Default: None, which means
                `Settings()`.
            logger: A structlog or standard library logger.
            telemetry: Sinks for the events of calls, and of the FaaS.
            cache: Where results are stored and reused; see `RuntimeManager`.
            **options: Fields of `Settings`, which take precedence over `settings`, such as `sandbox`, the limits of
                every program; and `level`, `engines`, `python`, `host`, `port`, `drain_s`, `max_programs`,
                `max_wall_factor`, `max_sessions`, `session_idle_s` and `session_memory_mb`, see
                `faasrt.local.LocalFaaS`.

        Raises:
            ConfigurationError: The engines are not installed, or an argument is wrong.
            TypeError: An option is unknown.

        Example:
            >>> async with RuntimeManager.local(["ts"], sandbox=SandboxConfig(timeout_limit_s=5)) as manager:
            ...     (await manager.run_code("const n: number = 42; console.log(n)", "ts")).stdout
            '42\n'
        """
        check_options("local", options, LocalManagerOptions)
        own: dict[str, Any] = dict(options)
        fields = {name: own.pop(name) for name in options.keys() & SettingsOptions.__annotations__.keys()}
        settings = attrs.evolve(check_settings(settings), **fields)
        # The client and the FaaS share one dispatcher, so that a failing sink is logged only once.
        sinks = (EventDispatcher(check_sinks(telemetry)),)
        local = ManagedLocalFaaS(languages, settings, workers=workers, telemetry=(LogSink(logger), *sinks), **own)
        manager = cls(settings=settings, logger=logger, telemetry=sinks, cache=cache)
        manager._local = local
        return manager

    async def get_runtime(self, language: LanguageOption) -> Runtime:
        """Return the runtime for a language. All callers share it, so do not close it.

        Args:
            language: See `Runtime.run_code`.

        Raises:
            UnsupportedLanguageError: The language is unknown, or no endpoint is configured for it.
            RuntimeClosedError: The manager was closed.
            ConfigurationError: The embedded FaaS cannot listen.
            ServerError: The embedded FaaS cannot run the language.

        Cancellation: stops an embedded FaaS that is starting; the next call starts it again.

        Example:
            >>> python = await manager.get_runtime("python")
            >>> python is await manager.get_runtime("py")
            True
        """
        _check_language(language)
        if self._local is None:
            return self._cached_runtime(parse_language(language))
        parsed = Language.parse(language)
        await self._start_local()
        # Outside the lock: JavaScript must not wait while Python is compiled.
        await self._local.server.wait_ready(parsed)
        return self._cached_runtime(parsed)

    async def run_code(
        self,
        code: str,
        language: LanguageOption,
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
            language: A `Language`, or a name such as "py"; see `Runtime.run_code`.
            timeout_ms: The time limit of the program in milliseconds. Default: None, which means the time limit of the
                sandbox.
            ext: Further fields for the server. Default: None, no fields.
            sandbox: The limits of this call. Default: None, which means the limits in the settings.
            priority: A priority for the server's scheduler. Default: "normal".
            idempotent: Whether the program may run again if an answer is lost or a server fails. Default: None, which
                means `RetrySettings.idempotent`.
            stdin: The standard input. Default: "", an empty input.
            argv: The command-line arguments. Default: no arguments.
            files: The contents of files in the working folder, by relative path. Default: None, no files.
            collect: Patterns of files to return in `result.files`. Default: no files.
            displays: Whether to return what the program displays in `result.displays`. Default: False.

        `Runtime.run_code` describes the arguments, their limits and the errors in detail.

        Returns:
            The result. A program that fails is an outcome, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong, or the server does not support it; nothing was sent.
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The manager was closed, before the call or during it.
            ConfigurationError: The manager belongs to another event loop, or `Settings.http_session` is closed.
            QueueFullError: Too many calls are waiting already.
            ServiceError: The infrastructure failed; `faasrt.errors` lists the subclasses.

        Cancellation: returns the permit and closes the connection. The embedded FaaS then stops the program; other
            servers may run it to its end.

        Example:
            >>> (await manager.run_code("print(6 * 7)", "python", timeout_ms=5_000)).stdout
            '42\n'
        """
        runtime = await self.get_runtime(language)
        return await runtime.run_code(
            code,
            None,
            timeout_ms,
            ext,
            sandbox=sandbox,
            priority=priority,
            idempotent=idempotent,
            stdin=stdin,
            argv=argv,
            files=files,
            collect=collect,
            displays=displays,
        )

    def stream_code(self, code: str, language: LanguageOption, **options: Unpack[RunOptions]) -> StreamedRun:
        r"""Run a program, at most once, and yield its output while it runs; see `Runtime.stream_code`.

        Args:
            code: The program; not empty.
            language: See `run_code`.
            **options: The other arguments of `run_code`.

        Returns:
            A `StreamedRun`: an asynchronous context manager, and an iterator of `OutputChunk`. After the iteration,
            `result` is the result of the program.

        Raises:
            FaasrtError: See `run_code`. Wrong arguments are refused at once. All other errors are raised by the
                iteration.

        Cancellation: as for `run_code`.

        Example:
            >>> async with manager.stream_code("print(1)", "python") as run:
            ...     async for chunk in run:
            ...         print(chunk.text, end="")
            1
            >>> run.result.outcome
            <Outcome.OK: 'OK'>
        """
        check_options("stream_code", options, RunOptions)
        _check_language(language)
        settings = self.settings
        program = Program.checked(
            parse_language(language), code, settings.sandbox, settings.retry.idempotent, **options
        )

        async def run(live: LiveReader) -> ExecutionResult:
            runtime = await self.get_runtime(language)
            return await runtime.executor.run(Execution(program, self.settings.envelope), live)

        return StreamedRun(run)

    def session(
        self,
        language: LanguageOption,
        *,
        sandbox: SandboxConfig | None = None,
        files: Mapping[str, str | bytes] | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> Session:
        r"""Return a session: a program whose variables, imports and files live on between runs.

        Entering its `async with` statement opens it on one of the endpoints, and leaving ends it; see
        `Runtime.session`. The guide is `faasrt/docs/sessions.md`.

        Args:
            language: See `run_code`. The server must have sessions of the language: the embedded FaaS has them for
                Python, JavaScript and TypeScript.
            sandbox: The limits of the session. Default: None, which means the limits in the settings.
            files: The contents of files in the working folder at the start; see `run_code`. Default: None, no files.
            idle_timeout_s: The seconds without a call after which the server ends the session, above 0 and at most
                86,400. A server may have a lower maximum, which then holds. Default: 600.

        Raises:
            InvalidRequestError: An argument is wrong, or, on entering, no endpoint has such sessions.
            UnsupportedLanguageError: The language is unknown, or, on entering, no endpoint serves it.
            RuntimeClosedError: On entering: the manager was closed.
            OverloadedError: On entering: the server has too many sessions.
            ServiceError: On entering: the infrastructure failed in another way.

        Cancellation: if you cancel while entering, the server ends the session. If the message that asks for this is
            lost, the session ends after `idle_timeout_s`.

        Example:
            >>> async with manager.session("python", files={"a.txt": "41"}) as session:
            ...     result = await session.run_code("n = int(open('a.txt').read())")
            ...     result = await session.run_code("n + 1")
            >>> result.displays[0].text
            '42'
        """
        _check_language(language)
        checked = SessionOptions.checked(sandbox=sandbox, files=files, idle_timeout_s=idle_timeout_s)

        async def find_host() -> SessionHost:
            return (await self.get_runtime(language)).sessions

        return Session(parse_language(language), checked, find_host)

    async def resume_session(self, id: str, endpoint: str | None = None) -> Session:  # noqa: A002
        """Return a session that is open, even if another process has opened it.

        The manager that has opened a session ends it when it is closed. This one does not, unless you use the returned
        session in an `async with` statement, or call its `aclose`.

        Args:
            id: The `id` of the session.
            endpoint: The `endpoint` of the session, which must belong to this manager. Default: None, which asks each
                one.

        Raises:
            InvalidRequestError: The id is malformed, or `endpoint` is not one of this manager.
            SessionLostError: The session has ended, or no endpoint knows it.
            ServiceError: No endpoint that has answered knows it, and another one failed.
            RuntimeClosedError: The manager was closed.
            ConfigurationError: The manager belongs to another event loop, or `Settings.http_session` is closed.

        Example:
            >>> async with manager.session("python") as session:
            ...     result = await session.run_code("x = 41")
            ...     async with RuntimeManager.from_env() as other:
            ...         same = await other.resume_session(session.id, session.endpoint)
            ...         print((await same.run_code("x + 1")).displays[0].text)
            42
        """
        check_id(id)
        await self._start_local()
        registry = self._factory.transport.registry
        registry.retain()
        try:
            info, url = await find_session(registry, id, endpoint)
            runtime = await self.get_runtime(info.language)
        finally:
            await registry.release()
        return runtime.sessions.attach(info, url, owned=False)

    async def call_function(
        self,
        code: str,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        language: LanguageOption,
        **options: Unpack[CallOptions],
    ) -> ExecutionResult:
        """Run a program that defines a function, call the function, at most once, and return its value.

        Arguments and the return value are sent as JSON; see `Runtime.call_function`.

        Args:
            code: The program; not empty.
            function: The name of the function.
            args: The positional arguments. Default: no arguments.
            kwargs: The keyword arguments; Python only. Default: None, no arguments.
            language: See `run_code`.
            **options: `timeout_ms` (the limit for the definitions and the call in total), `ext`, `sandbox`, `priority`,
                `idempotent`, `stdin` and `files`; see `run_code`.

        Returns:
            The result. `value` is the return value of the function. If the function is missing, raises or exits, the
            outcome is USER_ERROR.

        Raises:
            InvalidRequestError: An argument is wrong, or not JSON; nothing was sent.
            FaasrtError: See `run_code`.

        Cancellation: as for `run_code`.

        Example:
            >>> code = "def add(a, b): return a + b"
            >>> (await manager.call_function(code, "add", [1], {"b": 2}, language="python")).value
            3
        """
        runtime = await self.get_runtime(language)
        return await runtime.call_function(code, function, args, kwargs, **options)

    async def run_cases(
        self,
        code: str,
        function: str,
        cases: Iterable[Sequence[Any]],
        *,
        language: LanguageOption,
        isolate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[ExecutionResult]:
        """Call a function of a program once for each case, with many cases in one execution; see `Runtime.run_cases`.

        Args:
            code: The program; not empty.
            function: The name of the function.
            cases: A tuple or list of positional arguments for each case; see `call_function`.
            language: See `run_code`.
            isolate: Whether each case runs the definitions again, in a new namespace. Imported modules are kept.
                Default: False.
            **options: `timeout_ms` (for each case), `ext`, `sandbox`, `priority`, `idempotent`, `stdin` and `files`;
                see `Runtime.run_cases`.

        Returns:
            One result per case, in order.

        Raises:
            InvalidRequestError: An argument is wrong, or not JSON; nothing was sent.
            FaasrtError: See `run_code`. The results of earlier executions are lost.

        Cancellation: as for `run_code`.

        Example:
            >>> code = "def double(n): return 2 * n"
            >>> results = await manager.run_cases(code, "double", [(1,), (2,)], language="python")
            >>> [result.value for result in results]
            [2, 4]
        """
        runtime = await self.get_runtime(language)
        return await runtime.run_cases(code, function, cases, isolate=isolate, **options)

    async def judge(
        self,
        code: str,
        tests: Tests,
        *,
        language: LanguageOption,
        function: str | None = None,
        compare: Compare | None = None,
        stop_on_failure: bool = False,
        concurrency: int | None = None,
        **options: Unpack[JudgeOptions],
    ) -> Judgement:
        """Run a program once for each test, and compare what it prints, or what its function returns, with the expected
        output or value; see `Runtime.judge`.

        Args:
            code: The program; not empty.
            tests: The tests, at least one, all of one class: `TestCase`, `FunctionTest` or `AssertTest`.
            language: See `run_code`. `AssertTest` needs Python.
            function: The name of the function that `FunctionTest` or `AssertTest` calls. Default: None, for `TestCase`,
                or for `AssertTest` if its test program uses only one name that it does not define.
            compare: The comparison; see `faasrt.judging`. Default: None, which means "lines", or "equal" for
                `FunctionTest`. It must be None for `AssertTest`.
            stop_on_failure: Whether the tests after the first test that does not pass are skipped. They may have run.
                Default: False.
            concurrency: The largest number of executions in flight, from 1 to 100,000. Default: None, which means 64.
            **options: `timeout_ms` (for each test), `ext`, `sandbox`, `priority` and `idempotent`; see `run_code`.

        Returns:
            The verdicts. A wrong answer, or a program that fails, is a verdict, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong, and nothing was sent; or the test program of an `AssertTest`
                fails for every judged program, and the judged program was not sent.
            CompareError: The function `compare` failed.
            FaasrtError: See `run_code`. The verdicts on other tests are then lost.

        Cancellation: as for `run_code`.

        Example:
            >>> tests = [TestCase("2", "4"), TestCase("3", "7")]
            >>> judgement = await manager.judge("print(int(input()) * 2)", tests, language="python")
            >>> judgement.score, judgement.results[1].difference
            (0.5, "line 1: expected '7', got '6'")
        """
        runtime = await self.get_runtime(language)
        return await runtime.judge(
            code,
            tests,
            function=function,
            compare=compare,
            stop_on_failure=stop_on_failure,
            concurrency=concurrency,
            **options,
        )

    async def validate_code(self, code: str, language: LanguageOption, *, where: Where = "auto") -> ValidationResult:
        """Check the syntax of a program, without running it.

        Args:
            code: The program. An empty program is not valid.
            language: See `run_code`.
            where: "local" checks Python on this machine, "remote" sends the program to the FaaS, and "auto" chooses;
                see `Runtime.validate_code`. Default: "auto".

        Returns:
            The result, with lines and columns, and the name of the parser.

        Raises:
            InvalidRequestError: An argument is wrong, or the program is too large for the local check (2 MiB).
            UnsupportedLanguageError: The language is unknown, or no endpoint serves it.
            RuntimeClosedError: The manager was closed, before the call or during it.
            ConfigurationError: The manager belongs to another event loop, or `Settings.http_session` is closed.
            RejectedError: The FaaS cannot validate programs. python-faas and js-faas cannot.
            ServiceError: The infrastructure failed in another way.

        Cancellation: returns the permit and closes the connection, or ends the process.

        Example:
            >>> (await manager.validate_code("def f(:", "python")).diagnostics
            (Diagnostic(message='invalid syntax', line=1, column=7),)
        """
        _check_language(language)
        parsed = parse_language(language)
        local = self._local
        if local is not None and check_where(where, parsed) and parsed in local.languages:
            await self._start_local()
            runtime = self._cached_runtime(parsed)
            # This does not wait until the language is ready.
            if await validates_locally(self._factory.transport.registry, where, parsed):
                return await runtime.validate_code(code, where="local")
        runtime = await self.get_runtime(parsed)
        return await runtime.validate_code(code, where=where)

    def map(
        self,
        tasks: Iterable[CodeTask] | AsyncIterable[CodeTask],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        stop_on: StopOn = None,
        max_failures: int | None = None,
        coalesce: int = 1,
        cache: CacheOption = None,
    ) -> TaskResults:
        """Run many tasks, and yield each result when it is available.

        Tasks are read lazily: the tasks in flight, and a window of the same size (64 at most). The error of a task is
        in its result. A cancellation, or closing the results or the manager, stops the source (a generator is closed),
        cancels the executions in flight and returns their permits.

        After a `break`, the results are closed when they are garbage-collected. To close them at once, use `async
        with`. Until then the tasks of the window are still read and run, but no others.

        Args:
            tasks: Any iterable or asynchronous iterable. An iterable that blocks also blocks the event loop.
            concurrency: The maximum number of tasks in flight, from 1 to 100,000; tasks that share an execution count
                as one. A task with tests runs up to 64 of them at once. The limits of the endpoints apply as well.
                Default: None, which means `LimiterSettings.max_concurrency`.
            ordered: Whether the results have the order of the tasks. A slow task then delays the results after it, and
                no task beyond the window is read. Default: False.
            stop_on: Ends the map after the first result that matches: an `Outcome`, an error class, a collection of
                these, or a function that takes a `TaskResult`. Default: None, which never ends the map early.
            max_failures: Raises the last error after this number of results in a row whose error is a `ServiceError`,
                from 1 to 100,000. No later task would have a result while no server is left. Default: None, which
                never does.
            coalesce: The maximum number of consecutive tasks, differing only in `args`, that share an execution, from 1
                to 100,000. A task then sees the globals that earlier ones changed; see `Runtime.run_cases`. Default: 1.
            cache: Where results are stored and reused; see `RuntimeManager`. Default: None, which means the cache of
                the manager.

        Returns:
            An asynchronous generator with a `TaskResult` for each task, which is also an asynchronous context manager.

        Raises:
            InvalidRequestError: An argument is wrong, or `tasks` yields something other than a `CodeTask`.
            ConfigurationError: `cache` cannot be used.
            RuntimeClosedError: The manager was closed.
            ServiceError: There were `max_failures` in a row.
            Exception: The source raised this error; it follows the results of all earlier tasks.

        Example:
            >>> tasks = (CodeTask(code, "python", id=code) for code in ("print(1)", "1 / 0", "return_val('[2]')"))
            >>> async with manager.map(tasks, concurrency=64, ordered=True) as results:
            ...     async for item in results:
            ...         print(item.task.id, "->", item.error or item.result.outcome)
            print(1) -> OK
            1 / 0 -> USER_ERROR
            return_val('[2]') -> OK
        """
        limit = self.settings.limiter.max_concurrency if concurrency is None else concurrency
        reused = ResultCache.checked(cache)
        run = Map(self.get_runtime, self._maps, tasks, limit, ordered, stop_on, max_failures, coalesce, reused)
        return TaskResults(run.run(), run.aclose)

    def get_supported_languages(self) -> tuple[Language | OtherLanguage, ...]:
        """Return the languages that have an endpoint, or the languages of the embedded FaaS.

        Example:
            >>> [str(language) for language in manager.get_supported_languages()]
            ['python', 'javascript', 'typescript', 'c', 'cpp', 'go', 'rust', 'java', 'bash']
        """
        return self._factory.get_supported_languages() if self._local is None else self._local.languages

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints concurrently. A failed probe is an unhealthy entry in the result, not an exception.

        Raises:
            RuntimeClosedError: The manager was closed.

        Example:
            >>> (await manager.get_health_status()).healthy
            True
        """
        await self._start_local()
        return await self._factory.get_health_status()

    def get_metrics(self) -> Metrics:
        """Return the metrics of every language since the manager was created.

        Example:
            >>> results = [await manager.run_code(code, "js") for code in ("console.log(1)", "throw 1")]
            >>> dict(manager.get_metrics().total.outcomes)
            {'OK': 1, 'USER_ERROR': 1}
        """
        return self._factory.get_metrics()

    @property
    def settings(self) -> Settings:
        """The settings in use. The settings of `RuntimeManager.local` have no `endpoints`.

        Example:
            >>> import attrs
            >>> limiter = faasrt.LimiterSettings(max_concurrency=8)
            >>> await manager.reconfigure(attrs.evolve(manager.settings, limiter=limiter))
            >>> manager.settings.limiter.max_concurrency
            8
        """
        return self._factory.settings if self._local is None else self._local.settings

    @property
    def local_faas(self) -> LocalFaaS | None:
        """The server of `RuntimeManager.local`; None for other managers. It is another one after a failed start."""
        return None if self._local is None else self._local.server

    async def reconfigure(self, settings: Settings) -> None:
        """Change the settings while calls are made; all runtimes of this manager use them.

        Calls in flight finish as they were: at their endpoint, with their deadline and limits. Further calls use the
        new settings. Further attempts, and calls that wait for a permit, go to the new endpoints. Endpoints that stay
        keep their connections, circuit breaker and adaptive limit. Endpoints that do not stay get no further calls;
        their connections are closed after their last call. Names in `dns+` URLs are not looked up here, but when calls
        use them. Waiting calls in a language that lost its endpoint fail with `UnsupportedLanguageError`. `logger`,
        `telemetry` and `cache` cannot change.

        The embedded FaaS of `RuntimeManager.local` stays as it is. So `endpoints` must be empty, `token` must be the
        same, and the limits of `sandbox` can only be lowered.

        Args:
            settings: All settings, not only the changed ones.

        Raises:
            ConfigurationError: The settings are wrong, or not possible here. Then nothing changes.
            RuntimeClosedError: The manager was closed.

        Cancellation: changes nothing.

        Example:
            >>> async with RuntimeManager.from_url("http://faas-1:8000") as manager:
            ...     settings = Settings.from_url(["http://faas-1:8000", "http://faas-2:8000"])
            ...     await manager.reconfigure(settings)
            ...     await manager.get_runtime("python")
            <Runtime python at http://faas-1:8000, http://faas-2:8000>
        """
        self._check_open()
        if self._local is None:
            await self._factory.reconfigure(settings)
            return
        async with self._lock:  # the embedded FaaS may be starting
            self._check_open()
            used = self._local.check(settings)
            if self._local.is_started:
                await self._factory.reconfigure(used)
            self._local.settings = settings

    async def close_runtimes(self) -> None:
        """Close every runtime, and end its sessions. The next `get_runtime` creates a new one. Stored results are kept.

        Waits for the calls in flight, without a time limit. New calls on a closed runtime are refused.

        Raises:
            RuntimeClosedError: The manager was closed.

        Cancellation: cancels the calls in flight.

        Example:
            >>> await manager.close_runtimes()
            >>> await manager.get_runtime("python") is runtime, runtime.closed
            (False, True)
        """
        self._check_open()
        runtimes = {*self._runtimes.values()}
        self._runtimes.clear()
        self._closing |= runtimes
        try:
            await run_for_each(_finish, runtimes)
        finally:
            self._closing -= runtimes

    async def aclose(self) -> None:
        """Close every runtime, and the embedded FaaS if there is one. Closing twice is harmless.

        Calls that wait for a permit fail with `RuntimeClosedError` at once; so does a `judge` if one of its executions
        waits for a permit. Calls in flight have `TimeoutSettings.close_s` seconds to finish, and then fail with
        `RuntimeClosedError` too. Then the sessions that this manager has opened are ended, within
        `TimeoutSettings.health_s`.

        Cancellation: cancels the calls in flight at once.
        """
        self._closed = True
        async with self._lock:
            runtimes = {*self._runtimes.values(), *self._closing}
            self._runtimes.clear()
            async with contextlib.AsyncExitStack() as stack:  # each step follows, even if those before it fail
                if self._cache is not None:
                    stack.push_async_callback(self._cache.aclose)
                if self._local is not None:
                    stack.push_async_callback(self._local.aclose)
                stack.push_async_callback(stop_maps, self._maps)
                await run_for_each(Runtime.aclose, runtimes)

    async def __aenter__(self) -> Self:
        self._check_open()
        try:
            if self._cache is not None:
                await self._cache.open()
            await self._start_local()
        except BaseException:
            if self._cache is not None:
                await self._cache.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # If __init__ raised an error, the attributes are missing.
        if getattr(self, "_closed", True):
            return
        if self._runtimes or (self._local is not None and self._local.is_started):
            warnings.warn(
                f"unclosed {self!r}: use async with, or await aclose()", ResourceWarning, stacklevel=2, source=self
            )

    def __repr__(self) -> str:
        languages = ", ".join(self._factory.get_supported_languages()) or "no endpoint"
        kind = languages if self._local is None else "embedded FaaS"
        return f"<RuntimeManager of {kind}{' (closed)' if self._closed else ''}>"

    def _cached_runtime(self, language: Language | OtherLanguage) -> Runtime:
        self._check_open()
        runtime = self._runtimes.get(language)
        if runtime is None or runtime.closed:
            runtime = self._factory.create_runtime(language)
            if self._cache is not None:
                runtime = with_cache(runtime, self._cache)
            self._runtimes[language] = runtime
        return runtime

    async def _start_local(self) -> None:
        self._check_open()
        local = self._local
        if local is None or local.is_started:
            return
        async with self._lock:
            self._check_open()
            if not local.is_started:
                await local.start()
                self._factory.transport.registry.add(ENDPOINT, local.server.url, local.profile)
                await self._factory.reconfigure(local.check(local.settings))

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosedError("this manager is closed: make a new one")
        self._loop.check()
