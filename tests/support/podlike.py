"""Run a command as in a pod of Kubernetes without a seccomp profile: parts of /proc are hidden, capabilities are few.

Only root can do this. python podlike.py [--uid=UID] COMMAND ...
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from faasrt.local.jail.launcher import syscalls
from faasrt.local.jail.launcher.syscalls import MS_BIND, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT, mount

HIDDEN_FILES = ("kcore", "keys", "timer_list", "latency_stats", "sched_debug")
HIDDEN_FOLDERS = ("acpi", "scsi")
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
# As in dockerlike.py: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
# sys_chroot, mknod, audit_write, setfcap.
KEPT = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
PR_CAPBSET_DROP = 24


def main() -> None:
    command, uid = sys.argv[1:], 0
    if command[0].startswith("--uid="):
        uid = int(command.pop(0).removeprefix("--uid="))
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    for name in HIDDEN_FILES:
        if Path("/proc", name).exists():
            mount("/dev/null", f"/proc/{name}", None, MS_BIND)
    for name in HIDDEN_FOLDERS:
        if Path("/proc", name).exists():
            mount("tmpfs", f"/proc/{name}", "tmpfs", MS_RDONLY)
    for name in READ_ONLY:
        if Path("/proc", name).exists():
            mount(f"/proc/{name}", f"/proc/{name}", None, MS_BIND | MS_REC)
            mount(None, f"/proc/{name}", None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    for capability in set(range(41)) - set(KEPT):
        syscalls.prctl(PR_CAPBSET_DROP, capability)
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        kept = sum(1 << capability for capability in KEPT)
        header = struct.pack("Ii", 0x2008_0522, 0)
        syscalls.syscall("capset", header, struct.pack("IIIIII", kept, kept, 0, 0, 0, 0))
    os.execvp(command[0], command)


main()
