"""The event loop that sessions, locks and permits belong to."""

from __future__ import annotations

import asyncio

from faasrt.errors import ConfigurationError


class HomeLoop:
    """The loop in which something was first used, and must be used ever after.

    Args:
        owner: What it is, for the error.
    """

    __slots__ = ("_loop", "_owner")

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Take the running loop for its home, or see that it is.

        Raises:
            ConfigurationError: It is another.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                f"this {self._owner} belongs to another event loop: close it there, and make a new one in each "
                "asyncio.run"
            )

    def leave(self) -> None:
        """Forget the loop, when nothing is left that belongs to it."""
        self._loop = None
