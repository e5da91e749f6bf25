"""Runs the user's program as `python main.py` would, in a process of its own inside the jail.

The process is a fork of the launcher, which has already imported packages. The runner first reads one job from stdin:
the size of a header as eight digits; the header, JSON with {code, check, argv, displays, files, memoryBytes,
maxMessageBytes}; and the contents of the files. The header has the paths and sizes of these files. The rest of stdin is
for the program. A job with "session" opens a session (see python_session.py). Otherwise the runner writes messages to
descriptor 3, one line of JSON each:

    {"kind": "started"}            the program begins; until here, a failure is not the program's
    {"kind": "ret_val", "text"}    the argument of return_val; the last call counts
    {"kind": "error", ...}         the exception that ended the program
    {"kind": "missing", "package"} the program could not import this package, because it is not installed
    {"kind": "exit", "code"}       the program exited with a code other than 0; only a cell of a session sends the code
    {"kind": "done"}               the program ran to its end; without this, the process just stopped (os._exit)
    {"kind": "own_return_val"}     the program defines its own return_val
    {"kind": "display", "number",  a part of a display, if the job asks for displays; see python_displays.py
     "type", "content"}

A hostile program can write messages too. This only affects its own result.

This file, and the files that the server adds before and after it, must run on CPython 3.9 and newer.
"""

import atexit
import builtins
import gc
import importlib.util
import itertools
import json
import os
import sys
import threading
import weakref

# Keep the builtins as globals, because the program may delete builtins that this file needs afterwards.
globals().update({name: value for name, value in vars(builtins).items() if name[:1] != "_"})

START_FD = 3
# A high number, so that the files of a program get the same descriptors as in `python main.py`.
MESSAGES_FD = 255
# The resource limits allow this much more than the memory limit, because programs allocate memory that they never use,
# such as most of a thread's stack. The launcher checks how much memory is in use.
UNTOUCHED_BYTES = 512 * 2**20
# The limit of the address space allows this much in addition, for shared mappings and for what the allocator reserves.
RESERVED_BYTES = 512 * 2**20
# Released when the program has failed. It is not used before, so that no process copies its memory.
RESERVE = [memory_reserve()]
with open("/proc/self/status", encoding="ascii") as file:  # of the launcher, whose memory its forks share
    SIZES = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file if line.startswith(("VmData", "VmSize"))}
LAST_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")
FLUSH_FAILED = 120  # the exit code of an interpreter that could not write all output


def send(kind, **fields):
    global is_interrupted
    if own_pid() != pid:
        return  # this is a process that the program has forked; its end is not the end of the program
    texts = [f'"kind":"{kind}"']
    for name, value in fields.items():
        texts.append(f'"{name}":{"null" if value is None else quote(value) if isinstance(value, str) else value}')
    data = f"{{{','.join(texts)}}}\n".encode()
    if is_interrupted:
        data = b"\n" + data
    is_interrupted = True
    try:
        while data:
            data = data[write_fd(messages_fd, data) :]
    except OSError:
        pass  # the program closed the channel
    is_interrupted = False


quote = json.encoder.encode_basestring_ascii  # written in C, so a program cannot patch parts of it
write_fd, exit_now, own_pid, show_error = os.write, os._exit, os.getpid, sys.excepthook
pid, has_files = 0, True
messages_fd, is_interrupted = MESSAGES_FD, False  # whether an exception has ended `send` in the middle of a message


def return_val(value):
    """Return a value to the caller: text unchanged, None as "", other values as str(value). The last call counts."""
    send("ret_val", text=as_text(value))


def send_display(number, kind, content):
    send("display", number=number, type=kind, content=content)


def main(*_):
    """The interpreter calls this as `sys.excepthook`, with no other frame on the stack."""
    global pid, has_files
    pid = own_pid()
    has_files = os.getcwd() != "/"  # without namespaces, programs have no folder
    job = read_job()
    if "session" in job:
        serve_session(job)
    drop_capabilities()
    text = job["code"].encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")
    code = text.removeprefix("\ufeff")
    write_program(code)
    if job["files"]:
        shadow_modules(path.partition("/")[0] for path, _ in job["files"])
    namespace = set_program(code, job["argv"])
    stdout, stderr = sys.stdout, sys.stderr
    limit = job["maxMessageBytes"]
    set_memory_limit(job["memoryBytes"])
    send("started")
    failure, exit_code, displays = None, 0, None
    try:
        if job["displays"]:
            program = compile_with_value(without_guest(code), FILE, TOP_LEVEL_AWAIT)
        else:
            program = compile(without_guest(code), FILE, "exec", TOP_LEVEL_AWAIT, dont_inherit=True)
    except BaseException as error:
        failure = error
    if failure is not None:
        report(failure, "compile", limit, stderr)
        flush(stderr)
        exit_now(1)
    if job["check"]:
        send("done")
        exit_now(0)
    if text != code:
        write_program(text)  # with its byte order mark; until here the file has none, because the compiler reads it
    namespace["return_val"] = return_val
    if job["displays"]:
        displays = Displays(send_display, limit)
        displays.install()
    try:
        if code.startswith(GUEST):
            define_guest(namespace)
        if program.co_flags & COROUTINE:
            import asyncio

            asyncio.run(eval(program, namespace))
        else:
            exec(program, namespace)
        if displays:
            displays.show_value(namespace)
    except BaseException as error:
        failure = error
    if displays:
        try:
            displays.show_figures()
        except BaseException as error:
            failure = failure or error
    # Outside of the `except` block, because the program's excepthook could notice that an exception is being handled.
    if failure is not None:
        RESERVE.clear()
        flush(sys.stderr, sys.stdout)
        if isinstance(failure, SystemExit):
            exit_code = exit_code_of(failure, sys.stderr)
            failure.__traceback__ = None
        else:
            exit_code = report(failure, "run", limit, stderr)
        failure = None
    if exit_code:
        send("exit")
    if namespace.get("return_val") is not return_val:
        send("own_return_val")
    del namespace, program, displays
    exit_code = finish(exit_code, stdout, stderr)
    if not exit_code:
        send("done")
    exit_now(exit_code)


