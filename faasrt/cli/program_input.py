"""Reads what a command gives to a program: its standard input and files, and writes the files that it returns."""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from faasrt.cli.input import open_input
from faasrt.cli.output import write_message
from faasrt.errors import InvalidRequestError
from faasrt.inputs import check_path
from faasrt.results import Display

_NOTICE_S = 1.0


def read_stdin(source: str | None, *, is_program: bool) -> bytes:
    """Return the standard input for a program: a file, or the stdin of this process if it is a pipe or a file, and not
    the program itself.
    """
    if source is None:
        return b"" if is_program else _read_own_stdin()
    if source == "-" and is_program:
        raise click.UsageError("--stdin must be a file, because stdin is the program")
    return _read(source, "--stdin")


def _read_own_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        return b""
    try:
        fd = sys.stdin.fileno()
    except io.UnsupportedOperation:  # replaced by a stream in memory
        return sys.stdin.buffer.read()
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return b""
    if not stat.S_ISREG(mode) and not select.select([fd], [], [], _NOTICE_S)[0]:
        write_message("waiting for the end of stdin, which is a pipe; --stdin /dev/null gives the program no input")
    return _read("-", "stdin")


def read_files(options: Sequence[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for text in options:
        name, has_path, path = text.partition("=")
        try:
            check_path(name, "the NAME of --file")
        except InvalidRequestError as error:
            raise click.UsageError(f"{error}; --file NAME=PATH gives a file another name") from None
        if name in files:
            raise click.UsageError(f"--file has the name {name} twice")
        files[name] = _read(path if has_path else name, "--file")
    return files


def _read(source: str, option: str) -> bytes:
    try:
        with open_input(source) as stream:
            return stream.read()
    except OSError as error:
        raise click.UsageError(f"cannot read {source} for {option}: {error.strerror}") from None


_SUFFIXES = {
    "text/plain": "txt",
    "text/html": "html",
    "text/markdown": "md",
    "text/latex": "tex",
    "application/json": "json",
    "application/javascript": "js",
    "application/pdf": "pdf",
    "image/svg+xml": "svg",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
}


_WRITTEN = ".faasrt-show"  # has the names of the displays in its folder, one a line
_DISPLAY_NAME = re.compile(r"[0-9]+\.(?:[0-9]+\.)?[a-z]+")


def find_displays(folder: Path) -> list[str]:
    """Return the names of the files that `write_displays` has written into a folder. Raise UsageError if other files
    have such names.
    """
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        written = (folder / _WRITTEN).read_text("utf-8").splitlines() if _WRITTEN in names else []
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read {folder} for --show: {getattr(error, 'strerror', error)}") from None
    found = sorted(filter(_DISPLAY_NAME.fullmatch, names))
    if others := [name for name in found if name not in written]:
        raise click.UsageError(f"no run with --show has written {folder / others[0]}: choose another folder for --show")
    return found


def write_displays(displays: Sequence[Display], folder: Path, old: Sequence[str]) -> None:
    """Write displays into a folder in place of old ones, and print the paths: 1.txt and 1.png for the first display."""
    files: dict[str, bytes] = {}
    for number, display in enumerate(displays, 1):
        for mime_type, content in display.data.items():
            # The program chooses the type, so it must not become a part of the path.
            suffix = _SUFFIXES.get(mime_type) or f"{len(files) + 1}.{'bin' if isinstance(content, bytes) else 'txt'}"
            files[f"{number}.{suffix}"] = (
                content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
            )
    try:
        for name in old:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise click.UsageError(f"cannot remove {error.filename}: {error.strerror}") from None
    if files or old:
        _write({_WRITTEN: "".join(f"{name}\n" for name in files).encode(), **files}, folder)
    for name in files:
        write_message(f"wrote {folder / name}")


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    _write(files, folder)
    write_message(f"collected {len(files)} file{'' if len(files) == 1 else 's'} into {folder}")


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise click.UsageError(f"cannot write {path}: {error.strerror}") from None
