# How a Python program ended, in words: put in front of every guest program of ours, and no module of its own.
#
# It runs where the user's program has run before it: everything here must bear any object that the program made.

import sys

FILE = "main.py"
TOP_LEVEL_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
COROUTINE = 0x80  # inspect.CO_COROUTINE


class Source:
    # Gives tracebacks and `inspect.getsource` the lines of the program, by way of `__main__.__loader__`.

    def __init__(self, code):
        self.code = code

    def get_source(self, name):
        return self.code


def memory_reserve():
    # What to hold while the program runs, and to let go of when it ends, so that a MemoryError can still be reported.
    #
    # Its traceback is made while memory is short: that takes small blocks, of which some lie free between those held.
    blocks = [bytes(size) for size in range(8, 490, 8) for _ in range(16)]
    del blocks[::2]
    return bytearray(262_144), blocks


def error_fields(error, phase, most):
    # Name, message and traceback of the exception; the latter from the user's first frame on, as Python prints it. Each
    # has at most so many bytes.
    return {
        "phase": phase,
        "name": attribute(type(error), "__name__", str) or "Exception",
        "message": shorten(message_of(error), most),
        "traceback": shorten(traceback_of(error, phase), most),
        "line": attribute(error, "lineno", int),
        "column": attribute(error, "offset", int),
    }


def attribute(value, name, kind):
    # An exception is the program's own, and so is what happens when it is asked for something.
    try:
        found = getattr(value, name, None)
    except BaseException:
        return None
    return kind(found) if isinstance(found, kind) and not isinstance(found, bool) else None


def traceback_of(error, phase):
    # An exception that cannot even be printed is still the user's, and still has a name.
    short_of_memory = isinstance(error, MemoryError) and phase == "run"
    for make in (by_hand,) if short_of_memory else (by_library, by_hand):
        try:
            return make(error)
        except BaseException:
            pass
    return ""


def by_library(error):
    import linecache
    import traceback

    # Python files the text of -c, which is ours, under the name that the user's own exec has.
    getattr(linecache, "_interactive_cache", {}).clear()
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename != FILE:
        tb = tb.tb_next
    return "".join(traceback.format_exception(type(error), error, tb))


def by_hand(error):
    # A traceback that needs no memory to speak of: the frames give theirs back, and nothing is imported.
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
    return "".join(parts) + (attribute(type(error), "__name__", str) or "") + (f": {message}" if message else "") + "\n"


def message_of(error):
    try:
        return error.msg if isinstance(error, SyntaxError) and isinstance(error.msg, str) else str(error)
    except BaseException as failure:
        return f"<str() of the exception raised {type(failure).__name__}>"


def shorten(text, most):
    # Leave head and tail of a text of more UTF-8 bytes than that.
    if 4 * len(text) <= most or len(text.encode("utf-8", "surrogatepass")) <= most:
        return text
    return f"{text[: most // 8]}\n...\n{text[-most // 8 :]}"


def exit_code_of(error, stderr):
    # The exit code as Python takes it from a SystemExit: None is 0, a number itself, anything else a message and 1.
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


def as_text(value):
    # What return_val makes of its argument: text as it is, None as "", anything else as str(value).
    return "" if value is None else value if isinstance(value, str) else str(value)
