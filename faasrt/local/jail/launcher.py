"""The launcher: a process that builds a jail once, and then starts a process in it for each program.

It talks to the server over a SOCK_SEQPACKET socket. Each packet is a message in JSON. The server first sends the
configuration, and the launcher answers `{"ready": true, "packages", "base_bytes"}` or `{"failed": reason}`. Then:

    -> {"start": id, "argv", "limits", "compiles",    start a process with these descriptors, from 0 upwards; it is a
        "canary", "cgroup"}, descriptors              compiler if "compiles"; it runs the canary with these traps if
                                                      "canary" is not null; if "cgroup", the last descriptor enters
                                                      the cgroup of the program
    <- {"started": id}, two pidfds                    of the process, and of the process to kill to end the program
    <- {"refused": id, "reason"}                      the process could not be started
    -> {"folder": id}                                 open the /tmp of the program
    <- {"folder": id}, a descriptor                   without one if this failed
    -> {"limit": id, "bytes", "until", "cgroup"}      end the program if its processes use more memory than this (unless
                                                      null), and at this time of the monotonic clock
    <- {"ended": id, "status", "reason"}              the wait status, and the reason; see `_Program`

The launcher ends when the server closes the socket, and all programs end with it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import importlib
import importlib.util
import json
import math
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

from . import canary, landlock, memory, namespaces, seccomp, stack, syscalls, watch

_MESSAGE_BYTES = 1 << 20
_WATCH_INTERVAL_S = 0.05
_MAX_DESCRIPTORS = 8
_FAILED_STATUS = 125
_MAX_PROGRAMS = 1000
_LANDLOCK_OF_TRUNCATION = 3  # the first version of Landlock that checks truncation
_CAP_KILL = 5
# The niceness of programs minus that of the launcher. The launcher must be able to start and end programs in time.
_PRIORITY = 5
_FIRST_PID = 2  # the pid of a program in its pid namespace, in which `init` has the pid 1


class _Program:
    """A running program.

    Attributes:
        number: Its id in messages.
        pid, pidfd: Its first process.
        init, init_pidfd: The first process of its pid namespace; None and -1 without namespaces.
        init_memory: The memory that only `init` uses.
        slot: Its slot (see `namespaces`).
        pipes: The program's ends of the pipes to the server.
        max_bytes: The memory that its processes may use together; None without a limit.
        is_watched: Whether the memory watch adds up its memory.
        proc: Its /proc, as a descriptor; -1 if it is not its own. It stays the same when its first process has ended,
            or all of its processes.
        until: When its time limit ends.
        watched_at: When its time was last checked.
        waiting_ticks: The CPU time of its processes at the last check, if they only waited for the server; else None.
        is_late: Whether it waited for the server at the end of its time limit.
        oom_kills: The number of processes that the kernel had killed for lack of memory when the program began.
        reason: Why it was killed: "memory" or "time" for a limit; "system" if the system lacked memory, or "unclear" if
            the program may have caused this; else "".
        max_threads: The largest number of threads of its first process that a check has seen.
    """

    def __init__(self, number: int, slot: int) -> None:
        self.number, self.slot = number, slot
        self.pid = self.pidfd = self.init_pidfd = -1
        self.init: int | None = None
        self.init_memory: Any = None
        self.pipes: list[int] = []
        self.max_bytes: int | None = None
        self.is_watched = False
        self.proc = -1
        self.until = self.oom_kills = math.inf
        self.watched_at = 0.0
        self.waiting_ticks: int | None = None
        self.is_late = False
        self.reason = ""
        self.max_threads = 1

    @property
    def whole_pidfd(self) -> int:
        """The pidfd of the process to kill to end the program with all of its processes."""
        return self.pidfd if self.init is None else self.init_pidfd

    def kill(self, reason: str) -> None:
        """Kill all of its processes."""
        self.reason, self.until = reason, math.inf
        signal.pidfd_send_signal(self.whole_pidfd, signal.SIGKILL)

    def close_files(self) -> None:
        """Close its files and pipes."""
        for fd in [self.proc, *self.pipes]:
            if fd >= 0:
                os.close(fd)

    @property
    def processes(self) -> list[str]:
        """The folders of its processes in /proc."""
        if self.proc < 0:
            return [f"/proc/{self.pid}"]
        seen = f"/proc/self/fd/{self.proc}"
        with contextlib.suppress(OSError):
            return [f"{seen}/{name}" for name in os.listdir(seen) if name.isdigit() and name != "1"]
        return []

    def has_time(self, now: float) -> bool:
        """Return whether it has time left. The time in which all of its processes wait for the server does not count.

        A full pipe alone does not show this, because one process can keep it full while another one works.
        """
        ticks = self._waiting_ticks() if self._has_blocked_pipe() else None
        before, self.waiting_ticks = self.waiting_ticks, ticks
        elapsed_s, self.watched_at = now - self.watched_at, now
        if ticks is not None and ticks == before:
            self.until = max(self.until + elapsed_s, now + _WATCH_INTERVAL_S)
        elif now >= self.until:
            if ticks is None or self.is_late:
                return False
            # It may have begun to wait since the last check. The next one shows whether it only waits.
            self.is_late, self.until = True, now + _WATCH_INTERVAL_S
        return True

    def _has_blocked_pipe(self) -> bool:
        """Return whether a pipe for output is full, or the one for input is empty."""
        poll = select.poll()
        for target, fd in enumerate(self.pipes):
            poll.register(fd, select.POLLOUT if target else select.POLLIN)
        return len(poll.poll(0)) < len(self.pipes)

    def _waiting_ticks(self) -> int | None:
        """Return the CPU time of its processes; None if one of them can run at the moment."""
        processes = self.processes
        return None if any(map(memory.can_run, processes)) else sum(map(memory.cpu_ticks, processes))


class Launcher:
    """Starts programs in a jail that has been built, and watches them.

    Args:
        server: The socket to the server.
        config: The description of the jail.
        slots: The number of uids for programs; 0 without namespaces.
        oom_counter: The file that counts the processes which the kernel has killed for lack of memory.
        memory_watch: The socket to the memory watch; None if the memory of programs is not watched.

    Attributes:
        base_bytes: The resident memory of this process at its start.
        in_program: Whether this process is a fork that is to run a program, and no longer the launcher.
    """

    def __init__(
        self,
        server: socket.socket,
        config: dict[str, Any],
        slots: int,
        oom_counter: int | None,
        memory_watch: socket.socket | None,
    ) -> None:
        self._server, self._config, self._slots = server, config, slots
        self._oom_counter, self._memory_watch = oom_counter, memory_watch
        self._programs: dict[int, _Program] = {}  # by pidfd
        self._ending: dict[int, _Program] = {}  # by the pidfd of `init`
        self._poll = select.poll()
        # Without namespaces, root gives each program a uid of its own.
        is_root = not slots and os.getuid() == 0
        self._first_uid, uids, _ = namespaces.host_ids() if is_root else (0, _MAX_PROGRAMS, -1)
        self._free_slots = list(range(slots if slots > 1 else uids))[::-1]
        self._networks: dict[int, int] = {}  # by slot
        self._pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._executable = os.open(config["executable"], os.O_PATH | os.O_CLOEXEC) if config["executable"] else None
        self._files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in config["open_files"]]
        self._may_truncate = bool(slots) or landlock.abi_version() >= _LANDLOCK_OF_TRUNCATION
        self._filter = self._build_filter(_FIRST_PID) if slots else None
        self.base_bytes, self._base_tables = memory.sizes("/proc/self")
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0) + _PRIORITY
        self.in_program = False

    def serve(self) -> None:
        """Handle messages until the server closes the socket. Also return in each fork that is to run a program."""
        self._poll.register(self._server, select.POLLIN)
        if self._memory_watch is not None:
            self._poll.register(self._memory_watch, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll(self._poll_timeout_ms()):
                if fd in self._ending:
                    self._reap_init(self._ending.pop(fd))
                    continue
                if fd in self._programs:
                    self._poll.unregister(fd)
                    self._reap(self._programs.pop(fd))
                    continue
                if self._memory_watch is not None and fd == self._memory_watch.fileno():
                    if not self._receive_from_watch(self._memory_watch):
                        return
                    continue
                data, descriptors = _receive(self._server)
                if not data:
                    return
                message = json.loads(data)
                if "limit" in message:
                    self._set_limits(message)
                elif "folder" in message:
                    self._send_folder(message["folder"])
                else:
                    started = self._start(message, descriptors)
                    if self.in_program:
                        return
                    if started is not None:
                        self._programs[started.pidfd] = started
                        self._poll.register(started.pidfd, select.POLLIN)
            for program in self._programs.values():
                self._check(program)

    def _poll_timeout_ms(self) -> int | None:
        """Return the milliseconds until the next check of a program; None if there is nothing to check."""
        wake_at = min((program.until for program in self._programs.values()), default=math.inf)
        if wake_at == math.inf:
            return None
        return max(0, math.ceil(1000 * min(wake_at - time.monotonic(), _WATCH_INTERVAL_S)))

    def _find(self, number: int) -> _Program | None:
        """Return the program with an id; None if it has ended."""
        return next((program for program in self._programs.values() if program.number == number), None)

    def _set_limits(self, message: dict[str, Any]) -> None:
        program = self._find(message["limit"])
        if program is not None:
            program.max_bytes, program.until = message["bytes"], message["until"]
            program.watched_at = time.monotonic()
            if self._slots:
                with contextlib.suppress(OSError):  # its process has just ended
                    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
                    program.proc = os.open(f"/proc/{program.pid}/root/proc", flags)
            if not message["cgroup"]:  # a cgroup has a counter of its own
                program.oom_kills = memory.count_oom_kills(self._oom_counter)

    def _check(self, program: _Program) -> None:
        now = time.monotonic()
        if program.until == math.inf or now < min(program.until, program.watched_at + _WATCH_INTERVAL_S):
            return
        program.max_threads = max(program.max_threads, memory.count_threads(f"/proc/{program.pid}"))
        if not program.has_time(now):
            program.kill("time")
        elif program.max_bytes is not None and not program.is_watched and self._memory_watch is not None:
            # Not before this first check, because most programs end earlier.
            program.is_watched = True
            watched = {"watch": program.number, "pid": program.pid, "init": program.init}
            limits = {"bytes": program.max_bytes + self.base_bytes, "tables": self._base_tables}
            self._memory_watch.send(json.dumps({**watched, **limits}).encode())

    def _receive_from_watch(self, memory_watch: socket.socket) -> bool:
        """Read a message of the memory watch. Return whether it still runs."""
        data = memory_watch.recv(_MESSAGE_BYTES)
        program = self._find(json.loads(data)["exceeded"]) if data else None
        if program is not None and not program.reason:
            program.kill("memory")
        return bool(data)

    def _send(self, message: dict[str, Any], descriptors: list[int] = []) -> None:  # noqa: B006
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with contextlib.suppress(OSError):  # the server has ended; the next receive notices it
            self._server.sendmsg([json.dumps(message).encode()], rights)

    def _send_folder(self, number: int) -> None:
        program, descriptors = self._find(number), []
        if program is not None:
            folder = f"/proc/{program.pid}/root/tmp"
            with contextlib.suppress(OSError):
                descriptors.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._send({"folder": number}, descriptors)
        for fd in descriptors:
            os.close(fd)

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> _Program | None:
        number = message["start"]
        if not self._free_slots:
            self._send({"refused": number, "reason": "too many programs are running in this jail"})
            return None
        program = _Program(number, self._free_slots.pop())
        try:
            if self._slots:
                if self._config["private_network"] and program.slot not in self._networks:
                    self._networks[program.slot] = self._make_network()
                program.init, program.init_memory = syscalls.start_init()
                program.init_pidfd = os.pidfd_open(program.init)
                # From now on children start in the new namespace. This process stays in its own.
                syscalls.join_namespace(program.init_pidfd, syscalls.CLONE_NEWPID)
            try:
                program.pid = os.fork()
            finally:
                if program.pid and self._slots:
                    syscalls.join_namespace(self._pid_namespace, syscalls.CLONE_NEWPID)
            if program.pid == 0:
                self._run(message, descriptors, program.slot)
                descriptors.clear()  # `_run` has closed them, and other files may have the same numbers
                return None
            program.pidfd = os.pidfd_open(program.pid)
            program.pipes = [descriptors.pop(0) for _ in range(len(descriptors) - message["cgroup"])]
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
        """Complete the jail in the process of a program. Execute the program, or return so that the runner runs it."""
        config = self._config
        try:
            memory.prefer_for_oom_kill()
            if message["cgroup"]:
                os.write(descriptors.pop(), b"0")
                if self._slots:
                    syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # its name is hidden from the program
            if self._slots:
                namespaces.make_private(config, slot, self._slots, self._networks.get(slot))
            os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
            # Created before the uid changes, because the paths may be accessible to root only.
            ruleset = landlock.create_ruleset(config["compiler_rights" if message["compiles"] else "rights"])
            if not self._slots:
                os.setsid()
                if self._first_uid:
                    _become(self._first_uid + slot)
                syscalls.drop_capabilities()
                syscalls.die_with_parent()
            # In two steps, because the number of one descriptor may be the target of another.
            moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, _MAX_DESCRIPTORS) for fd in descriptors + self._files]
            for target, fd in enumerate(moved):
                os.dup2(fd, target, inheritable=target <= 2 or target >= len(descriptors))
            if self._executable is not None:
                os.dup2(self._executable, seccomp.EXECUTABLE_FD, inheritable=False)
            syscalls.forbid_new_privileges()
            landlock.restrict(ruleset)
            kept = list(range(len(moved)))
            if self._executable is None:
                syscalls.close_descriptors(len(moved))
            else:
                kept.append(seccomp.EXECUTABLE_FD)
                syscalls.close_descriptors(len(moved), seccomp.EXECUTABLE_FD - 1)
                syscalls.close_descriptors(seccomp.EXECUTABLE_FD + 1)
            for name, value in {**config["limits"], **message["limits"]}.items():
                resource.setrlimit(getattr(resource, name), (value, value))
            syscalls.install_filter(self._filter or self._build_filter(os.getpid()))
            if message["canary"]:
                canary.main(message["canary"], kept)
            if self._executable is not None:
                syscalls.execute(seccomp.EXECUTABLE_FD, message["argv"], config["env"])
            self.in_program = True
            # Their descriptors are closed, and other files may have the same numbers.
            self._server.detach()
            if self._memory_watch is not None:
                self._memory_watch.detach()
        except BaseException:
            try:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(_FAILED_STATUS)

    def _build_filter(self, pid: int) -> bytes:
        return seccomp.build_filter(self._config["policy"], pid, may_truncate=self._may_truncate)

    def _reap(self, program: _Program) -> None:
        _, status, usage = os.wait4(program.pid, 0)
        program.pid = -1
        if status != signal.SIGKILL:
            program.reason = ""  # it ended by itself in time
        elif not program.reason and memory.count_oom_kills(self._oom_counter) > program.oom_kills:
            # The kernel does not report which process it has killed. The peak of the memory shows whether the first
            # process exceeded the limit since the last check. It is unknown for the other ones, so a program with
            # children may have caused the lack of memory, and then have killed itself.
            used = usage.ru_maxrss * 1024 - self.base_bytes
            exceeded = program.max_bytes is not None and used > program.max_bytes
            program.reason = "memory" if exceeded else "unclear" if self._may_have_had_children(program) else "system"
        program.close_files()
        if program.is_watched and self._memory_watch is not None:
            self._memory_watch.send(json.dumps({"forget": program.number}).encode())
        # Sent before the clean-up, because ending a namespace takes as long as running a short program.
        self._send({"ended": program.number, "status": status, "reason": program.reason})
        self._end(program)

    def _may_have_had_children(self, program: _Program) -> bool:
        """Return whether a program has created more tasks than the threads of its first process that checks have seen.

        A check may not have seen a child that the kernel has killed at once. But the kernel counts up the numbers of
        tasks in the program's pid namespace, so a new process there has the next one.
        """
        if program.init is None or not self._config["runner"]:
            return False  # a program without namespaces, or in Deno, cannot start processes
        try:
            syscalls.join_namespace(program.init_pidfd, syscalls.CLONE_NEWPID)
            pid = -1
            try:
                pid = os.fork()
            finally:
                if pid:
                    syscalls.join_namespace(self._pid_namespace, syscalls.CLONE_NEWPID)
            if pid == 0:
                os._exit(min(os.getpid() - _FIRST_PID, 255))
        except OSError:
            return True
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) > program.max_threads

    def _end(self, program: _Program) -> None:
        """Kill the remaining processes of a program, and free its slot when they have ended."""
        if program.pid > 0:
            os.kill(program.pid, signal.SIGKILL)
            os.waitpid(program.pid, 0)
        if program.pidfd >= 0:
            os.close(program.pidfd)
        if program.init_pidfd >= 0:
            # Not waited for here, because it ends only after all other processes of its namespace have freed their
            # memory, and other programs must not wait for that.
            signal.pidfd_send_signal(program.init_pidfd, signal.SIGKILL)
            self._ending[program.init_pidfd] = program
            self._poll.register(program.init_pidfd, select.POLLIN)
            return
        if program.init is not None:
            os.kill(program.init, signal.SIGKILL)
            os.waitpid(program.init, 0)
        self._free_slots.append(program.slot)

    def _reap_init(self, program: _Program) -> None:
        assert program.init is not None
        os.waitpid(program.init, 0)
        self._poll.unregister(program.init_pidfd)
        os.close(program.init_pidfd)
        self._free_slots.append(program.slot)

    def _make_network(self) -> int:
        """Create a network namespace, and return its descriptor. Programs reuse it, because creation takes long."""
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


def _require_filters() -> None:
    """Raise OSError if processes cannot be confined, or not be killed, without namespaces."""
    if not landlock.abi_version():
        raise OSError("the kernel has no Landlock")
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    if os.getuid() == 0 and not effective & 1 << _CAP_KILL:
        raise OSError("root needs the capability CAP_KILL to end programs, which run as another user")


def _raise_priority() -> None:
    """Raise the priority of this process, if this user may. Otherwise programs get a lower one.

    If the kernel divides CPU time between sessions, the priority of the session counts as well.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - _PRIORITY)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
        file.write(str(-_PRIORITY))


