"""Runs the user's program inside the WebAssembly guest, and tells the host how it ended.

The host and this program talk through the door of the runtime, `_host.call(bytes) -> bytes`:

    b"job"                    -> "run" or "check", the flood limit in bytes, and the program in UTF-8, a line each
    b"ret_val" + text            what return_val was given; the last one counts
    b"error" + JSON              the exception that ended the program
    b"exit" + code               the program called exit with a code that is not 0
    b"done"                      it ran to its end; a report without this means a hard exit
    b"own_return_val"            the program defines a return_val of its own
    b"flood"                     it wrote more than the flood limit; the host ends the run

The program is hostile and can call the door too. All that it reaches is its own verdict.

json is not imported here: its start-up would cost a quarter of a short run.
"""

import _json
import io
import sys

import _host

FILE = "main.py"
TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
COROUTINE = 0x80  # inspect.CO_COROUTINE


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


class Source:
    """Gives tracebacks and `inspect.getsource` the lines of the program, by way of `__main__.__loader__`."""

    def __init__(self, code):
        self.code = code

    def get_source(self, name):
        return self.code


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
    text = "" if value is None else value if isinstance(value, str) else str(value)
    _host.call(b"ret_val" + text.encode("utf-8", "surrogatepass"))


def tell_error(error, phase):
    """Give the exception to the host, and its traceback, from the user's first frame on, as Python would print it."""
    try:
        if isinstance(error, MemoryError) and phase == "run":
            return report(error, phase, by_hand(error))
        import linecache
        import traceback

        # Python files the text of -c, which is ours, under the name that the user's own exec has.
        linecache._interactive_cache.clear()
        tb = error.__traceback__
        while tb is not None and tb.tb_frame.f_code.co_filename != FILE:
            tb = tb.tb_next
        return report(error, phase, shorten("".join(traceback.format_exception(type(error), error, tb))))
    except BaseException:
        # An exception that cannot even be printed is still the user's, and still has a name.
        return report(error, phase, "")


def by_hand(error):
    """A traceback that needs no memory to speak of: the frames give theirs back, and nothing is imported."""
    lines = sys.modules["__main__"].__dict__.get("__loader__")
    lines = lines.code.split("\n") if isinstance(lines, Source) else []
    parts = ["Traceback (most recent call last):\n"]
    tb = error.__traceback__
    while tb is not None:
        frame = tb.tb_frame
        if frame.f_code.co_filename == FILE and len(parts) < 50:
            parts.append(f'  File "{FILE}", line {tb.tb_lineno}, in {frame.f_code.co_name}\n')
            if 0 < tb.tb_lineno <= len(lines):
                parts.append(f"    {lines[tb.tb_lineno - 1].strip()}\n")
        try:
            frame.clear()
        except RuntimeError:
            pass  # it still runs
        tb = tb.tb_next
    message = message_of(error)
    return "".join(parts) + type(error).__name__ + (f": {message}" if message else "") + "\n"


def report(error, phase, text):
    message = shorten(message_of(error))
    quote = _json.encode_basestring_ascii
    line, column = getattr(error, "lineno", None), getattr(error, "offset", None)
    fields = [
        ("phase", quote(phase)),
        ("name", quote(type(error).__name__)),
        ("message", quote(message)),
        ("traceback", quote(text)),
        ("line", str(line) if isinstance(line, int) else "null"),
        ("column", str(column) if isinstance(column, int) else "null"),
    ]
    _host.call(b"error{" + ",".join([f'"{name}":{value}' for name, value in fields]).encode() + b"}")
    return text


def message_of(error):
    try:
        return error.msg if isinstance(error, SyntaxError) and error.msg else str(error)
    except BaseException as failure:
        return f"<str() of the exception raised {type(failure).__name__}>"


def shorten(text):
    """Leave head and tail of a text that would take the memory its own report needs."""
    return text if len(text) <= 40_000 else f"{text[:20_000]}\n...\n{text[-20_000:]}"


def exit_code_of(error, stderr):
    """The exit code as Python takes it from a SystemExit: None is 0, a number itself, anything else a message and 1."""
    try:
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF if -(2**31) <= code < 2**31 else 255
        write(stderr, f"{code}\n")
    except BaseException:
        pass  # neither a code nor a message can be had of it
    return 1


def write(stream, text):
    try:
        stream.write(text)
    except (OSError, ValueError):
        pass  # the program closed its own stream


def run(program, namespace, stderr):
    reserve = bytearray(262_144)  # so that a MemoryError leaves room for its own report
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
        write(stderr, tell_error(error, "run"))


def main():
    task, flood_bytes, source = _host.call(b"job").split(b"\n", 2)
    # Kept by name: the program may put anything in the place of sys.stdout.
    stdout = sys.stdout = sys.__stdout__ = text_stream(1, "<stdout>", int(flood_bytes))
    stderr = sys.stderr = sys.__stderr__ = text_stream(2, "<stderr>", int(flood_bytes))
    sys.argv[:] = [FILE]
    code = source.decode("utf-8", "surrogatepass")
    namespace = sys.modules["__main__"].__dict__
    namespace["__loader__"] = Source(code)
    try:
        program = compile(code, FILE, "exec", TOP_LEVEL_AWAIT)
    except BaseException as error:
        write(stderr, tell_error(error, "compile"))
        return
    if task == b"run":
        sys.meta_path.insert(0, LoopPatch())
        namespace["return_val"] = return_val
        run(program, namespace, stderr)
        if namespace.get("return_val") is not return_val:
            _host.call(b"own_return_val")
        for stream in (stdout, stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # the program closed its own stream
    _host.call(b"done")


main()
