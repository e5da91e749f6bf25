"""Discovery: one URL for all replicas behind a name.

In `dns+http://faas:8000` the host name stands for all its addresses. Each is a replica of its own, with a circuit
breaker, a limit, metrics and connections of its own. `faasrt/docs/replicas.md` says when the name is looked up, and how
replicas come and go.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

import attrs

from faasrt import _setting_checks as checks
from faasrt._attribute_docs import list_attributes
from faasrt.errors import ConfigurationError, safe_repr

__all__ = [
    "DiscoverySettings",
]

Resolve: TypeAlias = Callable[[str, int], Awaitable[Iterable[str]]]
"""An async function that takes a host name and a port, and returns the IP addresses of the name."""


@list_attributes
@attrs.frozen(kw_only=True)
class DiscoverySettings:
    """How often the names in `dns+` URLs are looked up, and by which function.

    Raises:
        ConfigurationError: A value is out of range or has the wrong type.

    Example:
        >>> async def resolve(host, port):
        ...     return ["10.1.2.3", "10.1.2.4"]
        >>> settings = Settings.from_url(
        ...     "dns+http://faas:8000", discovery=DiscoverySettings(period_s=5, resolve=resolve)
        ... )
    """

    period_s: float = attrs.field(default=10.0, validator=checks.positive(86_400))
    """The seconds between two look-ups of a name while it is used, above 0 and at most a day. Default: 10."""
    jitter: float = attrs.field(default=0.2, validator=checks.number(0, 0.9))
    """The part of the period by which it varies at random, so that clients do not ask at the same time: from 0 to 0.9.
    With 0.2, a period of 10 s takes 8 to 12 s. Default: 0.2."""
    resolve: Resolve | None = attrs.field(default=None)
    """An async function that takes a host name and a port, and returns the IP addresses as strings. An exception that
    it raises is a look-up that failed. Default: None, which asks the system, in a thread."""

    @resolve.validator
    def _check_resolve(self, attribute: object, value: object) -> None:
        if value is not None and not inspect.iscoroutinefunction(value):
            raise ConfigurationError(f"resolve must be an async function, or None, got {safe_repr(value)}")

    def delay_s(self, random: Callable[[], float]) -> float:
        """Return the seconds until the next look-up. `random` returns a number in [0, 1)."""
        return self.period_s * (1 + self.jitter * (2 * random() - 1))
