"""Every regular expression of the package takes linear time. A scan of the source finds all of them.

A pattern is tried on texts that repeat parts of what it matches. A text that is four times as long may take at most
nine times as much CPU time.
"""

from __future__ import annotations

import re

import pytest

from support.patterns import Site, find_sites, find_slow_text

SITES = find_sites()
# Patterns with variables of a function, by their source, and patterns as they look then.
WITH_VARIABLES: dict[str, list[str | bytes]] = {
    "b'%b(?=:\\\\d)' % re.escape(url)": [rb"data:application/typescript;base64,AAAA(?=:\d)"],
    "re.escape(url) + (b'(?=:\\\\d)' if has_position else b'')": [rb"blob:null/0(?=:\d)", rb"blob:null/0"],
    "f'\\\\s*({comment}|$)'": [r"\s*(#|$)", r"\s*(//|$)"],
    # Of the caller, and for names of files only.
    "translate(part)": [],
}


@pytest.mark.parametrize("site", [site for site in SITES if site.pattern], ids=lambda site: site.path)
def test_a_pattern_takes_linear_time(site: Site) -> None:
    assert site.pattern is not None
    assert find_slow_text(site.pattern, only_at_start=site.only_at_start) == ""


@pytest.mark.parametrize("site", [site for site in SITES if not site.pattern], ids=lambda site: site.path)
def test_a_pattern_with_variables_takes_linear_time(site: Site) -> None:
    """Each one is in the table."""
    for pattern in WITH_VARIABLES[site.source]:
        assert find_slow_text(re.compile(pattern), only_at_start=site.only_at_start) == ""


def test_the_scan_finds_patterns_of_all_kinds() -> None:
    """Compiled ones and others, in the client, the server, the command line, and the programs in sandboxes."""
    found = {site.path for site in SITES}
    assert len(SITES) > 60
    assert {path.partition("/")[0] for path in found} >= {"cli", "local", "protocol", "telemetry", "testing"}
    assert "protocol/guest/python_files.py" in found


@pytest.mark.parametrize(
    "pattern",
    [
        r": (?:xmalloc|xrealloc): (?:.*: )?cannot allocate \d+ bytes",
        r"^thread '.*' (?:\(\d+\) )?panicked at .*:\n",
        r'"[^"\\]*+(?:\\.[^"\\]*+)*+"',
        rb"\{[^}]*\}",
    ],
)
def test_slow_patterns_are_recognized(pattern: str | bytes) -> None:
    """Patterns of the package from before, and usual mistakes."""
    assert find_slow_text(re.compile(pattern)) != ""
