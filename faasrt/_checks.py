"""Validators and converters for settings."""

from __future__ import annotations

import inspect
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

import attrs

from faasrt._endpoint_urls import DISCOVERY, registered_protocols, split_endpoint
from faasrt.errors import ConfigurationError, shown
from faasrt.languages import Language, parse_language

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
# The client or aiohttp sets these headers.
_OWN_HEADERS = {"accept-encoding", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"}


def must_be(kind: str, accepts: Callable[[Any], bool]) -> Any:
    """Return an attrs validator. `kind` describes the valid values in its error message."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not accepts(value):
            raise ConfigurationError(f"{attribute.alias} must be {kind}, got {shown(value)}")

    return check


def number(*, above: float, most: float, integer: bool = False) -> Any:
    """Return an attrs validator for a finite number in (above, most]."""
    types: Any = int if integer else (int, float)
    is_number = must_be(
        "a whole number" if integer else "a number",
        lambda value: isinstance(value, types) and not isinstance(value, bool),
    )
    is_in_range = must_be(f"above {above:g} and at most {most:g}", lambda value: above < value <= most)
    return attrs.validators.and_(is_number, is_in_range)


flag = must_be("True or False", lambda value: isinstance(value, bool))
ssl = must_be(
    "an ssl.SSLContext, True, False or None", lambda value: value is None or isinstance(value, (bool, SSLContext))
)

up_to_100 = must_be(
    "a whole number from 0 to 100",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100,
)
up_to_a_day = must_be(
    "a number from 0 to 86400",
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 86_400,
)
share = must_be(
    "a number from 0 to 0.9",
    lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 0.9,
)
async_function = must_be(
    "an async function, or None", lambda value: value is None or inspect.iscoroutinefunction(value)
)


def parse_base_url(text: object) -> str:
    """Return the base URL of a FaaS without a trailing slash, or raise ConfigurationError if it is not one."""
    if not isinstance(text, str):
        raise ConfigurationError(f"a FaaS URL must be a string, got {shown(text)}")
    url = text.strip()
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ConfigurationError(f"a FaaS URL must be a valid URL, got {shown(_without_userinfo(url))}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            f"a FaaS URL must not contain a user name or password (use `token`), got {shown(_without_userinfo(url))}"
        )
    if "+" in parts.scheme:
        url = parts.scheme + url[len(parts.scheme) :]
    protocol, http_url = split_endpoint(url)
    if protocol and protocol not in registered_protocols():
        known = ", ".join(sorted(registered_protocols()))
        order = f" ({DISCOVERY} comes first, and once)" if DISCOVERY[:-1] in protocol.split("+") else ""
        raise ConfigurationError(
            f"a FaaS URL must name a known protocol ({known}, or none for coze-loop's), got {shown(url)}{order}"
        )
    scheme = http_url.partition("://")[0].lower()
    if scheme not in ("http", "https") or not parts.hostname or not port_ok or any(c.isspace() for c in url):
        example = (DISCOVERY if url.startswith(DISCOVERY) else "") + (f"{protocol}+http" if protocol else "http")
        raise ConfigurationError(f"a FaaS URL must look like {example}://host:port, got {shown(url)}")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"a FaaS URL must have no query and no fragment, got {shown(url)}")
    if url.startswith(DISCOVERY) and _is_address(parts.hostname):
        raise ConfigurationError(f"a FaaS URL with {DISCOVERY} must have a host name, not an address, got {shown(url)}")
    return url.rstrip("/")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_userinfo(url: str) -> str:
    scheme, _, rest = url.rpartition("@")
    return f"{scheme.partition('//')[0]}//...@{rest}" if scheme else url


def endpoints(given: object) -> dict[Language | str, tuple[str, ...]]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f'endpoints must map languages to URLs, such as {{"python": "http://faas:8000"}}, got {shown(given)}'
        )
    found: dict[Language | str, tuple[str, ...]] = {}
    for name, urls in given.items():
        if isinstance(urls, (bytes, bytearray, Mapping)) or not isinstance(urls, Iterable):
            raise ConfigurationError(f"endpoints[{shown(name)}] must be a URL or a sequence of URLs, got {shown(urls)}")
        replicas = [urls] if isinstance(urls, str) else list(urls)
        if replicas:
            # Drop duplicates, and keep the order.
            parsed = tuple(dict.fromkeys(parse_base_url(url) for url in replicas))
            # coze-loop's protocol has no other languages.
            has_others = all(split_endpoint(url)[0] for url in parsed)
            found[parse_language(name) if has_others else Language.parse(name)] = parsed
    return found


def one_of(*allowed: str) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            raise ConfigurationError(f"{attribute.name} must be one of {', '.join(allowed)}, got {shown(value)}")

    return check


def instance_of(kind: type) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigurationError(f"{attribute.name} must be a {kind.__name__}, got {type(value).__name__}")

    return check


def token(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    # An invalid header value would fail at the first request, with an error that may contain the token.
    if value is not None and (
        not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value
    ):
        raise ConfigurationError("token must be a non-empty str of printable ASCII characters, or None")


def headers(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"headers must map names to values, got {shown(given)}")
    for name, value in given.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ConfigurationError(
                f"headers must not contain {shown(name)}: the name is invalid, or the client sets this header itself"
            )
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ConfigurationError(f"headers[{name!r}] must be a str of printable ASCII characters")
    return dict(given)


def proxy(given: object) -> str | None:
    """Return the URL of a proxy. Unlike the URL of a FaaS, it may contain a user name and a password."""
    if given is None:
        return None
    parts = urlsplit(given) if isinstance(given, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("proxy must be an http or https URL such as http://proxy:3128")
    return parts.geturl()


def session(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        import aiohttp  # not at the top, because loading the settings must not load aiohttp

        if not isinstance(value, aiohttp.ClientSession):
            raise ConfigurationError(f"session must be an aiohttp.ClientSession, got {shown(value)}")


def is_loopback(host: str) -> bool:
    """Return whether only processes of this machine can reach a server that listens on a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
