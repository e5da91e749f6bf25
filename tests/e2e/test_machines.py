"""The README's first program on unusual machines: with little memory, or without writable folders, /dev/shm or a name
for the user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.package import ROOT
from support.served import CLEAN
from support.threats import CONTAINER, OTHER_UID, python_as

pytestmark = pytest.mark.servers
CGROUPS = Path("/sys/fs/cgroup/memory")


def shell(script: str) -> list[str]:
    """Return a command that runs a script, and then the command that follows it."""
    return ["/bin/sh", "-ec", f'{script}\nexec "$@"', "sh"]


def with_mounts(script: str) -> list[str]:
    return ["unshare", "--mount", "--propagation", "private", *shell(script)]


DEVICES = """
mount -t tmpfs none /mnt
for name in null zero full random urandom tty; do touch /mnt/$name; mount --bind /dev/$name /mnt/$name; done
ln -s /proc/self/fd /mnt/fd
mount --rbind /mnt /dev
"""
READ_ONLY = "mount -t tmpfs none /dev/shm; mount -t tmpfs none /tmp; mount -o remount,ro,bind /"
NOWHERE = "mount -o remount,ro,bind /; mount -t tmpfs -o ro none /dev/shm"
LONG_TMPDIR = f"""
mount -t tmpfs none /tmp
export TMPDIR=/tmp/{"long" * 50}
mkdir -m 1777 $TMPDIR
"""
MACHINES = {
    "one core": ["taskset", "--cpu-list", "0"],
    "/dev/shm of 64 MiB": with_mounts("mount -t tmpfs -o size=64m none /dev/shm"),
    "no /dev/shm": with_mounts(DEVICES),
    "only /tmp is writable": with_mounts(READ_ONLY),
    "the path of TMPDIR is long": with_mounts(LONG_TMPDIR),
    "HOME is not writable": ["env", "HOME=/proc"],
    "no HOME": ["env", "-u", "HOME"],
    "umask 077": shell("umask 077"),
    "umask 000": shell("umask 000"),
    "locale C": ["env", "LC_ALL=C"],
    "no TZ": ["env", "-u", "TZ"],
    "no bytecode": ["env", "PYTHONDONTWRITEBYTECODE=1"],
    "no ps": ["env", "PATH=/nonexistent"],
    "no environment": ["env", "-i"],
}


def first_program(
    user: list[str], machine: list[str], python: str = sys.executable, **env: str
) -> tuple[int, str, str]:
    """Run the program on a machine. Return the exit code and both streams of the command."""
    paths = [str(ROOT), sysconfig.get_path("purelib")]  # another user may have another interpreter of the same version
    boot = f"import sys; sys.path += {paths!r}; from faasrt.cli import main; main()"
    command = [*machine, *user, python, "-c", boot]
    arguments = ["run", "--language", "python", "-c", "print(int(input()) * 7)"]
    done = subprocess.run(
        [*command, *arguments], input="6\n", cwd=ROOT, env={**CLEAN, **env}, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


def needs_root(machine: list[str]) -> None:
    if machine[0] == "unshare" and os.getuid():
        pytest.skip("only root can change the mounts of a machine")


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_first_program_runs(machine: list[str]) -> None:
    """It runs natively: nothing says that the machine lacks something."""
    needs_root(machine)
    exit_code, stdout, stderr = first_program([], machine)
    assert (exit_code, stdout) == (0, "42\n"), stderr
    assert stderr == "faasrt: no endpoint configured; using the embedded FaaS\n"


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_the_first_program_of_a_user_without_a_name_runs(machine: list[str]) -> None:
    """/etc/passwd has no entry for the user, who cannot write to HOME."""
    *user, python = python_as(OTHER_UID)
    user[0] = str(shutil.which(user[0]))
    exit_code, stdout, stderr = first_program(user, machine, python)
    assert (exit_code, stdout) == (0, "42\n"), stderr
    assert stderr == "faasrt: no endpoint configured; using the embedded FaaS\n"


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """Yield a cgroup whose processes can use 1 GiB of memory."""
    folder = CGROUPS / f"faasrt-tests-{os.urandom(4).hex()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this user cannot create a cgroup of version 1")
    try:
        (folder / "memory.limit_in_bytes").write_text(str(2**30))
        yield folder
    finally:
        folder.rmdir()


def test_the_first_program_runs_with_1_gib_of_memory(small_cgroup: Path) -> None:
    """The machine also has only one core."""
    machine = [*shell(f"echo $$ > {small_cgroup}/cgroup.procs"), *MACHINES["one core"]]
    exit_code, stdout, stderr = first_program([], machine)
    assert (exit_code, stdout) == (0, "42\n"), stderr


def test_webassembly_says_how_much_memory_it_needs(small_cgroup: Path, tmp_path: Path) -> None:
    """Its compilation does not begin, because the kernel would end processes of the container."""
    machine = [*shell(f"echo $$ > {small_cgroup}/cgroup.procs"), sys.executable, str(CONTAINER)]
    exit_code, stdout, stderr = first_program([], machine, FAASRT_CACHE_DIR=str(tmp_path))
    assert (exit_code, stdout) == (3, "")
    lines = stderr.splitlines()
    assert "GB of memory is free; it needs about 2.8 GB of memory and 400 MB of disk, once" in lines[-1]
    assert len(lines) <= 4


def test_webassembly_says_that_it_needs_a_folder() -> None:
    """One line says which folder cannot be written, and how to name another one."""
    machine = [*MACHINES["HOME is not writable"], sys.executable, str(CONTAINER)]
    exit_code, stdout, stderr = first_program([], machine, FAASRT_CACHE_DIR="")
    assert (exit_code, stdout) == (3, "")
    lines = stderr.splitlines()
    assert "could not be compiled into /proc/.cache/faasrt/" in lines[-1]
    assert "FAASRT_CACHE_DIR sets another folder" in lines[-1]
    assert len(lines) <= 4


def test_a_machine_without_temporary_folders_says_so() -> None:
    """One line says which folders were tried, and how to name another one."""
    machine = with_mounts(NOWHERE)
    needs_root(machine)
    exit_code, stdout, stderr = first_program([], machine)
    assert (exit_code, stdout) == (2, "")
    assert "cannot write temporary files" in stderr.splitlines()[-1]
    assert "set FAASRT_CACHE_DIR and TMPDIR to other folders" in stderr.splitlines()[-1]
