"""The function `return_val` as source text, for programs that bring their own to the reference servers.

Source: python-faas takes what stands between the two marks, js-faas the last line of stdout that is a JSON object.
"""

from __future__ import annotations

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


def return_val_function(language: Language) -> str:
    """Give the definition of `return_val` in a language."""
    return _PYTHON if language is Language.PYTHON else _JAVASCRIPT
