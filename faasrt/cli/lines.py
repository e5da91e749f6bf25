"""Reads lines of limited length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO


def iter_lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield the length and the bytes of each line; None for one longer than `max_bytes`, which is not kept."""
    while data := file.readline(max_bytes):
        line: bytes | None = data
        length = len(data)
        while length >= max_bytes and not data.endswith(b"\n") and (data := file.readline(max_bytes)):
            length, line = length + len(data), None
        yield length, line
