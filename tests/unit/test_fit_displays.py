"""Displays in an answer: they have a limit of their own, and no content is lost without a word."""

from __future__ import annotations

import pytest

from faasrt import _strict_json
from faasrt.local.http.responses import fit_displays
from faasrt.results import Display

LIMIT = 10_000


@pytest.mark.parametrize(
    "displays",
    [
        [Display({"text/html": "\0" * 9_000})],
        [Display({"text/html": '"' * 9_000, "text/plain": "\x1b" * 2_000})],
        [Display({"image/png": b"x" * 14_000, "text/plain": "x" * 4_000})] * 2,
        [Display({"image/png": b"x" * 5_000, "text/plain": "x"})] * 100,
        [Display({"x" * 30_000: ""})],
        [Display({}, ("text/html",))] * 1_000,
    ],
    ids=["control characters", "escapes", "bytes", "many", "long type", "empty"],
)
def test_displays_have_twice_the_output_limit(displays: list[Display]) -> None:
    """Content that does not fit into the JSON is named. Displays whose names do not fit are left out, at the end."""
    fitting, complete = fit_displays(displays, LIMIT)
    assert len(_strict_json.dump_bytes(fitting)) <= 2 * LIMIT
    assert not complete
    for display, fitted in zip(displays, fitting, strict=False):
        assert {*fitted["data"], *fitted["omitted"]} == {*display.data, *display.omitted}


def test_text_comes_before_other_content() -> None:
    """The texts of all displays are kept before the first image. Smaller content may still fit."""
    displays = [Display({"image/png": b"x" * 12_000, "text/plain": "1" * 5_000}), Display({"text/plain": "2" * 5_000})]
    fitting, complete = fit_displays([*displays, Display({"image/png": b"x"})], LIMIT)
    assert not complete
    assert [[*display["data"]] for display in fitting] == [["text/plain"], ["text/plain"], ["image/png"]]
    assert fitting[0]["omitted"] == ["image/png"]
    assert fit_displays(displays[1:], LIMIT) == ([{"data": {"text/plain": "2" * 5_000}, "omitted": []}], True)
