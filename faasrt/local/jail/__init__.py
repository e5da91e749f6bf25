"""The jail: restrictions that the Linux kernel enforces on sandboxed processes, whatever code they run.

The launcher (`launcher.py`) is a process that builds a jail once and then starts a process in it for each program. A
jail of the level "namespaces" uses all modules of this package. A jail of the level "filters", for systems without
namespaces, does not use `namespaces.py`, `slot.py` and `template.py`.

    namespaces   private mounts, processes, network and users
    program      a running program, as the launcher sees it
    slot         a jail in which one program runs after another, as the launcher sees it
    template     the first process of a slot, which forks the programs
    landlock     which files a process may open, and which sockets and processes it may reach
    seccomp      which system calls a process may make
    memory       reads how much memory the processes of a program use
    watch        a process beside the launcher that adds up this memory, because a program can delay the readers
    canary       a test program that tries to break out
    stack        enlarges the stack of the launcher
    confinement  confines the calling process, which is not in a jail: a worker of the engine `wasm`
    syscalls     system calls through ctypes

These modules also run in the interpreter that `--python` names, which imports this folder as the package `jail`, and
not as a part of faasrt. So they are written for CPython 3.9 and newer, import each other with relative imports, and
import nothing else of faasrt. They must not import the modules of the server:

    config       the contents of a jail
    jail         starts the launcher, checks the jail, and starts processes in it
    level        finds the highest level that works on this machine
    cgroup       the cgroups of programs
"""