def _become(uid: int) -> None:
    syscalls.limit_capabilities()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = sock.recvmsg(
        _MESSAGE_BYTES, socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, rights in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(rights[: len(rights) // descriptors.itemsize * descriptors.itemsize])
    return data, list(descriptors)


def _reset_signals() -> None:
    """Undo what this process has inherited: a shell ignores SIGINT in background jobs, and `nohup` ignores SIGHUP."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python itself ignores these
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def main(server: socket.socket) -> Callable[..., None]:
    """Build the jail that the server describes, and serve. Return only in a fork: the function that runs a program."""
    syscalls.die_with_parent()
    server.set_inheritable(False)
    _reset_signals()
    try:
        config = json.loads(server.recv(_MESSAGE_BYTES))
        slots, oom_counter = 0, memory.open_oom_counter()
        _raise_priority()
        if config["level"] == "namespaces":
            slots = namespaces.enter(config)
        else:
            _require_filters()
        memory_watch = watch.start(config) if config["runner"] else None
        body: Callable[..., None] | None = None
        if config["runner"]:
            syscalls.limit_threads(stack.THREAD_BYTES)
            stack.enlarge()
            for name in config["imports"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            namespace: dict[str, Any] = {"__name__": "faasrt_runner"}
            exec(compile(config["runner"], "<faasrt>", "exec"), namespace)  # noqa: S102
            body = namespace["main"]
        launcher = Launcher(server, config, slots, oom_counter, memory_watch)
        os.environ.clear()
        os.environ.update(config["env"])
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # otherwise a garbage collection in a program would copy all pages of this process
        for name in [name for name in sys.modules if name.split(".")[0] == "jail"]:
            del sys.modules[name]  # a program may import its own module of this name
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
