"""Writes the output of the commands: results to stdout, messages to stderr."""

from __future__ import annotations

import click

OK, CODE_FAILED, USAGE, INFRASTRUCTURE, INTERRUPTED = 0, 1, 2, 3, 130
"""The exit codes."""


def write(text: str, *, err: bool = False) -> None:
    """Write text as it is, with escapes for lone surrogates. A closed stream is ignored."""
    # click removes escape sequences from text, but not from bytes.
    click.echo(text.encode("utf-8", "backslashreplace"), nl=False, err=err)


def write_message(text: str) -> None:
    """Write a line to stderr."""
    write(f"faasrt: {text}\n", err=True)
