"""The checks of a program's input, its encoding, and the patterns of files to collect."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from fnmatch import translate
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from faasrt.errors import InvalidRequestError
from faasrt.inputs import INPUT_FIELDS, MAX_PATH_PARTS, NO_INPUT, ProgramInput, bytes_from_wire, bytes_to_wire
from faasrt.languages import Language
from faasrt.local.engines.collected_files import collect_files, select_files
from faasrt.local.engines.wasm.memory_folder import MemoryFolder
from faasrt.local.jail.jail import OwnedFd
from faasrt.protocol.guest import python_files
from faasrt.protocol.guest.python_files import PathMatcher

PYTHON = Language.PYTHON
# Patterns with many different parts. A path of many folders is compared with all of them.
MANY_PARTS = ["/".join(f"**/[!{chr(0x4E00 + 32 * n + m)}]*" for m in range(16)) for n in range(31)]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"stdin": 1}, "stdin must be a str or bytes, got int"),
    ({"stdin": "\ud800"}, "stdin must not contain lone surrogates"),
    ({"argv": "abc"}, "argv must be a sequence of strings"),
    ({"argv": b"abc"}, "argv must be a sequence of strings"),
    ({"argv": [1]}, "argv must be a sequence of strings, got a int in it"),
    ({"argv": ["a\0b"]}, "must not contain NUL characters"),
    ({"argv": ["x"] * 1_001}, "argv must have at most 1000 arguments, got 1001"),
    ({"argv": ["x" * 65_537]}, "must have at most 65536 bytes"),
    ({"files": ["a"]}, "files must map paths to contents"),
    ({"files": {"a": 1}}, "the file 'a' must be a str or bytes"),
    ({"files": {1: "a"}}, "the path of a file must be a non-empty str"),
    ({"files": {"": "a"}}, "the path of a file must be a non-empty str"),
    ({"files": {"/etc/passwd": ""}}, "'/etc/passwd' is absolute"),
    ({"files": {"../a": ""}}, 'has a part that is empty, "." or ".."'),
    ({"files": {"a/../b": ""}}, 'has a part that is empty, "." or ".."'),
    ({"files": {"./a": ""}}, 'has a part that is empty, "." or ".."'),
    ({"files": {"a//b": ""}}, 'has a part that is empty, "." or ".."'),
    ({"files": {"a/": ""}}, 'has a part that is empty, "." or ".."'),
    ({"files": {"a\0b": ""}}, "contains a NUL character"),
    ({"files": {"\ud800": ""}}, "must not contain lone surrogates"),
    ({"files": {"é" * 128: ""}}, "has a part of more than 255 bytes"),
    ({"files": {"/".join(["a"] * 33): ""}}, "is longer than 1024 bytes or 32 parts"),
    ({"files": {"main.py": ""}}, "files must not contain main.py, which is the program itself"),
    ({"files": {"main.py/x": ""}}, "files must not contain main.py, which is the program itself"),
    ({"files": {"a": "", "a/b": ""}}, "files must not use 'a' both as a file and as a folder"),
    ({"files": {str(n): "" for n in range(1_001)}}, "files must have at most 1000 entries"),
    ({"files": {f"{n}/{m}/a": "" for n in range(501) for m in range(1)}}, "files must have at most 1000 folders"),
    ({"collect": "*.csv"}, "collect must be a sequence of strings"),
    ({"collect": ["/etc/*"]}, "'/etc/*' is absolute"),
    ({"collect": ["../*"]}, 'has a part that is empty, "." or ".."'),
    ({"collect": ["*"] * 101}, "collect must have at most 100 patterns"),
    ({"collect": ["/".join("a" * 20)] * 51}, "collect must have at most 1000 parts in all patterns, got 1020"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_input_is_refused(options: dict[str, Any], message: str) -> None:
    """The error of a wrong argument says what is wrong."""
    with pytest.raises(InvalidRequestError) as caught:
        ProgramInput.checked(PYTHON, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stdin": {"base64": "?"}}, "stdin must be a string or"),
        ({"stdin": {"base64": "", "x": 1}}, "stdin must be a string or"),
        ({"stdin": 5}, "stdin must be a string or"),
        ({"files": {"a": [1]}}, "the file 'a' must be a string or"),
        ({"files": []}, "files must map paths to contents"),
        ({"argv": {}}, "argv must be a sequence of strings"),
    ],
)
def test_wrong_json_is_refused(fields: dict[str, Any], message: str) -> None:
    """The error of a wrong field in JSON says what is wrong."""
    with pytest.raises(InvalidRequestError) as caught:
        ProgramInput.from_wire(fields, PYTHON)
    assert message in str(caught.value)


def test_a_file_may_have_the_name_of_a_program_in_another_language() -> None:
    """Only the file name of the program's own language is taken."""
    assert ProgramInput.checked(PYTHON, files={"main.js": "x"}).files == {"main.js": b"x"}


