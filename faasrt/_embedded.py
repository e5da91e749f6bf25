"""The embedded FaaS of a manager: it starts with the first call, and anew if that was in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from faasrt.languages import Language

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS


class EmbeddedFaas:
    """A `LocalFaaS`, which can be started once, or its successor after a start that failed or was cancelled.

    Args:
        make: Makes a `LocalFaaS` for some languages.
        languages: The languages; all when None.

    Attributes:
        languages: The languages that it serves.
        started: Whether it runs and is in use; its owner says so.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(self, make: Callable[..., LocalFaaS], languages: Iterable[str | Language] | None) -> None:
        self._make = make
        self._faas = make(languages)
        self.languages = self._faas.languages
        self.started = False

    async def start(self) -> str:
        """Start it, and return its base URL.

        Raises:
            ConfigurationError: It cannot listen, or write temporary files.

        Cancellation: stops it again; a later call starts another.
        """
        try:
            await self._faas.start()
        except BaseException:
            self._faas = self._make(self.languages)
            raise
        return self._faas.url

    async def wait_ready(self, language: Language) -> None:
        """Wait until a language can run; see `LocalFaaS.wait_ready`."""
        await self._faas.wait_ready(language)

    async def aclose(self) -> None:
        """Stop it. Closing twice is harmless."""
        await self._faas.aclose()
