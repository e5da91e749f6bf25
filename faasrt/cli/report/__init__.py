from __future__ import annotations

from pathlib import Path

import click

from faasrt import _strict_json
from faasrt.cli.output import INFRASTRUCTURE, OK, write, write_message
from faasrt.cli.report.results_file import ResultsError
from faasrt.cli.report.summary import Summary


@click.command("report", short_help="Make an HTML page of the results of a batch.")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", metavar="FILE", help="The page, or - for stdout. By default it is beside RESULTS, with .html."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, instead of writing a page.")
def report_command(results: Path, output: str | None, as_json: bool) -> int:
    """Write a self-contained HTML page about the RESULTS of a batch.

    If its tasks name their problems (`task_id`), it has pass@1, pass@10 and pass@100, as far as there are samples.
    Samples without a verdict, because the infrastructure failed or the task is invalid, are left out.
    """
    if as_json:
        if output is not None:
            raise click.UsageError("--json prints to stdout: give no --output")
        write(_strict_json.dump_bytes(Summary(results).to_dict()).decode() + "\n")
        return OK
    from faasrt.cli.report.page import render  # loads jinja2, which the other commands do not need

    unpacked = results.with_suffix("") if results.suffix.lower() in {".gz", ".zst"} else results
    target = unpacked.parent / f"{unpacked.stem}.html" if output is None else Path(output)
    if output != "-" and target.exists() and results.exists() and target.samefile(results):
        raise ResultsError(f"{target} holds the results themselves: give another file with --output")
    page = render(Summary(results))
    if output == "-":
        write(page)
        return OK
    try:
        target.write_bytes(page.encode())
    except OSError as error:
        write_message(f"cannot write the output: {error.strerror or error}")
        return INFRASTRUCTURE
    write_message(f"wrote {target}")
    return OK
