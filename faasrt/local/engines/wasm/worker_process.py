"""A worker, as the server sees it: its messages, time limits and end. `worker` is the other side."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from faasrt import _strict_json
from faasrt.inputs import files_from_wire
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.live_output import LiveOutput
from faasrt.local.errors import EngineError, NotStartedError, TooBusyError
from faasrt.local.jail.launcher.scheduling import CpuTimes
from faasrt.local.process import STDOUT, STREAMS, ChildProcess
from faasrt.protocol.displays import displays_from_wire
from faasrt.results import ErrorInfo, Outcome

PROGRAM, SESSION = "program", "session"
# A worker itself ends its program at the time limit. If no answer has been read ANSWER_GRACE_S later, the program may
# have waited for a CPU, so the server asks the worker each _LOOK_S how much of the time counts. It gives the program up
# if the worker cannot end it at its limit, or does not reply for the same time, without the time in which it waits for
# a CPU. The event loop may have been too busy to read the answer, so the server waits for _READ_S more.
ANSWER_GRACE_S, _READ_S = 1.5, 0.5
# A worker takes 30 MiB of memory itself. If it fails, which no program can cause, all of its sessions end.
_MAX_SESSIONS = 8
_LOOK_S = 0.5
CANCEL_TIMEOUT_S = 1.0
"""The seconds that a worker has to stop a cancelled program, before it is killed."""
# The largest message of a worker: this factor times the output limit, plus these bytes for the paths of files.
_ANSWER_FACTOR, _MESSAGE_BYTES = 32, 64 * 2**20
# A program cannot send signals, but might make its worker fail in one of these ways.
_FAULTS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP)


class Channel:
    """The messages of a worker about one of its programs or sessions, or, if `key` is None, about itself.

    Attributes:
        key: PROGRAM or SESSION, and a number.
        is_running: Whether the worker runs a program for it, as far as is known.
        on_end: Called with the reason when the session, or the process, has ended.
    """

    def __init__(self, worker: WasmWorker, key: tuple[str, int] | None = None) -> None:
        self._worker, self.key = worker, key
        # None means that the process has ended.
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._began = self.is_running = False
        self._counted_s: float | None = None  # of the program that runs, if the worker has just reported it
        self._live: LiveOutput | None = None
        self.on_end: Callable[[str], None] = lambda reason: None
        self.closed = asyncio.Event()

    def send(self, **message: Any) -> None:
        if self.key is not None:
            kind, number = self.key
            message[kind] = number
        self._worker.child.write(_strict_json.dump_bytes(message) + b"\n")

    async def run(self, job: EngineJob, *, answer_s: float, cancel_s: float) -> EngineResult:
        """Run a program, and return its result. It is given up if the worker takes more than `answer_s` for its answer,
        or `cancel_s` to stop a cancelled program. Raise NotStartedError or EngineError if the worker fails.

        Cancellation: ends the program.
        """
        child = self._worker.child
        name, limits = f"wasm-{child.pid}", job.limits
        self._began, self.is_running, self._counted_s, self._live = False, True, None, job.live
        if job.live is not None:
            job.live.begin()
            job.live.on_taken = self._report_taken
        output = {"live": job.live is not None, "kept_bytes": job.kept_bytes, "displays": job.displays}
        self._worker.expect(limits.max_output_bytes)
        program = {"code": job.code, "check": job.check, "input": job.input.to_wire()}
        self.send(**program, **output, **attrs.asdict(limits))
        truncated = ["files"] if job.input.collect else []  # if the worker sends no answer
        try:
            answer = await self._end_of_run(answer_s, limits.wall_s + answer_s - limits.timeout_ms / 1000)
        except TimeoutError:
            await self._worker.give_up(self)
            return EngineResult(
                outcome=Outcome.TIMEOUT, duration_ms=limits.timeout_ms, truncated=truncated, instance_id=name
            )
        except EngineError:
            number = -(child.returncode or 0)
            if not self._began or number not in _FAULTS or not self._worker.ran_only(self):
                raise
            error = ErrorInfo(signal.Signals(number).name, "the process of the sandbox failed")
            return EngineResult(outcome=Outcome.CRASHED, error=error, truncated=truncated, instance_id=name)
        except asyncio.CancelledError:
            self.send(cancel=True)
            try:
                async with asyncio.timeout(cancel_s):
                    await self.next_answer()
            except (TimeoutError, EngineError, asyncio.CancelledError):
                self._worker.abandon(self)
            raise
        finally:
            if job.live is not None:
                job.live.on_taken = self._live = None  # the worker may run another program before all is taken
        if "too_busy" in answer:
            raise TooBusyError
        if "failed" in answer:
            raise self._failure(f"the Python sandbox failed: {answer['failed']}")
        try:
            return _read_result(answer["result"], name)
        except Exception:
            child.kill()
            raise self._failure("the Python sandbox sent a malformed answer") from None

    async def _end_of_run(self, within_s: float, wall_s: float) -> dict[str, Any]:
        """Wait for the answer. Raise TimeoutError if the worker cannot end the program at its limit, which is sooner
        than `within_s`, or does not reply. Raise TooBusyError if the machine was too busy to run the program.
        """
        with contextlib.suppress(TimeoutError):
            return await self.answer(within_s)
        times, processes, loop = CpuTimes(), [f"/proc/{self._worker.child.pid}"], asyncio.get_running_loop()
        looked_at, late_at, left_s = loop.time(), loop.time() + wall_s - within_s, within_s
        times.update(processes, 0.0)
        while left_s > 0 and (self._counted_s or 0.0) < within_s:
            self.send(look=True)
            with contextlib.suppress(TimeoutError):
                return await self.answer(_LOOK_S)
            elapsed_s, looked_at = loop.time() - looked_at, loop.time()
            left_s -= elapsed_s - times.update(processes, elapsed_s)
            if self._counted_s is not None and self._counted_s < within_s - ANSWER_GRACE_S:
                left_s, self._counted_s = within_s, None
            if looked_at > late_at:
                await self._worker.give_up(self)
                raise TooBusyError
        raise TimeoutError

    async def answer(self, within_s: float) -> dict[str, Any]:
        for wait_s in (within_s, _READ_S):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return await self.next_answer()
            if not self._answers.empty():  # it arrived together with the end of the time
                return await self.next_answer()
        raise TimeoutError

    def _failure(self, message: str) -> EngineError:
        return EngineError(message) if self._began else NotStartedError(message)

    async def next_answer(self) -> dict[str, Any]:
        """Wait for an answer. If the worker ended, raise NotStartedError before its program began, else EngineError."""
        message = await self._answers.get()
        if message is None:
            self._answers.put_nowait(None)
            raise self._failure(f"a Python worker process ended (exit code {self._worker.child.returncode})")
        return message

    def _report_taken(self, size: int) -> None:
        if self._live is not None:
            self.send(taken=size)

    def take(self, message: dict[str, Any] | None) -> None:
        if message is None:
            # `is_running` stays, because it says which programs may have ended the process.
            self.on_end("its process has ended")
            self._answers.put_nowait(None)
        elif "counted_s" in message:
            self._counted_s = float(message["counted_s"])
        elif "closed" in message:
            self.closed.set()
        elif "began" in message:
            self._began = True
        elif "output" in message:
            if self._live is not None:
                self._live.put(STREAMS[message["fd"]], base64.b64decode(message["output"]))
        else:
            self.is_running = False
            if message.get("ended"):
                self.on_end(str(message["ended"]))
            self._answers.put_nowait(message)
            self._worker.close_program(self)


class WasmWorker:
    """The server's side of a worker, a process that runs programs, and has sessions.

    `channels` has the channels of its sessions and of the programs that have not ended, by their keys. The key of the
    worker's own channel is None.

    Attributes:
        programs: The number of programs for which callers wait.
        broken: Whether it has failed, so that it must not run any more programs.
    """

    def __init__(self, child: ChildProcess, folder: Path, discard: Callable[[str], None]) -> None:
        self.folder, self._discard = folder, discard
        self.baseline = False  # whether the baseline compiler made its module
        self.child, self.ended, self.kill, self.when_ended = child, child.ended, child.kill, child.when_ended
        self._buffer, self._max_bytes = bytearray(), _MESSAGE_BYTES
        self._own = Channel(self)
        self.channels: dict[tuple[str, int] | None, Channel] = {None: self._own}
        self.programs, self.broken, self._numbers = 0, False, itertools.count(1)
        child.receive(self._receive, self._end)

    @property
    def alive(self) -> bool:
        return self.child.alive

    @property
    def sessions(self) -> int:
        return sum(key is not None and key[0] == SESSION for key in self.channels)

    @property
    def is_used(self) -> bool:
        """Whether a caller waits for a program, or has a session."""
        return self.programs > 0 or self.sessions > 0

    @property
    def is_idle(self) -> bool:
        """Whether no program runs, not even an abandoned program."""
        return not self.channels

    @property
    def has_room(self) -> bool:
        return self.alive and not self.broken and self.sessions < _MAX_SESSIONS

    async def until_ready(self) -> dict[str, Any]:
        message = await self._own.next_answer()
        del self.channels[None]  # later messages are about programs and sessions
        return message

    async def execute(self, job: EngineJob) -> EngineResult:
        """Run one program, beside others. Afterwards the worker can be reused, unless it is `broken` or killed.

        Cancellation: ends the program. If it has not ended within one second, it is abandoned.
        """
        channel = self.open_channel(PROGRAM, next(self._numbers))
        self.programs += 1
        try:
            answer_s = job.limits.timeout_ms / 1000 + ANSWER_GRACE_S
            return await channel.run(job, answer_s=answer_s, cancel_s=CANCEL_TIMEOUT_S)
        except TooBusyError:
            raise
        except EngineError:
            self.broken = True
            raise
        finally:
            self.programs -= 1
            if self.broken and not self.is_used:
                self.kill()

    def open_channel(self, kind: str, number: int) -> Channel:
        key = kind, number
        channel = self.channels[key] = Channel(self, key)
        if self.ended.is_set():
            channel.take(None)
        return channel

    def close_channel(self, channel: Channel) -> None:
        self.channels.pop(channel.key, None)

    def close_program(self, channel: Channel) -> None:
        if channel.key is not None and channel.key[0] == PROGRAM:
            self.close_channel(channel)

    def ran_only(self, channel: Channel) -> bool:
        """Return whether no other program can have ended the process."""
        return [other for other in self.channels.values() if other.is_running] == [channel]

    def _has_others(self, channel: Channel) -> bool:
        if channel.key is None or channel.key[0] == SESSION:
            return False  # the session ends, and its worker with it
        return self.programs > 1 or self.sessions > 0

    async def give_up(self, channel: Channel) -> None:
        """Give up a run that the worker cannot end. If callers wait for other programs, the process ends after them."""
        self.broken = True
        if not self._has_others(channel):
            await self.child.end()

    def abandon(self, channel: Channel) -> None:
        """Do not wait any more for the end of a cancelled run. It may take a while on a busy machine. If no caller
        waits for another program, kill the process.
        """
        if not self._has_others(channel):
            self.kill()

    def expect(self, output_bytes: int) -> None:
        self._max_bytes = max(self._max_bytes, _MESSAGE_BYTES + _ANSWER_FACTOR * output_bytes)

    def _end(self) -> None:
        for channel in [*self.channels.values()]:
            channel.take(None)

    def _receive(self, fd: int, data: bytes) -> None:
        if fd != STDOUT:
            return
        self._buffer += data
        if len(self._buffer) > self._max_bytes:
            self.child.kill()
            self._buffer.clear()
            return
        # Only the new bytes are searched, so that the time is linear in the length of an answer.
        if b"\n" not in data:
            return
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            try:
                self._take(json.loads(line))
            except Exception:  # a program has escaped into the worker, and writes to the server
                self.child.kill()

    def _take(self, message: dict[str, Any]) -> None:
        if "discard" in message:
            self._discard(message["discard"])
            return
        key = next(((kind, message.pop(kind)) for kind in (PROGRAM, SESSION) if kind in message), None)
        channel = self.channels.get(key)
        if channel is not None:  # else the session has been closed
            channel.take(message)


def _read_result(fields: dict[str, Any], name: str) -> EngineResult:
    if fields.get("error"):
        fields["error"] = ErrorInfo(**fields["error"])
    fields["files"] = files_from_wire(fields.get("files", {}))
    fields["displays"] = displays_from_wire(fields.get("displays", []))
    return EngineResult(**fields, instance_id=name)
