"""Reads the input of the commands: files and stdin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click


def open_input(source: str) -> BinaryIO:
    """Open a file, or stdin for "-". Raise OSError, or UsageError if stdin is closed."""
    if source != "-":
        return Path(source).open("rb")
    if sys.stdin is None:
        raise click.UsageError("cannot read <stdin>: it is closed")
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb")


def iter_lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the length and the bytes of each line; None for one longer than `max_bytes`, which is not kept."""
    while data := file.readline(max_bytes):
        line: bytes | None = data
        length = len(data)
        while length >= max_bytes and not data.endswith(b"\n") and (data := file.readline(max_bytes)):
            length, line = length + len(data), None
        yield length, line
