"""The URLs of endpoints. `NAME+http://...` names the protocol of the service; `http://...` is coze-loop's protocol."""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points

PROTOCOL_GROUP = "faasrt.protocols"
"""The entry point group in which other packages register protocols."""
_BUILT_IN = {"sandboxfusion": "faasrt.protocol.sandboxfusion:PROTOCOL", "piston": "faasrt.protocol.piston:PROTOCOL"}


@functools.cache
def registered_protocols() -> dict[str, EntryPoint]:
    """Return the protocols that URLs can name. Those of faasrt itself take precedence."""
    found = {point.name: point for point in entry_points(group=PROTOCOL_GROUP)}
    return found | {name: EntryPoint(name, value, PROTOCOL_GROUP) for name, value in _BUILT_IN.items()}


def split_endpoint(url: str) -> tuple[str, str]:
    """Return the name of the protocol in the URL of an endpoint, "" for coze-loop's, and the URL for HTTP requests."""
    scheme, separator, rest = url.partition("://")
    name, _, scheme = scheme.rpartition("+")
    return name, scheme + separator + rest
