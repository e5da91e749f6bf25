"""Rules that restrict which files, ports, sockets and processes a process may reach."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable
from typing import Any

from .syscalls import syscall

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_MAKE_CHARACTER_DEVICE, _MAKE_BLOCK_DEVICE, _REFER, _TRUNCATE = 1 << 6, 1 << 11, 1 << 13, 1 << 14
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 15  # the other rights apply to folders
_TCP = 3  # bind and connect
_SCOPE = 3  # connect to abstract sockets of processes outside, and send signals to them
_CREATE_VERSION, _RULE_PATH_BENEATH = 1, 1

LOOK = _READ_FILE | _READ_FOLDER
READ = LOOK | _EXECUTE
WRITE = _WRITE_FILE | _READ_FILE | _TRUNCATE
_MAKE_SOCKET, _MAKE_PIPE, _MAKE_LINK = 1 << 9, 1 << 10, 1 << 12
ALL = (1 << 16) - 1 & ~(_MAKE_CHARACTER_DEVICE | _MAKE_BLOCK_DEVICE)
SHARED_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE | 1 << 5 | 1 << 8
"""The rights to /dev/shm of programs without one of their own: files whose names are known, which can be created."""
FILES = ALL & ~(_EXECUTE | _MAKE_SOCKET | _MAKE_PIPE | _MAKE_LINK)
"""All rights to regular files and folders, except executing them."""


def abi_version() -> int:
    try:
        return syscall("landlock_create_ruleset", None, 0, _CREATE_VERSION)
    except OSError:
        return 0


def create_ruleset(rights: list[list[Any]]) -> int | None:
    """Create rules that deny all access to files, except the given `rights`: pairs of a path and the access that is
    allowed to it and to everything beneath it. Paths that do not exist are skipped. Return None if the kernel has no
    Landlock.

    The rules also deny TCP, and signals and abstract sockets of processes outside, if the kernel's version supports it.
    """
    abi = abi_version()
    if not abi:
        return None
    handled = _all_rights(abi)
    ruleset = syscall("landlock_create_ruleset", *_attributes(abi, handled, _TCP))
    _allow_all(ruleset, rights, handled)
    return ruleset


def create_nested(rights: list[list[Any]] | None = None, roots: Iterable[str] = ("/",)) -> int:
    """Create rules for a process that is restricted already, so that it cannot trace its parent, nor, if the kernel's
    version supports it, send signals to it. They also deny all access to files but `rights`, unless that is None. All
    its files are in `roots`.
    """
    abi = abi_version()
    if rights is not None:
        ruleset = syscall("landlock_create_ruleset", *_attributes(abi, _all_rights(abi), 0))
        _allow_all(ruleset, rights, _all_rights(abi))
        return ruleset
    # All rules deny to link and move files to other folders, unless they allow it explicitly. Version 1 always denies
    # it; there, the rules deny what no program may do anyway, because a kernel refuses rules that deny nothing.
    handled = _MAKE_BLOCK_DEVICE if abi < 2 else _REFER
    ruleset = syscall("landlock_create_ruleset", *_attributes(abi, handled, 0))
    if abi >= 2:
        for root in roots:
            _allow(ruleset, root, _REFER)
    return ruleset


def _all_rights(abi: int) -> int:
    """Version 1 knows 13 rights of files and folders. The versions 2, 3 and 5 each add one."""
    return (1 << min(13 + (abi >= 2) + (abi >= 3) + (abi >= 5), 16)) - 1


def _allow_all(ruleset: int, rights: list[list[Any]], handled: int) -> None:
    for path, access in rights:
        with contextlib.suppress(FileNotFoundError):
            _allow(ruleset, path, access & (handled if os.path.isdir(path) else handled & _FILE_RIGHTS))


def _attributes(abi: int, handled: int, handled_net: int) -> tuple[bytes, int, int]:
    """Versions 4 and 6 each add a field, and a kernel refuses fields that it does not know."""
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    return struct.pack("QQQ", handled, handled_net, _SCOPE)[:size], size, 0


def _allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", access, fd), 0)
    finally:
        os.close(fd)


def restrict(ruleset: int | None) -> None:
    """Apply rules to this process and all processes that it starts. They cannot be removed."""
    if ruleset is not None:
        syscall("landlock_restrict_self", ruleset, 0)
