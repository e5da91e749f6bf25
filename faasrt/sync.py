"""The same API for code without asyncio: scripts, notebooks, threads.

`faasrt.sync.RuntimeManager` has the constructors and methods of `faasrt.RuntimeManager`, with the same arguments,
results, errors and docstrings: leave out the `await` of their examples. Each method waits for its result.
`with` takes the place of `async with`, and `close` takes the place of `aclose`; `map` returns an ordinary generator,
`get_runtime` a `faasrt.sync.Runtime`, `session` a `faasrt.sync.Session`, and `stream_code` a `faasrt.sync.StreamedRun`.
`faasrt.sync.AgentSession` takes such a manager.

A manager has one event loop, in a separate thread, which starts with the first call. Any number of threads may use the
manager, even while an event loop runs in their thread, as in a notebook (that loop then waits as well).

**Ctrl-C.** A KeyboardInterrupt during a call cancels it: the embedded FaaS ends its program.

**map** reads the tasks in the calling thread, while it waits for a result, so tasks need no locks, and a task source
that blocks is interrupted by Ctrl-C. Between two results no tasks are read, but the tasks that were read before go on
running. With `coalesce=N` it reads N tasks at a time. Leaving the loop stops the work when the generator is closed: at
once, unless you keep a reference to it.

**Closing.** `with` and `close` wait for the calls in flight, as `aclose` does. A manager that is still open when the
main thread ends is closed then. After a fork, the child process needs its own manager.

Example:
    >>> from faasrt import sync
    >>> with sync.RuntimeManager.local(["python"]) as manager:
    ...     print(manager.run_code("print(6 * 7)", "python").stdout.strip())
    ...     for item in manager.map([CodeTask(f"print({n})", "python") for n in range(3)], ordered=True):
    ...         print(item.result.stdout.strip())
    42
    0
    1
    2
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import inspect
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import faasrt.agents
import faasrt.client.manager
import faasrt.client.map
import faasrt.client.runtime
import faasrt.client.session
import faasrt.client.streaming
from faasrt._attribute_docs import list_attributes
from faasrt.client.cache import CacheOption
from faasrt.client.factory import RuntimeFactory
from faasrt.client.loop_thread import LoopThread
from faasrt.client.map import StopOn
from faasrt.config import SandboxConfig, Settings
from faasrt.errors import ConfigurationError, InvalidRequestError, RuntimeClosedError
from faasrt.languages import LanguageOption
from faasrt.protocol.sessions import IDLE_TIMEOUT_S
from faasrt.results import ExecutionResult, OutputChunk
from faasrt.tasks import CodeTask, TaskResult
from faasrt.telemetry.events import Sink

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS

__all__ = ["AgentSession", "Runtime", "RuntimeManager", "Session", "StreamedRun", "TaskResults"]

P = ParamSpec("P")
T = TypeVar("T")
_Reply = asyncio.Future[tuple[list[CodeTask], BaseException | None]]
_AsyncManager = faasrt.client.manager.RuntimeManager
_AsyncRuntime = faasrt.client.runtime.Runtime
_AsyncSession = faasrt.client.session.Session
_AsyncAgentSession = faasrt.agents.AgentSession


async def _call(function: Callable[[], T]) -> T:
    return function()


def _named(function: Callable[P, T], method: Any, name: str = "") -> Callable[P, T]:
    """Return a function with the signature and the docstring of an asynchronous method."""
    functools.update_wrapper(function, method)
    owner = method.__qualname__.partition(".")[0]
    function.__name__ = name or method.__name__
    function.__module__, function.__qualname__ = __name__, f"{owner}.{function.__name__}"
    return function


def _class_method(method: Callable[P, _AsyncManager]) -> classmethod[RuntimeManager, P, RuntimeManager]:
    def make(cls: type[RuntimeManager], /, *args: P.args, **kwargs: P.kwargs) -> RuntimeManager:
        manager = cls.__new__(cls)
        manager._adopt(method(*args, **kwargs))
        return manager

    return classmethod(_named(make, method.__func__))  # type: ignore[attr-defined]


def _method(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], name: str = ""
) -> Callable[Concatenate[Any, P], T]:
    def call(self: RuntimeManager | Runtime | Session | AgentSession, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._owner._loop_thread().call(method(self._original, *args, **kwargs))

    return _named(call, method, name)


def _query(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    def query(self: RuntimeManager | Runtime, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._owner._query(functools.partial(method, self._original, *args, **kwargs))

    return _named(query, method)


def _stream(
    method: Callable[Concatenate[Any, P], faasrt.client.streaming.StreamedRun],
) -> Callable[Concatenate[Any, P], StreamedRun]:
    def stream(self: RuntimeManager | Runtime | Session, /, *args: P.args, **kwargs: P.kwargs) -> StreamedRun:
        return StreamedRun(self._owner._loop_thread(), method(self._original, *args, **kwargs))

    return _named(stream, method)


def _session(method: Callable[Concatenate[Any, P], _AsyncSession]) -> Callable[Concatenate[Any, P], Session]:
    def session(self: RuntimeManager | Runtime, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(self._owner, method(self._original, *args, **kwargs))

    return _named(session, method)


class StreamedRun:
    r"""The output of a program while it runs: a context manager that starts the program, and an iterator.

    Leaving the block ends a program that still runs. See `faasrt.StreamedRun`.

    Example:
        >>> from faasrt import sync
        >>> with sync.RuntimeManager.local(["python"]) as manager:
        ...     with manager.stream_code("print('hi'); return_val('1')", "python") as run:
        ...         for chunk in run:
        ...             print(chunk.stream, repr(chunk.text))
        ...     print(run.result.value, run.live)
        stdout 'hi\n'
        1 True
    """

    def __init__(self, thread: LoopThread, run: faasrt.client.streaming.StreamedRun) -> None:
        self._thread, self._run = thread, run

    def __enter__(self) -> Self:
        self._thread.call(self._run.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The manager may have been closed in the block, which has also ended the run.
        with contextlib.suppress(RuntimeClosedError):
            self._thread.call(self._run.__aexit__())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> OutputChunk:
        """Wait for output. A KeyboardInterrupt loses no output."""
        try:
            return self._thread.call(self._run.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def live(self) -> bool:
        """Whether the server sends the output while the program runs; False before the first output."""
        return self._run.live

    @property
    def result(self) -> ExecutionResult:
        """The result, after the iteration has ended; see `faasrt.StreamedRun.result`."""
        return self._run.result


class _TaskReader:
    """Reads tasks in the thread that waits for results, when the event loop asks for them, `chunk` at a time."""

    def __init__(self, tasks: Iterable[CodeTask], thread: LoopThread) -> None:
        self._iterator = iter(tasks)
        self._thread = thread
        self.messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.chunk = 1

    async def read(self) -> AsyncIterator[CodeTask]:
        error: BaseException | None = None
        while error is None:
            reply: _Reply = asyncio.get_running_loop().create_future()
            self.messages.put(reply)
            tasks, error = await reply
            for task in tasks:
                yield task
        if not isinstance(error, StopIteration):
            raise error

    def serve(self, reply: _Reply) -> None:
        tasks: list[CodeTask] = []
        error: BaseException | None = None
        try:
            tasks.extend(itertools.islice(self._iterator, self.chunk))
            if len(tasks) < self.chunk:
                error = StopIteration()
        except Exception as raised:
            error = raised
        self._thread.call_soon(_answer, reply, (tasks, error))

    def close(self) -> None:
        if inspect.isgenerator(self._iterator):
            self._iterator.close()


def _answer(reply: _Reply, value: tuple[list[CodeTask], BaseException | None]) -> None:
    if not reply.done():  # the map may have ended
        reply.set_result(value)


class _Steps:
    def __init__(self, results: faasrt.client.map.TaskResults) -> None:
        self._results = results
        self._reading: asyncio.Task[Any] | None = None

    async def next(self) -> TaskResult | None:
        self._reading = asyncio.current_task()
        return await anext(self._results, None)

    async def aclose(self) -> None:
        """Stop the map, even while `next` waits, as after a KeyboardInterrupt."""
        if self._reading is not None and not self._reading.done():
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._results.aclose()


class TaskResults(Generator[TaskResult]):
    """The results of `RuntimeManager.map`: a generator that is also a context manager."""

    def __init__(self, reader: _TaskReader, results: faasrt.client.map.TaskResults, thread: LoopThread) -> None:
        self._generator = _read_results(reader, results, thread)
        next(self._generator)  # from now on, closing it stops the work

    def __next__(self) -> TaskResult:
        return self.send(None)

    def send(self, value: None) -> TaskResult:
        """Return the next result, like `next`."""
        result = self._generator.send(value)
        assert result is not None
        return result

    def throw(self, *error: Any) -> TaskResult:
        """Raise an error in the generator, which ends the results."""
        result = self._generator.throw(*error)
        assert result is not None
        return result

    def close(self) -> None:
        """Stop reading, cancel the executions in flight, and wait for both. Closing twice is harmless."""
        self._generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _read_results(
    reader: _TaskReader, results: faasrt.client.map.TaskResults, thread: LoopThread
) -> Generator[TaskResult | None, None, None]:
    """Yield None once, and then the results."""
    steps = _Steps(results)
    try:
        yield None
        while True:
            future = thread.start(steps.next())
            future.add_done_callback(reader.messages.put)
            while (message := reader.messages.get()) is not future:
                reader.serve(message)
            try:
                result = future.result()
            except concurrent.futures.CancelledError:
                raise RuntimeClosedError("this manager was closed before all results were read") from None
            if result is None:
                return
            yield result
    finally:
        with contextlib.suppress(RuntimeClosedError):
            closing = thread.start(steps.aclose())
            if not thread.is_current:  # where the garbage collector may run
                closing.result()
        reader.close()


_open_managers: set[RuntimeManager] = set()


def _close_all() -> None:
    for manager in tuple(_open_managers):
        manager.close()


# Functions that `atexit` calls run too late: closing an embedded FaaS needs `asyncio.to_thread`, which then fails. The
# function of `threading` is private. Without it, `atexit` still closes managers that have no embedded FaaS.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


class RuntimeManager:
    """Runs programs, and waits for their results. Any number of threads may use a manager.

    Args:
        factory, settings, logger, telemetry, cache: See `faasrt.RuntimeManager`.

    Raises:
        ConfigurationError: An argument is wrong.

    Example:
        >>> from faasrt import sync
        >>> with sync.RuntimeManager.local(["python"]) as manager:
        ...     manager.call_function("def f(n): return n + 1", "f", [1], language="python").value
        2
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
        self._adopt(_AsyncManager(factory, settings=settings, logger=logger, telemetry=telemetry, cache=cache))

    from_env = _class_method(_AsyncManager.from_env)
    from_url = _class_method(_AsyncManager.from_url)
    local = _class_method(_AsyncManager.local)

    run_code = _method(_AsyncManager.run_code)
    stream_code = _stream(_AsyncManager.stream_code)
    session = _session(_AsyncManager.session)
    call_function = _method(_AsyncManager.call_function)
    run_cases = _method(_AsyncManager.run_cases)
    judge = _method(_AsyncManager.judge)
    validate_code = _method(_AsyncManager.validate_code)
    get_health_status = _method(_AsyncManager.get_health_status)
    reconfigure = _method(_AsyncManager.reconfigure)
    close_runtimes = _method(_AsyncManager.close_runtimes)
    get_supported_languages = _query(_AsyncManager.get_supported_languages)
    get_metrics = _query(_AsyncManager.get_metrics)

    @property
    def _owner(self) -> Self:
        return self

    @property
    def settings(self) -> Settings:
        """The settings in use; see `faasrt.RuntimeManager.settings`."""
        return self._original.settings

    @property
    def local_faas(self) -> LocalFaaS | None:
        """The server of `RuntimeManager.local`; None for other managers. It is another one after a failed start.

        Read its properties in any thread. Its methods belong to the event loop of the manager.

        Example:
            >>> from faasrt import sync
            >>> with sync.RuntimeManager.local(["python"]) as manager:
            ...     manager.local_faas.url.startswith("http://")
            True
        """
        return self._original.local_faas

    def get_runtime(self, language: LanguageOption) -> Runtime:
        """Return the runtime for a language; see `faasrt.RuntimeManager.get_runtime`. Do not close it."""
        return Runtime(self, self._loop_thread().call(self._original.get_runtime(language)))

    def resume_session(self, id: str, endpoint: str | None = None) -> Session:  # noqa: A002
        """Return a session that is open; see `faasrt.RuntimeManager.resume_session`."""
        return Session(self, self._loop_thread().call(self._original.resume_session(id, endpoint)))

    def map(
        self,
        tasks: Iterable[CodeTask],
        *,
        concurrency: int | None = None,
        ordered: bool = False,
        stop_on: StopOn = None,
        max_failures: int | None = None,
        coalesce: int = 1,
        cache: CacheOption = None,
    ) -> TaskResults:
        """Run many tasks, and yield each result when it is available; see `faasrt.RuntimeManager.map`.

        Args:
            tasks: Any iterable. It is read lazily, in the thread that reads the results, while that waits for one. A
                generator is closed at the end.
            stop_on: See `faasrt.RuntimeManager.map`. A function is called in the thread of the manager.
            concurrency, ordered, max_failures, coalesce, cache: See `faasrt.RuntimeManager.map`.

        Returns:
            A generator with a `TaskResult` for each task, which is also a context manager.

        Raises:
            InvalidRequestError: `tasks` is not iterable.
            FaasrtError: See `faasrt.RuntimeManager.map`.
        """
        if not isinstance(tasks, Iterable):
            raise InvalidRequestError(f"tasks must be an iterable of CodeTasks, got {type(tasks).__name__}")
        thread = self._loop_thread()
        reader = _TaskReader(tasks, thread)
        results = self._original.map(
            reader.read(),
            concurrency=concurrency,
            ordered=ordered,
            stop_on=stop_on,
            max_failures=max_failures,
            coalesce=coalesce,
            cache=cache,
        )
        reader.chunk = coalesce
        return TaskResults(reader, results, thread)

    def close(self) -> None:
        """Close the manager, its runtimes and its event loop; see `faasrt.RuntimeManager.aclose`.

        Closing twice is harmless. Closing in a fork of the process that used the manager is harmless, too.

        Raises:
            ConfigurationError: This is the thread of the manager.
        """
        if self._thread is not None and self._thread.is_current:
            raise ConfigurationError("a manager must not be closed in its own thread, as from `stop_on`")
        thread = self._loop_thread()  # a manager that was not used is closed in an event loop, too
        _open_managers.discard(self)
        if thread.is_alive:
            try:
                with contextlib.suppress(RuntimeClosedError):  # another thread has closed it
                    thread.call(self._original.aclose())
            finally:
                thread.stop()

    def __enter__(self) -> Self:
        try:
            self._loop_thread().call(self._original.__aenter__())
        except BaseException:
            self.close()  # otherwise its thread would run until the end of the process
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sync.{repr(self._original)[1:]}"

    def _adopt(self, manager: _AsyncManager) -> None:
        self._original = manager
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None

    def _loop_thread(self) -> LoopThread:
        with self._lock:
            if self._thread is None:
                self._thread = LoopThread()
                _open_managers.add(self)
            return self._thread

    def _query(self, function: Callable[[], T]) -> T:
        thread = self._thread
        if thread is None or thread.is_current or not thread.is_alive:
            return function()
        return thread.call(_call(function))


