"""The program in a completion, and work that is linear in its length."""

from __future__ import annotations

import pytest
from hypothesis import example, given, strategies as st

from faasrt import UnsupportedLanguageError
from faasrt.rewards import last_code_block

BLOCKS: dict[str, tuple[str, str | None]] = {
    "one": ("Text\n```python\nprint(1)\n```\nmore", "print(1)\n"),
    "the last of two": ("```python\n1\n```\n```python\n2\n```", "2\n"),
    "short name": ("```py\n1\n```", "1\n"),
    "name with a version": ("```python3\n1\n```\n```text\n2\n```", "1\n"),
    "name with attributes": ('``` Python title="a.py"\n1\n```', "1\n"),
    "a named one before the output": ("```python\n1\n```\nOutput:\n```\n2\n```", "1\n"),
    "no name": ("```\n1\n```", "1\n"),
    "only other names": ("```js\n1\n```\n```text\n2\n```", "2\n"),
    "tildes": ("~~~python\n1\n```\n~~~", "1\n```\n"),
    "backticks in the name of tildes": ("~~~a`b\n1\n~~~", "1\n"),
    "more backticks": ("````python\n```\n1\n```\n````\n", "```\n1\n```\n"),
    "a longer end": ("```\n1\n`````\n2", "1\n"),
    "an end with spaces": ("```\n1\n```  \n2", "1\n"),
    "in a list": ("1. Here:\n\n   ```python\n   if 1:\n       x\n\n   ```\n", "if 1:\n    x\n\n"),
    "a list with less indent inside": ("    ```\n  a\n    b\n    ```", "a\nb\n"),
    "tabs": ("\t```\n\ta\n\t\tb\n\t```", "a\n\tb\n"),
    "a fence in a docstring": (
        '```python\ndef f():\n    """\n    ```\n    """\n```',
        'def f():\n    """\n    ```\n    """\n',
    ),
    "cut off": ("```python\nprint(1)\nprint(", "print(1)\nprint(\n"),
    "cut off in the fence": ("Text ends with\n```python", None),
    "empty": ("```python\n```", None),
    "an empty one after it": ("```python\n1\n```\nthen\n```python\n \n```", "1\n"),
    "an empty one with the name": ("```\n1\n```\nthen\n```python", "1\n"),
    "windows": ("```python\r\n1\r\n```\r\n", "1\r\n"),
    "characters that end lines elsewhere": ("```\n'\x0c\u2028\x1e'\n```", "'\x0c\u2028\x1e'\n"),
    "after a tag": ("<think>\n```python\n0\n```</think>```python\n1\n```", "1\n"),
    "after a tag, without a name": ("Hm</think> ```\n1\n```", "1\n"),
    "between tags": ("<answer>```python\n1\n```</answer>", "1\n"),
    "a tag after the end": ("```python\n1\n```</answer>\nDone", "1\n"),
    "after text": ("Use `sorted`:```python\n1\n```\nmore", "1\n"),
    "after text with another name": ("Run:```sh\n1\n```python\n2\n```", "2\n"),
    "after text that only mentions it": ("Write ```python\nHere:\n```python\n1\n```", "1\n"),
    "an end after code": ("```python\nprint(1)```\nThat is all.", "print(1)\n"),
    "more backticks after text": ("Here:````python\n```\n1\n````", "```\n1\n"),
    "inline code with its name": ("Write ```x = 1``` or ```python", None),
    "inline code": ("```print(1)``` and `2`", None),
    "two backticks": ("``\n1\n``", None),
    "text": ("print(1)", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("text", "program"), BLOCKS.values(), ids=BLOCKS)
def test_the_last_block(text: str, program: str | None) -> None:
    """The last block with the name of the language counts, or else the last of all."""
    assert last_code_block(text) == program


def test_other_languages() -> None:
    """The block is that of the language, even of one that only a service runs."""
    text = "```c++17\na\n```\n```ruby\nb\n```\n```\nc\n```"
    assert (last_code_block(text, "cpp"), last_code_block(text, "ruby"), last_code_block(text, "go")) == (
        "a\n",
        "b\n",
        "c\n",
    )
    with pytest.raises(UnsupportedLanguageError):
        last_code_block(text, "?")


@given(st.text("a`~ \n", max_size=60))
@example("```\na```")
def test_any_text(text: str) -> None:
    """Each line of the program is a line of the text, without its indent, and without marks that end the program."""
    program = last_code_block(text)
    if program is not None:
        lines = [line.lstrip() for line in text.split("\n")]
        lines += [line.rstrip().rstrip(mark) for line in lines for mark in "`~"]
        assert all(line.lstrip() in lines for line in program.split("\n")[:-1])


@pytest.mark.parametrize(
    "piece", ["```\n", "`", "~", "```", "``` \n", " ", "\t```\n", "~~~`\n", "```py\n1\n```\n", "\n", "a>```py\n"]
)
def test_the_work_is_linear(piece: str) -> None:
    """Quadratic work on a text of this length would take longer than the time limit of the test."""
    last_code_block(piece * (2**19 // len(piece)))
