"""The connections of aiohttp, with the changes that correct results need."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from faasrt._endpoint_urls import address_of


class Connector(aiohttp.TCPConnector):
    """Never reuses a connection on which data arrived while it was idle.

    If a server answers twice or late, the next call on the connection would get the result of another call. aiohttp
    checks this when a connection returns to the pool, but not when it is taken from the pool.
    """

    # A private method of aiohttp, because its caller, the public `connect`, does not tell which connections are new. A
    # new one with data would be replaced again and again.
    async def _get(self, key: Any, traces: Any) -> Any:
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                return connection
            connection.close()
        return None


if not hasattr(aiohttp.TCPConnector, "_get"):
    raise ImportError(f"aiohttp {aiohttp.__version__} does not work with faasrt: install an older version")


class _FixedResolver(AbstractResolver):
    def __init__(self, address: str) -> None:
        self._address = address
        self._family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=self._family,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        pass


def resolver_for(endpoint: str) -> AbstractResolver | None:
    address = address_of(endpoint)
    return _FixedResolver(address) if address else None
