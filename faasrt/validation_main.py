"""Checks the syntax of Python programs, one after another, in a process of its own; run by `validation.py`.

It reads four bytes of length and a program in UTF-8, and writes the same with JSON: `[]` for a program that parses, or
`[message, line, column]`. It is started as a file, isolated and without site-packages, so it imports nothing of ours.
"""

import ast
import json
import resource
import struct
import sys

_LENGTH = struct.Struct("!I")
_MEMORY_BYTES = 2 * 2**30


def check(source: bytes) -> list[object]:
    """Parse a program, without compiling or running it."""
    try:
        ast.parse(source.decode("utf-8", "surrogatepass"), "main.py")
    except SyntaxError as error:
        return [error.msg, _position(error.lineno), _position(error.offset)]
    except (MemoryError, RecursionError):
        return ["too complex for Python's parser", None, None]
    except ValueError as error:
        return [str(error), None, None]  # NUL bytes before Python 3.12, and lone surrogates
    return []


def _position(value: int | None) -> int | None:
    return value if value is None else max(1, value)


def main() -> None:
    """Serve until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    commands, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := commands.read(_LENGTH.size)) == _LENGTH.size:
        body = json.dumps(check(commands.read(_LENGTH.unpack(head)[0]))).encode()
        answers.write(_LENGTH.pack(len(body)) + body)
        answers.flush()


if __name__ == "__main__":
    main()
