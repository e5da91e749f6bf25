"""The embedded FaaS: needs the extra `local` (`pip install 'faasrt[local]'`).

Example:
    >>> from faasrt.local import LocalFaaS
    >>> sandbox = SandboxConfig(timeout_limit_s=10, memory_limit_mb=256)
    >>> async with LocalFaaS(languages=["javascript"], sandbox=sandbox) as faas:
    ...     await faas.wait_ready("javascript")
    ...     async with RuntimeManager(settings=Settings(endpoints={"javascript": faas.url})) as manager:
    ...         print((await manager.run_code("console.log({ a: 1 })", "js")).stdout.strip())
    { a: 1 }
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
