"""Run a command as on a machine whose kernel has no Landlock.

python landlockless.py COMMAND ...
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from faasrt.local.jail.launcher import landlock, syscalls
from faasrt.local.jail.launcher.syscalls import NUMBERS

LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF_0000, 0x0005_0000


def build_filter() -> bytes:
    """Return a filter that answers Landlock's first system call as a kernel without it."""
    code = [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 1, NUMBERS["landlock_create_ruleset"]),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def main() -> None:
    """Install the filter, and exec the command."""
    if os.geteuid():
        syscalls.forbid_new_privileges()
    syscalls.install_filter(build_filter())
    assert landlock.abi_version() == 0
    os.execvp(sys.argv[1], sys.argv[1:])


main()
