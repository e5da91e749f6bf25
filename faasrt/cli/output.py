from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

import click

OK, CODE_FAILED, USAGE, INFRASTRUCTURE, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit codes."""

# The errors of writing to an open stream. The first occurs for a pipe without a reader, and the last for a terminal
# that is gone.
_WRITE_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO}


def write(text: str, *, err: bool = False) -> None:
    """Write text as it is, with escapes for lone surrogates. A closed stream is ignored."""
    # click removes escape sequences from text, but not from bytes.
    click.echo(text.encode("utf-8", "backslashreplace"), nl=False, err=err)


def describe_os_error(error: OSError) -> str:
    """Return the text of an error that ends a command."""
    reason = error.strerror or str(error)
    if error.errno in _WRITE_ERRORS:
        return f"cannot write the output: {reason}"
    return reason if error.filename is None else f"{reason}: {error.filename}"


def write_message(text: str) -> None:
    write(f"faasrt: {text}\n", err=True)


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty() and os.environ.get("TERM") != "dumb"


def erase_line() -> None:
    if is_terminal(sys.stderr):
        with contextlib.suppress(OSError):
            write("\r\x1b[K", err=True)


def colored(text: str, color: str, *, err: bool = True) -> str:
    """Color the text when it goes to a terminal. `NO_COLOR` disables colors."""
    if os.environ.get("NO_COLOR") or not is_terminal(sys.stderr if err else sys.stdout):
        return text
    return click.style(text, fg=color)


def color_of(kind: str) -> str:
    return {"OK": "green", "infra_error": "red", "invalid_task": "red", "done before": "bright_black"}.get(
        kind, "yellow"
    )
