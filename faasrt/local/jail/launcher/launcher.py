"""The launcher: a process that builds a jail once, and then starts a process in it for each program.

It talks to the server over a SOCK_SEQPACKET socket. Each packet is a message in JSON. The server first sends the
configuration, and the launcher answers `{"ready": true, "packages", "base_bytes"}` or `{"failed": reason}`. Then:

    -> {"start": id, "argv", "limits", "compiles",    start a process with these descriptors, from 0 upwards; it is a
        "canary", "cgroup"}, descriptors              compiler if "compiles"; it runs the canary with these traps if
                                                      "canary" is not null; if "cgroup", the last descriptor enters
                                                      the cgroup of the program
    <- {"started": id, "ready"}, two pidfds           of the process, and of the process to kill to end the program;
                                                      if not "ready", the process still sends the message _READY
    <- {"refused": id, "reason"}                      the process could not be started
    -> {"folder": id}                                 open the /tmp of the program
    <- {"folder": id}, a descriptor                   without one if this failed
    -> {"prepare": id, "of": id}                      prepare a branch of a session
    <- {"prepared": id, "reason", "count"}, rules,    for the branch: its root folder, its /tmp, and, if it has no
        two folders, a pipe                           /proc, the list of its shared memory; without them if this failed
                                                      for this reason
    -> {"branch": id, "of": id}, a pidfd              the first process of the branch; the answer is "started"
    -> {"kill": id}                                   kill a program whose jail has branches; a branch that was prepared
                                                      does not start
    -> {"limit": id, "bytes", "began", "limit_s",     end the program if its processes use more memory than this (unless
        "wall_s", "cgroup", "session", "again"},      null), and after this time, which began at a time of the monotonic
        descriptors                                   clock, without the time for which it waits for a CPU; after the
                                                      wall-clock time in any case; if "session", it has these pipes from
                                                      now on, or only waits if there are none; "again" if further runs
                                                      may follow
    <- {"interrupt": id, "began"}                     the time of the run of a session is over, which began at this time
    <- {"ended": id, "status", "reason", "peak",      the wait status, the reason (see `RunningProgram`), the largest
        "waited_s"}                                   size in memory of its first process in bytes, 0 if it is unknown,
                                                      and how long it has waited for a CPU

The launcher ends when the server closes the socket, and all programs end with it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import gc
import importlib
import importlib.util
import json
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from . import branches, canary, landlock, namespaces, process_memory, scheduling, seccomp, stack, syscalls, users, watch
from .executor import FileExecutor
from .memory_policy import LOOK_INTERVAL_S, MemoryPolicy
from .program import IDLE_INTERVAL_S, SESSION_GRACE_S, WATCH_INTERVAL_S, RunningProgram
from .restrictions import MAX_DESCRIPTORS, Restrictions
from .shared_jails import SharedJails
from .slot import Slot
from .template import (
    CONTROL_FD,
    ENDED,
    FAILED_STATUS,
    RULES_FD,
    STARTED,
    End,
    Template,
    TraceCheck,
    choose_start_of_pids,
    exit_with_traceback,
)

_CONFIG_BYTES, _MESSAGE_BYTES = 1 << 20, 65_536
_MESSAGES_FD, _READY = 3, b'{"kind":"ready"}\n'
_CAP_KILL, _SIOCOUTQ = 5, 0x5411
# The interpreter optimizes code that runs repeatedly, by writing to its memory. Programs then copy less of it.
_EXERCISE_RUNS = 3
_FINISH_INTERVAL_S = 0.005  # while processes that have ended, or files of programs that have ended, are left
_kept: list[Any] = []
# The niceness of programs minus that of the launcher. The launcher must be able to start and end programs in time.
_PRIORITY = 5
# The launcher uses this part of a core, as 1/N, to check programs.
_MAX_CHECKS, _MAX_INTERVAL_S = 10, 0.5
_PROGRAM_PID = 2  # the pid of a program in a pid namespace of its own, in which `init` has the pid 1


class Launcher:
    """Starts programs in a jail that has been built, and watches them.

    A program runs in a slot if the slot can be reused afterwards (see `template`). All others have a jail of their own.
    In a fork that is to run programs, `in_program` is true; without a template, it runs one itself.
    """

    def __init__(
        self,
        server: socket.socket,
        config: dict[str, Any],
        places: int,
        oom_counter: int | None,
        memory_watch: socket.socket | None,
        watch_pid: int,
    ) -> None:
        self._server, self._config, self._watch_pid = server, config, watch_pid
        self._programs: dict[int, RunningProgram] = {}  # by number
        self._jails = SharedJails(config, has_namespaces=bool(places))
        self._restrictions = Restrictions(config, places)
        self._memory = MemoryPolicy(memory_watch, oom_counter, self._jails)
        self._slots: dict[Slot, RunningProgram | None] = {}  # with the program that runs in it
        self._idle_slots: list[Slot] = []
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}  # by the descriptor that has become readable
        self._is_over = False
        self._interval_s = WATCH_INTERVAL_S
        self._niceness = os.getpriority(os.PRIO_PROCESS, 0) + _PRIORITY
        self.in_program = False
        self.template: Template | None = None

    @property
    def base_bytes(self) -> int:
        return self._memory.base_bytes

    def serve(self) -> None:
        """Handle messages until the server closes the socket. Also return in each fork that is to run programs."""
        self._handle(self._server.fileno(), self._receive_from_server)
        if self._memory.watch is not None:
            self._handle(self._memory.watch.fileno(), self._receive_from_watch)
            if self._restrictions.users is not None:
                self._memory.watch.send(json.dumps({"users": self._restrictions.users.describe()}).encode())
        while not self._is_over:
            for fd, _ in self._poll.poll(self._poll_timeout_ms()):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler()
                if self.in_program:
                    return
            if self._restrictions.users is not None:
                self._restrictions.users.reap(self._known_children())
                if self._restrictions.users.is_busy:
                    self._restrictions.users.finish(self._known_children())
            self._look_at_memory()
            self._jails.end_remains()
            for program in [*self._programs.values()]:
                self._check(program)
            now = time.monotonic()
            for slot in self._slots:
                if slot.is_over(now):
                    self._close_slot(slot, "its template does not answer")
        if self._restrictions.users is not None:
            self._restrictions.users.aclose(
                program.owner for program in self._programs.values() if program.owner is not None
            )

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        """Call a function whenever a descriptor is readable. It must not block: the descriptor may be new."""
        self._handlers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _forget(self, fd: int) -> None:
        del self._handlers[fd]
        self._poll.unregister(fd)

    def _poll_timeout_ms(self) -> int | None:
        wake_at = min((program.check_at for program in self._programs.values()), default=math.inf)
        for program in self._programs.values():
            if program.is_idle:
                wake_at = min(wake_at, program.watched_at + IDLE_INTERVAL_S, self._memory.looked_at + LOOK_INTERVAL_S)
        if self._restrictions.users is not None and self._restrictions.users.is_busy:
            wake_at = min(wake_at, time.monotonic() + _FINISH_INTERVAL_S)
        wake_at = min(wake_at, min((slot.ends_at for slot in self._slots), default=math.inf))
        if self._jails.has_remains:
            wake_at = min(wake_at, time.monotonic() + branches.RETRY_S)
        return None if wake_at == math.inf else max(0, math.ceil(1000 * (wake_at - time.monotonic())))

    def _receive_from_server(self) -> None:
        data, descriptors = _receive(self._server)
        if not data:
            self._is_over = True
            return
        message = json.loads(data)
        if "limit" in message:
            self._set_limits(message, descriptors)
        elif "folder" in message:
            self._send_folder(message["folder"])
        elif "prepare" in message:
            self._prepare_branch(message)
        elif "branch" in message:
            self._add_branch(message, descriptors)
        elif "kill" in message:
            root = self._jails.take(message["kill"])
            if root is not None:
                root.close()
            if message["kill"] in self._programs:
                self._programs[message["kill"]].kill("killed")
        else:
            self._start(message, descriptors)

    def _set_limits(self, message: dict[str, Any], pipes: list[int]) -> None:
        program = self._programs.get(message["limit"])
        if program is None:
            for fd in pipes:
                os.close(fd)
        else:
            if message["session"]:
                program.close_pipes()
                program.pipes = pipes
                program.is_idle, program.has_grace, program.last_cpu_ticks = not pipes, False, None
            program.max_bytes, program.is_session = message["bytes"], message["again"]
            program.has_requests = message["again"] and not message["session"]
            program.limit_time(message["began"], message["limit_s"], message["wall_s"])
            if self._restrictions.places:
                program.open_proc()
            if not message["cgroup"]:  # a cgroup has a counter of its own
                program.oom_kills = self._memory.count_oom_kills()
            if program.is_idle:
                self._check_idle(program)
            elif program.jail_owner.niceness:
                program.adjust_priority(self._niceness, is_crowded=self._is_crowded)

    def _check(self, program: RunningProgram) -> None:
        now = time.monotonic()
        if program.is_idle and now >= program.watched_at + IDLE_INTERVAL_S:
            self._check_idle(program)
        if now < program.check_at:
            return
        program.max_threads = max(program.max_threads, process_memory.count_threads(f"/proc/{program.pid}"))
        if program.awaits_report():
            program.check_at = now + WATCH_INTERVAL_S
        elif reason := program.check_time(now, self._interval_s):
            if reason == "interrupt":
                program.is_interrupted = True
                self._send({"interrupt": program.number, "began": program.began})
            elif reason == "time" and program.is_interrupted and self._has_unread_messages():
                program.deadline = now + SESSION_GRACE_S  # the server is busy, and may not know that the run has ended
            else:
                program.kill(reason)
        else:
            self._memory.add_up(program)  # not before this first check, because most programs end earlier
            program.adjust_priority(self._niceness, is_crowded=self._is_crowded)
        # If there are many programs, check less often, so that there is CPU time for them.
        cost_s = len(self._programs) * (time.monotonic() - now)
        self._interval_s = min(max(WATCH_INTERVAL_S, _MAX_CHECKS * cost_s), _MAX_INTERVAL_S)

    @property
    def _is_crowded(self) -> bool:
        """Whether more programs run than there are CPUs."""
        return sum(program.check_at < math.inf for program in self._programs.values()) > scheduling.CPUS

    def _look_at_memory(self) -> None:
        """Check idle sessions at once if much more memory of the machine is in use than before, because a program can
        pretend that its run has ended.
        """
        if time.monotonic() < self._memory.looked_at + LOOK_INTERVAL_S:
            return
        idle = [program for program in self._programs.values() if program.is_idle]
        if idle and self._memory.has_grown():
            for program in idle:
                self._check_idle(program)

    def _check_idle(self, program: RunningProgram) -> None:
        """Watch the memory of a session between its runs only if it has threads or processes that may use more, or has
        worked since the last check, or if its short runs may have left too much. If it has worked, programs of others
        go first, unless a branch in its jail runs.
        """
        program.watched_at = time.monotonic()
        self._jails.kill_strays(program)
        if program.works() or self._memory.is_large(program):
            self._memory.add_up(program)
        else:
            self._memory.forget(program)
        if program.has_worked and all(each.is_idle for each in program.jail_owner.in_same_jail):
            program.adjust_priority(self._niceness, is_crowded=self._is_crowded)

    def _receive_from_watch(self) -> None:
        assert self._memory.watch is not None
        try:
            data = self._memory.watch.recv(_MESSAGE_BYTES)
        except ConnectionResetError:  # it has ended before it had read all messages
            data = b""
        if not data:
            self._is_over = True
            return
        [(kind, number)] = json.loads(data).items()
        program = self._programs.get(number)
        if program is not None and kind == "strays":
            self._jails.kill_strays(program)
        elif program is not None and not program.reason:
            program.kill("memory")

    def _send(self, message: dict[str, Any], descriptors: list[int] = []) -> None:  # noqa: B006
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with contextlib.suppress(OSError):  # the server has ended; the next receive notices it
            self._server.sendmsg([json.dumps(message).encode()], rights)

    def _has_unread_messages(self) -> bool:
        """Return whether the server has yet to read messages of this process."""
        return fcntl.ioctl(self._server, _SIOCOUTQ, bytes(4)) != bytes(4)

    def _send_folder(self, number: int) -> None:
        program, descriptors = self._programs.get(number), []
        if program is not None:
            if program.slot is not None:
                program.slot.retire()  # the server reads the folder after the program
            with contextlib.suppress(OSError):
                descriptors.append(program.open_folder())
                if program.owner is not None:
                    program.owner.was_opened = True
                    users.lock_folder(descriptors[0])
        self._send({"folder": number}, descriptors)
        for fd in descriptors:
            os.close(fd)

    def _prepare_branch(self, message: dict[str, Any]) -> None:
        number, program, reason = message["prepare"], self._programs.get(message["of"]), ""
        descriptors: list[int] = []
        try:
            if program is not None:
                descriptors = self._jails.prepare(number, program)
                self._memory.update(program.jail_owner.in_same_jail)
        except OSError as error:
            reason = str(error)
        self._send({"prepared": number, "reason": reason, "count": len(descriptors)}, descriptors)
        for fd in descriptors:
            os.close(fd)

    def _add_branch(self, message: dict[str, Any], pidfds: list[int]) -> None:
        number, program, pidfd = message["branch"], self._programs.get(message["of"]), pidfds[0]
        # Its pid is that of no other process, because it has not ended.
        can_branch = program is not None and program.can_branch(pidfd)
        root = self._jails.take(number) if can_branch else None
        if program is None or root is None:
            os.close(pidfd)
            self._send({"refused": number, "reason": "the process has ended, or is none of a branch"})
            return
        branch = self._programs[number] = program.branch(number, pidfd, root)
        branch.open_proc()
        self._handle(pidfd, functools.partial(self._reap_branch, branch))
        self._send({"started": number, "ready": True}, [pidfd, pidfd])

    def _reap_branch(self, branch: RunningProgram) -> None:
        """Report the end of a branch. Its status is unknown, because it is not a child of this process."""
        self._forget(branch.pidfd)
        is_killed = branch.reason or self._memory.is_kill_for_lack(branch)
        owner, slot = branch.jail_owner, branch.slot
        self._finish(branch, signal.SIGKILL if is_killed else 0, 0, lambda: True)
        if owner.in_same_jail:
            return
        if slot is None:
            self._end(owner)
        elif slot.control.fileno() >= 0:
            self._close_slot(slot)

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> None:
        number = message["start"]
        try:
            if self._restrictions.has_slots and not (message["compiles"] or message["canary"] or message["cgroup"]):
                self._start_in_slot(message, descriptors)
            else:
                self._start_alone(message, descriptors)
        except OSError as error:
            self._send({"refused": number, "reason": str(error)})
        finally:
            for fd in descriptors:
                os.close(fd)

    def _start_in_slot(self, message: dict[str, Any], descriptors: list[int]) -> None:
        text = (
            b""
            if self._restrictions.executable_fd is None
            else json.dumps([message["argv"], message["limits"]]).encode()
        )
        while True:
            slot = self._idle_slots.pop() if self._idle_slots else self._open_slot()
            if slot is None:
                descriptors.clear()  # `_become_template` has closed them, and other files may have the same numbers
                return
            try:
                slot.start(descriptors, text)
                break
            except OSError:
                slot.kill()
        self._slots[slot] = program = RunningProgram(message["start"], slot.place, slot)
        program.pipes, descriptors[:] = descriptors[:], []

    def _open_slot(self) -> Slot | None:
        """Create a slot. Return it in this process, and None in that of its template."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # first, because it may fail
        place, pid = self._restrictions.take_place(), -1
        try:
            syscalls.unshare(syscalls.CLONE_NEWPID)  # of the next child
            try:
                pid = os.fork()
            finally:
                if pid:
                    syscalls.join_namespace(self._jails.pid_namespace, syscalls.CLONE_NEWPID)
            if pid == 0:
                self._become_template(theirs, place)
                return None
            slot = Slot(place, pid, ours, has_executable=self._restrictions.executable_fd is not None)
        except OSError:
            ours.close()
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            self._restrictions.free_place(place)
            raise
        finally:
            if pid:
                theirs.close()
        self._slots[slot] = None
        self._handle(ours.fileno(), functools.partial(self._receive_from_template, slot))
        return slot

    def _become_template(self, control: socket.socket, place: int) -> None:
        try:
            process_memory.prefer_for_oom_kill()
            choose_start_of_pids()
            tasks = os.open("/proc/loadavg", os.O_RDONLY)
            descriptors = [*[tasks] * 3, control.fileno(), tasks]
            limits = dict(self._config["limits"])
            if "RLIMIT_NPROC" in limits:
                limits["RLIMIT_NPROC"] += 1  # this process counts, too
            self._confine(descriptors, place, is_template=True)
            control.detach()
            starter: TraceCheck | FileExecutor
            if self._restrictions.executable_fd is None:
                self._restrictions.restrict_calls(limits, self._restrictions.slot_filter)
                starter = TraceCheck(self._config["runner_file"], namespaces.mounts_in_tmp(self._config))
            else:
                limits, code = self._config["limits"], self._restrictions.filter
                starter = FileExecutor(
                    self._restrictions.executable_fd, self._config["env"], RULES_FD, limits, code, self._niceness
                )
            self.template = Template(starter, self._niceness)
        except BaseException:
            try:
                # It has its final number only after `_confine`. Until then, that may be the number of another file.
                moved = control.fileno() < 0
                with contextlib.suppress(OSError):
                    (socket.socket(fileno=CONTROL_FD) if moved else control).send(traceback.format_exc().encode())
            finally:
                os._exit(FAILED_STATUS)

    def _receive_from_template(self, slot: Slot) -> None:
        program = self._slots[slot]
        try:
            message, pidfds = _receive(slot.control)
        except (BlockingIOError, ConnectionResetError):
            # A reset means that the template has ended before it read a message. Its own messages can still be read.
            return
        except OSError:
            message, pidfds = b"", []
        slot.ends_at = math.inf
        end = End(message) if message.startswith(ENDED) else None
        if program is not None and message == STARTED and pidfds:
            program.pidfd = pidfds[0]
            self._programs[program.number] = program
            is_ready = self._restrictions.executable_fd is None
            self._send({"started": program.number, "ready": is_ready}, [program.pidfd, program.pidfd_to_kill])
        elif program is not None and end is not None:
            self._slots[slot] = None
            had_children = end.tasks > program.max_threads
            self._finish(program, end.status, end.max_rss_bytes, lambda: had_children)
            if program.in_same_jail:
                pass  # the branches go on
            elif end.is_clean and not slot.is_spent and not program.reason:
                self._idle_slots.append(slot)
                slot.end_when_idle()
            else:
                self._close_slot(slot)
        else:
            self._close_slot(slot, message.decode("utf-8", "replace"))

    def _close_slot(self, slot: Slot, reason: str = "") -> None:
        program, self._slots[slot] = self._slots[slot], None
        if slot in self._idle_slots:
            self._idle_slots.remove(slot)
        self._forget(slot.control.fileno())
        slot.control.close()
        slot.ends_at = math.inf
        slot.kill()
        # Not waited for here, because it ends only after all other processes of its namespace have freed their memory,
        # and other programs must not wait for that.
        self._handle(slot.pidfd, functools.partial(self._reap_slot, slot))
        if program is None:
            return
        if program.pidfd >= 0:
            program.reason = program.reason or "template"
            self._finish(program, signal.SIGKILL, 0, lambda: True)
        else:
            self._send({"refused": program.number, "reason": reason or "its template has ended"})
            program.close_files()

    def _reap_slot(self, slot: Slot) -> None:
        if os.waitpid(slot.pid, os.WNOHANG) != (0, 0):
            del self._slots[slot]
            self._forget(slot.pidfd)
            slot.close()
            self._restrictions.free_place(slot.place)

    def _start_alone(self, message: dict[str, Any], descriptors: list[int]) -> None:
        program = RunningProgram(message["start"], self._restrictions.take_place())
        try:
            if self._restrictions.users is not None:
                program.owner = self._restrictions.users.open(program.place)
            if self._restrictions.places:
                program.init, program.init_memory = syscalls.start_init()
                program.init_pidfd = os.pidfd_open(program.init)
                # From now on children start in the new namespace. This process stays in its own.
                syscalls.join_namespace(program.init_pidfd, syscalls.CLONE_NEWPID)
            try:
                program.child = syscalls.fork()
            finally:
                if program.child and self._restrictions.places:
                    syscalls.join_namespace(self._jails.pid_namespace, syscalls.CLONE_NEWPID)
            if program.child == 0:
                self._run(message, descriptors, program)
                descriptors.clear()  # `_run` has closed them, and other files may have the same numbers
                return
            program.pidfd = os.pidfd_open(program.child)
            if program.owner is not None:
                program.owner.group = program.child
            program.pipes = [descriptors.pop(0) for _ in range(len(descriptors) - message["cgroup"])]
        except OSError:
            self._end(program)
            raise
        self._programs[program.number] = program
        self._handle(program.pidfd, functools.partial(self._reap, program))
        self._send({"started": program.number, "ready": False}, [program.pidfd, program.pidfd_to_kill])

    def _run(self, message: dict[str, Any], descriptors: list[int], program: RunningProgram) -> None:
        """Complete the jail in the process of a program. Execute the program, or return so that the runner runs it."""
        try:
            process_memory.prefer_for_oom_kill()
            if message["cgroup"]:
                os.write(descriptors.pop(), b"0")
                if self._restrictions.places:
                    syscalls.unshare(syscalls.CLONE_NEWCGROUP)  # its name is hidden from the program
            os.setpriority(os.PRIO_PROCESS, 0, self._niceness)
            self._confine(descriptors, program.place, program.owner, compiles=message["compiles"])
            self._restrictions.restrict_calls({**self._config["limits"], **message["limits"]})
            if message["canary"]:
                kept = list(range(len(descriptors) + len(self._restrictions.files)))
                canary.main(
                    message["canary"],
                    kept if self._restrictions.executable_fd is None else [*kept, self._restrictions.executable_fd],
                )
            if self._restrictions.executable_fd is not None:
                syscalls.execute(self._restrictions.executable_fd, message["argv"], self._config["env"])
            os.write(_MESSAGES_FD, _READY)
        except BaseException:
            exit_with_traceback()

    def _confine(
        self,
        descriptors: list[int],
        place: int,
        owner: users.Owner | None = None,
        *,
        compiles: bool = False,
        is_template: bool = False,
    ) -> None:
        """Make this fork a process of the jail (see `Restrictions.confine`), and forget the other ones."""
        rights = self._jails.rights
        self._restrictions.confine(descriptors, place, rights, owner, compiles=compiles, is_template=is_template)
        self.in_program = True
        # Their descriptors are closed, and other files may have the same numbers.
        for sock in (self._server, self._memory.watch, *(slot.control for slot in self._slots)):
            if sock is not None:
                sock.detach()
        # A program finds this object in its memory, which must not show other programs.
        for others in (self._programs, self._slots, self._handlers):
            others.clear()
        self._idle_slots.clear()
        self._jails.forget_others()

    def _reap(self, program: RunningProgram) -> None:
        pid, status, usage = os.wait4(program.child, os.WNOHANG)
        if pid:
            self._forget(program.pidfd)
            program.child = -1
            self._finish(
                program, status, usage.ru_maxrss * 1024, functools.partial(self._may_have_had_children, program)
            )
            if not program.in_same_jail:
                self._end(program)

    def _finish(
        self, program: RunningProgram, status: int, max_rss_bytes: int, may_have_had_children: Callable[[], bool]
    ) -> None:
        if status != signal.SIGKILL:
            program.reason = ""  # it ended by itself in time
        elif program.reason in ("", "template") and self._memory.is_kill_for_lack(program):
            # The kernel does not report which process it has killed. The peak of the memory shows whether the first
            # process exceeded the limit since the last check. It is unknown for the other ones, so a program with
            # children may have caused the lack of memory, and then have killed itself.
            exceeded = program.max_bytes is not None and max_rss_bytes - self._memory.base_bytes > program.max_bytes
            program.reason = "memory" if exceeded else "unclear" if may_have_had_children() else "system"
        del self._programs[program.number]
        self._memory.forget(program)
        program.jail_owner.in_same_jail.discard(program)
        self._memory.update(program.jail_owner.in_same_jail)
        self._jails.leave(program)
        program.close_files()
        # Sent before the clean-up, because ending a namespace takes as long as running a short program.
        ended = {"ended": program.number, "status": status, "reason": program.reason, "peak": max_rss_bytes}
        ended["waited_s"] = program.times.waited_s
        self._send(ended)

    def _may_have_had_children(self, program: RunningProgram) -> bool:
        """Return whether a program with a jail of its own has created more tasks than the threads of its first process
        that checks have seen.

        A check may miss a child that the kernel has killed at once. But the kernel counts up the numbers of tasks in
        the pid namespace, so a new process there has the next one.
        """
        if program.init is None or not self._config["runner"]:
            return program.owner is not None  # otherwise it cannot start processes
        try:
            tasks = syscalls.run_in_pid_namespace(
                program.init_pidfd, self._jails.pid_namespace, lambda: min(os.getpid() - _PROGRAM_PID, 255)
            )
        except OSError:
            return True
        return tasks > program.max_threads

    def _end(self, program: RunningProgram) -> None:
        """Kill the processes of a program with a jail of its own. Free its place when they have ended."""
        if program.child > 0:
            os.kill(program.child, signal.SIGKILL)
            os.waitpid(program.child, 0)
        if program.pidfd >= 0:
            os.close(program.pidfd)
        if self._restrictions.users is not None and program.owner is not None:
            free = functools.partial(self._restrictions.free_place, program.place)
            self._restrictions.users.close(program.owner, self._known_children(), free)
            return
        if program.init_pidfd >= 0:
            # Not waited for here, as in `_close_slot`.
            signal.pidfd_send_signal(program.init_pidfd, signal.SIGKILL)
            self._handle(program.init_pidfd, functools.partial(self._reap_init, program))
            return
        if program.init is not None:
            os.kill(program.init, signal.SIGKILL)
            os.waitpid(program.init, 0)
        self._restrictions.free_place(program.place)

    def _known_children(self) -> set[int]:
        """Return the children of this process that other functions wait for."""
        return {self._watch_pid, *(program.child for program in self._programs.values())}

    def _reap_init(self, program: RunningProgram) -> None:
        assert program.init is not None
        if os.waitpid(program.init, os.WNOHANG) != (0, 0):
            self._forget(program.init_pidfd)
            os.close(program.init_pidfd)
            self._restrictions.free_place(program.place)


