"""Executes a command inside the jail, in place of this process: a compiler, or a program that it has compiled.

The runner reads one job from stdin, as python_native.py does, with the header {command, folders, files, memoryBytes}.
The rest of stdin is for the command. Then it writes one of these lines to descriptor 3:

    {"kind": "started"}            the command begins; until here, a failure is not the program's
    {"kind": "error", "message"}   the system refuses to execute the command

The command cannot send messages, because its execution closes descriptor 3.
"""

import json
import os
import resource
import signal

MESSAGES_FD = 3
# The resource limits allow this much more than the memory limit, because programs reserve memory that they never use,
# such as most of the stacks of threads. The launcher checks how much memory is in use.
UNTOUCHED_BYTES = 4 * 2**30
STACK_BYTES = 64 * 2**20
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def main(*_):
    """The interpreter calls this as `sys.excepthook`."""
    size = read_exactly(8)
    if not size:
        os._exit(0)  # the server has ended, or does not need this process any more
    job = json.loads(read_exactly(int(size)))
    for folder in job["folders"]:
        os.makedirs(folder, exist_ok=True)
    write_files(job["files"])
    # No limit of CPU time: with one, the kernel updates the CPU clock of the process only at ticks.
    for name, value in (("DATA", job["memoryBytes"] + UNTOUCHED_BYTES), ("STACK", STACK_BYTES)):
        limit = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    for number in IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    send(kind="started")
    try:
        os.execvp(job["command"][0], job["command"])
    except OSError as error:
        send(kind="error", message=f"the program cannot be started: {error.strerror}")
    os._exit(127)


def send(**fields):
    os.write(MESSAGES_FD, (json.dumps(fields, separators=(",", ":")) + "\n").encode())
