"""Tables of programs that run on several servers, or in several languages."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import dedent
from typing import Any

import pytest


def first_of(rows: Sequence[Any]) -> list[Any]:
    """Return the rows of a `parametrize`. Only the first one runs without `pytest -m tables`."""
    return [rows[0], *(pytest.param(row, marks=pytest.mark.tables) for row in rows[1:])]


def block(text: str) -> str:
    """Return a program that stands indented in a table, without its indentation and the line ends around it."""
    return dedent(text).strip("\n")
