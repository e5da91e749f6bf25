"""LocalFaaS: the embedded FaaS and its life, from the first socket to the last process."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from faasrt.config import SandboxConfig
from faasrt.emitter import Emitter, check_sinks
from faasrt.errors import ConfigurationError, RuntimeClosedError, ServerError, UnsupportedLanguageError, shown
from faasrt.events import Sink
from faasrt.languages import Language
from faasrt.local import limits
from faasrt.local.app import Service
from faasrt.local.connections import Listener
from faasrt.local.engines.base import Engine, EngineError
from faasrt.local.engines.deno import DenoEngine
from faasrt.local.engines.wasi_python import WasiPythonEngine
from faasrt.local.folder import temporary_folder
from faasrt.local.guard import Guard
from faasrt.local.pool import QUEUE_TIMEOUT_S, Pool

_ENGINES: tuple[tuple[type[Engine], str], ...] = ((WasiPythonEngine, "wasi_python"), (DenoEngine, "deno"))
_MAX_WORKERS = 256
# Most JavaScript programs end before a core has had time for another.
_DENO_PER_WORKER = 4


class LocalFaaS:
    """A FaaS inside this process: every program runs in a fresh sandbox, in processes that end with this one.

    Args:
        languages: Names or `Language`s to serve; all three when None.
        workers: Python programs at once, from 1 to 256; JavaScript gets four times as many. The number of CPUs when
            None.
        sandbox: The limits of every program; a request can only lower them.
        host: The address to listen on. Another than loopback needs a token.
        port: The port; 0 takes a free one.
        token: What callers must show as `Authorization: Bearer ...`; nothing when None.
        drain_s: Seconds, above 0, that programs in flight get to end when the server is closed.
        queue_timeout_s: Seconds, above 0, that a program waits for its turn at most before it is refused. The default
            is shorter than the grace of clients, so that they hear of it.
        telemetry: Sinks for the events of executions, see `faasrt.events`.

    Raises:
        ConfigurationError: An argument is wrong, or the packages of a language are not installed.

    Example:
        >>> from faasrt.local import LocalFaaS
        >>> async with LocalFaaS(languages=["js", "ts"], token="secret") as faas:
        ...     print(faas.url)
        http://127.0.0.1:...
    """

    def __init__(
        self,
        languages: Iterable[str | Language] | None = None,
        *,
        workers: int | None = None,
        sandbox: SandboxConfig | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        drain_s: float = 5.0,
        queue_timeout_s: float = QUEUE_TIMEOUT_S,
        telemetry: Iterable[Sink] = (),
    ) -> None:
        if isinstance(languages, str):
            languages = [languages]
        elif languages is not None and (
            isinstance(languages, (bytes, bytearray, Mapping)) or not isinstance(languages, Iterable)
        ):
            raise ConfigurationError(f"languages must name languages, such as ['python'], got {shown(languages)}")
        chosen = tuple(Language) if languages is None else tuple(Language.parse(name) for name in languages)
        self.languages = tuple(dict.fromkeys(chosen))
        self.sandbox = SandboxConfig() if sandbox is None else sandbox
        self._workers = _check_workers(workers)
        self._drain_s = _check_seconds("drain_s", drain_s)
        self._host, self._port, self._token = host, port, token
        self._queue_timeout_s = _check_seconds("queue_timeout_s", queue_timeout_s)
        self._emit = Emitter(check_sinks(telemetry))
        self._url: str | None = None
        self._engines: dict[Language, Engine] = {}
        self._life: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        if not isinstance(self.sandbox, SandboxConfig):
            raise ConfigurationError(f"sandbox must be a SandboxConfig, got {type(self.sandbox).__name__}")
        if not self.languages:
            raise ConfigurationError("languages must name at least one language")
        if not isinstance(host, str):
            raise ConfigurationError(f"host must be a string, got {shown(host)}")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65_535:
            raise ConfigurationError(f"port must be a whole number from 0 to 65535, got {shown(port)}")
        if token is not None and not isinstance(token, str):
            raise ConfigurationError(f"token must be a string, got a {type(token).__name__}")
        if token is not None and not (token.isascii() and token.isprintable() and token and token == token.strip()):
            raise ConfigurationError("token must be printable ASCII, not empty, and without blanks around it")
        if not _is_loopback(host) and token is None:
            raise ConfigurationError(f"listening on {shown(host)} lets others in: give a token, or listen on 127.0.0.1")
        for engine, package in _ENGINES:
            if not set(engine.languages) & set(self.languages):
                continue
            if importlib.util.find_spec(package) is None:
                raise ConfigurationError(
                    f"the embedded FaaS needs {package} for {engine.languages[0]}: pip install 'faasrt[local]'"
                )
            if self.sandbox.memory_limit_mb < engine.min_memory_mb:
                raise ConfigurationError(
                    f"memory_limit_mb must be at least {engine.min_memory_mb} for {engine.languages[0]}, "
                    f"got {self.sandbox.memory_limit_mb}"
                )

    @property
    def url(self) -> str:
        """The base URL.

        Raises:
            RuntimeClosedError: It is not running.
        """
        if self._url is None:
            raise RuntimeClosedError("the embedded FaaS is not running")
        return self._url

    async def start(self) -> None:
        """Listen, and begin to prepare the engines; `wait_ready` tells when a language can run.

        Raises:
            ConfigurationError: The address cannot be listened on.
            RuntimeClosedError: It was started before.

        Cancellation: stops again.
        """
        if self._life is not None:
            raise RuntimeClosedError("a LocalFaaS can be started once: make a new one")
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # A task of its own, and the only one outside a task group: starting and closing may happen in two other tasks.
        self._life = asyncio.create_task(self._live(listening), name="faasrt-local")
        try:
            waiting: set[asyncio.Future[Any]] = {listening, self._life}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                self._url = listening.result()
            else:
                await self._life
        except BaseException:
            await self.aclose()
            raise

    async def wait_ready(self, language: str | Language) -> None:
        """Wait until a language can run. Python's sandbox is compiled at its first use on a machine (about 45 s).

        Raises:
            UnsupportedLanguageError: The language is not served.
            ServerError: Its engine cannot start; the message says why.
        """
        engine = self._engines.get(Language.parse(language))
        if engine is None:
            raise UnsupportedLanguageError(f"{language} is not served here")
        try:
            await engine.wait_ready()
        except EngineError as error:
            raise ServerError(str(error), endpoint=self._url or "", sent="no") from None

    async def aclose(self) -> None:
        """Stop listening, let programs in flight end, then end everything. Closing twice is harmless."""
        self._url = None
        self._closing.set()
        # Done already, too, where the event loop that it lived in has been closed under it.
        if self._life is not None and not self._life.done():
            await asyncio.wait({self._life})

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _live(self, listening: asyncio.Future[str]) -> None:
        try:
            async with temporary_folder() as folder:
                pools = await asyncio.to_thread(self._make_pools, folder)
                await self._serve(pools, listening)
        except OSError as error:
            where = "FAASRT_CACHE_DIR and TMPDIR name other places"
            raise ConfigurationError(f"cannot write temporary files: {error.strerror or error}; {where}") from None

    async def _serve(self, pools: dict[Language, Pool], listening: asyncio.Future[str]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.live()) for engine in dict.fromkeys(self._engines.values())]
            try:
                await self._listen(pools, listening)
            finally:
                for task in tasks:
                    task.cancel()

    async def _listen(self, pools: dict[Language, Pool], listening: asyncio.Future[str]) -> None:
        hosts = None if self._token else frozenset({"localhost", "127.0.0.1", "::1", self._host.lower()})
        guard = Guard(hosts=hosts, token=self._token)
        service = Service(pools, sandbox=self.sandbox, guard=guard, emit=self._emit)
        runner = web.ServerRunner(Listener(service.handle), shutdown_timeout=self._drain_s)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._port, backlog=limits.backlog())
            try:
                await site.start()
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or error
                words = f"cannot listen on {self._host}:{self._port}: {reason}"
                listening.set_exception(ConfigurationError(words))
                return
            host, port = runner.addresses[0][:2]
            listening.set_result(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await self._closing.wait()
        finally:
            await runner.cleanup()

    def _make_pools(self, folder: Path) -> dict[Language, Pool]:
        pools: dict[Language, Pool] = {}
        made: list[Engine] = []
        if Language.PYTHON in self.languages:
            made.append(WasiPythonEngine(workers=self._workers, folder=folder))
        if set(self.languages) & set(DenoEngine.languages):
            made.append(
                DenoEngine(
                    capacity=_DENO_PER_WORKER * self._workers,
                    folder=folder,
                    memory_limit_mb=self.sandbox.memory_limit_mb,
                )
            )
        for engine in made:
            pool = Pool(engine, queue_timeout_s=self._queue_timeout_s)
            for language in engine.languages:
                if language in self.languages:
                    pools[language] = pool
                    self._engines[language] = engine
        return pools


def _check_workers(workers: int | None) -> int:
    if workers is None:
        return min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= _MAX_WORKERS:
        raise ConfigurationError(f"workers must be a whole number from 1 to {_MAX_WORKERS}, got {shown(workers)}")
    return workers


def _check_seconds(name: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < 1e6:
        raise ConfigurationError(f"{name} must be a number of seconds above 0, got {shown(seconds)}")
    return seconds


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
