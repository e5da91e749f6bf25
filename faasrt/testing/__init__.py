r"""Servers that fail on demand, for your own tests: a scripted FaaS, and a proxy that spoils a connection.

Example:
    >>> async with FakeFaas() as fake, FaultProxy(fake.url) as proxy:
    ...     fake.script(Reply.overloaded(retry_after=1), Reply.ok("hi\n", value={"score": 1}))
    ...     proxy.downstream = Toxics(latency_s=0.2)
    ...     manager = RuntimeManager(settings=Settings(endpoints={"python": proxy.url}))

`pytest_plugins = ["faasrt.testing.pytest_plugin"]` gives the fixture `faasrt_fake` (it needs pytest-asyncio).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faasrt.testing.fake_faas import FakeFaas
    from faasrt.testing.fault_proxy import FaultProxy, Toxics
    from faasrt.testing.replies import Reply

__all__ = ["FakeFaas", "FaultProxy", "Reply", "Toxics"]

# Loaded when first used: pytest has to be able to rewrite the assertions of the plugin before anything imports it.
_MODULE_OF = {"FakeFaas": "fake_faas", "FaultProxy": "fault_proxy", "Reply": "replies", "Toxics": "fault_proxy"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"faasrt.testing.{_MODULE_OF[name]}"), name)
