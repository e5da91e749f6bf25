"""The supported languages and their names."""

from __future__ import annotations

import enum
import re

from faasrt.errors import UnsupportedLanguageError, shown


class Language(enum.StrEnum):
    """A programming language; its value is the name sent on the wire.

    Example:
        >>> Language.parse("TS")
        <Language.TYPESCRIPT: 'typescript'>
    """

    PYTHON = "python"
    JAVASCRIPT = "javascript"
    TYPESCRIPT = "typescript"

    @property
    def family(self) -> Language:
        """The main language of the FaaS that runs this language: JavaScript for TypeScript, else the language itself.

        Example:
            >>> Language.TYPESCRIPT.family
            <Language.JAVASCRIPT: 'javascript'>
        """
        return Language.JAVASCRIPT if self is Language.TYPESCRIPT else self

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `parse` accepts, in lower case.

        Example:
            >>> Language.PYTHON.names
            ('py', 'python')
        """
        return tuple(name for name, language in _ALIASES.items() if language is self)

    @classmethod
    def parse(cls, name: str | Language) -> Language:
        """Return the language with a name.

        Args:
            name: "py", "python", "js", "javascript", "ts" or "typescript", in any case; or a `Language`.

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
            raise UnsupportedLanguageError(
                f"unknown language {shown(name)}: use 'python' (py), 'javascript' (js) or 'typescript' (ts)"
            )
        return language


def parse_language(name: str | Language) -> Language | str:
    """Return the language with a name: a `Language`, or the lower-case name of another language that a service may run.

    Raises:
        UnsupportedLanguageError: The name cannot be that of a language, or is not a str.
    """
    if isinstance(name, str) and not isinstance(name, Language):
        other = name.strip().lower()
        if other not in _ALIASES and _NAME.fullmatch(other):
            return other
    return Language.parse(name)


def family_of(language: Language | str) -> str:
    """Return the name of a language's family. Each language that is not a `Language` is a family of its own."""
    return language.family.value if isinstance(language, Language) else language


_NAME = re.compile(r"[a-z][a-z0-9_.+#-]{0,49}")
_ALIASES = {"py": Language.PYTHON, "js": Language.JAVASCRIPT, "ts": Language.TYPESCRIPT}
_ALIASES |= {language.value: language for language in Language}
