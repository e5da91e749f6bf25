"""The jails that sessions share with their branches: which processes belong to which program (see `branches`)."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

from . import branches, landlock, namespaces, process_memory
from .program import RunningProgram


class SharedJails:
    """Makes the root folders of branches, and ends what a session or a branch leaves in a jail that continues.

    Attributes:
        pid_namespace: The pid namespace of the launcher.
        rights: The rights to the root folders of branches.
    """

    def __init__(self, config: dict[str, Any], *, has_namespaces: bool) -> None:
        self._roots = branches.RootMaker(config) if has_namespaces and namespaces.has_branches(config) else None
        self._prepared: dict[int, branches.Root] = {}  # by the number of the branch
        self._remains: list[branches.Remains] = []
        self.pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def rights(self) -> list[list[Any]]:
        return self._roots.rights if self._roots is not None else []

    def prepare(self, number: int, program: RunningProgram) -> list[int]:
        """Make the root folder of a branch of a program. Return its rules of Landlock, the folder, its /tmp, and a pipe
        with the list of its shared memory if it has no /proc. Raise OSError if this fails, or if this jail cannot have
        branches.
        """
        if self._roots is None:
            raise OSError("only programs with namespaces can have branches")
        descriptors: list[int] = []
        try:
            ruleset = landlock.create_ruleset(self._roots.rights)
            if ruleset is None:
                raise OSError("the kernel has no Landlock")
            descriptors.append(ruleset)
            own_folder = f"/proc/{program.pid}"
            # The process itself cannot count its threads if it has no /proc.
            if program.proc < 0 and process_memory.count_threads(own_folder) > 1:
                raise OSError("the program has other threads")
            root, device = self._roots.make(program.pid)
            self._prepared[number] = root
            descriptors.append(os.dup(root.tree))
            descriptors.append(root.open_tmp())
            if program.proc < 0:
                descriptors.append(process_memory.open_shared_mappings(own_folder))
        except OSError:
            for fd in descriptors:
                os.close(fd)
            raise
        if program.jail_owner.device is None:
            program.jail_owner.device = device
        return descriptors

    def take(self, number: int) -> branches.Root | None:
        """Return the root folder that was prepared for a branch."""
        return self._prepared.pop(number, None)

    def living_devices(self, owner: RunningProgram) -> set[int]:
        """Return the devices of the /tmp of the programs in a jail, and of branches that are to start."""
        living = {program.device for program in owner.in_same_jail if program.device is not None}
        return living | {root.device for root in self._prepared.values()}

    def kill_strays(self, program: RunningProgram) -> None:
        """Kill the processes in the jail of a program that belong to no program. See `branches`."""
        if program.device is not None and program.init_pid is not None:
            with contextlib.suppress(OSError):
                folders = process_memory.folders_in_jail(program.proc, program.init_pid)
                branches.kill_strays(folders, self.living_devices(program.jail_owner))

    @property
    def has_remains(self) -> bool:
        return bool(self._remains)

    def end_remains(self) -> None:
        """Go on to end the other processes of programs that have ended."""
        self._remains = [remains for remains in self._remains if not remains.end()]

    def leave(self, program: RunningProgram) -> None:
        """End the other processes of a program that has ended, if its jail continues."""
        root, program.root = program.root, None
        init = program.init_pidfd if program.slot is None else program.slot.pidfd
        init_pid = program.init_pid
        if program.device is not None and program.jail_owner.in_same_jail and init_pid is not None:
            remove_files = self._remove_files_of_session(program) if root is None else root.close
            living = functools.partial(self.living_devices, program.jail_owner)
            try:
                remains = branches.Remains(program.proc, living, init, init_pid, self.pid_namespace, remove_files)
            except OSError:  # too many files are open; its processes end with the jail
                remove_files()
                return
            if not remains.end():
                self._remains.append(remains)
        elif root is not None:
            root.close()

    def _remove_files_of_session(self, session: RunningProgram) -> Callable[[], None]:
        branch = next(iter(session.in_same_jail))
        try:
            namespace = os.open(f"/proc/{branch.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has just ended, too
            return lambda: None

        def remove() -> None:
            if self._roots is not None:
                self._roots.remove_files(namespace)
            os.close(namespace)

        return remove

    def forget_others(self) -> None:
        """Forget other programs, in the process of a program."""
        self._prepared.clear()
        self._remains.clear()
