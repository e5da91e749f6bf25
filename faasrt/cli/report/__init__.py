"""The command `report`: one self-contained page from a file of results."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

import click

from faasrt.cli.output import OK, USAGE, note, write
from faasrt.cli.report.reader import ResultsError
from faasrt.cli.report.summary import summarize

_PACKED = {".gz", ".zst"}


@click.command("report")
@click.argument("results")
@click.option("--output", "-o", help="The page to write, or - for stdout; by default beside RESULTS, with .html.")
def report_command(results: str, output: str | None) -> int:
    """Write a self-contained HTML page about the RESULTS of a batch."""
    from faasrt.cli.report.page import render  # loads jinja2, which the other commands do not need

    source = Path(results)
    unpacked = source.parent / source.stem if source.suffix.lower() in _PACKED else source
    target = unpacked.parent / f"{unpacked.stem}.html" if output is None else Path(output)
    try:
        if output != "-" and target.exists() and source.exists() and target.samefile(source):
            raise ResultsError(f"{target} holds the results themselves: say with -o where the page shall go")
        page = render(summarize(source))
    except ResultsError as error:
        note(str(error))
        return USAGE
    if output == "-":
        write(page)
        return OK
    replace(target, page.encode())
    note(f"wrote {target}")
    return OK


def replace(target: Path, data: bytes) -> None:
    """Replace the file at `target` in one step. A reader finds the old file or the new one, never a part."""
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(data)  # a device or a pipe, not to be replaced by a file
        return
    target = Path(os.path.realpath(target))
    part = target.with_name(f".faasrt-{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.write(data)
        part.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
