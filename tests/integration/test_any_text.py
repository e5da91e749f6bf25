"""Any text that a program prints, returns or raises is exact, even on servers that damage output."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings as configure, strategies as st

from faasrt import ExecutionResult
from support.doubles import doubles

TOKENS = st.sampled_from(
    [
        *(
            "'",
            '"',
            "'''",
            "{",
            "}",
            "{'a': 1}",
            "\\",
            "\0",
            "\r\n",
            "\n",
            "\t",
            "\ud800",
            "\udfff",
            "🌍",
            "\u2028",
            "\x1b[31m",
        ),
        *("__COZE_RETURN_VAL_START__\n", "\n__COZE_RETURN_VAL_END__\n", "faasrt1:", "faasrt1:eyJub25jZSI6IngifQ=="),
        '{"stdout":"x","stderr":"","ret_val":"y"}\n',
    ]
)
TEXTS = st.lists(TOKENS | st.text(st.characters(), max_size=20), max_size=8).map("".join)


def literal(text: str, language: str) -> str:
    return ascii(text) if language == "python" else json.dumps(text)


def programs_with(text: str, language: str) -> list[str]:
    quoted = literal(text, language)
    if language == "python":
        return [
            f"import sys\nt = {quoted}\nprint(t, end='')\nprint(t, end='', file=sys.stderr)\nreturn_val(t)",
            f"raise ValueError({quoted})",
        ]
    lone = "const lone = /[\\ud800-\\udbff](?![\\udc00-\\udfff])|(?<![\\ud800-\\udbff])[\\udc00-\\udfff]/g;"
    return [
        f"{lone} const t = {quoted}; console.log('%s', t); console.error('%s', t); return_val(t);",
        f"throw new TypeError({quoted})",
    ]


@pytest.mark.parametrize("language", ["python", "javascript"])
@configure(max_examples=12)
@given(text=TEXTS)
def test_any_text_is_exact(language: str, text: str) -> None:
    """stdout, stderr, the return value and the message of an error contain the text unchanged."""

    async def run() -> list[ExecutionResult]:
        async with doubles() as (manager, _, _):
            programs = programs_with(text, language)
            return list(await asyncio.gather(*(manager.run_code(code, language) for code in programs)))

    printed, raised = asyncio.run(run())
    if language == "javascript":
        # In JavaScript, two adjacent surrogates are one character.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    end = "" if language == "python" else "\n"
    assert (printed.stdout, printed.stderr, printed.ret_val) == (text + end, text + end, text)
    assert raised.error is not None
    assert raised.error.message == text
