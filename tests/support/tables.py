"""Tables of programs that run on several servers, or in several languages."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from textwrap import dedent
from typing import Any

import pytest


def first_of(rows: Sequence[Any]) -> list[Any]:
    """Return the rows of a `parametrize`. Only the first one runs without `pytest -m tables`."""
    return [rows[0], *(pytest.param(row, marks=pytest.mark.tables) for row in rows[1:])]


def chosen(names: Iterable[str], every: int) -> set[str]:
    """Return about one in `every` names, and at least one. The choice does not depend on the order of the names."""
    hashes = {name: zlib.crc32(name.encode()) for name in names}
    return {name for name, value in hashes.items() if value % every == 0} or {min(hashes, key=hashes.__getitem__)}


def block(text: str) -> str:
    """Return a program that stands indented in a table, without its indentation and the line ends around it."""
    return dedent(text).strip("\n")
