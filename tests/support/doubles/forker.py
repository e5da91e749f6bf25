"""Starts Python scripts within milliseconds: each runs in a process that is forked from this one.

This process has already imported the modules that the scripts import, which takes longer than anything else they do.
Its argument is the descriptor of a socket. Each message there is JSON, with the path of a script, its working folder
and its environment, and has a descriptor, of a socket for this run. On that, the new process sends its id, and this one
later its exit code. The files `stdout` and `stderr` in the folder are the streams of the script.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import contextlib
import gc
import inspect
import json
import os
import selectors
import socket
import sys
import tempfile
import threading
import traceback
import types
from pathlib import Path

FOR_SCRIPTS = (ast, asyncio, base64, inspect, tempfile, threading, traceback)


def serve(control):
    """Fork a process for each message. Return in the new process, or None at the end of the messages."""
    with control, selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    report(*key.data)
                    continue
                message, descriptors, _, _ = socket.recv_fds(control, 2**20, 1)
                if not message:
                    return None
                pid = os.fork()
                if pid == 0:
                    os.setsid()
                    os.write(descriptors[0], b"%d" % os.getpid())
                    return json.loads(message)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, descriptors[0]))


def report(pid, run):
    """Send the exit code of a process that has ended."""
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(run, b"%d" % os.waitstatus_to_exitcode(status))
    os.close(run)


def prepare(folder, environment):
    """Make this process like one that was started for a script, and return a new `__main__`."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.modules["__main__"] = types.ModuleType("__main__")
    return vars(sys.modules["__main__"])


gc.freeze()
request = serve(socket.socket(fileno=int(sys.argv[1])))
if request is not None:
    sys.argv = [request["script"]]
    # Here, and not in a function, so that few frames are below those of the script.
    exec(
        compile(Path(request["script"]).read_bytes(), request["script"], "exec", dont_inherit=True),
        prepare(request["folder"], request["environment"]),
    )
