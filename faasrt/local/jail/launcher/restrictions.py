"""What restricts each process of a jail. The launcher applies it in the process itself, after the fork."""

from __future__ import annotations

import fcntl
import functools
import os
import resource
from typing import Any

from . import landlock, namespaces, seccomp, syscalls, users

MAX_PROGRAMS = 1000
MAX_DESCRIPTORS = 8  # that the server passes to a process
_TRUNCATION_ABI = 3  # the first version of Landlock that checks truncation


class Restrictions:
    """Restricts a process, and has the places for programs.

    Attributes:
        places: The number of places with namespaces; 0 without namespaces.
        users: The users and folders of programs without namespaces, if they have any.
        executable_fd: The descriptor of the file that processes execute; None if they are forks that run the runner.
        has_slots: Whether a program can run in a slot, which is reused afterwards (see `template`).
    """

    def __init__(self, config: dict[str, Any], places: int) -> None:
        self._config, self.places = config, places
        # Without namespaces, root gives each program a uid of its own.
        is_root = not places and os.getuid() == 0
        self._first_uid, count = 0, MAX_PROGRAMS
        if is_root:
            self._first_uid, count, _ = namespaces.host_ids(users.find_processes(with_groups=False).keys())
        self.users = None
        if config["disk_bytes"]:
            self.users = users.Users(self._first_uid, count, config["rights"])
            count -= 1  # no program has the last uid
        self._free_places = list(range(places if places > 1 else count))[::-1]
        self._networks: dict[int, int] = {}  # by place
        self.executable_fd = None
        if config["executable"]:
            self.executable_fd = seccomp.EXECUTABLE_FD
            # Here, because later another descriptor could have this number.
            executable = os.open(config["executable"], os.O_PATH | os.O_CLOEXEC)
            os.dup2(executable, self.executable_fd, inheritable=False)
            os.close(executable)
        self.files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in config["open_files"]]
        abi = landlock.abi_version()
        # A program that executes a file may leave files, if it can write any.
        self.has_slots = bool(places and abi and not (config["executable"] and config["tmp_bytes"]))
        may_truncate = bool(places) or abi >= _TRUNCATION_ABI
        build_filter = functools.partial(
            seccomp.build_filter, config["policy"], seccomp.ANY_PID, may_truncate=may_truncate
        )
        self.filter, self.slot_filter = build_filter(), build_filter(in_slot=True)

    def take_place(self) -> int:
        """Return a place that no program has. Raise OSError if there is none."""
        if not self._free_places:
            raise OSError("too many programs are running in this jail")
        place = self._free_places[-1]
        if self._config["private_network"] and place not in self._networks:
            self._networks[place] = _make_network()
        return self._free_places.pop()

    def free_place(self, place: int) -> None:
        self._free_places.append(place)

    def confine(
        self,
        descriptors: list[int],
        place: int,
        roots: list[list[Any]],
        owner: users.Owner | None = None,
        *,
        compiles: bool = False,
        is_template: bool = False,
    ) -> None:
        """Complete the jail around this process, except for its limits and its filter; see `restrict_calls`.

        A template gets the rules of its programs as another descriptor. It may read /proc, but they may not. `roots`
        are the rights to the root folders of branches.
        """
        config = self._config
        rights, nested_rights = config["compiler_rights" if compiles else "rights"], None
        rights = [*rights, *roots]
        if self.places:
            namespaces.make_private(config, place, self.places, self._networks.get(place))
            if config["hides_proc"] and not compiles:
                nested_rights = namespaces.rights_without_proc(rights)
        if is_template:
            descriptors = [*descriptors, landlock.create_nested(nested_rights, ["/", *(path for path, _ in roots)])]
        elif nested_rights is not None:
            rights = nested_rights
        if self.users is not None and owner is not None:
            ruleset = self.users.enter(owner, place)
            syscalls.die_with_parent()
        else:
            # Created before the uid changes, because the paths may be accessible to root only.
            ruleset = landlock.create_ruleset(rights)
        if not self.places and owner is None:
            os.setsid()
            if self._first_uid:
                _become(self._first_uid + place)
            syscalls.drop_capabilities()
            syscalls.die_with_parent()
        # In two steps, because the number of one descriptor may be the target of another.
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, MAX_DESCRIPTORS) for fd in descriptors + self.files]
        for target, fd in enumerate(moved):
            os.dup2(fd, target, inheritable=target <= 2 or target >= len(descriptors))
        syscalls.forbid_new_privileges()
        landlock.restrict(ruleset)
        syscalls.close_descriptors(len(moved), kept=self.executable_fd)
        # A program finds this object in its memory, which must not show other programs.
        self._networks.clear()
        self._free_places.clear()
        self.users = None

    def restrict_calls(self, limits: dict[str, int], filter_code: bytes | None = None) -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))
        syscalls.install_filter(seccomp.set_pid(filter_code or self.filter, os.getpid()))


def _make_network() -> int:
    """Create a network namespace. Programs reuse it, because creation takes long."""
    path = "/proc/self/ns/net"
    own = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        network = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        namespaces.hide_network_counters()
        syscalls.join_namespace(own, syscalls.CLONE_NEWNET)
    finally:
        os.close(own)
    return network


def _become(uid: int) -> None:
    syscalls.limit_capabilities()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
