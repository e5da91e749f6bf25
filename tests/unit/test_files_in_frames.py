"""The collected files in frames, which programs can forge."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from faasrt.protocol.frames import Record, take_frames


def read(files: Any, **fields: Any) -> Record:
    """Return a record of a frame with files."""
    return records(files=files, **fields)[0]


def records(**fields: Any) -> list[Record]:
    record = {"index": 0, "outcome": "OK", "exit_code": 0, "ms": 1, **fields}
    frame = json.dumps({"nonce": "abc", "final": True, "records": [record]}, separators=(",", ":"))
    text = "faasrt1:" + base64.b64encode(frame.encode()).decode()
    return [*take_frames({"stdout": text}, "abc", 1_000)[0].records.values()]


def test_files_in_frames_are_read() -> None:
    record = read({"a/b": "text", "c": {"base64": "/w=="}})
    assert (record.files, record.truncated) == ({"a/b": b"text", "c": b"\xff"}, frozenset())
    record = read({"a": ""}, has_all_files=False)
    assert (record.files, record.truncated) == ({"a": b""}, {"files"})


@pytest.mark.parametrize(("ms", "is_read"), [(0, True), (0.5, True), (-1, False), ("1", False), (True, False)])
def test_a_record_has_a_duration_of_at_least_0(ms: Any, is_read: bool) -> None:
    """A record without one is forged, and is not read."""
    assert [record.duration_ms for record in records(ms=ms)] == [ms] * is_read


@pytest.mark.parametrize(
    "files",
    [
        *({path: "x"} for path in ("", "..", "/etc/passwd", "../a", "a/../b", "a//b", "a\0b", "x" * 256)),
        {"a": 5},
        {"a": None},
        {"a": {"base64": "?"}},
        {"a": {"base64": 5}},
        {"a": {"base64": "", "b": ""}},
        {"a": "\ud800"},
        {"a": "x" * 1_000},
    ],
)
def test_forged_files_are_ignored(files: Any) -> None:
    """A program can forge its frame, and callers may write the files to a folder."""
    record = read({"first": "1", **files})
    assert (record.files, record.truncated) == ({"first": b"1"}, {"files"})


@pytest.mark.parametrize("files", [None, [], "x", 5])
def test_fields_that_are_no_files_are_ignored(files: Any) -> None:
    assert read(files).files == {}


def test_forged_frames_have_at_most_1000_files() -> None:
    record = read({format(number, "x"): "" for number in range(1_001)})
    assert len(record.files) < 1_001
    assert record.truncated == {"files"}
