"""Runs the user's program inside the WebAssembly sandbox, and reports its end to the host.

This runner calls the host with the function of the runtime, `_host.call(bytes) -> bytes`:

    b"job"                    -> "run" or "check", the largest size of a stream in bytes, and the program, a line each
    b"ret_val" + text            the argument of return_val; the last call counts
    b"error" + JSON              the exception that ended the program
    b"exit" + code               the program exited with a code other than 0
    b"done"                      the program ran to its end; without this message it ended in a hard exit
    b"own_return_val"            the program defines its own return_val
    b"output_limit"              a stream is larger than its limit; the host ends the program

The shutdown of the interpreter takes longer than a short program. The runner therefore does the visible parts of it by
itself and exits. Only a program with finalizers or coroutines gets a full shutdown.

The program is hostile and can call the host too. These calls only affect its own result.

The host puts faasrt/protocol/guest/python_errors.py in front of this file. json is not imported, because that would
take a quarter of a short run.
"""

import _json
import builtins
import io
import linecache
import sys
from atexit import _run_exitfuncs as run_exit_functions
from gc import collect
from posix import _exit as leave

import _host


class LimitedStream(io.FileIO):
    """A standard stream that calls the host when the program exceeds its limit."""

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
    """Return a text stream with line buffering, so that output before an endless loop reaches the caller."""
    buffer = io.BufferedWriter(LimitedStream(fd, name, max_bytes))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="surrogatepass", line_buffering=True)


class SelectorLoopPatch:
    """Lets asyncio work without sockets. The pipe with which threads wake an event loop is not created."""

    def find_spec(self, name, path=None, target=None):
        if name == "asyncio.unix_events":  # asyncio imports this one, which needs the loop
            from asyncio import selector_events

            loop = selector_events.BaseSelectorEventLoop
            loop._make_self_pipe = loop._close_self_pipe = loop._write_to_self = lambda self: None


def return_val(value):
    """Return a value to the caller: text unchanged, None as "", other values as str(value). The last call counts."""
    _host.call(b"ret_val" + as_text(value).encode("utf-8", "surrogatepass"))


def report_error(error, phase, max_message_bytes):
    """Report the exception to the host, and return its traceback."""
    fields = error_fields(error, phase, max_message_bytes)
    texts = {name: _json.encode_basestring_ascii(fields[name]) for name in ("phase", "name", "message", "traceback")}
    numbers = {name: "null" if fields[name] is None else str(fields[name]) for name in ("line", "column")}
    message = ",".join([f'"{name}":{value}' for name, value in (texts | numbers).items()])
    _host.call(b"error{" + message.encode() + b"}")
    return fields["traceback"]


def run(program, namespace, stderr, max_message_bytes):
    reserve = memory_reserve()
    try:
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


def main():
    task, max_stream_bytes, source = _host.call(b"job").split(b"\n", 2)
    max_stream_bytes = int(max_stream_bytes)
    max_message_bytes = max_stream_bytes // 2
    # Kept in variables, because the program may replace sys.stdout.
    stdout = sys.stdout = sys.__stdout__ = text_stream(1, "<stdout>", max_stream_bytes)
    stderr = sys.stderr = sys.__stderr__ = text_stream(2, "<stderr>", max_stream_bytes)
    sys.argv[:] = [FILE]
    code = source.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    program_module = sys.modules["__main__"] = type(sys)("__main__")
    namespace = program_module.__dict__
    namespace.update(__builtins__=builtins, __loader__=Source(code), __file__=FILE)
    # The warnings module reads the source from here.
    linecache.cache[FILE] = (len(code), None, [line + "\n" for line in code.split("\n")], FILE)
    try:
        program = compile(code, FILE, "exec", TOP_LEVEL_AWAIT)
    except BaseException as error:
        write(stderr, report_error(error, "compile", max_message_bytes))
        flush(stderr)
        leave(0)
    if task == b"run":
        sys.meta_path.insert(0, SelectorLoopPatch())
        namespace["return_val"] = return_val
        run(program, namespace, stderr, max_message_bytes)
        if namespace.get("return_val") is not return_val:
            _host.call(b"own_return_val")
        flush(stdout, stderr)
    _host.call(b"done")
    if "__del__" in code or "async" in code:
        return
    try:
        run_exit_functions()
        collect(0)  # the interpreter does this too; the order in which a file and its buffer are closed depends on it
        del program, namespace, program_module
        del sys.modules["__main__"]
        collect()
        flush(sys.stdout, sys.stderr, stdout, stderr)
    finally:
        leave(0)


main()
