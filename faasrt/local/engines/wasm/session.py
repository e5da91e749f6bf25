"""A session, as the server sees it. `worker_sessions` has its other side, in the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from faasrt.inputs import files_from_wire, files_to_wire
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.session import (
    EngineSession,
    EngineSessionOptions,
    ForkError,
    SessionEndedError,
    SessionFileError,
)
from faasrt.local.engines.wasm.worker_process import ANSWER_GRACE_S, CANCEL_TIMEOUT_S, SESSION, WasmWorker
from faasrt.local.engines.wasm.worker_sessions import GRACE_S
from faasrt.local.errors import CLOSED, EngineError, NotStartedError

_COMMAND_TIMEOUT_S = 30.0  # to open, and to write and read files
FORK_TIMEOUT_S = 10.0  # a fork takes milliseconds, and holds a slot
_CLOSE_TIMEOUT_S = 2.0


class WasmSession(EngineSession):
    def __init__(
        self,
        options: EngineSessionOptions,
        worker: WasmWorker,
        *,
        next_number: Callable[[], int],
        when_ended: Callable[[WasmWorker], None],
    ) -> None:
        super().__init__(options)
        self._worker, self._next_number, self._when_ended = worker, next_number, when_ended
        self.number = next_number()
        self._channel = worker.open_channel(SESSION, self.number)
        self._channel.on_end = self.mark_ended
        self._closing = self._has_left = False

    def mark_ended(self, reason: str) -> None:
        super().mark_ended(reason)
        # Only once: the worker may already have another session, or be idle.
        if not self._closing and not self._has_left:
            self._has_left = True
            self._worker.close_channel(self._channel)
            self._when_ended(self._worker)

    async def open(self) -> None:
        limits = attrs.asdict(self.options.limits)
        try:
            await self._command(open=limits, files=files_to_wire(self.options.files))
        except (EngineError, SessionEndedError) as error:
            raise NotStartedError(f"no session could be opened: {error}") from None
        except _RefusedError as error:
            raise SessionFileError(str(error)) from None

    async def run(self, job: EngineJob) -> EngineResult:
        self.check_open()
        timeout_s = job.limits.timeout_ms / 1000 + GRACE_S
        try:
            return await self._channel.run(
                attrs.evolve(job, displays=True),
                answer_s=timeout_s + ANSWER_GRACE_S,
                cancel_s=_COMMAND_TIMEOUT_S,  # the worker ends it within CANCEL_WALL_S, unless it fails
            )
        except EngineError as error:
            self.mark_ended(str(error))
            raise

    def interrupt(self) -> None:
        if not self.ended.is_set():
            self._channel.send(interrupt=True)

    async def fork(self) -> EngineSession:
        self.check_open()
        branch = WasmSession(self.options, self._worker, next_number=self._next_number, when_ended=self._when_ended)
        try:
            await self._command(FORK_TIMEOUT_S, fork=branch.number)
        except BaseException as error:
            await branch.aclose()
            if isinstance(error, _RefusedError):
                raise ForkError(str(error)) from None
            raise
        return branch

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        self.check_open()
        try:
            await self._command(write=files_to_wire(files))
        except _RefusedError as error:
            raise SessionFileError(str(error)) from None

    async def read_files(self, patterns: Sequence[str], max_bytes: int) -> tuple[dict[str, bytes], bool]:
        self.check_open()
        self._worker.expect(max_bytes)
        answer = await self._command(read=list(patterns), max_bytes=max_bytes)
        return files_from_wire(answer["files"]), bool(answer["complete"])

    async def list_files(self, max_bytes: int) -> tuple[dict[str, int], bool]:
        self.check_open()
        self._worker.expect(max_bytes)
        answer = await self._command(list=True, max_bytes=max_bytes)
        return answer["sizes"], bool(answer["complete"])

    async def aclose(self) -> None:
        if self.ended.is_set():
            return
        self._closing = True
        self._channel.send(close=True)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._channel.closed.wait()
        except TimeoutError:
            self._worker.kill()
        finally:
            self._closing = False
            self.mark_ended(CLOSED)
            # The worker may answer for a run after this, which is too late. The run must not wait for it.
            self._channel.take({"failed": CLOSED})

    async def _command(self, timeout_s: float = _COMMAND_TIMEOUT_S, /, **message: Any) -> dict[str, Any]:
        self._channel.send(**message)
        try:
            answer = await self._channel.answer(timeout_s)
            if "failed" in answer:
                raise EngineError(answer["failed"])
        except (TimeoutError, EngineError) as error:
            if isinstance(error, TimeoutError):
                self._worker.kill()
            self.mark_ended(str(error) or "its process did not answer")
            raise SessionEndedError(self.reason) from None
        except asyncio.CancelledError:
            try:  # the next command must not get this answer
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await self._channel.next_answer()
            except (TimeoutError, EngineError, asyncio.CancelledError):
                await self.aclose()
            raise
        if "refused" in answer:
            raise _RefusedError(answer["refused"])
        return answer


class _RefusedError(Exception):
    """The worker could not execute a command."""
