"""The supported languages and their names."""

from __future__ import annotations

import enum

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
        return self.family in (Language.PYTHON, Language.JAVASCRIPT)

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
            raise UnsupportedLanguageError(f"unknown language {shown(name)}: use one of {', '.join(cls)}")
        return language


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