class _Context:
    """A runtime or a session of a manager, as a context manager."""

    def __init__(self, manager: RuntimeManager, original: _AsyncRuntime | _AsyncSession | _AsyncAgentSession) -> None:
        self._owner = manager
        self._original: Any = original
        self.language = original.language
        """The language of its programs; of a runtime, the default one."""

    def __enter__(self) -> Self:
        self._owner._loop_thread().call(self._original.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The manager may have been closed in the block, which has also closed this.
        with contextlib.suppress(RuntimeClosedError):
            self._owner._loop_thread().call(self._original.aclose())

    def __repr__(self) -> str:
        return f"<sync.{repr(self._original)[1:]}"


@list_attributes
class Runtime(_Context):
    """Runs programs in one language, and waits for their results; see `faasrt.Runtime`."""

    _original: _AsyncRuntime

    run_code = _method(_AsyncRuntime.run_code)
    stream_code = _stream(_AsyncRuntime.stream_code)
    session = _session(_AsyncRuntime.session)
    call_function = _method(_AsyncRuntime.call_function)
    run_cases = _method(_AsyncRuntime.run_cases)
    judge = _method(_AsyncRuntime.judge)
    validate_code = _method(_AsyncRuntime.validate_code)
    get_health_status = _method(_AsyncRuntime.get_health_status)
    get_return_val_function = _query(_AsyncRuntime.get_return_val_function)
    get_supported_languages = _query(_AsyncRuntime.get_supported_languages)
    get_metrics = _query(_AsyncRuntime.get_metrics)
    close = _method(_AsyncRuntime.aclose, "close")

    @property
    def closed(self) -> bool:
        """Whether closing has begun."""
        return self._original.closed


@list_attributes
class Session(_Context):
    """An interpreter that keeps variables, imports and files between runs; see `faasrt.Session`.

    Example:
        >>> from faasrt import sync
        >>> with sync.RuntimeManager.local(["python"]) as manager, manager.session("python") as session:
        ...     result = session.run_code("x = 41")
        ...     print(session.run_code("x + 1").displays[0].text)
        42
    """

    _original: _AsyncSession

    run_code = _method(_AsyncSession.run_code)
    stream_code = _stream(_AsyncSession.stream_code)
    write_files = _method(_AsyncSession.write_files)
    read_files = _method(_AsyncSession.read_files)
    list_files = _method(_AsyncSession.list_files)
    interrupt = _method(_AsyncSession.interrupt)
    close = _method(_AsyncSession.aclose, "close")

    @property
    def id(self) -> str:
        """The id of the session; see `faasrt.Session.id`."""
        return self._original.id

    @property
    def endpoint(self) -> str:
        """The base URL of the server that has the session."""
        return self._original.endpoint

    @property
    def lost_reason(self) -> str:
        """Why the session has ended; see `faasrt.Session.lost_reason`."""
        return self._original.lost_reason

    def fork(self, *, idle_timeout_s: float | None = None) -> Session:
        """Return a new session with the same variables and files; see `faasrt.Session.fork`."""
        return Session(self._owner, self._owner._loop_thread().call(self._original.fork(idle_timeout_s=idle_timeout_s)))


@list_attributes
class AgentSession(_Context):
    """The session of an agent, which is replaced when it is lost; see `faasrt.agents.AgentSession`.

    Args:
        manager: The manager.
        language, sandbox, files, idle_timeout_s: See `faasrt.agents.AgentSession`.

    Example:
        >>> from faasrt import sync
        >>> with sync.RuntimeManager.local(["python"]) as manager, sync.AgentSession(manager) as session:
        ...     observation = session.run_code("x = 41")
        ...     print(session.run_code("x + 1").text)
        42
    """

    _original: _AsyncAgentSession

    def __init__(
        self,
        manager: RuntimeManager,
        language: LanguageOption = "python",
        *,
        sandbox: SandboxConfig | None = None,
        files: Mapping[str, str | bytes] | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        original = _AsyncAgentSession(
            manager._original, language, sandbox=sandbox, files=files, idle_timeout_s=idle_timeout_s
        )
        super().__init__(manager, original)

    run_code = _method(_AsyncAgentSession.run_code)
    begin_branch = _method(_AsyncAgentSession.begin_branch)
    end_branch = _method(_AsyncAgentSession.end_branch)
    close = _method(_AsyncAgentSession.aclose, "close")

    @property
    def is_open(self) -> bool:
        """Whether a session is open, with the state of the calls before."""
        return self._original.is_open

    @property
    def branches(self) -> int:
        """The number of branches that are open, one in another."""
        return self._original.branches
