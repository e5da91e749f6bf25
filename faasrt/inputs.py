"""The input of a program, apart from its code: standard input, command-line arguments and files.

A request sends these as the fields `stdin`, `argv`, `files` and `collect`. Bytes are sent as a string if they are
UTF-8, otherwise as `{"base64": ...}`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.languages import Language

MAX_ARGUMENTS = 1_000
MAX_ARGUMENT_BYTES = 65_536
MAX_FILES = 1_000
"""The largest number of files that a program gets, and of files that are collected."""
MAX_PATTERNS = 100
MAX_PATTERN_PARTS = 1_000
"""The largest number of parts of all patterns together; "/" separates them."""
MAX_PATH_BYTES = 1_024
MAX_PATH_PARTS = 32
_MAX_NAME_BYTES = 255  # the limit of Linux
_PROGRAM_FILES = {
    Language.PYTHON: "main.py",
    Language.JAVASCRIPT: "main.js",
    Language.TYPESCRIPT: "main.ts",
    Language.C: "main.c",
    Language.CPP: "main.cpp",
    Language.GO: "main.go",
    Language.RUST: "main.rs",
    Language.JAVA: "Main.java",
    Language.BASH: "main.sh",
}
_CONTROL_CHARACTERS = bytes(set(range(32)) - set(b"\t\n\r"))


@attrs.frozen(kw_only=True)
class ProgramInput:
    """The input of a program, apart from its code, checked.

    Attributes:
        files: The contents of files in the working folder of the program, by relative path.
        collect: Patterns of the files to return after the program has ended; at most 100, with at most 1,000 parts
            between slashes in total: "out/*" has two.
    """

    stdin: bytes = b""
    argv: tuple[str, ...] = ()
    files: Mapping[str, bytes] = attrs.field(factory=dict)
    collect: tuple[str, ...] = ()

    @staticmethod
    def checked(
        language: Language | str | None,
        *,
        stdin: object = "",
        argv: object = (),
        files: object = None,
        collect: object = (),
    ) -> ProgramInput:
        """Check the caller's arguments, or raise InvalidRequestError. `language` is None if it is not known yet."""
        are_usual = isinstance(stdin, str) and isinstance(argv, tuple) and isinstance(collect, tuple) and files is None
        if are_usual and not (stdin or argv or collect):
            return NO_INPUT
        return ProgramInput(
            stdin=_check_bytes(stdin, "stdin"),
            argv=_check_argv(argv),
            files=_check_files({} if files is None else files, program_file(language)),
            collect=check_patterns(collect),
        )

    @property
    def used(self) -> tuple[str, ...]:
        if self is NO_INPUT:
            return ()
        return tuple(name for name in INPUT_FIELDS if getattr(self, name))

    def to_wire(self) -> dict[str, Any]:
        if self is NO_INPUT:
            return {}
        fields = {
            "stdin": bytes_to_wire(self.stdin),
            "argv": list(self.argv),
            "files": files_to_wire(self.files),
            "collect": list(self.collect),
        }
        return {name: fields[name] for name in self.used}

    @staticmethod
    def from_wire(fields: Mapping[str, Any], language: Language | str | None) -> ProgramInput:
        """Return the input in decoded JSON, or raise InvalidRequestError. Fields that are missing or null are empty."""
        values = {name: fields[name] for name in INPUT_FIELDS if fields.get(name) is not None}
        if "stdin" in values:
            values["stdin"] = bytes_from_wire(values["stdin"], "stdin")
        if isinstance(values.get("files"), dict):
            values["files"] = files_from_wire(values["files"])
        return ProgramInput.checked(language, **values)


INPUT_FIELDS = tuple(field.name for field in attrs.fields(ProgramInput))
"""The names of the fields, in the API and in requests."""
NO_INPUT = ProgramInput()
"""The input of programs without input. All of them share it, so that it costs a call nothing."""


def program_file(language: Language | str | None) -> str:
    return _PROGRAM_FILES[language] if isinstance(language, Language) else ""


def bytes_to_wire(data: bytes) -> str | dict[str, str]:
    """Return a string, or base64 if the bytes are not UTF-8 or contain many control characters."""
    # JSON encodes a control character in six bytes.
    if len(data) - len(data.translate(None, _CONTROL_CHARACTERS)) <= len(data) // 8:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {"base64": base64.b64encode(data).decode()}


def bytes_from_wire(value: object, name: str) -> bytes:
    if isinstance(value, str):
        return _check_bytes(value, name)
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InvalidRequestError(f'{name} must be a string or {{"base64": "..."}}, got {safe_repr(value)}')


