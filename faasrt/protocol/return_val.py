"""The source of `return_val`, and the return value of programs that define this function themselves.

coze-loop's backend inserts a definition before every program. That function prints the value to stdout. This module
removes the value from stdout, as the reference servers do.

Source: python-faas uses the text between the first two markers, and js-faas the last line that is a JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from faasrt.errors import InvalidRequestError
from faasrt.languages import Language, family_of, has_return_val
from faasrt.protocol.streams import find_marker

_PYTHON = """\
def return_val(value):
    text = "" if value is None else str(value)
    print("__COZE_RETURN_VAL_START__")
    print(text)
    print("__COZE_RETURN_VAL_END__")
"""

_JAVASCRIPT = """\
function return_val(value) {
  console.log(value === null || value === undefined ? "" : String(value));
}
"""

_DEFINITION: dict[str, re.Pattern[str]] = {
    Language.PYTHON: re.compile(r"^(?:def return_val\b|return_val\s*=)", re.MULTILINE),
    # The indentation must not match newlines: with many empty lines, the search would take quadratic time.
    Language.JAVASCRIPT: re.compile(
        r"^[^\S\n]*(?:function\s+return_val\b|(?:const|let|var)\s+return_val\s*=)", re.MULTILINE
    ),
}
_START, _END = "__COZE_RETURN_VAL_START__\n", "__COZE_RETURN_VAL_END__"
# Decoding a line takes far longer than finding it, and a program may print many lines that are not JSON.
_MAX_LINES = 20_000


def return_val_function(language: Language) -> str:
    check_has_return_val(language, "return_val")
    return _PYTHON if language is Language.PYTHON else _JAVASCRIPT


def check_has_return_val(language: Language | str, name: str) -> None:
    if not has_return_val(language):
        raise InvalidRequestError(
            f"{name} is for Python, JavaScript and TypeScript: a {language} program can only print its results; use "
            "run_code or judge"
        )


def defines_return_val(code: str, language: Language | str) -> bool:
    definition = _DEFINITION.get(family_of(language))
    return definition is not None and "return_val" in code and definition.search(code) is not None


def take_return_val(
    stdout: str, language: Language, truncated: Collection[str] = ()
) -> tuple[str, str, frozenset[str]]:
    """Separate the value that a program's own `return_val` printed from its stdout, in linear time.

    Args:
        truncated: The names of the streams that were cut. A cut stdout contains the marker of `cut`.

    Returns:
        The rest of stdout; the value, or ""; and the names of the streams that were cut, with "ret_val" instead of
        "stdout" if the value was cut.
    """
    marker = find_marker(stdout) if "stdout" in truncated else None
    take = _between_markers if language is Language.PYTHON else _last_object
    rest, value, lost = take(stdout, marker)
    return rest, value, frozenset(lost | (set(truncated) - {"stdout"})) if lost else frozenset(truncated)


def _between_markers(stdout: str, marker: slice | None) -> tuple[str, str, set[str]]:
    value: str | None = None
    lost: set[str] = set()
    pieces: list[str] = []
    at = 0
    while (start := stdout.find(_START, at)) >= 0:
        begin = start + len(_START)
        end = stdout.find(_END, begin)
        if end < 0:
            break
        if value is None:
            value = stdout[begin:end].removesuffix("\n")
            if marker is not None and begin <= marker.start < end:
                lost = {"ret_val"}
        pieces.append(stdout[at:start])
        at = end + len(_END)
        at += stdout.startswith("\n", at)
    if value is None and marker is not None:
        # The cut removed the start marker or the end marker of the value.
        end = stdout.find(_END, marker.stop)
        if start >= 0:
            value, pieces, at = stdout[start + len(_START) : marker.stop], [stdout[:start]], marker.stop
        elif end >= 0:
            value, pieces, at = stdout[marker.start : end].removesuffix("\n"), [stdout[: marker.start]], end + len(_END)
            at += stdout.startswith("\n", at)
        if value is not None:
            lost = {"stdout", "ret_val"}
    return "".join([*pieces, stdout[at:]]) if value is not None else stdout, value or "", lost


def _last_object(stdout: str, marker: slice | None) -> tuple[str, str, set[str]]:
    # With the added newline, every line follows a newline. The index of this newline in `text` is the index of the line
    # in stdout.
    text = "\n" + stdout
    start = len(text)
    for _ in range(_MAX_LINES):
        start = text.rfind("\n{", 0, start)
        if start < 0:
            break
        end = stdout.find("\n", start)
        # If the middle of the line was cut, the line continues after the marker.
        was_cut = marker is not None and end == marker.start
        if marker is not None and was_cut:
            end = stdout.find("\n", marker.stop)
        line = stdout[start:] if end < 0 else stdout[start:end]
        if line.endswith("}") and (was_cut or _is_object(line)):
            rest = stdout[: max(0, start - 1)] if end < 0 else stdout[:start] + stdout[end + 1 :]
            return rest, line, {"ret_val"} if was_cut else set()
    return stdout, "", set()


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
