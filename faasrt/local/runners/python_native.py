"""Runs the user's program as `python main.py` would, in a process of its own that a launcher has jailed.

The runner sends messages to the server through descriptor 4, each JSON on a line. It sends "ready", and reads one job
from descriptor 3, JSON up to the end: {code, check, memoryBytes, cpuSeconds, maxMessageBytes}. Then it sends:

    {"kind": "started"}            the program begins; an earlier failure is the host's
    {"kind": "ret_val", "text"}    the argument of return_val; the last call counts
    {"kind": "error", ...}         the exception that ended the program
    {"kind": "exit"}               the program exited with a code other than 0
    {"kind": "kill"}               the program sends itself a signal; without this, a signal came from outside
    {"kind": "done"}               the program ran to its end; without this it ended in a hard exit
    {"kind": "own_return_val"}     the program defines its own return_val

The program is hostile and can write to the channel too. That only affects its own result.

The launcher has imported packages, and may be of any CPython from 3.9 on. The host puts
faasrt/protocol/guest/python_errors.py in front of this file.
"""

import atexit
import builtins
import gc
import io
import json
import linecache
import mmap
import os
import random
import resource
import sys
import threading

FOLDER = "/tmp"
JOB_FD, START_FD = 3, 4
# Above all that a program opens, so that those get the numbers that they get elsewhere.
MESSAGES_FD = 255
# Memory that a program asks for and may never touch, above all the stacks of threads. The launcher watches what is
# really in use.
UNTOUCHED_BYTES = 512 * 2**20
# Not counted as data: shared mappings, and the address space that the allocator reserves.
RESERVED_BYTES = 512 * 2**20


def send(kind, **fields):
    data = json_encode({"kind": kind, **fields}).encode() + b"\n"
    while data:
        data = data[write_fd(MESSAGES_FD, data) :]


json_encode = json.JSONEncoder(separators=(",", ":")).encode
write_fd = os.write
leave = os._exit


def text_stream(fd, mode, errors):
    """Return a standard stream like the interpreter's own, without those of the launcher."""
    raw = io.FileIO(fd, mode, closefd=False)
    raw.name = ("<stdin>", "<stdout>", "<stderr>")[fd]
    buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=fd == 2)
    stream.mode = mode
    return stream


def return_val(value):
    """Return a value to the caller: text unchanged, None as "", other values as str(value). The last call counts."""
    send("ret_val", text=as_text(value))


def report_signals(event, arguments):
    # A signal that the program sends itself must not look like one from the system.
    if event in ("os.kill", "os.killpg", "signal.pthread_kill") and arguments[1]:
        send("kill")


def set_memory_limit(memory_bytes):
    with open("/proc/self/status", encoding="ascii") as file:
        sizes = {line.split(":")[0]: line.split()[1] for line in file if line.startswith(("VmData", "VmSize"))}
    data = int(sizes["VmData"]) * 1024 + memory_bytes + UNTOUCHED_BYTES
    address_space = int(sizes["VmSize"]) * 1024 + memory_bytes + UNTOUCHED_BYTES + RESERVED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


class SharedMemory(mmap.mmap):
    """A mapping whose anonymous memory is a file in /tmp: only that is counted, so the jail refuses all else."""

    def __new__(cls, fileno, length, flags=mmap.MAP_SHARED, *arguments, **options):
        if fileno != -1 or not flags & mmap.MAP_SHARED:
            return super().__new__(cls, fileno, length, flags, *arguments, **options)
        fd = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, length)
            return super().__new__(cls, fd, length, flags & ~mmap.MAP_ANONYMOUS, *arguments, **options)
        finally:
            os.close(fd)


SharedMemory.__name__ = SharedMemory.__qualname__ = "mmap"
SharedMemory.__module__ = "mmap"
mmap.mmap = SharedMemory


def reseed():
    # Each program is a copy of one process, and would otherwise see the same numbers.
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def read_job():
    os.dup2(START_FD, MESSAGES_FD, inheritable=False)
    os.close(START_FD)
    send("ready")
    with open(JOB_FD, "rb") as file:
        return json.loads(file.read() or b"null")


def main():
    """Run one program. Does not return."""
    job = read_job()
    if job is None:
        leave(0)  # the server ended, or does not need this process any more
    code = job["code"].encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    code = code.removeprefix("\ufeff")
    limit = job["maxMessageBytes"]
    for stream, fd, mode, errors in (
        ("stdin", 0, "r", "strict"),
        ("stdout", 1, "w", "surrogatepass"),
        ("stderr", 2, "w", "backslashreplace"),
    ):
        setattr(sys, stream, text_stream(fd, mode, errors))
        setattr(sys, f"__{stream}__", getattr(sys, stream))
    stdout, stderr = sys.stdout, sys.stderr
    path = f"{FOLDER}/{FILE}"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(code)
    sys.argv[:] = [FILE]
    sys.orig_argv[:] = [sys.executable, FILE]
    sys.path.insert(0, FOLDER)
    main_module = sys.modules["__main__"] = type(sys)("__main__")
    namespace = main_module.__dict__
    namespace.update(__builtins__=builtins, __loader__=Source(code), __file__=path, __annotations__={})
    linecache.cache[FILE] = (len(code), None, [line + "\n" for line in code.split("\n")], FILE)
    reseed()
    set_memory_limit(job["memoryBytes"])
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpuSeconds"], job["cpuSeconds"] + 1))
    sys.addaudithook(report_signals)
    send("started")
    exit_code = 0
    try:
        program = compile(code, FILE, "exec", TOP_LEVEL_AWAIT, dont_inherit=True)
    except BaseException as error:
        fail(error, "compile", limit, stderr)
    if job["check"]:
        send("done")
        leave(0)
    namespace["return_val"] = return_val
    reserve = memory_reserve()
    try:
        if program.co_flags & COROUTINE:
            import asyncio

            asyncio.run(eval(program, namespace))
        else:
            exec(program, namespace)
    except SystemExit as error:
        exit_code = exit_code_of(error, stderr)
    except BaseException as error:
        del reserve
        fields = error_fields(error, "run", limit)
        write(stderr, fields["traceback"])
        send("error", **fields)
        exit_code = 1
        error.__traceback__ = None
    if exit_code:
        send("exit")
    if namespace.get("return_val") is not return_val:
        send("own_return_val")
    finish(namespace, stdout, stderr)
    if not exit_code:
        send("done")
    leave(exit_code)


def fail(error, phase, limit, stderr):
    fields = error_fields(error, phase, limit)
    write(stderr, fields["traceback"])
    flush(stderr)
    send("error", **fields)
    leave(1)


def finish(namespace, stdout, stderr):
    """Do the parts of the interpreter's shutdown that a program can see."""
    for step in (threading._shutdown, atexit._run_exitfuncs):
        try:
            step()
        except BaseException as error:
            write(stderr, "".join(sys.modules["traceback"].format_exception(type(error), error, error.__traceback__)))
    flush(sys.stdout, sys.stderr, stdout, stderr)
    try:
        # In the order of the interpreter: names with one underscore first, then the others.
        for name in [name for name in namespace if name[:1] == "_" and name[1:2] != "_"]:
            namespace[name] = None
        for name in [name for name in namespace if name != "__builtins__"]:
            namespace[name] = None
        gc.collect()
    except BaseException:
        pass
    flush(sys.stdout, sys.stderr, stdout, stderr)


def flush(*streams):
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass  # the program closed or replaced it
