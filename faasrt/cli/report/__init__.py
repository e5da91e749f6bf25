"""The command `report`: one page, with everything in it, from a file of results."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

import click

from faasrt.cli.output import OK, USAGE, note, write
from faasrt.cli.report.figures import report_on
from faasrt.cli.report.page import render
from faasrt.cli.report.results import ResultsError

_PACKED = {".gz", ".zst"}


@click.command("report")
@click.argument("results")
@click.option("--output", "-o", help="The page to write, or - for stdout; by default beside RESULTS, with .html.")
def report_command(results: str, output: str | None) -> int:
    """Make one HTML page of a batch's RESULTS.

    It has all that it needs in it.
    """
    source = Path(results)
    unpacked = source.parent / source.stem if source.suffix.lower() in _PACKED else source
    target = unpacked.parent / f"{unpacked.stem}.html" if output is None else Path(output)
    try:
        if output != "-" and target.exists() and source.exists() and target.samefile(source):
            raise ResultsError(f"{target} holds the results themselves: say with -o where the page shall go")
        page = render(report_on(source))
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
    """Write a file so that whoever opens it finds the old one or the new one, and never a part."""
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        target.write_bytes(data)  # a device or a pipe, which must not give way to a file
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
