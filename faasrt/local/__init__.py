r"""The embedded FaaS: an HTTP server that runs untrusted programs in sandboxes on this machine.

It needs the extra `local` (`pip install 'faasrt[local]'`). It runs on Linux; on macOS it runs only Python, as
WebAssembly (so far this was only tested on Linux, in processes without pidfds and /proc). There are three ways to start
it:

* `RuntimeManager.local()` returns a client with its own server.
* `LocalFaaS` is the server, inside your own program.
* `faasrt serve` is the server for other programs, such as a coze-loop backend.

Read on:

* `faasrt/docs/choosing-a-sandbox.md`: the engines, compared
* `faasrt/docs/differences.md`: what programs can do, compared with plain CPython and Deno
* `faasrt/docs/sandboxes.md`: the levels of the jail, the protection and its gaps, and measures against real attackers
* `faasrt/docs/server.md`: running a server, and `faasrt/docs/http-api.md`: the requests that it answers

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
    # The worker processes import this package too, without the web server.
    if name == "LocalFaaS":
        from faasrt.local.server import LocalFaaS

        return LocalFaaS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
