r"""Servers that fail on demand, for your own tests: a scripted FaaS, and a proxy that injects network faults.

`FakeFaaS` does not run programs. It sends scripted answers over a real socket, and records the requests.

Example:
    >>> from faasrt import OverloadedError, RuntimeManager, Settings
    >>> from faasrt.testing import FakeFaaS, Reply
    >>> async with FakeFaaS() as fake:
    ...     fake.script(Reply.overloaded(retry_after=0), Reply.ok("hi\n", value={"score": 1}))
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": fake.url})) as manager:
    ...         result = await manager.run_code("print('hi')", "python")
    >>> result.stdout, result.value, result.attempts
    ('hi\n', {'score': 1}, 2)
    >>> fake.executions, fake.requests[0]["code"]
    (1, "print('hi')")

The answer can depend on the program, and a full server can refuse it:

    >>> async with FakeFaaS() as fake:
    ...     fake.handler = lambda request: Reply(outcome="TIMEOUT" if "while" in request["code"] else "OK")
    ...     fake.capacity = 1
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": fake.url})) as manager:
    ...         result = await manager.run_code("while True: pass", "python")
    >>> result.outcome
    <Outcome.TIMEOUT: 'TIMEOUT'>

`FaultProxy` is a proxy between a client and a server, fake or real. `Toxics` are the faults of one direction, and may
be changed at any time: latency, bandwidth, small slices, half-closed connections, resets, lost bytes.

    >>> from faasrt import ConnectionLostError
    >>> from faasrt.testing import FaultProxy, Toxics
    >>> async with FakeFaaS() as fake, FaultProxy(fake.url) as proxy:
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": proxy.url})) as manager:
    ...         before = await manager.run_code("print('hi')", "python")
    ...         proxy.downstream = Toxics(reset_after_bytes=20)  # in the middle of the answer
    ...         try:
    ...             await manager.run_code("print('hi')", "python")
    ...         except ConnectionLostError as error:
    ...             print(error.sent, fake.executions)
    maybe 2

Installing faasrt adds two fixtures to pytest: `faasrt_fake`, an open `FakeFaaS`, and `faasrt_local`, the URL of an
embedded FaaS. See `faasrt.testing.pytest_plugin`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faasrt.testing.fake_faas import FakeFaaS
    from faasrt.testing.fault_proxy import FaultProxy, Toxics
    from faasrt.testing.replies import Reply

__all__ = ["FakeFaaS", "FaultProxy", "Reply", "Toxics"]

# The modules are loaded on first use, because every start of pytest imports this package.
_MODULE_OF = {"FakeFaaS": "fake_faas", "FaultProxy": "fault_proxy", "Reply": "replies", "Toxics": "fault_proxy"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"faasrt.testing.{_MODULE_OF[name]}"), name)
