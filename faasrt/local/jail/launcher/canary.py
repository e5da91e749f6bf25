"""A test program that tries to break out of a new jail. If it succeeds, the jail is not used."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

from . import syscalls
from .syscalls import syscall

_MAX_DESCRIPTORS = 4096


def find_ways_out(traps: dict[str, Any]) -> list[str]:
    """Try to break out, and return the names of the attempts that succeeded.

    Args:
        traps: Resources of the server that must be out of reach: a `file` and a `folder`, by their paths; listening
            sockets, by their `port`, `socket` (a file in the folder) and `abstract` name; and the server's process, by
            its `pid`. A `system_file` that every user could read without a jail. The `descriptors` that processes have.
    """
    return [name for name, attempt in _attempts(traps) if _succeeds(attempt)]


def _attempts(traps: dict[str, Any]) -> list[tuple[str, Callable[[], object]]]:
    file, folder, pid = traps["file"], traps["folder"], traps["pid"]
    return [
        ("read a file of the host", lambda: os.open(file, os.O_RDONLY)),
        ("read a file of the system", lambda: os.open(traps["system_file"], os.O_RDONLY)),
        ("write a file of the host", lambda: os.open(file, os.O_WRONLY)),
        ("truncate a file of the host", lambda: os.open(file, os.O_RDONLY | os.O_TRUNC)),
        ("open a file of the host without an access mode", lambda: os.open(file, 3)),
        ("create a file on the host", lambda: os.open(f"{folder}/new", os.O_CREAT | os.O_WRONLY)),
        ("list a folder of the host", lambda: os.listdir(folder)),
        ("write to the root folder", lambda: os.open("/new", os.O_CREAT | os.O_WRONLY)),
        ("create a file in /var/tmp", lambda: os.open("/var/tmp/faasrt-canary", os.O_CREAT | os.O_WRONLY)),
        ("read the server's environment", lambda: os.open(f"/proc/{pid}/environ", os.O_RDONLY)),
        ("connect to a port of the host", lambda: socket.create_connection(("127.0.0.1", traps["port"]), 0.2)),
        ("listen on a port", _listen),
        ("connect to a socket file of the host", lambda: connect_to_file(folder, traps["socket"])),
        ("connect to an abstract socket of the host", lambda: _unix("\0" + traps["abstract"])),
        ("open a netlink socket", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
        ("send a signal to the server", lambda: os.kill(pid, 0)),
        ("send a signal to another process", _signal_others),
        ("change a limit of the server", lambda: syscall("prlimit64", pid, 7, None, bytes(16))),
        ("read the memory of the server", lambda: syscall("ptrace", 16, pid, 0, 0)),
        ("create a user namespace", lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)),
        ("mount a file system", lambda: syscalls.mount("x", "/tmp", "tmpfs", 0)),
        ("use a descriptor of the launcher", lambda: _find_descriptor(set(traps["descriptors"]))),
        ("become root", lambda: os.setresuid(0, 0, 0) if os.getuid() else _fail()),
    ]


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:
        return False
    return True


def _listen() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()


def _unix(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)


def connect_to_file(folder: str, name: str) -> None:
    os.chdir(folder)  # its path may be longer than an address
    _unix(name)


def _signal_others() -> None:
    # -1 means all processes but this one. In a pid namespace there are no others, and the call fails. Outside of one,
    # it always succeeds.
    os.kill(os.getppid() or -1, 0)


def _find_descriptor(known: set[int]) -> None:
    if not any(_succeeds(lambda fd=fd: os.fstat(fd)) for fd in set(range(_MAX_DESCRIPTORS)) - known):  # type: ignore[misc]
        raise OSError("there are no others")


def _fail() -> None:
    raise OSError("this process is root already")


def main(traps: dict[str, Any], descriptors: list[int]) -> None:
    """Write to stdout, as JSON, the attempts that succeeded, and the needed folders that cannot be read."""
    unreadable = [folder for folder in traps["needed"] if not os.access(folder, os.R_OK | os.X_OK)]
    ways_out = find_ways_out({**traps, "descriptors": descriptors})
    os.write(1, json.dumps({"ways_out": ways_out, "unreadable": unreadable}).encode())
    os._exit(0)
