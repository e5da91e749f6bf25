"""The process that builds a jail once, and starts a process in it for each program.

It talks to the server over a socket that keeps messages apart. Each message is JSON. The server first sends the
configuration, and the launcher answers `{"ready": true, "packages", "base_bytes"}` or `{"failed": reason}`. Then:

    -> {"start": id, "argv", "limits"}, descriptors   starts a process with these descriptors, from 0 upwards;
                                                      with "cgroup", it enters the cgroup of the last one
    <- {"started": id} and two pidfds                 of the process, and of what to kill to end the whole program
    <- {"refused": id, "reason"}                      it could not be started
    -> {"watch": id, "bytes"}                         ends the program when its processes hold more memory
    <- {"ended": id, "status", "memory"}              the wait status, and whether the memory was the reason

The launcher ends when the server closes the socket, and all programs end with it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import canary, landlock, memory, namespaces, seccomp, syscalls

_MESSAGE_BYTES = 1 << 20
_WATCH_INTERVAL_S = 0.05
_MOST_DESCRIPTORS = 8
_FAILED_STATUS = 125
_THREAD_STACK_BYTES = 8 * 2**20
_STACK_BYTES = 512 * 2**20  # for recursion through C code
_STACK_RESERVE_BYTES = 2**20
# Memory of the kernel that no limit counts: the buffer of a socket, beyond a number that every program may have, and
# the description of a mapping.
_SOCKET_BYTES, _FREE_SOCKETS = 212_992, 64
_MAPPING_BYTES = 512
_LOCK_BYTES = 65_536  # more than it takes, because many locks on a file of all programs slow down the others
_MOST_PROGRAMS = 1000
_FIRST_PID = 2  # of a program in its namespace, in which `init` is 1


class _Program:
    """A program that runs.

    Attributes:
        number: Its id in messages.
        pid, pidfd: The process.
        init, init_pidfd: The first process of its pid namespace; None and -1 without namespaces.
        stack: The memory in which `init` runs.
        slot: The number of its uid.
        max_bytes: The memory that its processes may hold together; None while it is not watched.
        check_at: When to check its memory next.
        out_of_memory: Whether it was ended for its memory.
        is_hidden: Whether the memory of one of its processes could not be read the last time.
    """

    def __init__(self, number: int, slot: int) -> None:
        self.number, self.slot = number, slot
        self.pid = self.pidfd = self.init_pidfd = -1
        self.init: int | None = None
        self.stack: Any = None
        self.max_bytes: int | None = None
        self.check_at = 0.0
        self.out_of_memory = False
        self.is_hidden = False

    @property
    def whole_pidfd(self) -> int:
        """The process to kill to end the whole program."""
        return self.pidfd if self.init is None else self.init_pidfd


class Launcher:
    """Starts programs in a jail that was built, and watches them.

    Args:
        server: The socket to the server.
        config: The description of the jail.
        slots: The number of uids for programs; 0 without namespaces.

    Attributes:
        base_bytes: The resident memory of a process without a program.
        in_program: Whether this is the process of a program, and no launcher any more.
    """

    def __init__(self, server: socket.socket, config: dict[str, Any], slots: int) -> None:
        self._server, self._config, self._slots = server, config, slots
        self._programs: dict[int, _Program] = {}  # by pidfd
        # Without namespaces, root gives each program a uid of its own.
        is_root = not slots and os.getuid() == 0
        self._first_uid, uids = namespaces.host_ids() if is_root else (0, _MOST_PROGRAMS)
        self._free_slots = list(range(slots if slots > 1 else uids))[::-1]
        self._networks: dict[int, int] = {}  # by slot
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._executable = os.open(config["executable"], os.O_PATH | os.O_CLOEXEC) if config["executable"] else None
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in config["open_files"]]
        self._filter = seccomp.build_filter(config["policy"], _FIRST_PID) if slots else None
        self._base_mapped, self.base_bytes = memory.sizes("/proc/self")
        self.in_program = False

    def serve(self) -> None:
        """Answer the server until it closes the socket, or return in the process of a program to run its body."""
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        while True:
            watched = [program for program in self._programs.values() if program.max_bytes is not None]
            for fd, _ in poll.poll(1000 * _WATCH_INTERVAL_S if watched else None):
                if fd != self._server.fileno():
                    poll.unregister(fd)
                    self._reap(self._programs.pop(fd))
                    continue
                data, descriptors = _receive(self._server)
                if not data:
                    return
                message = json.loads(data)
                if "watch" in message:
                    for program in self._programs.values():
                        if program.number == message["watch"]:
                            program.max_bytes = message["bytes"]
                    continue
                started = self._start(message, descriptors)
                if self.in_program:
                    return
                if started is not None:
                    self._programs[started.pidfd] = started
                    poll.register(started.pidfd, select.POLLIN)
            for program in watched:
                now = time.monotonic()
                if now >= program.check_at:
                    self._check_memory(program)
                    # Figures that take long to read must not keep this process from its other work.
                    program.check_at = now + max(_WATCH_INTERVAL_S, 4 * (time.monotonic() - now))

    def _send(self, message: dict[str, Any], descriptors: list[int] = []) -> None:  # noqa: B006
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with contextlib.suppress(OSError):  # the server is gone, which the next receive shows
            self._server.sendmsg([json.dumps(message).encode()], rights)

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> _Program | None:
        number = message["start"]
        if not self._free_slots:
            self._send({"refused": number, "reason": "too many programs run in this jail"})
            return None
        program = _Program(number, self._free_slots.pop())
        try:
            if self._slots:
                if self._config["private_network"] and program.slot not in self._networks:
                    self._networks[program.slot] = self._make_network()
                program.init, program.stack = syscalls.start_init()
                program.init_pidfd = os.pidfd_open(program.init)
                # Children are born in the new namespace, this process stays where it is.
                syscalls.join_namespace(program.init_pidfd, syscalls.CLONE_NEWPID)
            try:
                program.pid = os.fork()
            finally:
                if program.pid and self._slots:
                    syscalls.join_namespace(self._pid_namespace, syscalls.CLONE_NEWPID)
            if program.pid == 0:
                self._run(message, descriptors, program.slot)
                descriptors.clear()  # they are closed, and other files may have their numbers
                return None
            program.pidfd = os.pidfd_open(program.pid)
        except OSError as error:
            self._send({"refused": number, "reason": str(error)})
            self._end(program)
            return None
        finally:
            for fd in descriptors:
                os.close(fd)
        self._send({"started": number}, [program.pidfd, program.whole_pidfd])
        return program

    def _run(self, message: dict[str, Any], descriptors: list[int], slot: int) -> None:
        """Finish the jail in the process of a program, and run the program. Return only if the body is to run it."""
        config = self._config
        try:
            if message["cgroup"]:
                os.write(descriptors.pop(), b"0")
                if self._slots:
                    syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # its name is hidden from the program
            if self._slots:
                namespaces.make_private(config, slot, self._slots, self._networks.get(slot))
            # Made before the uid changes, as only root may be allowed to look up the paths.
            ruleset = landlock.create_ruleset(config["rights"])
            if not self._slots:
                os.setsid()
                if self._first_uid:
                    _become(self._first_uid + slot)
                syscalls.drop_capabilities()
                syscalls.die_with_parent()
            # In two steps, because a number of one may be the target of another.
            moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, _MOST_DESCRIPTORS) for fd in descriptors + self._files]
            for target, fd in enumerate(moved):
                os.dup2(fd, target, inheritable=target <= 2 or target >= len(descriptors))
            if self._executable is not None:
                os.dup2(self._executable, seccomp.EXECUTABLE_FD, inheritable=False)
            syscalls.forbid_new_privileges()
            landlock.restrict(ruleset)
            syscalls.close_descriptors(len(moved), seccomp.EXECUTABLE_FD - 1)
            syscalls.close_descriptors(seccomp.EXECUTABLE_FD + 1)
            for name, value in {**config["limits"], **message["limits"]}.items():
                resource.setrlimit(getattr(resource, name), (value, value))
            syscalls.install_filter(self._filter or seccomp.build_filter(config["policy"], os.getpid()))
            if message["canary"]:
                canary.main(message["canary"])
            if self._executable is not None:
                syscalls.execute(seccomp.EXECUTABLE_FD, message["argv"], config["env"])
            self.in_program = True
            self._server.detach()
        except BaseException:
            try:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(_FAILED_STATUS)

    def _reap(self, program: _Program) -> None:
        _, status = os.waitpid(program.pid, 0)
        program.pid = -1
        # Reported first, because the end of a namespace takes as long as a short program.
        self._send({"ended": program.number, "status": status, "memory": program.out_of_memory})
        self._end(program)

    def _end(self, program: _Program) -> None:
        """End what is left of a program, and free its slot."""
        if program.pid > 0:
            os.kill(program.pid, signal.SIGKILL)
            os.waitpid(program.pid, 0)
        if program.init is not None:
            if program.init_pidfd >= 0:
                signal.pidfd_send_signal(program.init_pidfd, signal.SIGKILL)
            else:
                os.kill(program.init, signal.SIGKILL)
            os.waitpid(program.init, 0)  # returns when all processes of the namespace have ended
        for fd in {program.pidfd, program.init_pidfd} - {-1}:
            os.close(fd)
        self._free_slots.append(program.slot)

    def _make_network(self) -> int:
        """Return a descriptor of a new network, for one program after the other: to make one takes long."""
        path = "/proc/self/ns/net"
        own = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            network = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            syscalls.join_namespace(own, syscalls.CLONE_NEWNET)
        finally:
            os.close(own)
        return network

    def _check_memory(self, program: _Program) -> None:
        """End a program whose processes hold too much memory."""
        assert program.max_bytes is not None
        limit = program.max_bytes + self.base_bytes
        own = f"/proc/{program.pid}"
        processes = [own]
        try:
            if self._config["private_network"]:
                with open(f"{own}/net/sockstat", encoding="ascii") as file:
                    limit -= max(0, int(file.readline().split()[2]) - _FREE_SOCKETS) * _SOCKET_BYTES
            if self._slots:
                seen = f"{own}/root/proc"
                processes = [f"{seen}/{name}" for name in os.listdir(seen) if name.isdigit() and name != "1"]
                stored = os.statvfs(f"{own}/root/tmp")
                limit -= (stored.f_blocks - stored.f_bfree) * stored.f_frsize if self._config["tmp_bytes"] else 0
        except OSError:
            processes = [own]  # it has just ended, or its first thread has
        # The end of the first thread of a process hides the memory of the others. All threads end at different moments
        # at the end of a process, so this counts when it is seen twice.
        hidden = any(map(memory.has_lost_first_thread, processes))
        if hidden and program.is_hidden:
            self._end_for_memory(program)
            return
        program.is_hidden = hidden
        # The resident memory counts shared pages once for each process, and mapped memory costs little unless it is in
        # many pieces. The exact figures take long to read.
        sizes = [memory.sizes(process) for process in processes]
        limit -= _LOCK_BYTES * memory.count_locks(program.pid) if self._slots else 0
        mapped = sum(max(0, size - self._base_mapped) for size, _ in sizes)
        if mapped <= limit and sum(resident for _, resident in sizes) <= limit:
            return
        for process in processes:
            limit -= memory.proportional_bytes(process) + memory.count_mappings(process) * _MAPPING_BYTES
            if limit < 0:
                self._end_for_memory(program)
                return

    def _end_for_memory(self, program: _Program) -> None:
        program.out_of_memory = True
        signal.pidfd_send_signal(program.whole_pidfd, signal.SIGKILL)


def _enlarge_stack() -> None:
    """Extend the stack of this process and its forks, and keep the usual size for programs that they execute.

    Those take the limit as the size of the stacks of their threads too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    size = _STACK_BYTES if soft == resource.RLIM_INFINITY else min(_STACK_BYTES, soft - _STACK_RESERVE_BYTES)
    if size > _THREAD_STACK_BYTES:
        with open("/proc/self/maps", encoding="ascii") as file:
            stack = next(line for line in file if line.endswith("[stack]\n"))
        # The kernel extends the stack down to an address that is used, and nothing makes it smaller again.
        ctypes.memset(int(stack.split()[0].split("-")[1], 16) - size, 0, 1)
    most = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (min(_THREAD_STACK_BYTES, most), most))