def files_to_wire(files: Mapping[str, bytes]) -> dict[str, Any]:
    return {name: bytes_to_wire(data) for name, data in files.items()}


def files_from_wire(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: bytes_from_wire(value, f"the file {safe_repr(name)}") for name, value in files.items()}


def check_path(path: object, what: str) -> str:
    """Raise InvalidRequestError unless it is a relative path without "." and ".." in it. `what` describes it in the
    message.
    """
    if not isinstance(path, str) or not path:
        raise InvalidRequestError(f"{what} must be a non-empty str, got {safe_repr(path)}")
    encoded = encode_text(path, what)
    parts = path.split("/", MAX_PATH_PARTS)  # the rest of a longer path would take long
    problem = ""
    if "\0" in path:
        problem = "contains a NUL character"
    elif path.startswith("/"):
        problem = "is absolute"
    elif any(part in ("", ".", "..") for part in parts):
        problem = 'has a part that is empty, "." or ".."'
    elif len(encoded) > MAX_PATH_BYTES or len(parts) > MAX_PATH_PARTS:
        problem = f"is longer than {MAX_PATH_BYTES} bytes or {MAX_PATH_PARTS} parts"
    elif any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        problem = f"has a part of more than {_MAX_NAME_BYTES} bytes"
    if problem:
        raise InvalidRequestError(f"{what} must be a relative path, such as data/in.csv; {safe_repr(path)} {problem}")
    return path


def _check_bytes(value: object, name: str) -> bytes:
    if isinstance(value, str):
        return encode_text(value, name)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise InvalidRequestError(f"{name} must be a str or bytes, got {type(value).__name__}")


def encode_text(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        surrogate = repr(error.object[error.start])
        raise InvalidRequestError(
            f"{name} must not contain lone surrogates ({surrogate}), which UTF-8 cannot encode"
        ) from None


def _check_strings(values: object, name: str, example: str) -> tuple[str, ...]:
    if isinstance(values, (str, bytes, bytearray, Mapping)) or not isinstance(values, Iterable):
        raise InvalidRequestError(f"{name} must be a sequence of strings, such as {example}, got {safe_repr(values)}")
    strings = tuple(values)
    for value in strings:
        if not isinstance(value, str):
            raise InvalidRequestError(f"{name} must be a sequence of strings, got a {type(value).__name__} in it")
    return strings


def _check_argv(argv: object) -> tuple[str, ...]:
    arguments = _check_strings(argv, "argv", '["--verbose", "in.csv"]')
    if len(arguments) > MAX_ARGUMENTS:
        raise InvalidRequestError(f"argv must have at most {MAX_ARGUMENTS} arguments, got {len(arguments)}")
    for argument in arguments:
        if "\0" in argument:
            raise InvalidRequestError("an argument in argv must not contain NUL characters")
        if len(encode_text(argument, "an argument in argv")) > MAX_ARGUMENT_BYTES:
            raise InvalidRequestError(f"an argument in argv must have at most {MAX_ARGUMENT_BYTES} bytes")
    return arguments


def _check_files(files: object, own_file: str) -> dict[str, bytes]:
    if not isinstance(files, Mapping):
        raise InvalidRequestError(f"files must map paths to contents, got {safe_repr(files)}")
    if len(files) > MAX_FILES:
        raise InvalidRequestError(f"files must have at most {MAX_FILES} entries, got {len(files)}")
    checked = {}
    for path, content in files.items():
        name = check_path(path, "the path of a file")
        checked[name] = _check_bytes(content, f"the file {safe_repr(name)}")
    folders = {name[:index] for name in checked for index, letter in enumerate(name) if letter == "/"}
    if len(folders) > MAX_FILES:
        raise InvalidRequestError(f"files must have at most {MAX_FILES} folders, got {len(folders)}")
    for name in checked:
        if name in folders:
            raise InvalidRequestError(f"files must not use {safe_repr(name)} both as a file and as a folder")
    if own_file in checked or own_file in folders:
        raise InvalidRequestError(f"files must not contain {own_file}, which is the program itself")
    return checked


def check_patterns(patterns: object, name: str = "collect") -> tuple[str, ...]:
    checked = _check_strings(patterns, name, '["*.csv", "plots/**"]')
    if len(checked) > MAX_PATTERNS:
        raise InvalidRequestError(f"{name} must have at most {MAX_PATTERNS} patterns, got {len(checked)}")
    count = sum(check_path(pattern, f"a pattern in {name}").count("/") + 1 for pattern in checked)
    if count > MAX_PATTERN_PARTS:
        raise InvalidRequestError(f"{name} must have at most {MAX_PATTERN_PARTS} parts in all patterns, got {count}")
    return checked
