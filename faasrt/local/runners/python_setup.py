# Prepares the process of a native Python program. This is the second part of python_native.py.

import _posixsubprocess
import builtins
import gc
import io
import json
import linecache
import mmap
import os
import random
import resource
import subprocess
import sys
import threading


def text_stream(fd, mode, errors):
    """Return a standard stream like the interpreter's own. The launcher's have other buffers and encodings."""
    raw = io.FileIO(fd, mode, closefd=False)
    raw.name = ("<stdin>", "<stdout>", "<stderr>")[fd]
    buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    # Line-buffered, so that the output of a program that is later killed is not lost.
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, line_buffering=mode == "w")
    stream.mode = mode
    return stream


# These streams are made in the launcher. Its descriptors are pipes, like the descriptors of programs.
STREAMS = {
    "stdin": text_stream(0, "r", "surrogateescape"),
    "stdout": text_stream(1, "w", "surrogatepass"),
    "stderr": text_stream(2, "w", "backslashreplace"),
}


def set_memory_limit(memory_bytes):
    data = SIZES["VmData"] + memory_bytes + UNTOUCHED_BYTES
    address_space = SIZES["VmSize"] + memory_bytes + UNTOUCHED_BYTES + RESERVED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


real_mmap = mmap.mmap
memory_folder = "/tmp"


class SharedMemory(real_mmap):
    # An mmap whose shared anonymous memory is a file in a folder, which is counted. The jail refuses other such memory.
    __slots__ = ()
    __doc__ = real_mmap.__doc__

    def __new__(cls, *arguments, **options):
        names = ("fileno", "length", "flags", "prot", "access", "offset")
        values = {"flags": mmap.MAP_SHARED, "offset": 0, **dict(zip(names, arguments)), **options}
        fileno, length, flags, offset = (values.get(name) for name in ("fileno", "length", "flags", "offset"))
        is_valid = all(isinstance(value, int) for value in (length, flags, offset)) and length > 0
        if fileno != -1 or not is_valid or not flags & mmap.MAP_SHARED:
            return real_mmap.__new__(cls, *arguments, **options)
        fd = os.open(memory_folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, offset + length)
            return real_mmap.__new__(cls, **{**values, "fileno": fd, "flags": flags & ~mmap.MAP_ANONYMOUS})
        finally:
            os.close(fd)

    def __repr__(self):
        text = real_mmap.__repr__(self)
        return text.replace("mmap", "mmap.mmap", 1) if type(self) is SharedMemory else text


SharedMemory.__name__ = SharedMemory.__qualname__ = "mmap"
SharedMemory.__module__ = "mmap"
mmap.mmap = SharedMemory


SESSION = 15  # the position of the argument `start_new_session` of `fork_exec`
real_fork_exec = _posixsubprocess.fork_exec


def replace_sessions():
    # The jail ignores setsid. A process that asks for a session gets at least a process group, because many programs
    # kill the group of a subprocess with a session of its own. Otherwise that would be the group of the program itself.
    os.setsid = os.setpgrp
    _posixsubprocess.fork_exec = fork_exec
    if hasattr(subprocess, "_fork_exec"):  # from Python 3.11 on
        subprocess._fork_exec = fork_exec


def fork_exec(*arguments):
    if arguments[SESSION]:
        arguments = [*arguments]
        arguments[SESSION] = False
        if sys.version_info >= (3, 11):
            arguments[SESSION + 1] = 0  # the process group to join: a new one
        else:
            arguments[-1] = starting_group(arguments[-1])
    return real_fork_exec(*arguments)


def starting_group(preexec):
    def start():
        os.setpgrp()
        if preexec is not None:
            preexec()

    return start


# The random generators of imported modules, such as sympy. This file runs before the processes of programs are forked.
GENERATORS = [
    value for value in gc.get_objects() if isinstance(value, random.Random) and type(value) is not random.SystemRandom
]


def reseed():
    # All programs are forks of one process. Without this they would share its random numbers, the secret key of its
    # child processes and its start time.
    for generator in GENERATORS:
        generator.seed()
    renew_modules()


def read_job():
    os.dup2(START_FD, MESSAGES_FD, inheritable=False)
    os.close(START_FD)
    size = read_exactly(8)
    if not size:
        exit_now(0)  # the server has ended, or does not need this process any more
    job = json.loads(read_exactly(int(size)).decode())  # `loads` would first detect the encoding of bytes
    write_files(job["files"])
    return job


def write_program(text):
    if has_files:
        with open(FILE, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            file.write(text)


def prepare():
    """Prepare the process as for `python main.py`, once, perhaps before it is forked for many programs."""
    for name, stream in STREAMS.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    STREAMS.clear()  # the program may release them
    replace_sessions()
    global memory_folder
    folder = os.getcwd()
    if folder != "/":
        memory_folder = folder
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = False
    main_module = type(sys)("__main__")
    annotations = {"__annotations__": {}} if "__annotations__" in vars(sys.modules["__main__"]) else {}
    sys.modules["__main__"] = main_module
    path = os.path.join(folder, FILE)
    vars(main_module).update(annotations, __builtins__=builtins, __file__=path, __cached__=None)
    linecache.clearcache()  # it contains the launcher's -c code as "<string>", the file name that `eval` uses too


def set_program(code, argv):
    sys.excepthook = show_error
    for name in LAST_ERROR:
        vars(sys).pop(name, None)
    sys.argv[:] = [FILE, *argv]
    if hasattr(sys, "orig_argv"):  # from Python 3.10 on
        sys.orig_argv[:] = [sys.executable, FILE, *argv]
    main_thread = threading.main_thread()
    if hasattr(main_thread, "_native_id"):
        main_thread._native_id = threading.get_native_id()  # a fork keeps the id of its parent
    namespace = vars(sys.modules["__main__"])
    set_source(code, namespace)
    reseed()
    return namespace


def set_source(code, namespace):
    namespace["__loader__"] = Source(code)
    lines = io.StringIO(code, newline=None).read().split("\n")
    linecache.cache[FILE] = (len(code), None, [line + "\n" for line in lines], FILE)


# Not released when a program gets a `__main__` of its own, because this would release the modules of the launcher.
LAUNCHER_MAIN = sys.modules["__main__"]
KNOWN = {*sys.modules} - {"__main__"}
LAST_KNOWN = [*sys.modules][-1]
hide_lines(globals())