def report(error, phase, limit, stderr):
    """Print an exception as the interpreter does, send it to the server, and return the exit code."""
    fields = error_fields(error, phase, limit)
    send("error", **fields)
    if isinstance(error, ModuleNotFoundError):
        report_missing(error)
    hook = getattr(sys, "excepthook", None)
    is_plain = hook is show_error and (len(fields["traceback"]) > limit // 8 or not has_files)
    if isinstance(error, MemoryError) or is_plain:
        # Print the shortened traceback: there is little memory left, the full traceback may exceed the output limit, or
        # the interpreter cannot read the lines of the program from a file.
        write(stderr, fields["traceback"])
        return 1
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename != FILE:
        tb = tb.tb_next
    error.__traceback__ = tb
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, tb
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    if hook is None:
        write(sys.stderr, "sys.excepthook is missing\n")
    try:
        (hook or show_error)(type(error), error, tb)
    except SystemExit as failure:
        return exit_code_of(failure, sys.stderr)
    except BaseException as failure:
        write(sys.stderr, "Error in sys.excepthook:\n")
        show_failure(failure)
        write(sys.stderr, "\nOriginal exception was:\n")
        show_error(type(error), error, tb)
    return 1


def show_failure(error):
    """Print an exception without the frame of this file, which comes first in its traceback."""
    tb = error.__traceback__
    error.__traceback__ = tb and tb.tb_next
    show_error(type(error), error, error.__traceback__)


def report_missing(error):
    try:
        package = error.name.partition(".")[0]
        if package.isidentifier() and package.isascii() and importlib.util.find_spec(package) is None:
            if package not in getattr(sys, "stdlib_module_names", ()):
                send("missing", package=package)
    except BaseException:
        pass  # the program has forged the exception, or has removed modules


def finish(exit_code, stdout, stderr):
    """Do the parts of the interpreter's shutdown that a program can notice, and return the exit code."""
    try:
        threading._shutdown()
    except BaseException as error:
        show_failure(error)
    try:
        atexit._run_exitfuncs()
    except BaseException:
        pass  # Python 3.9 prints the exception, and then also raises it
    try:
        if not flush_standard():
            exit_code = FLUSH_FAILED
            send("exit")
        for name in LAST_ERROR:
            if hasattr(sys, name):
                setattr(sys, name, None)
        sys.is_finalizing = lambda: True
        sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
        release_modules()
    except BaseException:
        pass  # the program has changed or deleted something that is needed here
    flush(sys.stdout, sys.stderr, stdout, stderr)
    return exit_code


def flush_standard():
    flushed = True
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        try:
            if stream is None or stream.closed:
                continue
        except BaseException:
            pass  # the program has replaced the stream
        try:
            stream.flush()
        except BaseException as error:
            flushed = False
            if name == "stdout":
                place = "while flushing sys.stdout:"
                if sys.version_info < (3, 14):
                    place = "on flushing sys.stdout:" if sys.version_info >= (3, 13) else f"in: {stream!r}"
                write(sys.stderr, f"Exception ignored {place}\n")
                show_failure(error)
    return flushed


def new_modules():
    # They come after the last known one, except for `__main__`, unless the program has deleted known ones. The names of
    # those are not looked at, because counting references to them would copy the memory in which they are.
    names = [*itertools.takewhile(lambda name: name is not LAST_KNOWN, reversed(sys.modules)), "__main__"][::-1]
    if "__main__" not in sys.modules or len(sys.modules) - len(names) != len(KNOWN):
        names = [*sys.modules]
    return [name for name in names if name not in KNOWN]


def release_modules():
    """Release the modules of the program, so that finalizers of their objects run."""
    released = []
    for name in new_modules():
        module = sys.modules.pop(name)
        if type(module) is type(sys):
            released.append(weakref.ref(module))
    module = None  # otherwise this variable would keep the last module alive
    gc.collect()
    for reference in released:
        module = reference()
        if module is None:
            continue
        # In the same order as the interpreter: first the names with one leading underscore, then the others.
        names = vars(module)
        for name in [name for name in names if name[:1] == "_" and name[1:2] != "_"]:
            names[name] = None
        for name in [name for name in names if name != "__builtins__"]:
            names[name] = None
    module = None
    gc.collect()  # once, as the interpreter does: pandas has a thousand modules, and each collection visits all objects


def flush(*streams):
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass  # the program closed or replaced it
