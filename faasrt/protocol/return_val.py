"""The function `return_val` as source text, and how the value is found of programs that bring such a function along.

coze-loop's backend puts one before every program. Then the value is a part of stdout, and taken out of it here, as the
reference servers do.

Source: python-faas takes what stands between the first two marks, js-faas the last line that is a JSON object.
"""

from __future__ import annotations

import json
import re

from faasrt.languages import Language

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

_OWN = {
    Language.PYTHON: re.compile(r"^(?:def return_val\b|return_val\s*=)", re.MULTILINE),
    Language.JAVASCRIPT: re.compile(
        r"^\s*(?:function\s+return_val\b|(?:const|let|var)\s+return_val\s*=)", re.MULTILINE
    ),
}
_MARKED = re.compile("__COZE_RETURN_VAL_START__\n(.*?)\n?__COZE_RETURN_VAL_END__\n?", re.DOTALL)


def return_val_function(language: Language) -> str:
    """Give the definition of `return_val` in a language."""
    return _PYTHON if language is Language.PYTHON else _JAVASCRIPT


def brings_its_own(code: str, language: Language) -> bool:
    """Tell whether a program defines a `return_val` of its own."""
    return _OWN[language.family].search(code) is not None


def take_out(stdout: str, language: Language) -> tuple[str, str]:
    """Take the value that a program's own `return_val` printed out of stdout; "" when there is none.

    Returns:
        What is left of stdout, and the value.
    """
    if language is Language.PYTHON:
        found = _MARKED.search(stdout)
        return (_MARKED.sub("", stdout), found[1]) if found else (stdout, "")
    lines = stdout.split("\n")
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("{"):
            try:
                value = json.loads(lines[index])
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                return "\n".join(lines[:index] + lines[index + 1 :]), lines[index]
    return stdout, ""
