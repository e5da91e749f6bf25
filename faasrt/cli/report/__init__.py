"""The command `report`: one self-contained page from a file of results."""

from __future__ import annotations

from pathlib import Path

import click

from faasrt.cli.output import OK, write, write_message
from faasrt.cli.report.results_file import ResultsError
from faasrt.cli.report.summary import Summary


@click.command("report", short_help="Make an HTML page of the results of a batch.")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", metavar="FILE", help="The page, or - for stdout. By default it is beside RESULTS, with .html."
)
def report_command(results: Path, output: str | None) -> int:
    """Write a self-contained HTML page about the RESULTS of a batch."""
    from faasrt.cli.report.page import render  # loads jinja2, which the other commands do not need

    unpacked = results.with_suffix("") if results.suffix.lower() in {".gz", ".zst"} else results
    target = unpacked.parent / f"{unpacked.stem}.html" if output is None else Path(output)
    if output != "-" and target.exists() and results.exists() and target.samefile(results):
        raise ResultsError(f"{target} holds the results themselves: give another file with --output")
    page = render(Summary(results))
    if output == "-":
        write(page)
        return OK
    target.write_bytes(page.encode())
    write_message(f"wrote {target}")
    return OK