@given(st.binary(max_size=300))
def test_bytes_survive_their_encoding(data: bytes) -> None:
    """Bytes are decoded as they were, and take at most twice their size, apart from a constant."""
    encoded = bytes_to_wire(data)
    assert bytes_from_wire(encoded, "stdin") == data


@given(
    st.builds(
        lambda stdin, argv, files, collect: ProgramInput.checked(
            PYTHON, stdin=stdin, argv=argv, files=files, collect=collect
        ),
        st.binary(max_size=50),
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), max_size=5),
        st.dictionaries(st.sampled_from(["a", "b/c", "d.txt"]), st.binary(max_size=50)),
        st.lists(st.sampled_from(["*", "**", "b/*.csv"]), max_size=3),
    )
)
def test_an_input_survives_its_encoding(program_input: ProgramInput) -> None:
    """A request has only the fields that are used, and they are decoded as they were."""
    fields = program_input.to_wire()
    assert set(fields) == set(program_input.used)
    assert ProgramInput.from_wire(fields, PYTHON) == program_input


def test_null_means_empty() -> None:
    """Fields that are null are empty, because Go encodes missing values as null."""
    assert ProgramInput.from_wire(dict.fromkeys(INPUT_FIELDS), PYTHON) == NO_INPUT


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.csv", ["a.csv"], ["b/a.csv", ".a.csv", "a.csv.gz"]),
        ("**", ["a", "b/c", "b/c/d"], [".a", ".b/c", "b/.c/d"]),
        ("**/*.csv", ["a.csv", "b/a.csv", "b/c/a.csv"], ["b/a.txt", ".b/a.csv"]),
        ("out/**", ["out/a", "out/b/c"], ["outer/a", "a/out/b"]),
        ("a/**/b/*", ["a/b/x", "a/c/d/b/x"], ["a/b", "a/x"]),
        (".cache/*", [".cache/a"], ["cache/a", ".cache/.a"]),
        ("[ab]?.txt", ["ax.txt", "by.txt"], ["cx.txt", "a.txt"]),
        ("**/**/x", ["x", "a/x", "a/b/x"], ["y"]),
    ],
)
def test_patterns_match_as_in_a_shell(pattern: str, matching: list[str], others: list[str]) -> None:
    """`*` stays within a name, `**` crosses folders, and neither matches a leading dot."""
    assert [path for path in matching + others if collect({path: b""}, PathMatcher([pattern]))[0]] == matching


def collect(files: dict[str, bytes], matcher: PathMatcher) -> tuple[list[str], bool]:
    """Return the paths of the files that match, and whether these are all of them."""
    found, complete = select_files(MemoryFolder(files).matching_files(matcher), matcher, 10**6)
    return list(found), complete


