"""Checks the syntax of Python programs, one after another, in a process of its own; run by `syntax.py`.

It writes one byte when it is able to parse. Then it reads four bytes of length and a program in UTF-8, and writes the
same with JSON: `[]` for a program that parses, `[message, line, column]` for one that does not, or `null` when memory
ran out below the limit that it sets itself. It is started as a file, isolated and without site-packages, so it imports
nothing of ours.
"""

import ast
import json
import struct
import sys

if sys.platform != "win32":
    import resource

HELLO = b"\1"
_LENGTH = struct.Struct("!I")
_MEMORY_BYTES = 2 * 2**30


def check(source: bytes, *, has_full_memory: bool) -> list[object] | None:
    """Parse a program, without compiling or running it."""
    try:
        # A byte order mark is ignored, as when the program runs.
        ast.parse(source.decode("utf-8", "surrogatepass").removeprefix("\ufeff"), "main.py")
    except SyntaxError as error:
        return [error.msg, _position(error.lineno), _position(error.offset)]
    except (MemoryError, RecursionError) as error:
        # The parser raises MemoryError for deep nesting, too. With full memory, the program is to blame either way.
        if isinstance(error, MemoryError) and not has_full_memory:
            return None
        return ["too complex for Python's parser", None, None]
    except ValueError as error:
        return [str(error), None, None]  # NUL bytes before Python 3.12, and lone surrogates
    return []


def _position(value: int | None) -> int | None:
    return value if value is None else max(1, value)


def _limit_memory() -> bool:
    """Limit the memory of this process, and return whether the limit is the intended one and not a lower one."""
    if sys.platform == "win32":
        return True
    limits = [_MEMORY_BYTES, *(limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit >= 0)]
    limit = min(limits)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit == _MEMORY_BYTES


def main() -> None:
    """Serve until stdin ends."""
    has_full_memory = _limit_memory()
    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(HELLO)
    answers.flush()
    while len(head := commands.read(_LENGTH.size)) == _LENGTH.size:
        source = commands.read(_LENGTH.unpack(head)[0])
        body = json.dumps(check(source, has_full_memory=has_full_memory)).encode()
        answers.write(_LENGTH.pack(len(body)) + body)
        answers.flush()


if __name__ == "__main__":
    main()
