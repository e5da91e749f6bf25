"""LocalFaaS: starts, serves and closes the embedded FaaS."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from aiohttp import web
from attrs.validators import optional

from faasrt import _checks
from faasrt._record_type import RecordType
from faasrt.config import SandboxConfig
from faasrt.errors import ConfigurationError, RuntimeClosedError, ServerError, UnsupportedLanguageError, shown
from faasrt.languages import Language
from faasrt.local import http_limits
from faasrt.local.access import AccessPolicy
from faasrt.local.access_log import AccessLog
from faasrt.local.admission import QUEUE_TIMEOUT_S, AdmissionQueue
from faasrt.local.app import Service
from faasrt.local.connections import Listener
from faasrt.local.engines.base import Engine, EngineError, EngineOptions
from faasrt.local.engines.deno import DenoEngine
from faasrt.local.engines.jail_level import LEVELS, find_level, program_cgroups
from faasrt.local.engines.native import NativePythonEngine
from faasrt.local.engines.toolchain_engine import engine_for
from faasrt.local.engines.wasi_python import WasiPythonEngine
from faasrt.local.folder import temporary_folder
from faasrt.local.toolchains import TOOLCHAINS
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink

# By family of languages. The first engine is the default at the level "namespaces", the last one at other levels.
_ENGINES: dict[Language, tuple[type[Engine], ...]] = {
    Language.PYTHON: (NativePythonEngine, WasiPythonEngine),
    Language.JAVASCRIPT: (DenoEngine,),
    **{language: (engine_for(toolchain),) for language, toolchain in TOOLCHAINS.items()},
}
_MAX_WORKERS = 256


def fingerprints(language: Language) -> tuple[str, ...]:
    """Return the names of the engines that can run a language."""
    return tuple(engine.name for engine in _ENGINES[language.family])


def _parse_languages(names: Iterable[str | Language] | None) -> tuple[Language, ...]:
    if names is None:
        return tuple(Language)
    if isinstance(names, (bytes, bytearray, Mapping)) or not isinstance(names, Iterable):
        raise ConfigurationError(f"languages must be a list of languages, such as ['python'], got {shown(names)}")
    parsed = [Language.parse(name) for name in ([names] if isinstance(names, str) else names)]
    if not parsed:
        raise ConfigurationError("languages must not be empty")
    return tuple(dict.fromkeys(parsed))


def _parse_engines(names: Mapping[str | Language, str] | None) -> dict[Language, str]:
    if not isinstance(names, Mapping | None):
        raise ConfigurationError(
            f'engines must map languages to engines, such as {{"python": "wasm"}}, got {shown(names)}'
        )
    parsed = {Language.parse(language).family: name for language, name in (names or {}).items()}
    for family, name in parsed.items():
        known = fingerprints(family)
        if name not in known:
            raise ConfigurationError(f"the engine of {family} must be one of {', '.join(known)}, got {shown(name)}")
    return parsed


def _sandbox_or_default(sandbox: SandboxConfig | None) -> SandboxConfig:
    return SandboxConfig() if sandbox is None else sandbox


@attrs.define(eq=False, repr=False)
class LocalFaaS(metaclass=RecordType):
    """A FaaS inside this process. Every program runs in a fresh sandbox. The sandboxes' processes end with this one.

    Args:
        languages: The languages to serve, as names or `Language`s. None serves Python, JavaScript, TypeScript, and
            those of the other languages whose toolchain is installed, at the level "namespaces". The attribute names
            them after the start.
        workers: The number of programs of each language that can run at once, from 1 to 256; four times as many for
            JavaScript and TypeScript. None means the number of CPUs.
        sandbox: The limits of every program. A request can only lower them. None means `SandboxConfig()`.
        host: The address to listen on. An address other than loopback needs a token.
        port: The port; 0 takes a free one.
        token: The token that callers must send as `Authorization: Bearer ...`; None requires none.
        level: The level of the jail around programs: "namespaces", "filters", or "auto" for the highest one that works
            on this machine. See `faasrt.local`.
        engines: The name of the engine for each language: "native" or "wasm" for Python, "deno" for the others. The
            default for Python is "native" at the level "namespaces", else "wasm".
        python: The path of the interpreter for Python programs on the engine "native", CPython 3.9 or newer. Programs
            can import the packages that are installed for it. The default is the interpreter of this process.
        drain_s: How long `aclose` waits for programs in flight, in seconds, above 0.
        queue_timeout_s: How long a program may wait in the queue, in seconds, above 0. After this time it is refused.
            The default is shorter than the time that clients wait for an answer.
        telemetry: Sinks for the events of executions, see `faasrt.telemetry.events`.
        access_log: A structlog or standard library logger that gets a line at INFO for each request; None for no log.

    Raises:
        ConfigurationError: An argument is invalid, or the package of an engine is not installed.

    Example:
        >>> from faasrt.local import LocalFaaS
        >>> async with LocalFaaS(languages=["js", "ts"], token="secret") as faas:
        ...     print(faas.url)
        http://127.0.0.1:...
    """

    languages: tuple[Language, ...] = attrs.field(default=None, converter=_parse_languages)
    workers: int | None = attrs.field(
        default=None,
        kw_only=True,
        validator=optional(_checks.number(above=0, most=_MAX_WORKERS, integer=True)),
    )
    sandbox: SandboxConfig = attrs.field(
        default=None,
        kw_only=True,
        converter=_sandbox_or_default,
        validator=_checks.instance_of(SandboxConfig),
    )
    host: str = attrs.field(default="127.0.0.1", kw_only=True, validator=_checks.instance_of(str))
    port: int = attrs.field(default=0, kw_only=True, validator=_checks.number(above=-1, most=65_535, integer=True))
    token: str | None = attrs.field(default=None, kw_only=True, validator=_checks.token)
    level: str = attrs.field(default="auto", kw_only=True, validator=_checks.one_of("auto", *LEVELS))
    engines: Mapping[Language, str] = attrs.field(default=None, kw_only=True, converter=_parse_engines)
    python: str = attrs.field(default=sys.executable, kw_only=True, validator=_checks.instance_of(str))
    drain_s: float = attrs.field(default=5.0, kw_only=True, validator=_checks.number(above=0, most=1e6))
    queue_timeout_s: float = attrs.field(
        default=QUEUE_TIMEOUT_S, kw_only=True, validator=_checks.number(above=0, most=1e6)
    )
    telemetry: Iterable[Sink] = attrs.field(default=(), kw_only=True)
    access_log: Any = attrs.field(default=None, kw_only=True)
    _emit: EventDispatcher = attrs.field(init=False)
    _url: str | None = attrs.field(default=None, init=False)
    _queues: dict[Language, AdmissionQueue] = attrs.field(factory=dict, init=False)
    _missing: dict[Language, str] = attrs.field(factory=dict, init=False)
    _task: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._emit = EventDispatcher(check_sinks(self.telemetry))
        if self.token is not None and self.token != self.token.strip():
            raise ConfigurationError("token must not begin or end with whitespace")
        if self.token is None and not _checks.is_loopback(self.host):
            raise ConfigurationError(f"listening on {shown(self.host)} needs a token: set one, or listen on 127.0.0.1")
        if self.access_log is not None and not callable(getattr(self.access_log, "info", None)):
            raise ConfigurationError(f"access_log must be a structlog or stdlib logger, got {shown(self.access_log)}")
        if self.sandbox.network_enabled:
            raise ConfigurationError("network_enabled must be False: the embedded FaaS gives programs no network")
        for engine in self._engine_types(""):
            if importlib.util.find_spec(engine.package) is None:
                raise ConfigurationError(
                    f"the embedded FaaS needs {engine.package} for {engine.languages[0]}: pip install 'faasrt[local]'"
                )
            if self.sandbox.memory_limit_mb < engine.min_memory_mb:
                raise ConfigurationError(
                    f"memory_limit_mb must be at least {engine.min_memory_mb} for {engine.languages[0]}, "
                    f"got {self.sandbox.memory_limit_mb}"
                )

    def _engine_types(self, level: str) -> list[type[Engine]]:
        """Return the chosen or default engine of each language at a level."""
        found = []
        for family in dict.fromkeys(language.family for language in self.languages):
            known = {engine.name: engine for engine in _ENGINES[family]}
            default = _ENGINES[family][0 if level == "namespaces" else -1]
            found.append(known.get(self.engines.get(family, ""), default))
        return found

    @property
    def url(self) -> str:
        """The base URL of the server.

        Raises:
            RuntimeClosedError: The server is not running.
        """
        if self._url is None:
            raise RuntimeClosedError("the embedded FaaS is not running")
        return self._url

    async def start(self) -> None:
        """Listen, and begin to start the engines. `wait_ready` waits until a language can run.

        Raises:
            ConfigurationError: The server cannot listen on the address.
            RuntimeClosedError: The server was started before.

        Cancellation: closes the server.
        """
        if self._task is not None:
            raise RuntimeClosedError("a LocalFaaS can be started only once: make a new one")
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # This task is outside of a task group, because one task may start the server and another may close it.
        self._task = asyncio.create_task(self._run(listening), name="faasrt-local")
        try:
            waiting: set[asyncio.Future[Any]] = {listening, self._task}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not listening.done():
                await self._task
            self._url = listening.result()
        except BaseException:
            await self.aclose()
            raise

    async def wait_ready(self, language: str | Language) -> None:
        """Wait until a language can run, and start its engine if it starts only when it is needed.

        The first start of the engine "wasm" on a machine compiles it (about 45 s).

        Raises:
            UnsupportedLanguageError: The language is not served.
            ServerError: The engine cannot start. The message says why.
        """
        queue = self._queues.get(Language.parse(language))
        if queue is None:
            reason = self._missing.get(Language.parse(language))
            raise UnsupportedLanguageError(
                f"{language} is not one of the languages of this LocalFaaS{f': {reason}' if reason else ''}"
            )
        try:
            await queue.engine.wait_ready()
        except EngineError as error:
            raise ServerError(str(error), endpoint=self._url or "", sent="no") from None

    async def make_snapshots(self) -> None:
        """Make the snapshots of the packages of the engine "wasm" now, and wait until they are made.

        A server makes them in the background, from half a minute after its start. Without them, the first programs that
        import a package take longer. All languages must be ready.
        """
        for queue in self._queues.values():
            if isinstance(queue.engine, WasiPythonEngine):
                await queue.engine.make_snapshots()

    async def aclose(self) -> None:
        """Stop listening, wait up to `drain_s` for programs in flight, and end all processes. Closing twice is safe."""
        self._url = None
        self._closing.set()
        # If the event loop was closed before the server, the task is done already.
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, listening: asyncio.Future[str]) -> None:
        try:
            # In this order: a process that is alone in its cgroup can use it, and the folder needs another process.
            async with program_cgroups() as cgroups, temporary_folder() as folder:
                options = attrs.evolve(await self._options(folder), cgroups=cgroups)
                await asyncio.to_thread(self._make_queues, options)
                async with asyncio.TaskGroup() as group:
                    engines = {queue.engine for queue in self._queues.values()}
                    tasks = [group.create_task(engine.run()) for engine in engines]
                    try:
                        await self._listen(listening)
                    finally:
                        for task in tasks:
                            task.cancel()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigurationError(
                f"cannot write temporary files: {reason}; set FAASRT_CACHE_DIR and TMPDIR to other folders"
            ) from None

    async def _listen(self, listening: asyncio.Future[str]) -> None:
        hosts = None if self.token else frozenset({"localhost", "127.0.0.1", "::1", self.host.lower()})
        access = AccessPolicy(hosts=hosts, token=self.token)
        access_log = None if self.access_log is None else AccessLog(self.access_log)
        service = Service(
            self._queues, self._missing, sandbox=self.sandbox, access=access, emit=self._emit, access_log=access_log
        )
        runner = web.ServerRunner(Listener(service.handle), shutdown_timeout=self.drain_s)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.host, self.port, backlog=http_limits.backlog())
            try:
                await site.start()
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or error
                message = f"cannot listen on {self.host}:{self.port}: {reason}"
                listening.set_exception(ConfigurationError(message))
                return
            host, port = runner.addresses[0][:2]
            listening.set_result(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await self._closing.wait()
        finally:
            await runner.cleanup()

    async def _options(self, folder: Path) -> EngineOptions:
        level = reason = ""
        if self.engines.get(Language.PYTHON) != WasiPythonEngine.name or self.languages != (Language.PYTHON,):
            try:
                level, reason = await find_level(self.level, folder)
            except EngineError as error:
                if self.level != "auto":
                    raise ConfigurationError(str(error)) from None
                reason = str(error)
        return EngineOptions(
            workers=self.workers or min(_MAX_WORKERS, len(os.sched_getaffinity(0))),
            folder=folder,
            memory_limit_mb=self.sandbox.memory_limit_mb,
            level=level,
            level_reason=reason,
            python=self.python,
        )

    def _make_queues(self, options: EngineOptions) -> None:
        if self.languages == _parse_languages(None):
            # Languages that cannot run here are left out, unless the caller names them.
            self._missing = {one: toolchain.missing for one, toolchain in TOOLCHAINS.items() if toolchain.missing}
            if options.level != "namespaces":
                reason = f"it needs the level namespaces: {options.level_reason or 'another level was chosen'}"
                self._missing |= dict.fromkeys(TOOLCHAINS, reason)
            self.languages = tuple(language for language in self.languages if language not in self._missing)
        for make_engine in self._engine_types(options.level):
            queue = AdmissionQueue(make_engine(options), queue_timeout_s=self.queue_timeout_s)
            self._queues |= {language: queue for language in make_engine.languages if language in self.languages}
