"""Validators and converters of settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

import attrs

from faasrt.errors import ConfigurationError, shown
from faasrt.languages import Language

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
# The client sets these itself, or leaves them to HTTP.
_OWN_HEADERS = {"accept-encoding", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"}


def must_be(kind: str, accepts: Callable[[Any], bool]) -> Any:
    """Return an attrs validator, whose error says what the value must be."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not accepts(value):
            raise ConfigurationError(f"{attribute.alias} must be {kind}, got {shown(value)}")

    return check


def number(*, above: float, most: float, integer: bool = False) -> Any:
    """Return an attrs validator for a finite number in (above, most]."""
    wanted: Any = int if integer else (int, float)
    kind = must_be(
        "a whole number" if integer else "a number",
        lambda value: isinstance(value, wanted) and not isinstance(value, bool),
    )
    size = must_be(f"above {above:g} and at most {most:g}", lambda value: above < value <= most)
    return attrs.validators.and_(kind, size)


flag = must_be("True or False", lambda value: isinstance(value, bool))
ssl = must_be(
    "an ssl.SSLContext, True, False or None", lambda value: value is None or isinstance(value, (bool, SSLContext))
)


def parse_base_url(text: object) -> str:
    """Return the base URL of a FaaS without a trailing slash.

    Raises:
        ConfigurationError: It is not an http(s) URL with a host, or it has user info, a query or a fragment.
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"a FaaS URL must be a string, got {shown(text)}")
    url = text.strip()
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ConfigurationError(f"not a URL: {shown(_without_userinfo(url))}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"a FaaS URL must not carry user info (use a token): {shown(_without_userinfo(url))}")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok or any(c.isspace() for c in url):
        raise ConfigurationError(f"a FaaS URL must look like http://host:port, got {shown(url)}")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"a FaaS URL must have no query and no fragment, got {shown(url)}")
    return url.rstrip("/")


def _without_userinfo(url: str) -> str:
    scheme, _, rest = url.rpartition("@")
    return f"{scheme.partition('//')[0]}//...@{rest}" if scheme else url


def endpoints(given: object) -> dict[Language, tuple[str, ...]]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f'endpoints must map languages to URLs, such as {{"python": "http://faas:8000"}}, got {shown(given)}'
        )
    found: dict[Language, tuple[str, ...]] = {}
    for name, urls in given.items():
        if isinstance(urls, (bytes, bytearray, Mapping)) or not isinstance(urls, Iterable):
            raise ConfigurationError(f"endpoints[{shown(name)}] must be a URL or several, got {shown(urls)}")
        several = [urls] if isinstance(urls, str) else list(urls)
        if several:
            # A replica that is named twice is one replica: dict keeps the order and drops the repeats.
            found[Language.parse(name)] = tuple(dict.fromkeys(parse_base_url(url) for url in several))
    return found


def one_of(*allowed: str) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            raise ConfigurationError(f"{attribute.name} must be one of {', '.join(allowed)}; got {shown(value)}")

    return check


def instance_of(kind: type) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise ConfigurationError(f"{attribute.name} must be a {kind.__name__}, got {type(value).__name__}")

    return check


def token(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    # An invalid header value would fail at the first request, and the error might show it.
    if value is not None and (
        not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value
    ):
        raise ConfigurationError("token must be a non-empty str of printable ASCII")


def headers(given: object) -> dict[str, str]:
    """Return the headers of every request.

    Raises:
        ConfigurationError: A header cannot be sent, or is one that the client sets itself.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"headers must map names to values, got {shown(given)}")
    for name, value in given.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ConfigurationError(f"headers cannot set {shown(name)}")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ConfigurationError(f"the value of the header {name} must be printable ASCII")
    return dict(given)


def proxy(given: object) -> str | None:
    """Return the URL of a proxy, which may have user info."""
    if given is None:
        return None
    parts = urlsplit(given) if isinstance(given, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("proxy must be a URL such as http://proxy:3128")
    return parts.geturl()


def session(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Check a session of the caller's own."""
    if value is not None:
        import aiohttp  # settings are loaded without it

        if not isinstance(value, aiohttp.ClientSession):
            raise ConfigurationError(f"session must be an aiohttp.ClientSession, got {shown(value)}")
