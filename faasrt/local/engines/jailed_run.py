"""Runs programs in jailed processes. A process starts before its program is known, and waits with a runner.

`JailedRun` is a run of a native program, whose runner writes its messages to a descriptor of their own. Native Python
and the toolchains use it. Deno has a run of its own, because its runner has only stdout.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from faasrt import _strict_json
from faasrt.inputs import program_file
from faasrt.languages import Language
from faasrt.local.engines.collected_files import collect_files
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.runner_messages import DisplayReader, cut_streams, decode_message, read_text
from faasrt.local.errors import NotStartedError
from faasrt.local.jail.jail import Jail, JailedProcess, OwnedFd
from faasrt.local.process import MESSAGES, STDERR, STDOUT, STREAMS, ChildProcess
from faasrt.local.time_limit import TimeLimit
from faasrt.protocol.execution_limits import OUTPUT_FACTOR
from faasrt.protocol.processes import signal_name
from faasrt.protocol.streams import OutputBuffer
from faasrt.results import ErrorInfo, Outcome

_START_TIMEOUT_S = 60.0
_LATE_S = 5.0
# The wait for a CPU of a shorter program is not measured, because this would take longer than a few of them wait.
_SHORT_MS = 10.0
# The largest message. A return value may be JSON, which is encoded as JSON once more, so that a control character takes
# up to seven bytes. The total of a program's messages is limited too, because reading them costs the server time.
MESSAGE_FACTOR, MESSAGE_BYTES = 8, 262_144
TOTAL_FACTOR, TOTAL_BYTES = 2, 32 * 2**20
# The kinds of messages, and the fields of each that are kept.
_FIELDS = {
    "started": (),
    "ret_val": ("text",),
    "error": ("phase", "name", "message", "traceback", "line", "column"),
    "missing": ("package",),
    "exit": ("code",),
    "own_return_val": (),
    "done": (),
}
_DISPLAY = "display"  # of these messages, all are kept
_LINE_BYTES = 32  # added for each message, because reading even an empty one costs time
_PREFIX = b'{"kind":"'
_DONE = b'\n{"kind":"done"}\n'
_KINDS = {_PREFIX + kind.encode(): kind for kind in (*_FIELDS, _DISPLAY)}
Messages = Mapping[str, Mapping[str, Any]]
"""The fields of the last message of each kind."""


async def start_runner(jail: Jail, name: str, *, compiles: bool = False) -> JailedProcess:
    """Start a process, and wait until its jail is complete. Raise NotStartedError if it is not ready in time.

    Cancellation: ends the process.
    """
    process = await jail.start(channel=True, compiles=compiles)
    if not process.is_ready:
        await until_ready(process, b'{"kind":"ready"}', name, _START_TIMEOUT_S)
    return process


async def until_ready(process: JailedProcess, message: bytes, name: str, timeout_s: float) -> None:
    """Wait for the message of a runner that it is ready. Otherwise end the process, and raise NotStartedError."""
    output = bytearray()
    changed = asyncio.Event()

    def receive(fd: int, data: bytes) -> None:
        output.extend(data)
        changed.set()

    process.receive(receive, changed.set)
    try:
        async with asyncio.timeout(timeout_s):
            while message not in output:
                if process.ended.is_set():
                    reason = output[-500:].decode("utf-8", "replace").strip()
                    raise NotStartedError(f"{name} did not start (exit code {process.returncode}): {reason}")
                await changed.wait()
                changed.clear()
    except BaseException as error:
        await process.end()
        if isinstance(error, TimeoutError):
            raise NotStartedError(f"{name} did not start within {timeout_s:g} s") from None
        raise


def own_limits(
    job: EngineJob, process: ChildProcess, on_exceeded: Callable[[], object], on_lost: Callable[[], object]
) -> list[TimeLimit]:
    """Start the time limits that this process enforces. The launcher enforces its own (`JailedProcess.limit_time`).

    Args:
        on_exceeded: Called when the program has waited too long for the reader of its live output. The launcher does
            not count this time, because it sees the program wait for this process.
        on_lost: Called when the launcher has not ended the program in time, because the launcher is stopped.
    """
    limits = [TimeLimit(job.limits.wall_s + _LATE_S, on_lost)]
    if job.live is not None:
        limits.append(TimeLimit(job.limits.timeout_ms / 1000, on_exceeded, lambda: process.paused))
    return limits


def measure_wait_ms(process: JailedProcess, duration_ms: float) -> float:
    """Return how long a program that took this time has waited for a CPU."""
    return round(process.measure_wait() * 1000, 3) if duration_ms > _SHORT_MS else 0.0


class Run(Protocol):
    """One run of a program in a process, which may end later than the program."""

    ended: asyncio.Event

    def begin(self) -> None:
        """Send the program to the process."""

    def end(self, limit: Outcome) -> None:
        """End the program because it exceeded a limit."""

    def result(self) -> EngineResult:
        """Return the result. Raise NotStartedError if the program had not begun, and EngineError if the process was
        killed from outside.
        """


async def run_program(
    process: JailedProcess,
    run: Run,
    job: EngineJob,
    *,
    instance: str,
    memory_bytes: int | None = None,
    has_folder: bool = False,
    watch: Callable[[OwnedFd | None], Awaitable[None]] | None = None,
    max_files_bytes: int | None = None,
) -> EngineResult:
    """Run a program in a waiting process, which is then killed. Raise EngineError if the process failed.

    Args:
        has_folder: Whether to open the folder of the program even if no files are collected.
        watch: Waits until the program has ended, given its folder; None waits for `run.ended`.
        max_files_bytes: The largest size of the collected files together. None means the output limit.

    Cancellation: ends the program.
    """
    folder = None
    try:
        if has_folder or job.input.collect:
            folder = await process.open_folder()
        limit_s, started = job.limits.timeout_ms / 1000, time.perf_counter()
        process.limit_time(limit_s, wall_s=job.limits.wall_s, memory_bytes=memory_bytes)
        time_limits = own_limits(job, process, functools.partial(run.end, Outcome.TIMEOUT), process.kill)
        try:
            run.begin()
            await (run.ended.wait() if watch is None else watch(folder))
        finally:
            for time_limit in time_limits:
                time_limit.cancel()
        duration_ms = round((time.perf_counter() - started) * 1000, 3)
        result = run.result()
        result.duration_ms, result.instance_id = duration_ms, f"{instance}-{process.pid}"
        result.waited_ms = measure_wait_ms(process, duration_ms)
        if folder is not None and job.input.collect:
            await process.end()
            await _add_files(result, job, folder, max_files_bytes)
        return result
    finally:
        # Also breaks a reference cycle that would keep the output in memory until the next garbage collection.
        process.abandon()


async def _add_files(result: EngineResult, job: EngineJob, folder: OwnedFd, max_bytes: int | None) -> None:
    """Add the files that a program, whose processes have ended, has left. `max_bytes` is set for the output of a
    compiler, which must be read in time.
    """
    own_file, limit = program_file(job.language), job.limits.max_output_bytes if max_bytes is None else max_bytes
    # A thread, because the folder may contain thousands of files.
    collect = functools.partial(collect_files, without=[own_file], in_time=max_bytes is not None)
    try:
        result.files, complete = await asyncio.to_thread(collect, folder, job.input.collect, limit)
    except TimeoutError:
        raise NotStartedError("the output of the compiler could not be read in time") from None
    if not complete:
        result.truncated = tuple(sorted([*result.truncated, "files"]))


class ProgramProcess(Protocol):
    returncode: int | None
    out_of_memory: bool
    out_of_time: bool

    def receive(self, function: Callable[[int, bytes], None], on_end: Callable[[], None] | None = None, /) -> None: ...
    def write(self, *pieces: bytes, eof: bool = False) -> None: ...
    def drain(self, fd: int, /) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...
    def kill_first(self) -> None: ...
    def check_not_killed(self, name: str, /) -> None: ...


class JailedRun:
    """One run of a native program in a process that waits with a runner.

    Args:
        header: The job for the runner, without the files and the memory limit.
        files: The files that the runner writes first, by path.
        read_exit: Returns the fields of the result of a program that has ended by itself.
    """

    def __init__(
        self,
        job: EngineJob,
        process: ProgramProcess,
        name: str,
        header: Mapping[str, Any],
        files: Mapping[str, bytes],
        memory_bytes: int,
        read_exit: Callable[[Messages, int], dict[str, Any]],
    ) -> None:
        self._job, self._process, self._name, self._read_exit = job, process, name, read_exit
        sizes = [(path, len(content)) for path, content in files.items()]
        head = _strict_json.dump_bytes({**header, "files": sizes, "memoryBytes": memory_bytes})
        # The program may be large, so it is kept only until it is sent.
        self._input: list[bytes] = [b"%08d" % len(head), head, *files.values(), job.input.stdin]
        self._limit = job.limits.max_output_bytes
        self._outputs = {STDOUT: OutputBuffer(job.kept_bytes), STDERR: OutputBuffer(job.kept_bytes)}
        self._early: list[tuple[int, bytes]] = []  # output that arrived before the message that the program begins
        self._lines: dict[str, bytearray] = {}
        self._displays = DisplayReader(self._limit) if job.displays else None
        self._pending = bytearray()
        self._message_bytes = 0
        self._ret_val_too_large = False
        self._started = False
        self._ended_by: Outcome | None = None
        self.ended = asyncio.Event()

    def begin(self) -> None:
        self._process.receive(self._receive, self.ended.set)
        if self._job.live is not None:
            self._job.live.begin()
            self._job.live.on_taken = self._resume
        self._process.write(*self._input, eof=True)
        self._input = []

    def end(self, limit: Outcome) -> None:
        if limit is Outcome.TIMEOUT:
            self._process.drain(MESSAGES)  # if this process was busy, it may not have seen the end of the program
        if self.ended.is_set():
            return
        if limit is not Outcome.TIMEOUT or self._process.returncode is None:
            # Otherwise the program has already ended by itself, and some of its output has not been read.
            self._ended_by = self._ended_by or limit
        self._process.kill()

    def result(self) -> EngineResult:
        messages = self._decode_messages()
        if self._process.out_of_time and "done" not in messages:
            self._ended_by = self._ended_by or Outcome.TIMEOUT
        fields = self._classify(messages)
        ret_val = read_text(messages.get("ret_val", {}), "text").encode("utf-8", "surrogatepass")
        own_return_val = Language.PYTHON if "own_return_val" in messages else None
        stdout, stderr = self._outputs[STDOUT], self._outputs[STDERR]
        fields |= cut_streams(stdout, stderr, ret_val, self._limit, own_return_val=own_return_val)
        if self._ret_val_too_large:
            fields["truncated"] = sorted({*fields["truncated"], "ret_val"})
        if self._displays is not None:
            self._displays.add_to(fields)
        return EngineResult(**fields)

    def _receive(self, fd: int, data: bytes) -> None:
        if self.ended.is_set():
            return
        if fd == MESSAGES:
            self._receive_messages(data)
            return
        if self._ended_by is Outcome.OUTPUT_LIMIT:
            return
        output, max_bytes = self._outputs[fd], OUTPUT_FACTOR * self._limit
        data = data[: max_bytes + 1 - output.size]
        output.add(data)
        self._pass_on(fd, data)
        if output.size > max_bytes:
            self.end(Outcome.OUTPUT_LIMIT)

    def _pass_on(self, fd: int, data: bytes) -> None:
        live = self._job.live
        if live is None:
            return
        if not self._started:
            self._early.append((fd, data))
            return
        live.put(STREAMS[fd], data)
        if live.full:
            self._process.pause()

    def _resume(self, taken_bytes: int) -> None:
        if self._job.live is not None and not self._job.live.full:
            self._process.resume()

    def _receive_messages(self, data: bytes) -> None:
        max_bytes = MESSAGE_FACTOR * self._limit + MESSAGE_BYTES
        if self._ret_val_too_large:  # only its end is still of interest
            self._pending = self._pending[-len(_DONE) :] + data
            if _DONE in self._pending:
                self._end_by_itself()
            return
        self._pending += data
        self._message_bytes += len(data) + _LINE_BYTES * data.count(b"\n")
        if len(self._pending) > max_bytes or self._message_bytes > TOTAL_FACTOR * max_bytes + TOTAL_BYTES:
            self._ret_val_too_large = True
            self.end(Outcome.OUTPUT_LIMIT)
            return
        if b"\n" not in data:
            return
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            # A program can send millions of messages. Only the last one of each kind counts, so only that is decoded.
            kind = _KINDS.get(bytes(line[: line.find(b'"', len(_PREFIX))]))
            if kind == _DISPLAY:
                if self._displays is not None:
                    self._displays.add(decode_message(bytes(line)))
            elif kind is not None:
                self._lines[kind] = line
        if not self._started and "started" in self._lines:  # a program cannot undo it with a later message
            self._started = True
            for fd, early in self._early:
                self._pass_on(fd, early)
        if "done" in self._lines:
            self._end_by_itself()

    def _end_by_itself(self) -> None:
        # The process has written all of its output before its last message. It is killed, because waiting for its end
        # takes as long as running a short program.
        self._process.drain(STDOUT)
        self._process.drain(STDERR)
        self._process.kill_first()
        self.ended.set()

    def _decode_messages(self) -> dict[str, dict[str, Any]]:
        messages: dict[str, dict[str, Any]] = {}
        for kind, line in self._lines.items():
            if line == _PREFIX + kind.encode() + b'"}':
                messages[kind] = {}
            elif message := decode_message(bytes(line)):
                messages[kind] = {name: message[name] for name in _FIELDS[kind] if name in message}
        return messages

    def _classify(self, messages: Messages) -> dict[str, Any]:
        returncode = 0 if "done" in self._lines else self._process.returncode or 0  # "done" makes the server kill it
        if self._ended_by is Outcome.TIMEOUT:
            return {"outcome": Outcome.TIMEOUT}
        if self._process.out_of_memory:
            return {"outcome": Outcome.MEMORY_LIMIT}
        if not self._started:
            raise NotStartedError(f"{self._name} ended before it ran its program (exit code {returncode})")
        if self._ended_by is Outcome.OUTPUT_LIMIT:
            return {"outcome": Outcome.OUTPUT_LIMIT}
        if returncode < 0:
            self._process.check_not_killed(self._name)
            name = signal_name(-returncode)
            error = ErrorInfo(name, f"the program was ended by {name}")
            return {"outcome": Outcome.CRASHED, "error": error, "signal": name}
        return self._read_exit(messages, returncode)
