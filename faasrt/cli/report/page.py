"""The page: self-contained HTML whose policy allows only its own style and script."""

from __future__ import annotations

import base64
import hashlib

from jinja2 import Environment, PackageLoader, StrictUndefined

from faasrt import __version__
from faasrt.cli.report import units
from faasrt.cli.report.results_file import KINDS
from faasrt.cli.report.summary import MAX_PROBLEMS_SHOWN, Summary
from faasrt.cli.report.text import clean

_LOADER = PackageLoader("faasrt.cli.report")


def render(summary: Summary) -> str:
    """Return the page. It holds no lone surrogates, so it can be encoded."""
    environment = make_environment()
    # The template does not include these two: they may hold the delimiters of a template.
    style, script = (_LOADER.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    page = environment.get_template("page.html").render(
        summary=summary,
        kinds=KINDS,
        max_problems=MAX_PROBLEMS_SHOWN,
        style=style,
        script=script,
        version=__version__,
    )
    return clean(page)


def make_environment() -> Environment:
    environment = Environment(
        loader=_LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for function in (units.elapsed, units.figure, units.milliseconds, units.moment, units.percent, sha256):
        environment.filters[function.__name__] = function
    environment.filters["thousands"] = "{:,}".format
    return environment


def sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
