"""`LocalFaaS`: the embedded FaaS as users see it.

It puts the engines, the HTTP server and the sessions together, starts them, and replaces them when it is reconfigured.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self, get_args

import attrs
from attrs.validators import optional

from faasrt import _setting_checks as checks
from faasrt.config import EngineName, Level, SandboxConfig
from faasrt.errors import (
    ConfigurationError,
    FaasrtError,
    RuntimeClosedError,
    ServerError,
    UnsupportedLanguageError,
    safe_repr,
)
from faasrt.languages import Language, LanguageOption
from faasrt.local import engine_choice
from faasrt.local.engine_choice import MAX_PROGRAMS, MAX_WORKERS, Queues, make_queues
from faasrt.local.engine_tasks import EngineTasks
from faasrt.local.engines.engine import Engine, EngineOptions
from faasrt.local.engines.wasm.engine import WasmEngine
from faasrt.local.errors import EngineError, NotStartedError
from faasrt.local.http import limits
from faasrt.local.http.access import AccessPolicy
from faasrt.local.http.app import Router, RouterSwitch
from faasrt.local.http.connections import Listener
from faasrt.local.http.listening import ListeningSockets
from faasrt.local.http.program_permits import MemoryBudget
from faasrt.local.http.refusals import RefusalLog
from faasrt.local.http.sessions import MAX_IDLE_S, MAX_SESSIONS, Sessions
from faasrt.local.jail.cgroup import Cgroups, program_cgroups
from faasrt.local.jail.level import FoundLevel, find_level, why_unreadable
from faasrt.local.process import available_cpus
from faasrt.local.sandbox_limits import SandboxLimits, limits_of
from faasrt.local.temporary_folder import temporary_folder
from faasrt.protocol.execution_limits import MAX_WALL_FACTOR
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink
from faasrt.telemetry.logs import log_exception, log_warning

# Clients of faasrt keep idle connections for four seconds. A connection that is closed later is not in use.
IDLE_CONNECTIONS_S = 5.0
_LAST_CONNECTIONS_S = 1.0  # at the end of a drain, the time of a new connection for a request and its refusal
_FIXED = ("host", "port")
_SANDBOX: Any = optional(checks.instance_of(SandboxConfig))
_FILE_ERRORS = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.ENOSPC, errno.EROFS)
_CLOSED = "this LocalFaaS was closed: make a new one"


def _refuse_options(faas: LocalFaaS, attribute: attrs.Attribute[Any], value: Any) -> Any:
    if attribute.init:
        raise AttributeError(f"{attribute.name} cannot be assigned: pass another LocalFaaS to `reconfigure`")
    return value


@attrs.define(eq=False, repr=False, on_setattr=_refuse_options)
class LocalFaaS:
    """A FaaS inside this process. Every program runs in a new process, or on "wasm" in a new instance of WebAssembly.
    All of these processes end with this one.

    Args:
        languages: The languages to serve, as names or `Language`s. None serves Python, JavaScript, TypeScript, and
            every other language whose toolchain is installed, at the level "namespaces". The attribute names them after
            the start.
        workers: The number of CPUs to use, from 1 to 256. None means all that this process may use.
        max_programs: The largest number of programs of each engine that run at once, from 1 to 1,000. None means as
            many as there is memory for, if each has its limit, and at most 32 for each worker (16 on "deno"). If
            memory is short, fewer run: see `faasrt/docs/concurrency.md`.
        max_wall_factor: A program whose time limit is not over, because it has waited for a CPU, is ended after this
            many times its limit (at least 120 s more), from 1 to 100. This is a failure of the server, not of the
            program.
        sandbox: The limits of a program whose request has none. None means `SandboxConfig()`.
        max_sandbox: The largest limits that a request can have; higher ones are lowered to these. None means `sandbox`,
            or, if this is None too, 120 s, 4 MiB of output, and a quarter of the memory of the machine, rounded down to
            a power of two, from 128 to 4,096 MiB.
        host: The address to listen on. An address other than loopback needs a token.
        port: The port; 0 takes a free one.
        token: The token that callers must send as `Authorization: Bearer ...`; None requires none.
        level: The level of the jail around programs: "namespaces", "users", "filters", or "auto" for the highest one
            that works on this machine. See `faasrt/docs/sandboxes.md`.
        engines: The name of the engine for each language: "native" or "wasm" for Python, "deno" for JavaScript and
            TypeScript; each other language has one engine, named after its toolchain. The default for Python is
            "native" at the levels "namespaces" and "users", else "wasm".
        python: The path of the interpreter for Python programs on the engine "native", CPython 3.9 or newer. Programs
            can import the packages that are installed for it. The default is the interpreter of this process.
        drain_s: How long `drain` and `aclose` wait for programs in flight, in seconds, above 0.
        queue_timeout_s: How long a program may wait for its engine and a sandbox, in seconds, above 0. After this time
            it is refused. None means as long as its client waits for the answer, less the time limit of the
            program, but at least 1.5 s. In any case, a program is refused when its client no longer waits.
        telemetry: Sinks for the events of executions, see `faasrt.telemetry.events`.
        access_log: A structlog or standard library logger that gets a line at INFO for each request; None for no log.
        ssl: A context with the certificate of the server, which then speaks HTTPS; None for plain HTTP.
        max_connections: The largest number of open connections, above 0 and at most half of the files that the process
            may open. Further ones are refused. None means 1,000, or that half if it is less.
        max_sessions: The largest number of open sessions, with forks, from 0 to 100,000. Further ones are refused, so 0
            turns sessions off. Default: 100.
        session_idle_s: The highest idle limit of a session in seconds, above 0. A higher one in a request is lowered.
            Default: 3,600.
        session_memory_mb: The largest sum of the memory limits of all sessions, in MiB, above 0. A session that would
            exceed it is refused. Default: None, which means no limit.

    Raises:
        ConfigurationError: An argument is invalid, or the package of an engine is not installed.

    Example:
        >>> from faasrt.local import LocalFaaS
        >>> async with LocalFaaS(languages=["js", "ts"], token="secret") as faas:
        ...     print(faas.url)
        http://127.0.0.1:...
    """

    languages: tuple[Language, ...] = attrs.field(default=None, converter=engine_choice.parse_languages)
    workers: int | None = attrs.field(default=None, kw_only=True, validator=optional(checks.whole(1, MAX_WORKERS)))
    max_programs: int | None = attrs.field(
        default=None, kw_only=True, validator=optional(checks.whole(1, MAX_PROGRAMS))
    )
    max_wall_factor: float = attrs.field(default=MAX_WALL_FACTOR, kw_only=True, validator=checks.number(1, 100))
    sandbox: SandboxConfig = attrs.field(default=None, kw_only=True, validator=_SANDBOX)
    max_sandbox: SandboxConfig = attrs.field(default=None, kw_only=True, validator=_SANDBOX)
    host: str = attrs.field(default="127.0.0.1", kw_only=True, validator=checks.instance_of(str))
    port: int = attrs.field(default=0, kw_only=True, validator=checks.whole(0, 65_535))
    token: str | None = attrs.field(default=None, kw_only=True, validator=checks.token)
    level: Level = attrs.field(default="auto", kw_only=True, validator=checks.one_of(*get_args(Level)))
    engines: Mapping[Language, EngineName] = attrs.field(
        default=None, kw_only=True, converter=engine_choice.parse_engines
    )
    python: str = attrs.field(default=sys.executable, kw_only=True, validator=checks.instance_of(str))
    drain_s: float = attrs.field(default=5.0, kw_only=True, validator=checks.positive(1_000_000))
    queue_timeout_s: float | None = attrs.field(
        default=None, kw_only=True, validator=optional(checks.positive(1_000_000))
    )
    telemetry: Iterable[Sink] = attrs.field(default=(), kw_only=True)
    access_log: Any = attrs.field(default=None, kw_only=True)
    ssl: SSLContext | None = attrs.field(default=None, kw_only=True, validator=optional(checks.instance_of(SSLContext)))
    max_connections: int | None = attrs.field(
        default=None, kw_only=True, validator=optional(checks.whole(1, 1_000_000))
    )
    max_sessions: int = attrs.field(default=MAX_SESSIONS, kw_only=True, validator=checks.whole(0, 100_000))
    session_idle_s: float = attrs.field(default=MAX_IDLE_S, kw_only=True, validator=checks.positive(1_000_000))
    session_memory_mb: int | None = attrs.field(
        default=None, kw_only=True, validator=optional(checks.whole(1, 1_000_000_000))
    )
    _budget: MemoryBudget = attrs.field(factory=MemoryBudget, init=False)
    _emit: EventDispatcher = attrs.field(init=False)
    _wanted_languages: tuple[Language, ...] = attrs.field(init=False)
    _url: str | None = attrs.field(default=None, init=False)
    _queues: Queues = attrs.field(factory=dict, init=False)
    _missing: dict[Language, str] = attrs.field(factory=dict, init=False)
    _options: EngineOptions = attrs.field(init=False)
    _listener: Listener | None = attrs.field(default=None, init=False)
    _sockets: ListeningSockets = attrs.field(init=False)
    _engine_tasks: EngineTasks = attrs.field(init=False)
    _routers: RouterSwitch = attrs.field(factory=RouterSwitch, init=False)
    _sessions: Sessions = attrs.field(init=False)
    _refusals: RefusalLog = attrs.field(factory=RefusalLog, init=False)
    _task: asyncio.Task[None] | None = attrs.field(default=None, init=False)
    _closing: asyncio.Event = attrs.field(factory=asyncio.Event, init=False)
    _reconfiguring: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)
    _drained_at: float | None = attrs.field(default=None, init=False)  # when the wait for programs in flight ends

    def __attrs_post_init__(self) -> None:
        self._emit = EventDispatcher(check_sinks(self.telemetry))
        self._wanted_languages = self.languages
        limits.max_connections(self.max_connections)
        if self.token is None and not checks.is_loopback(self.host):
            raise ConfigurationError(
                f"listening on {safe_repr(self.host)} needs a token: set one, or listen on 127.0.0.1"
            )
        if self.access_log is not None and not callable(getattr(self.access_log, "info", None)):
            raise ConfigurationError(
                f"access_log must be a structlog or stdlib logger, got {safe_repr(self.access_log)}"
            )
        own = limits_of(*({} if each is None else attrs.asdict(each) for each in (self.sandbox, self.max_sandbox)))
        object.__setattr__(self, "sandbox", own.default)
        object.__setattr__(self, "max_sandbox", own.largest)
        if self.sandbox.network_enabled or self.max_sandbox.network_enabled:
            raise ConfigurationError("network_enabled must be False: the embedded FaaS gives programs no network")
        engine_choice.check_engines(self.languages, self.engines, self.sandbox.memory_limit_mb)

    def __repr__(self) -> str:
        where = "(not running)" if self._url is None else f"at {self._url}"
        return f"<LocalFaaS of {', '.join(self.languages)} {where}>"

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
            RuntimeClosedError: The server was started before, or closed.
            ServerError: The machine lacks memory, descriptors or time at the moment.

        Cancellation: closes the server.
        """
        if self._closing.is_set():
            raise RuntimeClosedError(_CLOSED)
        if self._task is not None:
            raise RuntimeClosedError("a LocalFaaS can be started only once: make a new one")
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # This task is outside of a task group, because one task may start the server and another may close it.
        self._task = asyncio.create_task(self._run(listening), name="faasrt-local")
        try:
            waiting: set[asyncio.Future[Any]] = {listening, self._task}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self._closing.is_set():
                raise RuntimeClosedError(_CLOSED)
            if self._task.done():
                await self._task
            self._url = listening.result()
        except BaseException:
            with contextlib.suppress(FaasrtError):  # it is raised here, or comes after a cancellation
                await self.aclose()
            raise

    def health(self) -> dict[str, Any]:
        """Return the report of `GET /health`.

        Raises:
            RuntimeClosedError: The server is not running.
        """
        self._check_running()
        return self._routers.current.health()

    async def wait_ready(self, language: LanguageOption) -> None:
        """Wait until a language can run, and start its engine if it starts only when it is needed.

        The first start of the engine "wasm" on a machine compiles it (about 20 s).

        Raises:
            UnsupportedLanguageError: The language is not served.
            ServerError: The engine cannot start. The message says why.
            RuntimeClosedError: The server is not running.
        """
        parsed = Language.parse(language)
        while True:
            self._check_running()
            queue = self._queues.get(parsed)
            if queue is None:
                reason = self._missing.get(parsed)
                raise UnsupportedLanguageError(
                    f"{language} is not one of the languages of this LocalFaaS{f': {reason}' if reason else ''}"
                )
            try:
                return await queue.engine.wait_ready()
            except EngineError as error:
                self._check_running()
                if self._queues.get(parsed) is queue:  # `reconfigure` has not replaced the engine
                    raise ServerError(str(error), sent="no") from None

    def engine(self, language: str | Language) -> Engine | None:
        """Return the engine of a language; None if the language is not served, or the server was not started."""
        queue = self._queues.get(Language.parse(language))
        return None if queue is None else queue.engine

    @property
    def listener(self) -> Listener:
        """Counts the open connections, and limits the memory of their requests. It exists from `start` on.

        Raises:
            RuntimeClosedError: The server was not started.
        """
        if self._listener is None:
            raise RuntimeClosedError("the embedded FaaS is not running")
        return self._listener

    async def make_snapshots(self) -> None:
        """Make the snapshots of the packages of the engine "wasm" and its optimized module now, and wait until they are
        made.

        A server makes them in the background, from half a minute after its start. Without them, the first programs that
        import a package take longer, and programs run more slowly. All languages must be ready.
        """
        for queue in self._queues.values():
            if isinstance(queue.engine, WasmEngine):
                await queue.engine.make_snapshots()

    async def reconfigure(self, wanted: LocalFaaS) -> list[str]:
        """Take over the options of another LocalFaaS, which was not started. No call and no session is lost.

        Requests that have begun keep the old options, and open sessions their limits. An engine whose options are the
        same runs on; otherwise the new one is started first, and the old one ends when its programs and sessions have
        ended. After an error all old options stay.

        Returns:
            The names of the options that changed. `ssl` is one of them if it is another context.

        Raises:
            ConfigurationError: `host` or `port` differ, or only one of both has `ssl`, or the new level does not work.
            ServerError: A new engine cannot start.
            RuntimeClosedError: This server does not run, or `wanted` does.

        Cancellation: keeps the old options.

        Example:
            >>> from faasrt.local import LocalFaaS
            >>> async with LocalFaaS(["js"], workers=1) as faas:
            ...     await faas.reconfigure(LocalFaaS(["js"], workers=1, sandbox=SandboxConfig(timeout_limit_s=5)))
            ['sandbox', 'max_sandbox']
        """
        async with self._reconfiguring:
            if self._url is None or wanted._task is not None:
                raise RuntimeClosedError("reconfigure needs a LocalFaaS that runs, and one that was not started")
            changed = self._compare(wanted)
            same_level = "level" not in changed and self._options.level
            current = self._options
            known = FoundLevel(current.level, current.level_reason, current.level_remedy) if same_level else None
            options = await wanted._find_options(self._options.folder, self._options.cgroups, known)
            running = [*self._queues.values()]
            queues, missing = await asyncio.to_thread(
                make_queues, wanted.languages, wanted.engines, options, self._budget, running
            )
            old, new = ({queue.engine for queue in each.values()} for each in (self._queues, queues))
            # A new engine may fail if the engine that it replaces could not run either.
            excused = {engine.name for engine in old if not engine.ready}
            try:
                await self._engine_tasks.start_ready(new - old, excused)
                if self._closing.is_set():
                    raise RuntimeClosedError("the embedded FaaS was closed meanwhile")
            except BaseException:
                await self._engine_tasks.stop(new - old)
                raise
            # From here on without an await, so that all options change together.
            if "telemetry" in changed:
                self._emit = wanted._emit
            for name, value in _options_of(wanted).items():
                object.__setattr__(self, name, value)
            self._wanted_languages = wanted._wanted_languages
            self._queues, self._missing, self._options = queues, missing, options
            self._use_options()
            self._engine_tasks.stop_after(partial(self._until_unused, old - new), old - new)
            return changed

    async def drain(self) -> None:
        """Refuse new programs, wait until the programs in flight have finished and their answers are sent, and end the
        sessions.

        Meanwhile `/readyz` answers 503. So do requests that start or change something, with `x-faasrt-not-started: 1`,
        so that clients ask another server. Sessions can still be read and interrupted. Each answer closes its
        connection. Idle connections have up to five seconds, so that their clients close them first. The wait takes
        `drain_s` at most. `aclose` must follow.

        Raises:
            RuntimeClosedError: The server is not running.
        """
        self._check_running()
        now = asyncio.get_running_loop().time()
        self.listener.draining, self._drained_at = True, now + self.drain_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._drained_at):
                await self._routers.until_idle()
                await self._sessions.aclose()
        await self.listener.until_closed(min(self._drained_at, now + IDLE_CONNECTIONS_S))

    async def aclose(self) -> None:
        """Stop listening, wait up to `drain_s` for programs in flight, and end all processes. Closing twice is safe.

        Raises:
            ServerError: The server had failed. The cause is the error.
        """
        self._url = None
        self._closing.set()
        await self.wait_closed()
        if self._task is not None and not self._task.cancelled():
            error = self._task.exception()
            if isinstance(error, ServerError):  # other errors were raised by `start`
                raise error

    async def wait_closed(self) -> None:
        """Wait until the server has ended: it was closed, or has failed. `aclose` then raises the error."""
        if self._task is not None and not self._task.done():  # it is done if the event loop was closed before
            await asyncio.wait({self._task})

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_running(self) -> None:
        if self._url is None:
            raise RuntimeClosedError("the embedded FaaS is not running")

    async def _run(self, listening: asyncio.Future[str]) -> None:
        try:
            # In this order: a process that is alone in its cgroup can use it. The folder needs another process.
            async with program_cgroups() as cgroups, temporary_folder() as folder:
                self._options = await self._find_options(folder, cgroups)
                self._queues, self._missing = await asyncio.to_thread(
                    make_queues, self.languages, self.engines, self._options, self._budget
                )
                async with asyncio.TaskGroup() as group:
                    self._engine_tasks = EngineTasks(group)
                    self._sessions = Sessions(group)
                    self._engine_tasks.start({queue.engine for queue in self._queues.values()})
                    try:
                        await self._listen(listening)
                    finally:
                        self._engine_tasks.cancel()
        except OSError as error:
            raise ConfigurationError(_explain(error)) from None
        except FaasrtError:
            raise
        except Exception as error:
            log_exception("the embedded FaaS failed", name="faasrt.local")
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            raise ServerError(f"the embedded FaaS failed: {type(first).__name__}: {first}", sent="no") from error
        finally:
            self._url = None

    async def _listen(self, listening: asyncio.Future[str]) -> None:
        max_connections = limits.max_connections(self.max_connections)
        listener = self._listener = Listener(self._routers.handle, max_connections, self._refusals)
        self._sockets = ListeningSockets(listener, self.ssl)
        self._use_options()
        try:
            try:
                listening.set_result(await self._sockets.open(self.host, self.port))
            except ConfigurationError as error:
                listening.set_exception(error)
            else:
                await self._closing.wait()
        finally:
            listener.draining = True
            self._sockets.close()
            now = asyncio.get_running_loop().time()
            if self._drained_at is not None:
                await listener.until_closed(now + _LAST_CONNECTIONS_S)
            self._sockets.cancel()
            await listener.close(self.drain_s if self._drained_at is None else self._drained_at - now)
            await self._sessions.aclose()
            self._refusals.flush()

    def _use_options(self) -> None:
        languages = tuple(language for language in self._wanted_languages if language in self._queues)
        object.__setattr__(self, "languages", languages)
        self._sockets.ssl = self.ssl
        self.listener.max_connections = limits.max_connections(self.max_connections)
        for queue in self._queues.values():
            queue.queue_timeout_s = self.queue_timeout_s
        sessions = self._sessions
        sessions.max_sessions, sessions.max_idle_s = self.max_sessions, self.session_idle_s
        sessions.max_memory_mb = self.session_memory_mb
        router = Router(
            self._queues,
            self._missing,
            limits=SandboxLimits(self.sandbox, self.max_sandbox),
            access=AccessPolicy(self.host, self.token),
            emit=self._emit,
            listener=self.listener,
            sessions=sessions,
            refusals=self._refusals,
            access_log=self.access_log,
        )
        self._routers.select(router)

    async def _until_unused(self, engines: Collection[Engine]) -> None:
        await self._routers.until_former_are_idle()
        await self._sessions.until_ended(engines)

    def _compare(self, wanted: LocalFaaS) -> list[str]:
        current = _options_of(self)
        changed = [name for name, value in _options_of(wanted).items() if value != current[name]]
        for name in _FIXED:
            if name in changed:
                raise ConfigurationError(f"{name} cannot change while the server runs: stop it, and start it again")
        if (self.ssl is None) != (wanted.ssl is None):
            raise ConfigurationError("a running server cannot switch TLS on or off: stop it, and start it again")
        return changed

    async def _find_options(
        self, folder: Path, cgroups: Cgroups | None, known: FoundLevel | None = None
    ) -> EngineOptions:
        """`known` is the level of the jail that was found before."""
        found = known or FoundLevel()
        if known is None and engine_choice.needs_level(self.languages, self.engines):
            try:
                found = await find_level(self.level, folder)
            except NotStartedError as error:
                raise ServerError(f"cannot start a jail now: {error}", sent="no") from None
            except EngineError as error:
                raise ConfigurationError(str(error)) from None
            if found.name and found.reason:
                log_warning("%s", found.describe(), name="faasrt.local")
        problem = await asyncio.to_thread(why_unreadable, self.python) if found.name == "users" else ""
        return EngineOptions(
            workers=self.workers or min(MAX_WORKERS, available_cpus()),
            folder=folder,
            max_programs=self.max_programs,
            max_wall_factor=self.max_wall_factor,
            machine_memory_mb=self._budget.memory.total_mb,
            memory_limit_mb=self.sandbox.memory_limit_mb,
            level=found.name,
            level_reason=found.reason,
            level_remedy=found.remedy,
            python_problem=problem,
            python=self.python,
            cgroups=cgroups,
        )


def _explain(error: OSError) -> str:
    """Return why a server cannot start."""
    reason = error.strerror or error
    if error.errno in _FILE_ERRORS:
        return f"cannot write temporary files: {reason}; set FAASRT_CACHE_DIR and TMPDIR to other folders"
    hint = "; raise the limit of open files" if error.errno == errno.EMFILE else ""
    return f"cannot start the server: {reason}{hint}"


def _options_of(faas: LocalFaaS) -> dict[str, Any]:
    options = {attribute.name: getattr(faas, attribute.name) for attribute in attrs.fields(LocalFaaS) if attribute.init}
    return {**options, "languages": faas._wanted_languages}
