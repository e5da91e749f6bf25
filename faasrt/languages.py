"""The languages: their names, which of them share a server, and which have `return_val`."""

from __future__ import annotations

import enum
import re
from typing import Literal, NewType, TypeAlias

from faasrt.errors import UnsupportedLanguageError, safe_repr


class Language(enum.StrEnum):
    """A programming language; its value is the name sent on the wire.

    Example:
        >>> Language.parse("TS")
        <Language.TYPESCRIPT: 'typescript'>
    """

    PYTHON = "python"
    JAVASCRIPT = "javascript"
    TYPESCRIPT = "typescript"
    C = "c"
    CPP = "cpp"
    GO = "go"
    RUST = "rust"
    JAVA = "java"
    BASH = "bash"

    @property
    def family(self) -> Language:
        """The main language of the FaaS that runs this language: JavaScript for TypeScript, else the language itself.

        Example:
            >>> Language.TYPESCRIPT.family
            <Language.JAVASCRIPT: 'javascript'>
        """
        return Language.JAVASCRIPT if self is Language.TYPESCRIPT else self

    @property
    def has_return_val(self) -> bool:
        """Whether programs can return a value with `return_val`, and their functions can be called.

        Example:
            >>> Language.PYTHON.has_return_val, Language.CPP.has_return_val
            (True, False)
        """
        return self in _WITH_RETURN_VAL

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `parse` accepts, in lower case.

        Example:
            >>> Language.PYTHON.names
            ('py', 'python')
        """
        return tuple(name for name, language in _ALIASES.items() if language is self)

    @classmethod
    def parse(cls, name: str) -> Language:
        """Return the language with a name.

        Args:
            name: "py", "python", "js", "javascript", "ts", "typescript", "c", "c++", "cpp", "go", "golang", "rs",
                "rust", "java", "sh" or "bash", in any case; or a `Language`.

        Raises:
            UnsupportedLanguageError: The name is unknown, or not a str.

        Example:
            >>> Language.parse("Py") is Language.PYTHON
            True
        """
        if isinstance(name, cls):
            return name
        language = _ALIASES.get(name.strip().lower()) if isinstance(name, str) else None
        if language is None:
            others = "another one needs a SandboxFusion or Piston server, see faasrt/docs/services.md"
            raise UnsupportedLanguageError(f"unknown language {safe_repr(name)}: use one of {', '.join(cls)}; {others}")
        return language


# fmt: off
LanguageName: TypeAlias = Literal[
    "python", "py", "javascript", "js", "typescript", "ts", "c", "cpp", "c++", "go", "golang", "rust", "rs", "java",
    "bash", "sh",
]
# fmt: on
"""The names that type checkers accept for a `Language`. For a str that is read from
elsewhere, use `Language.parse`, which raises an error if the name is unknown."""

OtherLanguage = NewType("OtherLanguage", str)
"""The name of a language that only a SandboxFusion or Piston server runs, as in `OtherLanguage("ruby")`. At run time it
is a str; it tells type checkers that the name is not a typing error.
"""

LanguageOption: TypeAlias = Language | LanguageName | OtherLanguage
"""The type of the argument `language`, for functions of yours that pass it on."""


def parse_language(name: str) -> Language | OtherLanguage:
    """Return a `Language`, or the lower-case name of another language that a service may run."""
    if isinstance(name, str):
        if (language := _ALIASES.get(name)) is not None:
            return language
        other = name.strip().lower()
        if other not in _ALIASES and _NAME.fullmatch(other):
            return OtherLanguage(other)
    return Language.parse(name)


def family_of(language: Language | str) -> str:
    """Each language that is not a `Language` is a family of its own."""
    return str(language.family) if isinstance(language, Language) else language


def has_return_val(language: Language | str) -> bool:
    return isinstance(language, Language) and language in _WITH_RETURN_VAL


_WITH_RETURN_VAL = (Language.PYTHON, Language.JAVASCRIPT, Language.TYPESCRIPT)
_NAME = re.compile(r"[a-z][a-z0-9_.+#-]{0,49}")
_ALIASES = {
    "py": Language.PYTHON,
    "js": Language.JAVASCRIPT,
    "ts": Language.TYPESCRIPT,
    "c++": Language.CPP,
    "golang": Language.GO,
    "rs": Language.RUST,
    "sh": Language.BASH,
}
_ALIASES |= {language.value: language for language in Language}
