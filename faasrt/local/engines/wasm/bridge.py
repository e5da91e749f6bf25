"""The host's side of a program as WebAssembly: it answers the calls of the program.

These calls are the only way out of an instance. This runs in the worker, in the thread of the program, and trusts
nothing that the program sends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.local.engines.runner_messages import DisplayReader, cut_streams, decode_message, read_python_error
from faasrt.local.engines.wasm.instance import FOLDER, OUT_OF_BOUNDS, Ended
from faasrt.local.engines.wasm.output import LiveSender, OutputStream, Stop
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.errors import TooBusyError
from faasrt.protocol.displays import displays_to_wire
from faasrt.protocol.execution_limits import OUTPUT_FACTOR
from faasrt.protocol.frames import frame_bytes
from faasrt.protocol.streams import OutputBuffer
from faasrt.results import ErrorInfo, Outcome

# The largest message about an error or a display: this factor times the output limit, plus these bytes. The runner
# never sends a larger one.
_ERROR_FACTOR, _ERROR_EXTRA_BYTES = 8, 2**20
# The `trapped` of a program that the host stopped.
_STOPPED = ("deadline", "cancelled")
# CPython allocates up to a few MiB at once. If less is left, an allocation has probably failed.
_EXHAUSTED_BYTES = 4 * 2**20
_SHORT_S = 0.01  # of programs that end sooner, the wait for a CPU is not stated


@attrs.define
class HostBridge:
    """The host's side of one program: answers the calls of the runner, and records its messages.

    Args:
        on_end: Called when a program of a session has ended, before the runner reports this.
        timed_out: Whether a program of a session has reached its time limit.
        task: "run" or "check" a program, or the number of a run in a session.

    Attributes:
        ret_val: The argument of the last call of `return_val`.
        done: Whether the program has reached its end.
    """

    job: Mapping[str, Any]
    cancel: Stop
    clock: ProgramClock
    on_begin: Callable[[], None]
    on_end: Callable[[], None] = lambda: None
    timed_out: Callable[[], bool] = lambda: False
    task: str = "run"
    has_folder: bool = False
    live: LiveSender | None = None
    ret_val: bytes = b""
    error: dict[str, Any] | None = None
    exit_code: int = 0
    began: bool = False
    done: bool = False
    limit_exceeded: bool = False
    own_return_val: bool = False
    input: ProgramInput = attrs.field(init=False)
    displays: DisplayReader | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.input = ProgramInput.from_wire(self.job.get("input", {}), Language.PYTHON)
        self.displays = DisplayReader(self.job["max_output_bytes"]) if self.job.get("displays") else None

    def __call__(self, request: bytes) -> bytes:
        limit = self.job["max_output_bytes"]
        if request == b"job":
            if not self.began:
                self.on_begin()
            self.began = True
            folder = FOLDER if self.has_folder else ""
            display_bytes = 0 if self.displays is None else limit
            argv = self.input.argv
            header = f"{self.task}\n{folder}\n{OUTPUT_FACTOR * limit}\n{display_bytes}\n{len(argv)}\n"
            text = "\0".join([*argv, self.job["code"]])
            return (header + text).encode("utf-8", "surrogatepass")
        if request.startswith(b"ret_val"):
            max_bytes = frame_bytes(limit)
            self.ret_val = request[len(b"ret_val") : len(b"ret_val") + max_bytes + 1]
            if len(self.ret_val) > max_bytes:
                self._end_program()
        elif request.startswith(b"error{"):
            self.error = _read_error(request, limit)
        elif request.startswith(b"exit") and request[4:].isdigit() and len(request) < 8:
            self.exit_code = int(request[4:])
        elif request.startswith(b"display{"):
            if self.displays is not None and len(request) <= _message_bytes(limit):
                self.displays.add(decode_message(request, len(b"display")))
        elif request == b"ended":
            self.on_end()
        elif request == b"done":
            self.done = True
        elif request == b"own_return_val":
            self.own_return_val = True
        elif request == b"output_limit":
            self._end_program()
        return b""

    @property
    def lacks_memory(self) -> bool:
        return self.error is not None and self.error["outcome"] is Outcome.MEMORY_LIMIT

    def _end_program(self) -> None:
        self.limit_exceeded = True
        self.cancel.set()


def _read_error(request: bytes, limit: int) -> dict[str, Any] | None:
    """Return None for an invalid message, because the program has forged it."""
    if len(request) > _message_bytes(limit):
        return None
    message = decode_message(request, len(b"error"))
    return read_python_error(message, limit) if message else None


def _message_bytes(limit: int) -> int:
    return _ERROR_FACTOR * limit + _ERROR_EXTRA_BYTES


def read_result(bridge: HostBridge, run: Callable[..., Ended], *, memory_bytes: int) -> tuple[dict[str, Any], Ended]:
    """Run a program, and return the fields of its `EngineResult`, without files.

    Raise TooBusyError if the program reached the limit of its wall-clock time, and no other limit.
    """
    job = bridge.job
    limit = job["max_output_bytes"]
    stdout, stderr = buffers = [OutputBuffer(job["kept_bytes"]) for _ in range(2)]
    done = run(
        host=bridge,
        make_stream=functools.partial(
            OutputStream, cancel=bridge.cancel, clock=bridge.clock, live=bridge.live, buffers=buffers
        ),
        cancel=bridge.cancel,
        clock=bridge.clock,
        output_bytes=OUTPUT_FACTOR * limit + 1,
        lacks_memory=lambda: bridge.lacks_memory,
    )
    elapsed_s = bridge.clock.elapsed_s
    # The clock continues between the two readings.
    waited_s = max(0.0, elapsed_s - bridge.clock.counted_s) if elapsed_s > _SHORT_S else 0.0
    exceeded = bridge.limit_exceeded or done.truncated or bridge.timed_out()
    if done.trapped == "cancelled" and bridge.clock.is_late and not exceeded:
        raise TooBusyError
    if not bridge.began and done.trapped is not None and done.trapped not in _STOPPED:
        raise RuntimeError(f"the sandbox did not start: {done.trapped}")
    own_return_val = Language.PYTHON if bridge.own_return_val else None
    fields = cut_streams(stdout, stderr, bridge.ret_val, limit, own_return_val=own_return_val)
    fields["duration_ms"], fields["waited_ms"] = round(elapsed_s * 1000, 3), round(waited_s * 1000, 3)
    if bridge.displays is not None:
        bridge.displays.add_to(fields)
        fields["displays"] = displays_to_wire(fields["displays"])
    return _classify(bridge, done, exhausted=exhausted(done, memory_bytes)) | fields, done


def exhausted(done: Ended, memory_bytes: int) -> bool:
    return done.memory_bytes > memory_bytes - _EXHAUSTED_BYTES


def _classify(bridge: HostBridge, done: Ended, *, exhausted: bool) -> dict[str, Any]:
    if done.trapped == "deadline":
        return {"outcome": Outcome.TIMEOUT}
    # If an allocation fails, the interpreter may use a null pointer. If there is memory left, this is not the reason.
    if done.trapped == OUT_OF_BOUNDS and (exhausted or bridge.lacks_memory):
        return {"outcome": Outcome.MEMORY_LIMIT}
    if bridge.limit_exceeded or done.truncated:
        return {"outcome": Outcome.OUTPUT_LIMIT}
    if done.trapped is not None:
        return {"outcome": Outcome.CRASHED, "error": ErrorInfo("Trap", done.trapped)}
    if bridge.error is not None:
        return bridge.error
    if code := bridge.exit_code:
        error = ErrorInfo("SystemExit", f"the program exited with code {code}")
        return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": code}
    # A program can crash even after "done", in a function that it registered with atexit.
    crashed = not bridge.done or done.exit_code
    return {"outcome": Outcome.CRASHED if crashed else Outcome.OK, "exit_code": done.exit_code}
