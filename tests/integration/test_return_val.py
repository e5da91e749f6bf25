"""Programs with their own `return_val`: how the value is found in stdout, and what happens if it was cut."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, strategies as st

from faasrt import Outcome, RuntimeManager
from faasrt.languages import Language
from faasrt.protocol.return_val import defines_return_val, return_val_function, take_return_val
from faasrt.protocol.streams import cut_text
from support.helpers import manager_at
from support.tables import block

PYTHON, JAVASCRIPT = Language.PYTHON, Language.JAVASCRIPT
START, END = "__COZE_RETURN_VAL_START__", "__COZE_RETURN_VAL_END__"
PLACES = ["doubles", "embedded", "embedded, enveloped"]


@pytest.mark.parametrize(
    ("language", "code", "defined"),
    [
        (PYTHON, return_val_function(PYTHON) + "return_val(1)", True),
        (
            PYTHON,
            block("""
                x = 1
                return_val = print
            """),
            True,
        ),
        (PYTHON, "return_val(1)", False),
        (
            PYTHON,
            block("""
                if x:
                    def return_val(v): pass
            """),
            False,
        ),
        (PYTHON, "def return_value(v): pass", False),
        (JAVASCRIPT, return_val_function(JAVASCRIPT) + "return_val(1)", True),
        (JAVASCRIPT, "\n\n \t const\nreturn_val = console.log;", True),
        (JAVASCRIPT, "const f = () => 1; return_val(f());", False),
        (JAVASCRIPT, "x = function return_val() {}", False),
    ],
)
def test_definitions_of_return_val(language: Language, code: str, defined: bool) -> None:
    """A definition is at the beginning of a line. A call is not a definition."""
    assert defines_return_val(code, language) is defined


PIECES = st.sampled_from([START + "\n", "\n" + END, END + "\n", START, END, "\n", "x", "{", "}", '{"a": 1}', " "])
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@given(text=TEXTS)
def test_python_value_is_between_the_first_markers(text: str) -> None:
    """The result is the same as that of a simple regular expression, which would take quadratic time."""
    marked = re.compile(f"{START}\n(.*?)\n?{END}\n?", re.DOTALL)
    found = marked.search(text)
    expected: tuple[str, str, frozenset[str]]
    expected = (marked.sub("", text), found[1], frozenset()) if found else (text, "", frozenset())
    assert take_return_val(text, PYTHON) == expected


@given(text=TEXTS)
def test_javascript_value_is_the_last_line_with_an_object(text: str) -> None:
    """The line is removed from stdout with one newline. Other lines stay."""
    lines = text.split("\n")
    expected: tuple[str, str, frozenset[str]] = text, "", frozenset()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index] == '{"a": 1}' or re.fullmatch(r"\{[ ]*\}|\{\"a\": 1\}", lines[index]):
            expected = "\n".join(lines[:index] + lines[index + 1 :]), lines[index], frozenset()
            break
    assert take_return_val(text, JAVASCRIPT) == expected


def take_from_cut(stdout: str, language: Language, limit: int) -> tuple[str, str, frozenset[str]]:
    text, was_cut = cut_text(stdout, limit)
    assert was_cut
    return take_return_val(text, language, frozenset({"stdout"}))


def test_python_truncated_streams() -> None:
    """A cut inside the value truncates ret_val, a cut outside of it stdout, and a cut across its end both."""
    value = f"before\n{START}\n{'v' * 1_000}\n{END}\nafter\n"
    rest, ret_val, truncated = take_from_cut(value, PYTHON, 500)
    assert (rest, truncated) == ("before\nafter\n", {"ret_val"})
    assert ret_val.startswith("vvv")
    assert "bytes cut" in ret_val
    assert ret_val.endswith("vvv")
    rest, ret_val, truncated = take_from_cut(f"{START}\nvalue\n{END}\n{'x' * 1_000}", PYTHON, 500)
    assert (ret_val, truncated) == ("value", {"stdout"})
    assert "bytes cut" in rest
    rest, ret_val, truncated = take_from_cut(f"a\n{START}\n{'v' * 600}\n{END}\n{'x' * 900}", PYTHON, 500)
    assert (rest[:3], truncated) == ("a\nx", {"stdout", "ret_val"})
    assert ret_val.startswith("vvv")
    assert "bytes cut" in ret_val
    rest, ret_val, truncated = take_from_cut(f"{'x' * 900}\n{START}\n{'v' * 600}\n{END}\nb", PYTHON, 500)
    assert (rest[:2], rest[-2:], truncated) == ("xx", "xb", {"stdout", "ret_val"})
    assert ret_val.endswith("vvv")


def test_javascript_truncated_streams() -> None:
    """A cut line is still the value, unless a line with an object follows it."""
    value = json.dumps({"a": "v" * 1_000})
    rest, ret_val, truncated = take_from_cut(f"before\n{value}\nafter\n", JAVASCRIPT, 500)
    assert (rest, truncated) == ("before\nafter\n", {"ret_val"})
    assert ret_val.startswith('{"a": "vvv')
    assert "bytes cut" in ret_val
    assert ret_val.endswith('vvv"}')
    rest, ret_val, truncated = take_from_cut(f"{value}\n{{}}\n", JAVASCRIPT, 500)
    assert (ret_val, truncated) == ("{}", {"stdout"})
    rest, ret_val, truncated = take_from_cut("x" * 1_000, JAVASCRIPT, 500)
    assert (ret_val, truncated) == ("", {"stdout"})
    assert take_return_val(value, JAVASCRIPT, frozenset({"stderr"})) == ("", value, {"stderr"})


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("place", PLACES)
async def test_values_above_the_limit_are_truncated(place: str, local: RuntimeManager) -> None:
    """Start and end of the value stay, and `truncated` is `{"ret_val"}`, in both languages and on every server."""
    programs = {
        PYTHON: f"{return_val_function(PYTHON)}print('out')\nreturn_val('{{\"a\": \"' + 'v' * 1_500_000 + '\"}}')",
        JAVASCRIPT: (
            f"{return_val_function(JAVASCRIPT)}console.log('out');\n"
            "return_val(JSON.stringify({ a: 'v'.repeat(1_500_000) }));"
        ),
    }
    async with manager_at(place, local) as manager:
        for language, code in programs.items():
            result = await manager.run_code(code, language)
            assert (result.outcome, result.stdout, result.truncated) == (Outcome.OK, "out\n", {"ret_val"})
            assert re.match(r'\{"a": ?"vvv', result.ret_val)
            assert "bytes cut" in result.ret_val
            assert result.ret_val.endswith('vvv"}')
            assert 1_000_000 < len(result.ret_val) <= 1_048_576
