"""The embedded FaaS: needs the extra `local` (`pip install 'faasrt[local]'`).

Example:
    >>> async with LocalFaaS() as faas:
    ...     manager = RuntimeManager(settings=Settings(endpoints={"python": faas.url}))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faasrt.local.server import LocalFaaS

__all__ = ["LocalFaaS"]


def __getattr__(name: str) -> Any:
    # The worker processes import this package too, and need no web server.
    if name == "LocalFaaS":
        from faasrt.local.server import LocalFaaS

        return LocalFaaS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
