"""RuntimeManager: one runtime for each language, created once, shared, and closed together."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Self, TypedDict, Unpack

import attrs

from faasrt.client.cache import CacheOption, ResultCache
from faasrt.client.factory import RuntimeFactory, check_settings
from faasrt.client.map import Map
from faasrt.client.map_options import ResultStream, StopOn
from faasrt.client.runtimes import RuntimeRegistry, local_settings
from faasrt.client.syntax import Where, check_where
from faasrt.config import Endpoints, SandboxConfig, Settings, SettingsOptions, names_endpoints
from faasrt.errors import ConfigurationError, shown
from faasrt.judging import Compare, Judgement, TestCase
from faasrt.languages import Language, parse_language
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.tasks import CallOptions, CodeTask, JudgeOptions
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink
from faasrt.telemetry.logs import LogSink
from faasrt.telemetry.metrics import Metrics


class LocalOptions(TypedDict, total=False):
    """The options of `faasrt.local.LocalFaaS` that `RuntimeManager.local` passes on."""

    level: str
    engines: Mapping[str | Language, str]
    python: str
    host: str
    port: int
    drain_s: float


class RuntimeManager(RuntimeRegistry):
    r"""Keeps one runtime for each language. Create one manager per application, and share it.

    A manager belongs to the event loop in which it is first used, so create a new one in each `asyncio.run`. uvloop is
    supported.

    Args:
        factory: Creates the runtimes. Default: None, which means a `RuntimeFactory` with the other arguments.
        settings: Endpoints and limits. Must be None if `factory` is given.
        logger: A structlog or standard library logger. Must be None if `factory` is given.
        telemetry: Sinks for the events of calls, see `RuntimeFactory`. Must be empty if `factory` is given.
        cache: Where results are stored and reused: the path of a folder, a `DiskCache`, or another `Cache`; see
            `faasrt.client.cache`. Default: None, which means that every program runs.

    Raises:
        ConfigurationError: `factory` was given together with another argument, or an argument is wrong.

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
        super().__init__(factory, logger, sinks, ResultCache.checked(cache))

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
            raise ConfigurationError(f"local_fallback must be True or False, got {shown(local_fallback)}")
        variables = os.environ if environ is None else environ
        if local_fallback and "endpoints" not in options and not names_endpoints(variables):
            return cls.local(settings=Settings(**options), logger=logger, telemetry=telemetry, cache=cache)
        return cls(settings=Settings.from_env(environ, **options), logger=logger, telemetry=telemetry, cache=cache)

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
        languages: Iterable[str | Language] | None = None,
        *,
        workers: int | None = None,
        sandbox: SandboxConfig | None = None,
        settings: Settings | None = None,
        logger: Any = None,
        telemetry: Iterable[Sink] = (),
        cache: CacheOption = None,
        **options: Unpack[LocalOptions],
    ) -> Self:
        r"""Return a manager with an embedded FaaS in this process. Needs the extra `local`.

        The FaaS starts with `async with`, or at the first call, and stops with `aclose`. If the start fails or is
        cancelled, the next call starts it again.

        Args:
            languages: The languages to serve. Default: None, which means Python, JavaScript, TypeScript, and those of
                the other languages whose toolchain is installed.
            workers: The maximum number of programs of each language that run at once; four times that number for
                JavaScript and TypeScript. Default: None, which means the number of CPUs.
            sandbox: The limits of every program. Default: None, which means those of `settings`.
            settings: All other settings; `endpoints` must be empty. `LimiterSettings.queue_timeout_s` (30 s if None)
                also limits the wait in the FaaS's queue, and is added to `TimeoutSettings.grace_s`.
            logger: A structlog or standard library logger.
            telemetry: Sinks for the events of calls, and of the FaaS.
            cache: Where results are stored and reused; see `RuntimeManager`.
            **options: `level`, `engines`, `python`, `host`, `port` and `drain_s`; see `faasrt.local.LocalFaaS`.

        Raises:
            ConfigurationError: The engines are not installed, or an argument is wrong.

        Example:
            >>> async with RuntimeManager.local(["ts"], sandbox=SandboxConfig(timeout_limit_s=5)) as manager:
            ...     (await manager.run_code("const n: number = 42; console.log(n)", "ts")).stdout
            '42\n'
        """
        from faasrt.local.server import LocalFaaS

        base = check_settings(settings)
        if base.endpoints:
            raise ConfigurationError("settings.endpoints must be empty, because the embedded FaaS is the endpoint")
        limits = base.sandbox if sandbox is None else sandbox
        given = attrs.evolve(base, sandbox=limits)
        settings, queue_s = local_settings(given)
        # The client and the FaaS share one dispatcher, so that a failing sink is logged only once.
        sinks = (EventDispatcher(check_sinks(telemetry)),)
        make_faas = functools.partial(
            LocalFaaS,
            workers=workers,
            sandbox=limits,
            token=base.token,
            queue_timeout_s=queue_s,
            telemetry=(LogSink(logger), *sinks),
            **options,
        )
        manager = cls(settings=settings, logger=logger, telemetry=sinks, cache=cache)
        manager._make_faas, manager._faas, manager._given_settings = make_faas, make_faas(languages), given
        return manager

    async def run_code(
        self,
        code: str,
        language: str | Language,
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
        r"""Run a program: `get_runtime(language)` and `Runtime.run_code` in one call.

        Example:
            >>> (await manager.run_code("console.log({ a: 1 })", "js")).stdout
            '{ a: 1 }\n'
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
        )

    async def call_function(
        self,
        code: str,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        language: str | Language,
        **options: Unpack[CallOptions],
    ) -> ExecutionResult:
        """Call a function of a program: `get_runtime(language)` and `Runtime.call_function` in one call.

        Example:
            >>> (await manager.call_function("const add = (a, b) => a + b;", "add", [1, 2], language="js")).value
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
        language: str | Language,
        isolate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[ExecutionResult]:
        """Call a function once for each case: `get_runtime(language)` and `Runtime.run_cases` in one call.

        Example:
            >>> results = await manager.run_cases("def f(n): return -n", "f", [(1,), (2,)], language="python")
            >>> [result.value for result in results]
            [-1, -2]
        """
        runtime = await self.get_runtime(language)
        return await runtime.run_cases(code, function, cases, isolate=isolate, **options)

    async def judge(
        self,
        code: str,
        tests: Iterable[TestCase],
        *,
        language: str | Language,
        compare: Compare = "lines",
        stop_on_failure: bool = False,
        concurrency: int | None = None,
        **options: Unpack[JudgeOptions],
    ) -> Judgement:
        """Judge a program by tests: `get_runtime(language)` and `Runtime.judge` in one call.

        Example:
            >>> tests = [TestCase("1 2", "3"), TestCase("2 2", "5")]
            >>> judgement = await manager.judge("print(sum(map(int, input().split())))", tests, language="python")
            >>> judgement.passed, judgement.results[1].difference
            (False, "line 1: expected '5', got '4'")
        """
        runtime = await self.get_runtime(language)
        return await runtime.judge(
            code, tests, compare=compare, stop_on_failure=stop_on_failure, concurrency=concurrency, **options
        )

    async def validate_code(self, code: str, language: str | Language, *, where: Where = "auto") -> ValidationResult:
        """Check the syntax of a program: `get_runtime(language)` and `Runtime.validate_code` in one call.

        A local check does not wait until the embedded FaaS is ready for the language.

        Example:
            >>> (await manager.validate_code("print('(')", "python")).valid
            True
        """
        parsed = parse_language(language)
        if check_where(where, parsed) and parsed in self.get_supported_languages():
            await self._start_faas()
            runtime = self._cached_runtime(parsed)
        else:
            runtime = await self.get_runtime(parsed)
        return await runtime.validate_code(code, where=where)

    def map(
        self,
        tasks: Iterable[CodeTask] | AsyncIterable[CodeTask],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        stop_on: StopOn = None,
        coalesce: int = 1,
        cache: CacheOption = None,
    ) -> ResultStream:
        """Run many tasks, and yield each result when it is available.

        Tasks are read lazily: those in flight, and a window of the same size (64 at most). The error of a task is in
        its result. A cancellation, or closing the results or the manager, stops the source (a generator is closed),
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
            coalesce: The maximum number of consecutive tasks, differing only in `args`, that share an execution, from 1
                to 100,000. A task then sees the globals that earlier ones changed; see `Runtime.run_cases`. Default: 1.
            cache: Where results are stored and reused; see `RuntimeManager`. Default: None, which means the cache of
                the manager.

        Returns:
            An asynchronous generator with a `TaskResult` for each task, which is also an asynchronous context manager.

        Raises:
            ConfigurationError: An argument is wrong.
            InvalidRequestError: `tasks` is not iterable, or yields something other than a `CodeTask`.
            RuntimeClosedError: The manager was closed.
            Exception: The source raised this error; it follows the results of all earlier tasks.

        Example:
            >>> tasks = (CodeTask(code, "python", id=code) for code in ("print(1)", "1 / 0", "return_val('[2]')"))
            >>> async with manager.map(tasks, concurrency=64, ordered=True) as results:
            ...     async for item in results:
            ...         print(item.task.id, "->", item.result.outcome if item.result else item.error)
            print(1) -> OK
            1 / 0 -> USER_ERROR
            return_val('[2]') -> OK
        """
        limit = self._factory.settings.limiter.max_concurrency if concurrency is None else concurrency
        reused = ResultCache.checked(cache)
        run = Map(self.get_runtime, self._maps, tasks, limit, ordered, stop_on, coalesce, reused)
        return ResultStream(run.run(), run.aclose)

    async def get_health_status(self) -> HealthStatus:
        """Probe all endpoints concurrently. A failed probe is an unhealthy entry in the result, not an exception.

        Raises:
            RuntimeClosedError: The manager was closed.

        Example:
            >>> (await manager.get_health_status()).healthy
            True
        """
        self._check_open()
        await self._start_faas()
        return await self._factory.get_health_status()

    def get_metrics(self) -> Metrics:
        """Return the metrics of every language since the manager was created.

        Example:
            >>> results = [await manager.run_code(code, "js") for code in ("console.log(1)", "throw 1")]
            >>> dict(manager.get_metrics().total.outcomes)
            {'OK': 1, 'USER_ERROR': 1}
        """
        return self._factory.get_metrics()
