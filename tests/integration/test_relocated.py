"""The copy of Deno with applied relocations runs programs as Deno does, and is used only where it works."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import deno
import pytest

from faasrt.local import LocalFaaS
from faasrt.local.engines.deno.relocated import relocate, relocated
from support.helpers import manager_for
from support.levels import NATIVE

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="there are copies only on x86-64")
DENO = deno.find_deno_bin()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of copies, which is empty."""
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache/deno"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # a copy has 96 MB


def first_address(executable: str | Path) -> int:
    """Return the address of the first part of an executable."""
    with Path(executable).open("rb") as file:
        header = file.read(4_096)
    (at,) = struct.unpack_from("<Q", header, 32)
    (count,) = struct.unpack_from("<H", header, 56)
    segments = [struct.unpack_from("<IIQQQQQQ", header, at + number * 56) for number in range(count)]
    return min(address for kind, _, _, address, *_ in segments if kind == 1)


def test_a_copy_is_loaded_at_its_address(cache: Path) -> None:
    """The relocations that remain are those that refer to libraries. The copy prints what Deno prints."""
    copy = relocated(DENO)
    assert Path(copy).parent == cache
    assert first_address(copy) >= 0x5500_0000_0000
    assert first_address(DENO) == 0
    environment = {"LD_DEBUG": "statistics", "NO_COLOR": "1", "DENO_DIR": str(cache)}
    code = "console.log(Math.hypot(3, 4), new Error('x').stack.length > 5)"
    ran = subprocess.run([copy, "eval", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout == "5 true\n"
    counts = [int(line.split()[-1]) for line in ran.stderr.splitlines() if "number of relative relocations" in line]
    assert counts[0] < 1_000


def test_a_copy_is_used_for_a_day(cache: Path) -> None:
    """Then, or if another user could have written it, a new one at another address takes its place.

    Of the copies of other executables, only those stay that another process may be about to use.
    """
    copy = Path(relocated(DENO))
    for name, age_s in (("1-2", 90_000), ("3-4", 80_000)):
        (cache / name).touch(0o644)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    addresses = [first_address(copy)]
    for age_s, mode in ((80_000, 0o755), (90_000, 0o755), (0, 0o777)):
        copy.chmod(mode)
        changed = time.time() - age_s
        os.utime(copy, (changed, changed))
        assert relocated(DENO) == str(copy)
        addresses.append(first_address(copy))
    assert addresses[0] == addresses[1]
    assert len(set(addresses)) == 3
    assert sorted(path.name for path in cache.iterdir()) == sorted([".lock", "3-4", copy.name])


@pytest.mark.parametrize(
    "content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(100), Path("/bin/true").read_bytes()[:500]]
)
def test_another_file_is_used_itself(content: bytes, cache: Path, tmp_path: Path) -> None:
    """Nothing is left in the cache."""
    executable = tmp_path / "executable"
    executable.write_bytes(content)
    assert relocated(str(executable)) == str(executable)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_copy_that_does_not_run_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is run once. Here it is damaged before."""

    def damage(data: bytearray, base: int) -> None:
        relocate(data, base)
        data[24:32] = struct.pack("<Q", base)  # the entry point

    monkeypatch.setattr("faasrt.local.engines.deno.relocated.relocate", damage)
    assert relocated(DENO) == DENO
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path / "file"))
    assert relocated(DENO) == DENO


@NATIVE
async def test_servers_use_the_copy(cache: Path) -> None:
    """Programs run in it, even if two servers make it at the same time."""
    async with LocalFaaS(["js"], workers=1) as one, LocalFaaS(["js"], workers=1) as two:
        await asyncio.gather(one.wait_ready("js"), two.wait_ready("js"))
        for faas in (one, two):
            async with manager_for(faas.url) as manager:
                assert (await manager.run_code("console.log(6 * 7)", "js")).stdout == "42\n"
    assert len([*cache.glob("[0-9]*")]) == 1
