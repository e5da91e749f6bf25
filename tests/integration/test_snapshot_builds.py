"""Two builds of a snapshot differ only in what the modules have read from the clock and the random number generator."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime

from faasrt.local.engines.python_tiers import STANDARD_TIER, TIERS
from faasrt.local.engines.wasm.instance import Instances, call_in_thread
from faasrt.local.engines.wasm.module_cache import module_dir
from faasrt.local.engines.wasm.snapshot_build import preload

pytestmark = pytest.mark.usefixtures("wasm_sandbox")

START_NS = 10**9
LATER_NS = START_NS + 12_345_678
I32, I64 = wasmtime.ValType.i32(), wasmtime.ValType.i64()


def build(tier: str, folder: Path, *, seed: int, start_ns: int) -> tuple[bytes, list[bytes]]:
    """Build a snapshot whose clock and random numbers are known. Return its memory and the random numbers."""
    numbers, clock, drawn = random.Random(seed), iter(range(start_ns, 2**62, 1000)), []

    def random_get(caller: wasmtime.Caller, address: int, size: int) -> int:
        drawn.append(numbers.randbytes(size))
        caller["memory"].write(caller, drawn[-1], address & 0xFFFFFFFF)
        return 0

    def clock_time_get(caller: wasmtime.Caller, clock_id: int, precision: int, address: int) -> int:
        caller["memory"].write(caller, struct.pack("<q", next(clock)), address & 0xFFFFFFFF)
        return 0

    def work() -> bytes:
        instances = Instances(module_dir())
        linker = instances.plain_linker
        linker.allow_shadowing = True
        for function, kinds in ((random_get, [I32, I32]), (clock_time_get, [I32, I64, I32])):
            kind = wasmtime.FuncType(kinds, [I32])
            linker.define_func("wasi_snapshot_preview1", function.__name__, kind, function, access_caller=True)
        with (folder / f"{seed}-{start_ns}").open("w+b") as file:
            size = preload(instances, file.fileno(), tier).size
            file.seek(0)
            return file.read(size)

    return call_in_thread(work), drawn


def differences(first: bytes, second: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each place where two snapshots differ. It consists of whole words of 4 bytes."""
    assert len(first) == len(second)
    start = end = 0
    for page in range(0, len(first), 4096):
        if first[page : page + 4096] == second[page : page + 4096]:
            continue
        for at in range(page, page + 4096, 4):
            if first[at : at + 4] != second[at : at + 4]:
                if at != end and end:
                    yield start, end
                start, end = (start if at == end and end else at), at + 4
    if end:
        yield start, end


def is_time(first: bytes, later: bytes, at: int) -> bool:
    """Return whether a word is a number of nanoseconds, or part of a floating-point number of seconds."""
    before, after = (struct.unpack_from("<I", data, at)[0] for data in (first, later))
    seconds = [struct.unpack_from("<d", data, at & ~7)[0] for data in (first, later)]
    passed_ns = LATER_NS - START_NS
    return after - before == passed_ns or abs((seconds[1] - seconds[0]) * 10**9 - passed_ns) < 0.5


def words(first: bytes, second: bytes) -> list[int]:
    """Return the offsets of the words in which two snapshots differ."""
    return [at for start, end in differences(first, second) for at in range(start, end, 4)]


@pytest.mark.attacks
def test_only_the_clock_and_random_numbers_make_a_difference(tmp_path: Path) -> None:
    """With another clock, times differ. With other random numbers, the key of multiprocessing and the state of the
    random generator differ. All other bytes are equal.

    Programs replace the key and the state before they start; see `test_snapshot_tiers`.
    """
    first, drawn = build(STANDARD_TIER, tmp_path, seed=1, start_ns=START_NS)
    second, _ = build(STANDARD_TIER, tmp_path, seed=2, start_ns=LATER_NS)
    key, seed = drawn[0], b"".join(drawn[1:])  # at most 256 bytes are drawn at once
    assert (len(key), len(seed)) == (32, 624 * 4)
    state = struct.pack("<624I", *random.Random(int.from_bytes(seed, "little")).getstate()[1][:-1])
    times = [at for at in words(first, second) if is_time(first, second, at)]
    others = [first[at : at + 4] for at in words(first, second) if not is_time(first, second, at)]
    assert times
    assert others
    assert [data for data in others if data not in key and data not in state] == []


@pytest.mark.attacks
@pytest.mark.parametrize("tier", [STANDARD_TIER, *TIERS])
def test_only_times_depend_on_the_clock(tier: str, tmp_path: Path) -> None:
    """With the same clock and random numbers, all bytes are equal. With another clock, only times differ."""
    first, _ = build(tier, tmp_path, seed=1, start_ns=START_NS)
    again, _ = build(tier, tmp_path, seed=1, start_ns=START_NS)
    assert first == again
    later, _ = build(tier, tmp_path, seed=1, start_ns=LATER_NS)
    places = words(first, later)
    assert places
    assert [at for at in places if not is_time(first, later, at)] == []