def _become(uid: int) -> None:
    syscalls.limit_capabilities()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = sock.recvmsg(
        _MESSAGE_BYTES, socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(rights[: len(rights) // descriptors.itemsize * descriptors.itemsize])
    return data, list(descriptors)


def main(server: socket.socket) -> Callable[..., None]:
    """Build the jail that the server describes, and serve. Return only in the process of a program: its body."""
    syscalls.die_with_parent()
    server.set_inheritable(False)
    try:
        config = json.loads(server.recv(_MESSAGE_BYTES))
        slots = namespaces.enter(config) if config["level"] == "namespaces" else 0
        body: Callable[..., None] | None = None
        if config["runner"]:
            syscalls.limit_threads(_THREAD_STACK_BYTES)
            _enlarge_stack()
            for name in config["imports"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            namespace: dict[str, Any] = {"__name__": "faasrt_runner"}
            exec(compile(config["runner"], "<faasrt>", "exec"), namespace)  # noqa: S102
            body = namespace["main"]
        launcher = Launcher(server, config, slots)
        os.environ.clear()
        os.environ.update(config["env"])
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # or a collection in a program would copy all pages of this process
        for name in [name for name in sys.modules if name.split(".")[0] == "jail"]:
            del sys.modules[name]  # a program may have a module of this name
        packages = [name for name in config["packages"] if importlib.util.find_spec(name)]
        server.send(json.dumps({"ready": True, "packages": packages, "base_bytes": launcher.base_bytes}).encode())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        try:
            server.send(json.dumps({"failed": reason}).encode())
        finally:
            os._exit(_FAILED_STATUS)
    launcher.serve()
    if body is None or not launcher.in_program:
        os._exit(0)
    return body
