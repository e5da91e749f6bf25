"""Checks the syntax of Python programs, one after another, in a process that `syntax.py` starts.

It writes one byte when it is ready. Then, for each program, it reads a length (4 bytes) and the program in UTF-8, and
writes a length and JSON: `[]` if the program parses, `[message, line, column]` if it does not, or `null` if memory ran
out because of a limit of the system. Python runs this file isolated, so it cannot import faasrt.
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
    try:
        # Python ignores a byte order mark when it runs a program, too.
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
    """Return False if the system already has a lower limit."""
    if sys.platform == "win32":
        return True
    limits = [_MEMORY_BYTES, *(limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit >= 0)]
    limit = min(limits)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit == _MEMORY_BYTES


def main() -> None:
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
