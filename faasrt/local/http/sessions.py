"""The open sessions of a server: how many there may be, when they end, and why they have ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import attrs

from faasrt.config import SandboxConfig
from faasrt.local.engines.engine import Engine, EngineJob, EngineResult
from faasrt.local.engines.session import EngineSession, EngineSessionOptions, SessionEndedError, SessionExistsError
from faasrt.local.errors import CLOSED, EngineError
from faasrt.local.http.admission import QUEUE_TIMEOUT_S, AdmissionQueue, BusyError
from faasrt.protocol.sessions import IDLE_TIMEOUT_S, TOO_MANY, new_id
from faasrt.results import Outcome
from faasrt.telemetry.logs import log_exception

MAX_SESSIONS = 100
MAX_IDLE_S = 3_600.0
MAX_REMEMBERED = 1_000
_UNKNOWN = "there is no session with this id: it was never here, or the server has been restarted"
_STOPPED = "the server was stopped"


@attrs.define
class SessionCounts:
    """Counts sessions with forks, and programs in them.

    `ended` counts by reason: "closed" by the client, "idle" for too long, "run" (a program ended it), "lost" (its
    process or its engine ended between programs), or "stopped" (the server).
    """

    opened: int = 0
    forks: int = 0
    runs: int = 0
    ended: Counter[str] = attrs.field(factory=Counter)


class OpenSession:
    """An open session.

    Attributes:
        id: A secret: everybody who knows it, and the token of the server, can use the session.
        reason: Why the server has ended it.
        ended_in_run: Whether a program has ended it.
    """

    def __init__(
        self,
        session_id: str,
        engine_session: EngineSession,
        queue: AdmissionQueue,
        sandbox: SandboxConfig,
        idle_timeout_s: float,
        counts: SessionCounts,
    ) -> None:
        self.id = session_id
        self.engine_session, self.queue, self.sandbox, self.idle_timeout_s = (
            engine_session,
            queue,
            sandbox,
            idle_timeout_s,
        )
        self.runs = 0
        self.running = self.ended_in_run = False
        self.reason = ""
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()  # first come, first served
        self._users = 0
        self._used_at = self._loop.time()
        self._wait: asyncio.Timeout | None = None

    @property
    def busy(self) -> bool:
        """Whether a request uses the session, or waits for its turn."""
        return self._users > 0

    @property
    def idle_s(self) -> float:
        return 0.0 if self.busy else self._loop.time() - self._used_at

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """Wait for the turn of this request, and use the session in the block. The value is the seconds of the wait.
        Raise BusyError if they exceed the time limit of the queue.
        """
        began, timeout_s = self._loop.time(), self.queue.queue_timeout_s or QUEUE_TIMEOUT_S
        self._users += 1
        self._reset_wait()
        try:
            if self._users > 1:
                await self.queue.wait_for(
                    self._turn.acquire, timeout_s, f"the session did not become free in {timeout_s:g} s"
                )
            else:
                await self._turn.acquire()
            try:
                self.check()
                yield self._loop.time() - began
            finally:
                self._turn.release()
        finally:
            self._users -= 1
            self._used_at = self._loop.time()
            self._reset_wait()

    @property
    def ending(self) -> str:
        return self.reason or (
            self.engine_session.reason or "its process has ended" if self.engine_session.ended.is_set() else ""
        )

    def check(self) -> None:
        if self.ending:
            raise SessionEndedError(self.ending)

    async def run(self, job: EngineJob) -> EngineResult:
        """Run a program. The caller has its turn and a permit of the queue. Raise the errors of `EngineSession.run`."""
        self.check()
        engine = self.queue.engine
        self.runs += 1
        self._counts.runs += 1
        self.running = True
        engine.active += 1
        try:
            result = await self.engine_session.run(job)
            if self.reason and result.outcome is Outcome.CRASHED:  # the end of the session has ended the program
                raise SessionEndedError(self.reason)
            return result
        except EngineError:
            if self.reason:  # the session was ended while the program ran
                raise SessionEndedError(self.reason) from None
            raise
        finally:
            engine.active -= 1
            self.running = False
            self.ended_in_run = self.engine_session.ended.is_set()

    def interrupt(self) -> bool:
        if self.running:
            self.engine_session.interrupt()
        return self.running

    async def until_over(self) -> None:
        """Wait until the session has ended by itself, has been idle for too long, or got a reason to end."""
        while not self.reason and not self.engine_session.ended.is_set():
            try:
                async with asyncio.timeout_at(self._idle_at()) as self._wait:
                    await self.engine_session.ended.wait()
            except TimeoutError:
                if not self.busy:  # a request that comes at the last moment uses it
                    return
            finally:
                self._wait = None

    def end(self, reason: str) -> None:
        """Record the reason for which the session ends. The first one counts."""
        self.reason = self.reason or reason
        self._reset_wait()

    def _reset_wait(self) -> None:
        if self._wait is not None and not self._wait.expired():
            self._wait.reschedule(self._idle_at())

    def _idle_at(self) -> float | None:
        if self.reason:
            return 0.0
        return None if self.busy else self._used_at + self.idle_timeout_s


class Sessions:
    """All open sessions of a server. A task of the group keeps each of them. `max_memory_mb` limits the sum of their
    limits.
    """

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.max_sessions, self.max_idle_s = MAX_SESSIONS, MAX_IDLE_S
        self.max_memory_mb: int | None = None
        self.counts = SessionCounts()
        self._group = group
        self._starting: set[str] = set()  # their ids
        self._open: dict[str, OpenSession] = {}
        self._ended: dict[str, str] = {}  # the reasons of the last ones, by id
        self._tasks: dict[OpenSession, asyncio.Task[None]] = {}  # they run until the processes have ended
        self._count = self._memory_mb = 0  # of sessions whose processes run, or start

    def __len__(self) -> int:
        return len(self._open)

    def features(self, engine: Engine) -> Collection[str]:
        return engine.session_features if self.max_sessions else ()

    def get(self, session_id: str) -> OpenSession:
        session = self._open.get(session_id)
        if session is None:
            raise SessionEndedError(self._ended.get(session_id, _UNKNOWN))
        return session

    async def open(
        self,
        queue: AdmissionQueue,
        options: EngineSessionOptions,
        sandbox: SandboxConfig,
        idle_timeout_s: float | None,
        session_id: str | None = None,
    ) -> OpenSession:
        """Open a session. The caller has a permit of the queue. The idle limit is lowered to `max_idle_s`. Raise
        BusyError if there are too many sessions, and SessionExistsError if the id is not new.

        Cancellation: ends the session.
        """

        async def start() -> EngineSession:
            engine_session = await queue.engine.open_session(options)
            engine_session.options = attrs.evolve(options, files={})  # the contents are not needed any more
            return engine_session

        idle_s = IDLE_TIMEOUT_S if idle_timeout_s is None else idle_timeout_s
        return await self._start(start, queue, sandbox, idle_s, session_id)

    async def fork(self, session: OpenSession, idle_timeout_s: float | None, session_id: str | None) -> OpenSession:
        """Open a copy of a session, by default with its idle limit. The caller has its turn and a permit of its queue.

        Cancellation: ends the copy.
        """
        idle_s = session.idle_timeout_s if idle_timeout_s is None else idle_timeout_s
        fork = session.engine_session.fork
        return await self._start(fork, session.queue, session.sandbox, idle_s, session_id, is_fork=True)

    async def close(self, session_id: str) -> None:
        """End a session, and wait for its processes. One that is starting ends when it has started. Raise
        SessionEndedError if unknown.
        """
        session = self._open.get(session_id)
        if session is not None:
            self._end(session, "closed", CLOSED)
            await asyncio.wait({self._tasks[session]})
        elif session_id in self._starting:
            self._remember(session_id, CLOSED)
        elif session_id not in self._ended:
            raise SessionEndedError(_UNKNOWN)

    async def aclose(self) -> None:
        for session in [*self._open.values()]:
            self._end(session, "stopped", _STOPPED)
        if self._tasks:
            await asyncio.wait([*self._tasks.values()])

    async def until_ended(self, engines: Collection[Engine]) -> None:
        while tasks := [task for session, task in self._tasks.items() if session.queue.engine in engines]:
            await asyncio.wait(tasks)

    async def _start(
        self,
        start: Callable[[], Awaitable[EngineSession]],
        queue: AdmissionQueue,
        sandbox: SandboxConfig,
        idle_timeout_s: float,
        session_id: str | None,
        *,
        is_fork: bool = False,
    ) -> OpenSession:
        session_id = session_id or new_id()
        if session_id in self._starting or session_id in self._open or session_id in self._ended:
            raise SessionExistsError("a session has had this id: choose a new one at random")
        self._reserve(sandbox)
        self._starting.add(session_id)
        try:
            engine_session = await start()
        except BaseException:
            self._release(sandbox)
            raise
        finally:
            self._starting.discard(session_id)
        idle_timeout_s = min(idle_timeout_s, self.max_idle_s)
        session = OpenSession(session_id, engine_session, queue, sandbox, idle_timeout_s, self.counts)
        self.counts.opened += 1
        self.counts.forks += is_fork
        self._open[session_id] = session
        self._tasks[session] = self._group.create_task(self._keep(session))
        if session_id in self._ended:
            self._end(session, "closed", CLOSED)
            session.check()
        return session

    def _reserve(self, sandbox: SandboxConfig) -> None:
        if self._count >= self.max_sessions:
            raise BusyError(
                f"the limit of open sessions is {self.max_sessions}",
                kind=TOO_MANY,
                reason=f"sessions: --max-sessions is {self.max_sessions:,}",
            )
        if self.max_memory_mb is not None and self._memory_mb + sandbox.memory_limit_mb > self.max_memory_mb:
            raise BusyError(
                f"the memory limits of the open sessions add up to {self._memory_mb} of {self.max_memory_mb} MiB",
                kind=TOO_MANY,
                reason=f"sessions: --session-memory-mb, for all of them together, is {self.max_memory_mb:,}",
            )
        self._count += 1
        self._memory_mb += sandbox.memory_limit_mb

    def _release(self, sandbox: SandboxConfig) -> None:
        self._count -= 1
        self._memory_mb -= sandbox.memory_limit_mb

    async def _keep(self, session: OpenSession) -> None:
        engine_session = session.engine_session
        try:
            await session.until_over()
            if engine_session.ended.is_set():
                in_run = session.running or session.ended_in_run
                self._forget(session, "run" if in_run else "lost", session.ending)
            else:
                self._end(session, "idle", f"the session was idle for {session.idle_timeout_s:g} s")
        except Exception:  # which must not end the server
            log_exception("a session failed", name="faasrt.local")
            self._end(session, "lost", "an error in the server has ended it")
        finally:
            self._end(session, "stopped", _STOPPED)
            try:
                await engine_session.aclose()
            except Exception:
                log_exception("the end of a session failed", name="faasrt.local")
            self._release(session.sandbox)
            del self._tasks[session]

    def _end(self, session: OpenSession, kind: str, reason: str) -> None:
        if session.id in self._open:
            self._forget(session, kind, reason)
            session.end(reason)

    def _forget(self, session: OpenSession, kind: str, reason: str) -> None:
        if self._open.pop(session.id, None) is None:
            return
        self.counts.ended[kind] += 1
        self._remember(session.id, reason)

    def _remember(self, session_id: str, reason: str) -> None:
        self._ended[session_id] = reason
        if len(self._ended) > MAX_REMEMBERED:
            del self._ended[next(iter(self._ended))]
