"""Runs the user's program inside the WebAssembly guest, and tells the host how it ended.

The host and this program talk through the door of the runtime, `_host.call(bytes) -> bytes`:

    b"job"                    -> "run" or "check", the flood limit in bytes, and the program in UTF-8, a line each
    b"ret_val" + text            what return_val was given; the last one counts
    b"error" + JSON              the exception that ended the program
    b"exit" + code               the program called exit with a code that is not 0
    b"done"                      it ran to its end; a report without this means a hard exit
    b"own_return_val"            the program defines a return_val of its own
    b"flood"                     it wrote more than the flood limit; the host ends the run

The interpreter's own end takes longer than a short program, so what of it can be seen is done by hand, and the process
left; only a program with finalizers or coroutines of its own gets all of it.

The program is hostile and can call the door too. All that it reaches is its own verdict.

faasrt/protocol/guest/python_errors.py stands in front of this. json is not imported here: its start-up would cost a
quarter of a short run.
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


class Meter(io.FileIO):
    """A standard stream that calls the host when the program floods it."""

    def __init__(self, fd, name, flood_bytes):
        super().__init__(fd, "wb", closefd=False)
        self.name = name
        self.left = flood_bytes

    def write(self, data):
        written = super().write(data)
        self.left -= written or 0
        if self.left < 0:
            _host.call(b"flood")
        return written


def text_stream(fd, name, flood_bytes):
    """Lines are written at once: what was printed before an endless loop must reach the caller."""
    buffer = io.BufferedWriter(Meter(fd, name, flood_bytes))
    return io.TextIOWrapper(buffer, encoding="utf-8", errors="surrogatepass", line_buffering=True)


class LoopPatch:
    """Lets asyncio work without sockets: the pipe with which threads wake a loop is left out, as there are none."""

    MODULE = "asyncio.selector_events"

    def find_spec(self, name, path=None, target=None):
        if name != self.MODULE:
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self.loader, spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        loop = module.BaseSelectorEventLoop
        loop._make_self_pipe = loop._close_self_pipe = loop._write_to_self = lambda self: None


def return_val(value):
    """Give the caller a value: text as it is, None as "", anything else as str(value). The last call counts."""
    _host.call(b"ret_val" + as_text(value).encode("utf-8", "surrogatepass"))


def tell_error(error, phase, most):
    """Give the exception to the host, and its traceback to the caller."""
    fields = error_fields(error, phase, most)
    texts = {name: _json.encode_basestring_ascii(fields[name]) for name in ("phase", "name", "message", "traceback")}
    numbers = {name: "null" if fields[name] is None else str(fields[name]) for name in ("line", "column")}
    report = ",".join([f'"{name}":{value}' for name, value in (texts | numbers).items()])
    _host.call(b"error{" + report.encode() + b"}")
    return fields["traceback"]


def run(program, namespace, stderr, most):
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
        write(stderr, tell_error(error, "run", most))


def flush(*streams):
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass  # the program closed it, or it is none


def main():
    task, flood_bytes, source = _host.call(b"job").split(b"\n", 2)
    most = int(flood_bytes) // 2
    # Kept by name: the program may put anything in the place of sys.stdout.
    stdout = sys.stdout = sys.__stdout__ = text_stream(1, "<stdout>", int(flood_bytes))
    stderr = sys.stderr = sys.__stderr__ = text_stream(2, "<stderr>", int(flood_bytes))
    sys.argv[:] = [FILE]
    code = source.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    program_module = sys.modules["__main__"] = type(sys)("__main__")
    namespace = program_module.__dict__
    namespace.update(__builtins__=builtins, __loader__=Source(code), __file__=FILE)
    # For warnings, which look for the file.
    linecache.cache[FILE] = (len(code), None, [line + "\n" for line in code.split("\n")], FILE)
    try:
        program = compile(code, FILE, "exec", TOP_LEVEL_AWAIT)
    except BaseException as error:
        write(stderr, tell_error(error, "compile", most))
        flush(stderr)
        leave(0)
    if task == b"run":
        sys.meta_path.insert(0, LoopPatch())
        namespace["return_val"] = return_val
        run(program, namespace, stderr, most)
        if namespace.get("return_val") is not return_val:
            _host.call(b"own_return_val")
        flush(stdout, stderr)
    _host.call(b"done")
    if "__del__" in code or "async" in code:
        return
    try:
        run_exit_functions()
        collect(0)  # as the interpreter does: the order in which a file and its buffer go depends on it
        del program, namespace, program_module
        del sys.modules["__main__"]
        collect()
        flush(sys.stdout, sys.stderr, stdout, stderr)
    finally:
        leave(0)


main()
