"""The URLs of endpoints. `NAME+http://...` names the protocol of the service; `http://...` is coze-loop's protocol.

`dns+` before it means that every address of the host name is a replica. The endpoint of such a replica is the URL
without `dns+`, and the address after "#": `piston+http://host:2000#10.1.2.3`. URLs in settings have no fragment.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from faasrt.errors import ConfigurationError

DISCOVERY = "dns+"
"""The beginning of a URL whose host name stands for all its addresses."""
PROTOCOL_GROUP = "faasrt.protocols"
"""The entry point group in which other packages register protocols."""
_BUILT_IN = {"sandboxfusion": "faasrt.protocol.sandboxfusion:PROTOCOL", "piston": "faasrt.protocol.piston:PROTOCOL"}


@functools.cache
def registered_protocols() -> dict[str, EntryPoint]:
    """Return the protocols that URLs can name. The protocols of faasrt itself take precedence."""
    registered = {point.name: point for point in entry_points(group=PROTOCOL_GROUP)}
    return registered | {name: EntryPoint(name, value, PROTOCOL_GROUP) for name, value in _BUILT_IN.items()}


def split_endpoint(url: str) -> tuple[str, str]:
    """Return the name of the protocol, "" for coze-loop's, and the URL for HTTP requests."""
    scheme, separator, rest = url.removeprefix(DISCOVERY).partition("#")[0].partition("://")
    name, _, scheme = scheme.rpartition("+")
    return name, scheme + separator + rest


def replica_at(url: str, address: str) -> str:
    return f"{url.removeprefix(DISCOVERY)}#{address}"


def address_of(endpoint: str) -> str:
    """Return the address of a replica that was discovered; "" for any other endpoint."""
    return endpoint.partition("#")[2]


def configured_url(endpoint: str) -> str:
    url, _, address = endpoint.partition("#")
    return DISCOVERY + url if address else url


def load_protocol(name: str) -> Any:
    point = registered_protocols()[name]
    try:
        return point.load()
    except Exception as error:
        raise ConfigurationError(f"the protocol {name!r} cannot be loaded from {point.value}: {error}") from error


def may_run(url: str, language: str) -> bool:
    name, _ = split_endpoint(url)
    if not name:
        return True
    protocol = load_protocol(name)
    return getattr(protocol, "has_profile", True) or bool(protocol.lists(language))
