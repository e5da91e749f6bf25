"""RuntimeManager: one runtime for each language, made once, shared by everybody, closed together."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import AsyncIterable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import attrs

from faasrt.batch import CodeTask
from faasrt.config import SandboxConfig, Settings
from faasrt.embedded import EmbeddedFaas
from faasrt.emitter import Emitter, check_sinks
from faasrt.errors import ConfigurationError, RuntimeClosedError
from faasrt.events import Sink
from faasrt.factory import RuntimeFactory, check_settings
from faasrt.languages import Language
from faasrt.map_options import StopOn
from faasrt.mapping import Maps
from faasrt.metrics import Metrics
from faasrt.result_stream import ResultStream
from faasrt.results import ExecutionResult, HealthStatus, ValidationResult
from faasrt.runtime import Runtime
from faasrt.telemetry.logs import LogSink
from faasrt.transport.home import HomeLoop
from faasrt.validation import Where, check_where


class RuntimeManager:
    r"""Keeps one runtime for each language. Make one for the life of the application, and share it.

    It belongs to the event loop in which it is used first: make a new one in each `asyncio.run`. uvloop works.

    Args:
        factory: Makes the runtimes; one for `settings` when None.
        settings: Endpoints and limits; not together with `factory`.
        logger: A structlog logger, or one of the standard library's; not together with `factory`.
        telemetry: Sinks for the events of calls, see `RuntimeFactory`; not together with `factory`.

    Raises:
        ConfigurationError: `factory` was given together with one of the others, or an argument is something else.

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
    ) -> None:
        self._logger, self._sinks = logger, check_sinks(telemetry)
        if factory is None:
            factory = self._make_factory(settings)
        elif not isinstance(factory, RuntimeFactory):
            raise ConfigurationError(f"factory must be a RuntimeFactory, got {type(factory).__name__}")
        elif settings is not None or logger is not None or self._sinks:
            raise ConfigurationError("give a factory, or settings, a logger and telemetry for a new one; not both")
        self._factory = factory
        self._faas: EmbeddedFaas | None = None
        self._runtimes: dict[Language, Runtime] = {}
        self._lock = asyncio.Lock()
        self._maps = Maps()
        self._closed = False
        self._home = HomeLoop("manager")

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        logger: Any = None,
        telemetry: Iterable[Sink] = (),
        **changes: Any,
    ) -> Self:
        """Make a manager for the endpoints that the environment names; see `Settings.from_env`.

        Args:
            environ: The variables; `os.environ` when None.
            logger: A structlog logger, or one of the standard library's.
            telemetry: Sinks for the events of calls.
            **changes: Fields of `Settings` that take precedence over the environment.

        Raises:
            ConfigurationError: No endpoint is configured, or a setting is wrong.

        Example:
            >>> RuntimeManager.from_env({"COZE_LOOP_PYTHON_FAAS_URL": "http://faas:8000"}, token="secret")
            <RuntimeManager of python>
        """
        return cls(settings=Settings.from_env(environ, **changes), logger=logger, telemetry=telemetry)

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
    ) -> Self:
        r"""Make a manager with a FaaS of its own inside this process; it needs the extra `local`.

        The FaaS starts with `async with`, or at the first call, and ends with `aclose`. A start that fails or is
        cancelled is made anew by the next call. The first Python program on a machine waits for the sandbox to be
        compiled (about 45 s, once); `faasrt warmup` does that ahead.

        Args:
            languages: What to serve; all three languages when None.
            workers: Python programs at once; JavaScript gets four times as many. The number of CPUs when None.
            sandbox: The limits of every program; those of `settings` when None.
            settings: Everything else; its `endpoints` must be empty.
            logger: A structlog logger, or one of the standard library's.
            telemetry: Sinks for the events of calls, and of the FaaS.

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
            raise ConfigurationError("the embedded FaaS is its own endpoint: leave settings.endpoints empty")
        limits = base.sandbox if sandbox is None else sandbox
        # A program may wait in the queue of the FaaS before its own time begins to run, as long as it may wait here.
        queue_timeout_s = base.limiter.queue_timeout_s
        sinks = (Emitter(check_sinks(telemetry)),)  # one for both sides: a sink that fails is told of once
        telemetry = (LogSink(logger), *sinks)
        make_faas = functools.partial(
            LocalFaaS, workers=workers, sandbox=limits, queue_timeout_s=queue_timeout_s, telemetry=telemetry
        )
        timeouts = attrs.evolve(base.timeouts, grace_s=base.timeouts.grace_s + queue_timeout_s)
        manager = cls(settings=attrs.evolve(base, sandbox=limits, timeouts=timeouts), logger=logger, telemetry=sinks)
        manager._faas = EmbeddedFaas(make_faas, languages)
        return manager

    async def get_runtime(self, language: str | Language) -> Runtime:
        """Give the runtime of a language, the same one to everybody; do not close it.

        Args:
            language: A name or a `Language`.

        Raises:
            UnsupportedLanguageError: The language is unknown, or no endpoint is configured for it.
            RuntimeClosedError: The manager was closed.
            ConfigurationError: The embedded FaaS cannot listen.
            ServerError: The embedded FaaS cannot run the language.

        Cancellation: a runtime that was being made is not kept.

        Example:
            >>> python = await manager.get_runtime("python")
            >>> (await python.call_function("def double(n): return 2 * n", "double", 21)).value
            42
        """
        spoken = Language.parse(language)
        if self._faas is not None:
            await self._start_faas()
            # Outside the lock: JavaScript must not wait until Python has been compiled.
            await self._faas.wait_ready(spoken)
        return await self._cached_runtime(spoken)

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
    ) -> ExecutionResult:
        r"""Run a program: short for `get_runtime(language)` and `Runtime.run_code`, which tells the rest.

        Example:
            >>> (await manager.run_code("console.log({ a: 1 })", "js")).stdout
            '{ a: 1 }\n'
        """
        runtime = await self.get_runtime(language)
        return await runtime.run_code(
            code, None, timeout_ms, ext, sandbox=sandbox, priority=priority, idempotent=idempotent
        )

    def map(
        self,
        tasks: Iterable[CodeTask] | AsyncIterable[CodeTask],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        stop_on: StopOn = None,
        coalesce: int = 1,
    ) -> ResultStream:
        """Run many tasks, and give the results as they come.

        The tasks are read lazily: those in flight, results that nobody has taken yet, and a window of as many again
        (64 at most). Tasks wait for room at the endpoints without limit; the deadline of each counts from there. What
        goes wrong with a task is in its result. A cancellation, or closing the results or the manager, stops the source
        (a generator is closed), cancels what is in flight and frees everything. A `break` does so once nothing refers
        to the results; until then the window is read and run, and no more. `async with` closes them at its end.

        Args:
            tasks: Any iterable or asynchronous iterable. One that blocks does so to the event loop as well.
            concurrency: Executions in flight at most, from 1 to 100,000; `LimiterSettings.max_concurrency` when None.
                The endpoints' own limits hold as well.
            ordered: Whether the results come in the order of the tasks; a slow one then holds up at most the window.
            stop_on: Ends the map with the first result that it fits, which is still given: an `Outcome`, a class of
                errors, several of these, or a function of the `TaskResult`.
            coalesce: How many tasks in a row that differ in `args` alone may share an execution, from 1 on, as
                `Runtime.run_cases` has it: what one leaves behind in the program, the next one sees.

        Returns:
            An asynchronous generator with a `TaskResult` for each task, which is a context manager as well.

        Raises:
            ConfigurationError: An argument is wrong.
            InvalidRequestError: `tasks` is no iterable, or gives something else than `CodeTask`s.
            RuntimeClosedError: The manager was closed.
            Exception: What the source raised, after the results of all tasks before that.

        Example:
            >>> tasks = (CodeTask(code, "python", id=code) for code in ("print(1)", "1 / 0", "return_val('[2]')"))
            >>> async for item in manager.map(tasks, concurrency=64, ordered=True):
            ...     print(item.task.id, "->", item.result.outcome if item.result else item.error)
            print(1) -> OK
            1 / 0 -> USER_ERROR
            return_val('[2]') -> OK
        """
        return self._maps.start(
            self.get_runtime,
            tasks,
            concurrency=concurrency,
            ordered=ordered,
            stop_on=stop_on,
            coalesce=coalesce,
            most=self._factory.settings.limiter.max_concurrency,
        )

    async def validate_code(self, code: str, language: str | Language, *, where: Where = "auto") -> ValidationResult:
        """Check a program's syntax: short for `get_runtime(language)` and `Runtime.validate_code`.

        A local check does not wait until the embedded FaaS can run the language.

        Example:
            >>> (await manager.validate_code("print('(')", "python")).valid
            True
        """
        spoken = Language.parse(language)
        if check_where(where, spoken) and spoken in self.get_supported_languages():
            await self._start_faas()
            runtime = await self._cached_runtime(spoken)
        else:
            runtime = await self.get_runtime(spoken)
        return await runtime.validate_code(code, where=where)

    def get_supported_languages(self) -> tuple[Language, ...]:
        """Give the languages that can be run here.

        Example:
            >>> [str(language) for language in manager.get_supported_languages()]
            ['python', 'javascript', 'typescript']
        """
        return self._factory.get_supported_languages() if self._faas is None else self._faas.languages

    async def get_health_status(self) -> HealthStatus:
        """Probe every endpoint at once; a failure is an unhealthy entry, never an exception.

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
        """Give the figures of every language, counted since the manager was made.

        Example:
            >>> results = [await manager.run_code(code, "js") for code in ("console.log(1)", "throw 1")]
            >>> dict(manager.get_metrics().total.outcomes)
            {'OK': 1, 'USER_ERROR': 1}
        """
        return self._factory.get_metrics()

    async def clear_cache(self) -> None:
        """Drop every runtime, so that the next `get_runtime` makes a new one, and close what was dropped.

        Calls in flight are waited for, however long they take; new ones on a dropped runtime are refused.

        Raises:
            RuntimeClosedError: The manager was closed.

        Cancellation: ends the calls in flight.

        Example:
            >>> await manager.clear_cache()
            >>> await manager.get_runtime("python") is runtime, runtime.closed
            (False, True)
        """
        self._check_open()
        runtimes, self._runtimes = self._runtimes, {}
        async with asyncio.TaskGroup() as group:
            for runtime in runtimes.values():
                group.create_task(runtime.close_within(None))

    async def aclose(self) -> None:
        """Close every runtime, and the embedded FaaS if there is one. Closing twice is harmless.

        Calls in flight get `TimeoutSettings.close_s` to end; then they are ended with `RuntimeClosedError`.

        Cancellation: ends them at once.
        """
        self._closed = True
        async with self._lock:
            runtimes, self._runtimes = self._runtimes, {}
            try:
                async with asyncio.TaskGroup() as group:
                    for runtime in runtimes.values():
                        group.create_task(runtime.aclose())
            finally:
                try:
                    await self._maps.aclose()
                finally:
                    if self._faas is not None:
                        await self._faas.aclose()

    async def __aenter__(self) -> Self:
        self._check_open()
        await self._start_faas()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Made without __init__, or refused by it, there is nothing to close.
        in_use = not getattr(self, "_closed", True) and (self._runtimes or (self._faas and self._faas.started))
        if in_use:
            warnings.warn(
                f"unclosed {self!r}: use async with, or await aclose()", ResourceWarning, stacklevel=2, source=self
            )

    def __repr__(self) -> str:
        kind = "embedded FaaS" if self._faas is not None else ", ".join(self.get_supported_languages()) or "no endpoint"
        return f"<RuntimeManager of {kind}{' (closed)' if self._closed else ''}>"

    async def _cached_runtime(self, language: Language) -> Runtime:
        self._check_open()  # before the lock too, which closing holds for as long as it takes
        runtime = self._runtimes.get(language)
        if runtime is not None and not runtime.closed:
            return runtime
        async with self._lock:
            self._check_open()
            runtime = self._runtimes.get(language)
            if runtime is None or runtime.closed:
                runtime = self._runtimes[language] = self._factory.create_runtime(language)
            return runtime

    async def _start_faas(self) -> None:
        self._check_open()
        if self._faas is None or self._faas.started:
            return
        async with self._lock:
            self._check_open()
            if not self._faas.started:
                url = await self._faas.start()
                settings = attrs.evolve(self._factory.settings, endpoints=dict.fromkeys(self._faas.languages, url))
                self._factory = self._make_factory(settings)
                self._faas.started = True

    def _make_factory(self, settings: Settings | None) -> RuntimeFactory:
        return RuntimeFactory(settings, self._logger, telemetry=self._sinks)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeClosedError("this manager is closed: make a new one")
        self._home.check()
