"""The checks of standard input, arguments and files, in calls, in requests and in frames."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from faasrt import InvalidRequestError
from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.protocol.frames import Record, take_frames

PATHS = [
    "",
    ".",
    "..",
    "/etc/passwd",
    "../a",
    "a/../b",
    "a//b",
    "a/",
    "./a",
    "a\0b",
    "\ud800",
    "x" * 256,
    "é" * 128,
    "a/" * 32 + "a",
    "/".join(["x" * 200] * 6),
]


@pytest.mark.parametrize("path", PATHS)
def test_hostile_paths_are_refused(path: str) -> None:
    """In files and patterns, before anything is sent."""
    for given in ({"files": {path: ""}}, {"collect": [path]}):
        with pytest.raises(InvalidRequestError):
            ProgramInput.checked(Language.PYTHON, **given)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"stdin": 5}, "stdin must be a str or bytes"),
        ({"stdin": "\ud800"}, "lone surrogates"),
        ({"argv": "abc"}, "argv must be a sequence of strings"),
        ({"argv": [5]}, "argv must be a sequence of strings"),
        ({"argv": ["a\0"]}, "NUL"),
        ({"argv": [""] * 1001}, "at most 1000 arguments"),
        ({"argv": ["x" * 65_537]}, "at most 65536 bytes"),
        ({"files": ["a"]}, "files must map paths to contents"),
        ({"files": {"a": 5}}, "must be a str or bytes"),
        ({"files": {"a": "", "a/b": ""}}, "both as a file and as a folder"),
        ({"files": {"main.py": ""}}, "the program itself"),
        ({"files": {"main.py/x": ""}}, "the program itself"),
        ({"files": {str(number): "" for number in range(1001)}}, "at most 1000 entries"),
        ({"files": {f"{n}/" * 20 + "x": "" for n in range(60)}}, "at most 1000 folders"),
        ({"collect": "*"}, "collect must be a sequence of strings"),
        ({"collect": ["*"] * 101}, "at most 100 patterns"),
    ],
)
def test_wrong_input_is_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidRequestError, match=part):
        ProgramInput.checked(Language.PYTHON, **given)


@pytest.mark.parametrize("data", [b"", b"text\r\n\t", "é🌍".encode(), bytes(range(256)), b"\0" * 10, b"\xff"])
def test_bytes_survive_the_request(data: bytes) -> None:
    given = ProgramInput.checked(Language.PYTHON, stdin=data, argv=["é"], files={"a/b": data}, collect=["**"])
    assert ProgramInput.from_wire(json.loads(json.dumps(given.to_wire())), Language.PYTHON) == given


def read(files: Any, **fields: Any) -> Record:
    """Return a record of a frame with files."""
    record = {"index": 0, "outcome": "OK", "exit_code": 0, "ms": 1, "files": files, **fields}
    frame = json.dumps({"nonce": "abc", "final": True, "records": [record]}, separators=(",", ":"))
    text = "faasrt1:" + base64.b64encode(frame.encode()).decode()
    return take_frames({"stdout": text}, "abc", 1_000)[0].records[0]


def test_files_in_frames_are_read() -> None:
    record = read({"a/b": "text", "c": {"base64": "/w=="}})
    assert (record.files, record.truncated) == ({"a/b": b"text", "c": b"\xff"}, frozenset())
    record = read({"a": ""}, has_all_files=False)
    assert (record.files, record.truncated) == ({"a": b""}, {"files"})


@pytest.mark.parametrize(
    "files",
    [
        *({path: "x"} for path in PATHS if path != "\ud800"),
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
