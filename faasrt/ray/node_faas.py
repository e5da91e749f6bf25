"""The embedded FaaS of a node, which the actors of a job on this node share.

The FaaS is in a detached actor of its own. If one of the actors that use it owned it, it would end with this actor, and
with it the programs of the others. It knows the processes that use it, and ends when the last one has ended. It uses as
many CPUs as the node has in Ray. It listens on loopback, and its token is known to the job only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import ray
import ray.actor
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from faasrt.client.local_faas import add_queue_time, queue_timeout_of
from faasrt.client.manager import RuntimeManager
from faasrt.config import SandboxConfig, Settings
from faasrt.errors import FaasrtError, RuntimeClosedError
from faasrt.languages import Language, OtherLanguage
from faasrt.local.server import LocalFaaS

LINGER_S = 5.0
"""How long a FaaS without users runs on, so that the next actors of the job can use it."""
_MAX_STARTS = 3
_PAUSE_S = 0.1
# How long a process takes at most from closing its sockets to its end.
_END_S = 1.0


@attrs.frozen
class FaasAddress:
    url: str
    token: str = attrs.field(repr=False)
    languages: tuple[Language, ...]
    pid: int


def watch_process(pid: int, on_end: Callable[[], None]) -> None:
    """Call a function in the running loop when a process of this machine has ended. Raise ProcessLookupError without
    one.
    """
    loop, process = asyncio.get_running_loop(), os.pidfd_open(pid)

    def end() -> None:
        loop.remove_reader(process)
        os.close(process)
        on_end()

    loop.add_reader(process, end)


class NodeFaaS:
    """A Ray actor with an embedded FaaS. It ends itself when it has had no users for LINGER_S."""

    def __init__(self, sandbox: SandboxConfig, queue_timeout_s: float) -> None:
        context = ray.get_runtime_context()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        [cpus] = [node["Resources"].get("CPU", 0) for node in nodes if node["NodeID"] == context.get_node_id()]
        self._faas = LocalFaaS(
            workers=min(math.ceil(cpus), 256) or None,
            sandbox=sandbox,
            token=secrets.token_urlsafe(32),
            queue_timeout_s=queue_timeout_s,
        )
        self._error: FaasrtError | None = None
        self._started, self._unused = asyncio.Event(), asyncio.Event()
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None
        # The actor calls itself, so that it also ends if its creator ends before the first call.
        context.current_actor.serve.remote()

    async def serve(self) -> None:
        self._await_users()
        try:
            async with self._faas:
                self._started.set()
                await self._unused.wait()
        except FaasrtError as error:
            self._error = error
            self._started.set()
            await self._unused.wait()
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    async def attend(self, pid: int) -> FaasAddress | FaasrtError:
        """Return the address of the FaaS, which serves at least until the process `pid` of this node has ended; or the
        reason why it does not serve.
        """
        if self._unused.is_set():
            return RuntimeClosedError("this FaaS had no users any more")
        watch_process(pid, self._leave)
        self._users += 1
        if self._timer is not None:
            self._timer.cancel()
        await self._started.wait()
        faas = self._faas
        return self._error or FaasAddress(faas.url, faas.token or "", faas.languages, os.getpid())

    async def wait_ready(self, language: Language | OtherLanguage) -> FaasrtError | None:
        try:
            await self._faas.wait_ready(language)
        except FaasrtError as error:
            return error
        return None

    def _leave(self) -> None:
        self._users -= 1
        self._await_users()

    def _await_users(self) -> None:
        if not self._users:
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._unused.set)


@attrs.define(eq=False)
class FaasConnection:
    """The use of the node's FaaS by this process. `lost` is set when the FaaS has ended; `users` are batches."""

    manager: RuntimeManager
    lost: asyncio.Event
    _actor: Any
    users: int = 0

    async def wait_ready(self, language: Language | OtherLanguage) -> FaasrtError | None:
        """Return None, or the reason why the language cannot run; None too if the FaaS has ended."""
        try:
            error: FaasrtError | None = await self._actor.wait_ready.remote(language)
        except RayActorError:
            return None  # the calls fail, and say why
        return error

    async def wait_lost(self) -> None:
        """Wait until the end of the FaaS is known, if calls have failed because of it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self.lost.wait()

    async def close_if_unused(self) -> None:
        if not self.users:
            await self.manager.aclose()


class SharedFaaS:
    """Connects this actor with the FaaS of its node, which is started if it does not run. Actors whose settings have
    the same limits share a FaaS.
    """

    def __init__(self, settings: Settings) -> None:
        self._queue_s = queue_timeout_of(settings)
        self._settings = add_queue_time(settings, self._queue_s)
        LocalFaaS(sandbox=settings.sandbox)  # checks the limits and the packages before an actor is created
        self._lock = asyncio.Lock()
        self._connection: FaasConnection | None = None

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[FaasConnection]:
        """Yield a connection that all users share until the FaaS ends. Raise RayActorError if the actor cannot
        start.
        """
        async with self._lock:
            if self._connection is not None and self._connection.lost.is_set():
                await self._connection.close_if_unused()
                self._connection = None
            if self._connection is None:
                self._connection = await self._open()
            connection = self._connection
            connection.users += 1
        try:
            yield connection
        finally:
            connection.users -= 1
            if connection.lost.is_set():
                await connection.close_if_unused()

    async def _open(self) -> FaasConnection:
        starts = 0
        while True:
            starts += 1
            actor = self._get_actor()
            lost = asyncio.Event()
            try:
                address = await actor.attend.remote(os.getpid())
                if not isinstance(address, FaasrtError):
                    watch_process(address.pid, lost.set)
                    break
                if not isinstance(address, RuntimeClosedError):
                    raise address
                starts = 0
            except (RayActorError, ProcessLookupError):
                if starts == _MAX_STARTS:
                    raise
            await asyncio.sleep(_PAUSE_S)  # the actor is about to end, and still has its name
        endpoints = dict.fromkeys(address.languages, address.url)
        # Headers are for a gateway, and an `Authorization` among them would be refused beside the token.
        settings = attrs.evolve(self._settings, endpoints=endpoints, token=address.token, headers={}, proxy=None)
        return FaasConnection(RuntimeManager(settings=settings), lost, actor)

    def _get_actor(self) -> Any:
        context = ray.get_runtime_context()
        limits = (self._settings.sandbox, self._queue_s)
        key = hashlib.blake2b(repr(limits).encode(), digest_size=8).hexdigest()
        options = ray.remote(NodeFaaS).options(
            name=f"faasrt-{context.get_job_id()}-{context.get_node_id()}-{key}",
            namespace="faasrt",
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False),
        )
        return options.remote(*limits)
