"""The program in a completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from faasrt.errors import InvalidRequestError, safe_repr
from faasrt.languages import Language, LanguageOption, OtherLanguage, parse_language


def last_code_block(text: str, language: LanguageOption = "python") -> str | None:
    r"""Return the program in a Markdown text; None if there is none.

    It is the content of the last fenced block with the name of the language, such as "python", "py" or "python3". If
    there is no such block, it is the content of the last block with any name or without a name. Blank blocks do not
    count. A block begins with a line of at least three backticks or tildes and ends with such a line. The last block
    may lack its end, as in a completion that was cut off. The indent of the first line is removed from all lines.
    Models also write fences after a tag, as in "</think>```python", or other text, as in "Here it is:```python", and a
    tag after them, as in "```</answer>".

    Args:
        text: The text. The work is linear in its length.
        language: The language of the program. Default: "python".

    Raises:
        UnsupportedLanguageError: The language cannot be the name of one.

    Example:
        >>> from faasrt.rewards import last_code_block
        >>> last_code_block("Try this:\n```python\nprint(1)\n```\nIt prints:\n```\n1\n```")
        'print(1)\n'
    """
    wanted = parse_language(language)
    programs: dict[bool, str] = {}  # by whether the block has the name of the language
    fence, block = None, [""]

    def end_block(is_named: bool) -> None:
        if (program := "".join(block)).strip():
            programs[is_named] = program

    for line in text.split("\n"):
        if fence is not None:
            if fence.is_ended_by(line):
                end_block(fence.is_named)
                fence, block = _find_fence(line.strip().lstrip(fence.marks[0]), wanted), []
                continue
            opening = _find_fence(line, wanted) if fence.is_glued else None
            if opening is None or opening.is_glued or not opening.is_named:
                inner = line.removeprefix(fence.indent) if line.startswith(fence.indent) else line.lstrip(" \t")
                block.append(f"{inner}\n")
                continue
            # The text only mentioned a fence. This is one.
        fence, block = _find_fence(line, wanted), []
    if fence is not None:
        for index, line in enumerate(block):
            if line.rstrip().endswith(fence.marks):
                block[index:] = [f"{line.rstrip().rstrip(fence.marks[0])}\n"]
                break
        end_block(fence.is_named)
    return programs.get(True, programs.get(False))


@attrs.frozen
class _Fence:
    """The line that begins a block. `is_glued`: text precedes its marks."""

    indent: str
    marks: str
    is_named: bool
    is_glued: bool = False

    def is_ended_by(self, line: str) -> bool:
        """Return whether a line ends the block. A line that is indented further belongs to the program."""
        content = line.strip()
        rest = content.lstrip(self.marks[0])
        return (
            content.startswith(self.marks)
            and (not rest or rest.startswith("</"))
            and len(line) - len(line.lstrip(" \t")) <= len(self.indent) + 3
        )


def _find_fence(line: str, language: Language | OtherLanguage) -> _Fence | None:
    """Return the fence in a line, if it begins a block. Text before it must be a tag, or the fence must name the
    language. Otherwise the marks begin inline code.
    """
    content = line.lstrip(" \t")
    if content.startswith(("```", "~~~")):
        label = content.lstrip(content[0])
        if content[0] == "`" and "`" in label:
            return None
        marks = content[: len(content) - len(label)]
        return _Fence(line[: len(line) - len(content)], marks, _is_name_of(label.strip(), language))
    before, marks, label = line.rpartition("```")
    text = before.rstrip("`")
    if not marks or "```" in text:
        return None
    is_named = _is_name_of(label.strip(), language)
    if not is_named and not text.rstrip().endswith(">"):
        return None
    return _Fence("", marks + before[len(text) :], is_named, is_glued=True)


def _is_name_of(label: str, language: Language | OtherLanguage) -> bool:
    """Return whether the label of a block names a language, perhaps with a version, as in "python3"."""
    name = label.split(maxsplit=1)[0].lower().rstrip("0123456789.") if label else ""
    return name in language.names if isinstance(language, Language) else name == language


def read_text(completion: object) -> str:
    """Return the text of a completion, or of the last message of the assistant."""
    if isinstance(completion, Iterable) and not isinstance(completion, str | bytes | Mapping):
        messages = [message for message in completion if isinstance(message, Mapping)]
        answers = [message.get("content") for message in messages if message.get("role", "assistant") == "assistant"]
        completion = (answers[-1] if answers else None) or ""
        if isinstance(completion, Iterable) and not isinstance(completion, str):
            parts = (part for part in completion if isinstance(part, Mapping))
            completion = "".join(str(part.get("text", "")) for part in parts)
    if not isinstance(completion, str):
        raise InvalidRequestError(f"a completion must be a str or a list of messages, got {safe_repr(completion)}")
    return completion