def _require_filters() -> None:
    if not landlock.abi_version():
        raise OSError("the kernel has no Landlock")
    if os.getuid() == 0 and not syscalls.has_capability(_CAP_KILL):
        raise OSError("root needs the capability CAP_KILL to end programs, which run as another user")


def _raise_priority() -> None:
    """Raise the priority of this process, if this user may. Otherwise programs get a lower one.

    If the kernel divides CPU time between sessions, the priority of the session counts as well.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - _PRIORITY)
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
        file.write(str(-_PRIORITY))


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = sock.recvmsg(
        _MESSAGE_BYTES, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
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
    # The number of its descriptor is that in the server. It may be that of the executable.
    inherited = server
    server = socket.socket(fileno=fcntl.fcntl(inherited, fcntl.F_DUPFD_CLOEXEC, seccomp.EXECUTABLE_FD + 1))
    inherited.close()
    _reset_signals()
    os.umask(0o022)  # the server may have any; users within the jail need its folders, and programs rely on this one
    try:
        config = json.loads(server.recv(_CONFIG_BYTES))
        places, oom_counter = 0, process_memory.open_oom_counter()
        _raise_priority()
        if config["level"] == "namespaces":
            places = namespaces.enter(config)
        else:
            _require_filters()
            if config["level"] == "users" or (config["disk_bytes"] and os.getuid() == 0):
                users.check_requirements()
        del config["root"]  # names a folder of the server, and programs find it in their memory
        memory_watch, watch_pid = watch.start(config) if config["runner"] else (None, -1)
        body: Callable[..., None] | None = None
        prepare: Callable[[], None] | None = None
        if config["runner"]:
            syscalls.limit_threads(stack.THREAD_BYTES)
            stack.enlarge()
            for name in config["imports"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            for _ in range(_EXERCISE_RUNS):
                with contextlib.suppress(Exception):
                    exec(config["exercise"], {"__name__": "exercise"})  # noqa: S102
            for name in [name for name in sys.modules if name.split(".")[0] == "launcher"]:
                del sys.modules[name]  # a program may import a module of its own with this name
            namespace: dict[str, Any] = {"__name__": "faasrt_runner"}
            exec(compile(config["runner"], "<faasrt>", "exec"), namespace)  # noqa: S102
            body, prepare = namespace["main"], namespace.get("prepare")
            process_memory.use_huge_pages()
        launcher = Launcher(server, config, places, oom_counter, memory_watch, watch_pid)
        os.environ.clear()
        os.environ.update(config["env"])
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # otherwise a garbage collection in a program would copy all pages of this process
        packages = [name for name in config["packages"] if importlib.util.find_spec(name)]
        server.send(json.dumps({"ready": True, "packages": packages, "base_bytes": launcher.base_bytes}).encode())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        try:
            server.send(json.dumps({"failed": reason}).encode())
        finally:
            os._exit(FAILED_STATUS)
    launcher.serve()
    if not launcher.in_program:
        os._exit(0)
    # Not released in the processes of programs, which would copy all of the memory that this changes.
    _kept.append(sys._getframe())
    if prepare is not None:
        prepare()
    if launcher.template is not None:
        launcher.template.serve()
    assert body is not None
    return body
