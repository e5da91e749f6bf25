"""Where the commands write: results to stdout, words about them to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

OK, CODE_FAILED, USAGE, INFRASTRUCTURE, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit codes."""


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a program's output as it is; lone surrogates, which UTF-8 has no bytes for, as escapes."""
    target: TextIO | None = sys.stdout if stream is None else stream
    if target is None:
        return  # the shell closed it for us (>&-)
    target.flush()
    target.buffer.write(text.encode("utf-8", "backslashreplace"))
    target.buffer.flush()


def write_json(fields: Any) -> None:
    """Write one JSON document and a newline."""
    write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")


def note(words: str) -> None:
    """Write a line about the run."""
    write(f"faasrt: {words}\n", sys.stderr)
