"""Opens the input of commands, and reads lines of JSON with a bound for their length."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from faasrt import _strict_json

MAX_LINE_BYTES = 16 * 2**20
"""A longer line is not kept in memory."""


def open_input(source: str) -> BinaryIO:
    """Open a file, or stdin for "-". Raise UsageError if stdin is closed."""
    if source != "-":
        return Path(source).open("rb")
    if sys.stdin is None:
        raise click.UsageError("cannot read <stdin>: it is closed")
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


def parse_line(data: bytes | None) -> Any:
    """Decode a line; None stands for one that is too long. Raise ValueError if it is not JSON."""
    if data is None:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
    try:
        return _strict_json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def iter_lines(file: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Yield the length and the bytes of each line; None for one longer than `max_bytes`, which is not kept."""
    while data := file.readline(max_bytes):
        line: bytes | None = data
        length = len(data)
        while length >= max_bytes and not data.endswith(b"\n") and (data := file.readline(max_bytes)):
            length, line = length + len(data), None
        yield length, line
