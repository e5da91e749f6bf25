"""Run a command with the restrictions of a default Docker container: no namespaces, no mounts, few capabilities.

python dockerlike.py COMMAND ...
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from faasrt.local.jail.launcher import syscalls
from faasrt.local.jail.launcher.syscalls import CLONE_NAMESPACES, NUMBERS

REFUSED = (
    "unshare setns mount umount2 pivot_root mount_setattr open_tree move_mount fsopen fsmount fsconfig fspick "
    "bpf perf_event_open userfaultfd io_uring_setup keyctl add_key request_key name_to_handle_at"
)
# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
# audit_write, setfcap
KEPT = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
PR_CAPBSET_DROP = 24
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF_0000, 0x0005_0000


def build_filter() -> bytes:
    """Return a filter with the part of Docker's seccomp profile that matters for jails."""
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    code = [(LOAD, 0, 0, 0)]
    for name in REFUSED.split():
        if name in NUMBERS:
            code += [(EQUAL, 0, 1, NUMBERS[name]), refuse]
    code += [(EQUAL, 0, 1, NUMBERS["clone3"]), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    code += [(EQUAL, 0, 3, NUMBERS["clone"]), (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, CLONE_NAMESPACES), refuse]
    code.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def main() -> None:
    """Drop the rights that a container does not have, and exec the command."""
    root = os.geteuid() == 0
    if root:
        for capability in set(range(41)) - set(KEPT):
            syscalls.prctl(PR_CAPBSET_DROP, capability)
    else:
        syscalls.forbid_new_privileges()
    syscalls.install_filter(build_filter())
    if root:
        kept = sum(1 << capability for capability in KEPT)
        header = struct.pack("Ii", 0x2008_0522, 0)
        syscalls.syscall("capset", header, struct.pack("IIIIII", kept, kept, 0, 0, 0, 0))
    os.execvp(sys.argv[1], sys.argv[1:])


main()