def test_each_part_of_a_pattern_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes much longer than matching. Parts that no name reaches are not compiled."""
    compiled: list[str] = []
    monkeypatch.setattr(python_files, "translate", lambda part: compiled.append(part) or translate(part))
    files = {f"{'ab/' * 20}{n}": b"" for n in range(50)}
    assert collect(files, PathMatcher([*MANY_PARTS, "x/y"], lambda: 0)) == (sorted(files), True)
    assert len(compiled) == len(set(compiled)) == 31 * 16 + 1


def test_repeated_stars_are_one() -> None:
    """More of them would cost more comparisons, and match the same."""
    assert PathMatcher(["**/**/**/a", "**/a"]).start == {("**", "a"), ("a",)}


def test_folders_in_which_nothing_matches_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with many files that are not collected does not use up the entries that are examined."""
    files = {"a/b/c": b"", "a/d/e/f": b"", "b/c/d": b"", "c": b""}
    matcher = PathMatcher(["a/b/*", "c/*"])
    found = MemoryFolder(files).matching_files(matcher)
    assert [entry and entry[0] for entry in found] == [None, None, "a/b/c", None, None, None]
    for path in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    listed: list[int] = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda fd: listed.append(fd) or listdir(fd))
    assert collect_files(open_folder(tmp_path), ["a/b/*", "c/*"], 1_000) == ({"a/b/c": b""}, True)
    assert len(listed) == 3


def test_collecting_ends_after_a_second() -> None:
    """The clock counts the comparisons. The files that were found before are returned."""
    files = {str(n): b"" for n in range(100, 200)}
    ticks = itertools.count()
    found, complete = collect(files, PathMatcher(["*"], lambda: next(ticks) / 50))
    assert (found, complete) == (sorted(files)[:50], False)
    assert next(ticks) == 52  # at the creation, for each of 50 files, and for the first file that is too late


def test_the_guest_program_stops_collecting_after_a_second(tmp_path: Path) -> None:
    """It takes the same time as the embedded FaaS, and returns the files that it has found."""
    guest = resources("faasrt.protocol.guest")
    names: dict[str, Any] = {"sys": sys, "io": io, "FILE": "main.py", "quote": json.dumps}
    for file in ("python_files.py", "python_inputs.py"):
        exec(guest.joinpath(file).read_text(), names)
    for number in range(100, 200):
        (tmp_path / str(number)).touch()
    ticks = itertools.count()
    names["PathMatcher"] = lambda patterns: PathMatcher(patterns, lambda: next(ticks) / 50)
    folder = object.__new__(names["WorkingFolder"])
    folder.path = str(tmp_path)
    found, complete = folder.collect(["*"], 1_000, 1_000_000)
    assert (list(found), complete) == ([str(n) for n in range(100, 150)], False)


def open_folder(path: Path) -> OwnedFd:
    return OwnedFd(os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def test_only_regular_files_of_the_folder_are_collected(tmp_path: Path) -> None:
    """Links, named pipes and unreadable names are never followed or read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"\xff")
    (folder / "sub" / "b").write_text("b")
    (folder / "link").symlink_to(outside / "secret")
    (folder / "linked").symlink_to(outside)
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff")).mkdir()
    (folder / "main.py").write_text("")
    found = collect_files(open_folder(folder), ["**"], 1_000, without=["main.py"])
    assert found == ({"a": b"\xff", "sub/b": b"b"}, True)


def test_files_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    """A file is returned whole or not at all, and the caller learns that some are missing."""
    for name, size in (("a", 10), ("b", 100), ("c", 10)):
        (tmp_path / name).write_bytes(b"x" * size)
    found, complete = collect_files(open_folder(tmp_path), ["*"], 30)
    assert (list(found), complete) == (["a", "c"], False)
    (tmp_path / os.fsdecode(b"\xff")).touch()
    assert collect_files(open_folder(tmp_path), ["*"], 300)[1] is False


@pytest.mark.parametrize(("parts", "complete"), [(MAX_PATH_PARTS, True), (MAX_PATH_PARTS + 1, False)])
def test_files_in_too_many_folders_are_missing(tmp_path: Path, parts: int, complete: bool) -> None:
    """The caller learns this, whether the folder is one of the kernel or of a program on WebAssembly."""
    path = "/".join("a" * parts)
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    expected = ({path: b""} if complete else {}, complete)
    assert collect_files(open_folder(tmp_path), ["**"], 1_000) == expected
    assert collect({path: b""}, PathMatcher(["**"])) == ([*expected[0]], complete)
