# Reports how a Python program ended. This file is the first part of every Python guest program; it is not a module.
#
# Its functions run after the user's program, in the same interpreter. Each must work with any object of the program.

import linecache
import sys

FILE = "main.py"
TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
COROUTINE = 0x80  # inspect.CO_COROUTINE
MAX_FRAMES = 10_000  # in a traceback; the last ones


class Source:
    # The loader of `__main__`, from which tracebacks and `inspect.getsource` read the program's lines.

    def __init__(self, code):
        self.code = code

    def get_source(self, name):
        return self.code


def memory_reserve():
    # Return memory to hold while the program runs. Releasing it makes room to report a MemoryError.
    #
    # Formatting the traceback needs small blocks, so every other small block is left free between the held ones.
    blocks = [bytes(size) for size in range(8, 490, 8) for _ in range(16)]
    del blocks[::2]
    return bytearray(262_144), blocks


def error_fields(error, phase, max_bytes):
    # Return the exception's name, message and traceback (from the user's first frame on), each of at most `max_bytes`.
    return {
        "phase": phase,
        "name": attribute(type(error), "__name__", str) or "Exception",
        "message": shorten(message_of(error), max_bytes),
        "traceback": shorten(traceback_of(error, phase), max_bytes),
        "line": attribute(error, "lineno", int),
        "column": attribute(error, "offset", int),
    }


def attribute(value, name, kind):
    # Reading an attribute of the program's exception can run the program's code, and fail in any way.
    try:
        found = getattr(value, name, None)
    except BaseException:
        return None
    return kind(found) if isinstance(found, kind) and not isinstance(found, bool) else None


def traceback_of(error, phase):
    # An exception that cannot be formatted is still reported, by its name.
    short_of_memory = isinstance(error, MemoryError) and phase == "run"
    for format_traceback in (format_minimal,) if short_of_memory else (format_standard, format_minimal):
        try:
            return format_traceback(error)
        except BaseException:
            pass
    return ""


def format_standard(error):
    import traceback

    # Python caches the source of -c, which is the guest, under the file name that the user's exec() uses too.
    getattr(linecache, "_interactive_cache", {}).clear()
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename != FILE:
        tb = tb.tb_next
    # After an endless recursion with a high limit, formatting all frames would take long, and nothing interrupts it.
    following = tb
    for _ in range(MAX_FRAMES):
        following = following and following.tb_next
    while following is not None:
        tb, following = tb.tb_next, following.tb_next
    return "".join(traceback.format_exception(type(error), error, tb, limit=-MAX_FRAMES))


def format_minimal(error):
    # Format a traceback with little memory: clear the frames, and import nothing.
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
            pass  # the frame is still running
        tb = tb.tb_next
    message = message_of(error)
    return "".join(parts) + (attribute(type(error), "__name__", str) or "") + (f": {message}" if message else "") + "\n"


def message_of(error):
    try:
        return error.msg if isinstance(error, SyntaxError) and isinstance(error.msg, str) else str(error)
    except BaseException as failure:
        return f"<str() of the exception raised {type(failure).__name__}>"


def shorten(text, max_bytes):
    # Cut a text of more than `max_bytes` in UTF-8 to its head and tail.
    if 4 * len(text) <= max_bytes or len(text.encode("utf-8", "surrogatepass")) <= max_bytes:
        return text
    return f"{text[: max_bytes // 8]}\n...\n{text[-max_bytes // 8 :]}"


def exit_code_of(error, stderr):
    # Return the exit code of a SystemExit like Python: 0 for None, an int unchanged, and 1 with a message otherwise.
    try:
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF if -sys.maxsize - 1 <= code <= sys.maxsize else 255
        try:
            text = str(code)
        except BaseException:
            text = ""
        write(stderr, f"{text}\n")
    except BaseException:
        pass  # neither the code nor the stream can be used
    return 1


def write(stream, text):
    try:
        stream.write(text)
    except (OSError, ValueError):
        pass  # the program closed the stream


def as_text(value):
    # Convert the argument of return_val: text unchanged, None to "", other values to str(value).
    return "" if value is None else value if isinstance(value, str) else str(value)


def hide_lines(names):
    # Give the functions of the guest program the place that the interpreter names when no Python code runs. Warnings
    # about objects that are released at the end name this place, as without the guest program.
    for value in [*names.values()]:
        if isinstance(value, type) and value.__module__ == names["__name__"]:
            hide_lines({**vars(value), "__name__": None, "__globals__": names})
        elif isinstance(value, type(hide_lines)) and value.__globals__ is names.get("__globals__", names):
            value.__code__ = without_lines(value.__code__)


def without_lines(code):
    version, units = sys.version_info, len(code.co_code) // 2
    fields = {"co_filename": "<sys>" if version >= (3, 13) else "sys", "co_firstlineno": 0 if version >= (3, 13) else 1}
    if version >= (3, 11):
        # Each entry: no column, no further line, for 8 units; the last one for the rest. A longer table would make the
        # interpreter write past the end of its memory when the program traces these functions.
        rest = units % 8
        fields["co_linetable"] = b"\xef\x00" * (units // 8) + (bytes([0xE7 + rest, 0]) if rest else b"")
    elif version >= (3, 10):
        fields["co_linetable"] = b"\xfe\x00" * (units // 127 + 1)
    else:
        fields["co_lnotab"] = b""
    fields["co_consts"] = tuple(
        [without_lines(value) if isinstance(value, type(code)) else value for value in code.co_consts]
    )
    return code.replace(**fields)
