"""Finds the protocol of an endpoint by its URL."""

from __future__ import annotations

import functools

from faasrt._endpoint_urls import load_protocol, registered_protocols, split_endpoint
from faasrt.errors import ConfigurationError
from faasrt.protocol import cozeloop
from faasrt.protocol.interface import ServiceProtocol


@functools.lru_cache(4096)
def protocol_of(url: str) -> ServiceProtocol:
    name, _ = split_endpoint(url)
    if not name:
        return cozeloop.PROTOCOL
    protocol = load_protocol(name)
    if not isinstance(protocol, ServiceProtocol):
        value = registered_protocols()[name].value
        raise ConfigurationError(f"the protocol {name!r} in {value} must be an instance of ServiceProtocol")
    return protocol
