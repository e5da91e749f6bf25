"""A jail of the level "namespaces": its own users, files, processes and network.

Each slot, and each program with a jail of its own, has a place: a number that is unique among them. If the server runs
as root, each place has its own uid. Otherwise all programs have the same uid.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection
from typing import Any, NoReturn

from . import landlock, syscalls
from .syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
)

_PRIVATE_FILE_SYSTEM = MS_NOSUID | MS_NODEV
PROGRAM_ID = 1000
"""The uid and gid of programs, as they see them."""
PLACES = 1000
# If the server runs as root, a jail takes its uids from this range, which Linux distributions leave unused. Each jail
# takes a block of its own: one id for the launcher, and one for each running program, so that the kernel isolates
# programs and counts their resources separately.
_FIRST_HOST_ID, _LAST_HOST_ID = 1_879_100_000, 2_147_400_000
_MAX_BLOCKS_TRIED = 1000
_FIRST_ID_IN_CONTAINER = 1_000_000  # as root of a namespace sees the uids of a jail
_CAP_SYS_ADMIN = 21
BRANCH_ROOT = "/tmp/.branches"
"""The folder of the root folders of branches (see `branches`). Programs do not see it: each has its own /tmp."""
_CAP_SYS_CHROOT = 18
_COUNTERS = ("softnet_stat", "sockstat", "protocols")


def enter(config: dict[str, Any]) -> int:
    """Move this process into a new jail, as its first process, and return the number of uids for programs. Set
    `hides_proc` in the configuration: whether Landlock must hide /proc.

    This forks. The function returns in the child. The parent stays outside, and exits when the child does.

    A container may hide parts of its /proc. The kernel then refuses to mount a new one, which would show them. So the
    jail keeps the /proc of the container, and programs may open nothing there.
    """
    uid, gid = os.getuid(), os.getgid()
    if not uid and not syscalls.has_capability(_CAP_SYS_ADMIN):
        _become_root_of_namespace()
    if uid:
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        _map_ids("self", f"{PROGRAM_ID} {uid} 1", f"{PROGRAM_ID} {gid} 1")
        places = 1
    else:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        places = 0
    _build_root(config)
    if not uid:
        places = _become_mapped_root()
    # The new network namespace has only a loopback interface, which is down. The new IPC and UTS namespaces hide the
    # host's shared memory, message queues and names.
    syscalls.unshare(
        syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWNET
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWCGROUP
    )
    socket.sethostname("sandbox")
    _fork_and_wait()
    config["hides_proc"] = False
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except PermissionError:
        if not landlock.abi_version():
            raise OSError("the kernel refuses to mount /proc, and has no Landlock to hide the existing one") from None
        config["hides_proc"] = True
    else:
        hide_network_counters()
    return places


def rights_without_proc(rights: list[list[Any]]) -> list[list[Any]]:
    """Replace the rights to the root folder by those to the folders in it, except /proc."""
    access = next(access for path, access in rights if path == "/")
    folders = [[f"/{name}", access] for name in os.listdir("/") if name != "proc"]
    return [*folders, *(right for right in rights if right[0] != "/")]


def hide_network_counters() -> None:
    """Hide the files that count packets and memory of the whole machine. Only root may change their mode."""
    folder = "/proc/self/net"
    with contextlib.suppress(OSError):
        for name in (*_COUNTERS, *(f"stat/{name}" for name in os.listdir(f"{folder}/stat"))):
            with contextlib.suppress(FileNotFoundError):
                os.chmod(f"{folder}/{name}", 0)


def _fork_and_wait() -> None:
    """Return in the child; in the parent, wait for the child and exit with its exit code."""
    pid = os.fork()
    if pid:
        _exit_with(pid)
    syscalls.die_with_parent()


def _exit_with(pid: int) -> NoReturn:
    # This process must not keep the pipes and sockets of the child open.
    syscalls.close_descriptors(3)
    _, status = os.waitpid(pid, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _map_ids(pid: str, uids: str, gids: str) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", uids), ("gid_map", gids)):
        if name == "setgroups" and pid != "self":
            continue  # only an unprivileged process must give up setgroups before it maps gids
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _become_mapped_root() -> int:
    """Enter a user namespace whose root has no rights on the host. Return the number of uids for programs."""
    first, count, _ = host_ids()
    _enter_user_namespace(f"0 {first} {count}", syscalls.CLONE_NEWNS)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
    syscalls.set_dumpable(True)
    syscalls.die_with_parent()
    return count - 1


def _become_root_of_namespace() -> None:
    """Get the right to mount: root of a container lacks it, but has it in a user namespace in which it is root, too.
    This namespace also has the uids of a jail.
    """
    first, count, _ = host_ids()
    _enter_user_namespace(f"0 0 1\n{_FIRST_ID_IN_CONTAINER} {first} {count}", 0)
    syscalls.set_dumpable(True)
    syscalls.die_with_parent()


def _enter_user_namespace(ids: str, flags: int) -> None:
    """Only a process outside of a user namespace can map its ids. So this forks: the child enters the namespace, the
    parent maps the ids.
    """
    ready_read, ready_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(ready_write)
        os.read(ready_read, 1)
        try:
            _map_ids(str(pid), ids, ids)
        except PermissionError:  # the child ends when this process has
            raise OSError("root needs the capabilities CAP_SETUID and CAP_SETGID to map user ids") from None
        os.write(mapped_write, b"1")
        _exit_with(pid)
    os.close(mapped_write)  # so that the read below ends if the parent does
    syscalls.unshare(syscalls.CLONE_NEWUSER | flags)
    os.write(ready_write, b"1")
    if not os.read(mapped_read, 1):
        raise OSError("the parent could not map the user ids of the jail")
    for fd in (ready_read, ready_write, mapped_read):
        os.close(fd)


def host_ids(used_uids: Collection[int] | None = None) -> tuple[int, int, int]:
    """Return the first uid of the host to use for a jail, the number of uids, and a lock: a descriptor. While it is
    open, other jails take other uids. If there are none left, the jail shares those of another one.

    A jail whose uids alone separate its programs from others cannot share them. It passes the uids that processes have:
    they may have been left by a jail that was killed. Raise OSError if there are no other ones.

    A container may have a limited range of uids. The jail then takes some of its upper half.
    """
    with open("/proc/self/uid_map", encoding="ascii") as file:
        lines = file.readlines()
    first, _, count = (int(field) for field in lines[0].split())
    if len(lines) > 1 and int(lines[1].split()[0]) == _FIRST_ID_IN_CONTAINER:
        first, _, count = (int(field) for field in lines[1].split())
        return first, count, -1
    if first + count > _LAST_HOST_ID:
        used = PLACES + 1
        first, blocks = _FIRST_HOST_ID, (_LAST_HOST_ID - _FIRST_HOST_ID) // used
    elif count < 10:
        raise OSError("too few user ids in this container: the jail needs at least 10")
    else:
        used = min(PLACES + 1, max(10, count // 256), count // 2)
        blocks = max(1, count // 2 // used)
        first += count - used * blocks
    # Start at a random block, because servers in other containers may use the same range, and do not see the locks.
    block = int.from_bytes(os.urandom(4), "big") % blocks
    lock = socket.socket(socket.AF_UNIX)
    for _ in range(min(blocks, _MAX_BLOCKS_TRIED)):
        block = (block + 1) % blocks
        # The kernel frees an abstract name when its socket is closed, so that a killed jail leaves no lock behind.
        with contextlib.suppress(OSError):
            lock.bind(f"\0faasrt-uids-{first + block * used}")
            if used_uids is None or not any(0 <= uid - first - block * used < used for uid in used_uids):
                break
            lock.close()
            lock = socket.socket(socket.AF_UNIX)
    else:
        if used_uids is not None:
            lock.close()
            raise OSError("other servers and languages, or processes that they have left, use all user ids for jails")
    return first + block * used, used, lock.detach()


def _build_root(config: dict[str, Any]) -> None:
    root = config["root"]
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("root", root, "tmpfs", _PRIVATE_FILE_SYSTEM, "size=1m,mode=755")
    for source, target in config["mounts"]:
        _bind(source, root + target)
    _fill(root, config)
    if has_branches(config):
        for source, target in mounts_of_branches(config):
            _make_target(source, root + BRANCH_ROOT + target)
        _fill(root + BRANCH_ROOT, config)
    # In a user namespace, the kernel allows mounting a new /proc only if a complete /proc is already visible.
    mount("/proc", f"{root}/proc", None, MS_BIND | MS_REC)
    syscalls.change_root(root)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | _PRIVATE_FILE_SYSTEM)


def _fill(root: str, config: dict[str, Any]) -> None:
    for path, text in config["files"].items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w", encoding="utf-8") as file:
            file.write(text)
    for path, target in config["links"].items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path in ("/proc", "/tmp", *(["/dev/shm"] if config["shared_memory"] else [])):
        os.makedirs(root + path, exist_ok=True)


def has_branches(config: dict[str, Any]) -> bool:
    """Return whether processes in the jail may be forked as branches."""
    return bool(config["runner"] and config["tmp_bytes"])


def mounts_of_branches(config: dict[str, Any]) -> list[list[str]]:
    """Return the mounts, except those in /tmp. `mount_tmp` adds these."""
    return [[source, target] for source, target in config["mounts"] if not target.startswith("/tmp/")]


def _make_target(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a", encoding="ascii").close()


def _bind(source: str, target: str) -> None:
    _make_target(source, target)
    mount(source, target, None, MS_BIND | MS_REC)
    # A device file on a read-only mount can still be written to. Only its metadata are protected.
    syscalls.make_read_only(target, devices=source.startswith("/dev/"))


def mounts_in_tmp(config: dict[str, Any]) -> list[str]:
    return [target for _, target in config["mounts"] if target.startswith("/tmp/")]


def mount_tmp(config: dict[str, Any], root: str = "") -> None:
    """Mount a new /tmp in a root folder, and a new /dev/shm if programs have one."""
    # The new /tmp would hide an environment that is installed below /tmp. So its mounts are bound again.
    kept = [(target, os.open(target, os.O_PATH | os.O_CLOEXEC)) for target in mounts_in_tmp(config)]
    options = f"size={config['tmp_bytes']},nr_inodes=4096,mode=1777"
    # Without the times at which folders were read, which would show what an earlier program has read.
    flags = _PRIVATE_FILE_SYSTEM | MS_NODIRATIME | (MS_NOEXEC if config["executable"] else 0)
    mount("tmp", f"{root}/tmp", "tmpfs", flags, options)
    if config["shared_memory"]:
        # Two folders of one file system, so that its size limits both together.
        for name in ("shm", "tmp"):
            os.mkdir(f"{root}/tmp/{name}")
            os.chmod(f"{root}/tmp/{name}", 0o1777)
        mount(f"{root}/tmp/shm", f"{root}/dev/shm", None, MS_BIND)
        mount(f"{root}/tmp/tmp", f"{root}/tmp", None, MS_BIND)
    for target, fd in kept:
        _bind(f"/proc/self/fd/{fd}", root + target)
        os.close(fd)


def make_private(config: dict[str, Any], place: int, places: int, network: int | None) -> None:
    """Isolate this process, the first one of a program, from other programs, and drop its rights. No other running
    program uses the network namespace `network`; None keeps the jail's one.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)
    if network is not None:
        syscalls.join_namespace(network, syscalls.CLONE_NEWNET)
    if config["tmp_bytes"]:
        mount_tmp(config)
    own = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    if not config["hides_proc"]:
        # The new /proc shows only the processes of the program, and nothing about the machine.
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid,hidepid=ptraceable")
    os.chdir("/tmp")
    os.setsid()
    uid = PROGRAM_ID
    if places > 1:
        uid = 1 + place
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        syscalls.set_dumpable(True)  # otherwise /proc/self would belong to root, and the ids could not be mapped
    # In a user namespace of its own, the program has no rights outside of it, and the kernel counts its processes
    # separately.
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{PROGRAM_ID} {uid} 1"),
        ("gid_map", f"{PROGRAM_ID} {uid} 1"),
    ):
        fd = os.open(name, os.O_WRONLY, dir_fd=own)
        os.write(fd, text.encode())
        os.close(fd)
    os.close(own)
    # A branch enters its root folder with this capability. Programs that are not sessions drop it, too. It makes
    # nothing else reachable: a new root folder must be in the old one. Programs that are executed do not have it.
    syscalls.drop_capabilities(kept=1 << _CAP_SYS_CHROOT if has_branches(config) else 0)
