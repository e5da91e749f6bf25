"""Validators and converters for settings.

attrs shows the annotation of a converter's argument in the signature of the class. So the annotations of this module
are types, not strings.
"""

import contextlib
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from ssl import SSLContext
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import attrs
from attrs import validators
from attrs.validators import and_, ge, gt, in_, le, not_, optional

from faasrt._endpoint_urls import DISCOVERY, registered_protocols, split_endpoint
from faasrt.errors import ConfigurationError, safe_repr
from faasrt.languages import Language, parse_language

Endpoints: TypeAlias = Mapping[str, str | Sequence[str]] | Mapping[Language, str | Sequence[str]]
"""The URLs of each language. `Mapping` is invariant in its keys, so there is one for each type of key."""

# Of coze-loop's service and of SandboxFusion. verl's own setting ends with it.
_RUN_PATH = "/run_code"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
# The client or aiohttp sets these headers.
_OWN_HEADERS = {"accept-encoding", "content-encoding", "content-length", "content-type", "host", "transfer-encoding"}

_NO_BOOL = not_(validators.instance_of(bool))
_WHOLE: Any = and_(validators.instance_of(int), _NO_BOOL)
_NUMBER: Any = and_(validators.instance_of((int, float)), _NO_BOOL)


def must_be(kind: str, *conditions: Any) -> Any:
    """Return a validator that raises ConfigurationError unless a value meets all `conditions`, validators of attrs.

    Their own messages contain the whole value, and only one end of a range.
    """
    validate = and_(*conditions)

    def check(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        try:
            validate(instance, attribute, value)
        except (TypeError, ValueError):
            raise ConfigurationError(f"{attribute.alias} must be {kind}, got {safe_repr(value)}") from None

    return check


def whole(minimum: int, maximum: int) -> Any:
    return must_be(f"a whole number from {minimum:,} to {maximum:,}", _WHOLE, ge(minimum), le(maximum))


def number(minimum: float, maximum: float) -> Any:
    return must_be(f"a number from {minimum:,} to {maximum:,}", _NUMBER, ge(minimum), le(maximum))


def positive(maximum: float) -> Any:
    return must_be(f"a number above 0 and at most {maximum:,}", _NUMBER, gt(0), le(maximum))


def instance_of(kind: type) -> Any:
    return must_be(f"a {kind.__name__}", validators.instance_of(kind))


def one_of(*allowed: str) -> Any:
    return must_be(f"one of {', '.join(allowed)}", in_(allowed))


flag = must_be("True or False", validators.instance_of(bool))
ssl = must_be("an ssl.SSLContext, True, False or None", optional(validators.instance_of((bool, SSLContext))))


def parse_base_url(text: object) -> str:
    if not isinstance(text, str):
        raise ConfigurationError(f"a FaaS URL must be a string, got {safe_repr(text)}")
    url = text.strip()
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise ConfigurationError(f"a FaaS URL must be a valid URL, got {safe_repr(_without_userinfo(url))}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "a FaaS URL must not contain a user name or password (use `token`), "
            f"got {safe_repr(_without_userinfo(url))}"
        )
    if "+" in parts.scheme:
        url = parts.scheme + url[len(parts.scheme) :]
    protocol, http_url = split_endpoint(url)
    if protocol and protocol not in registered_protocols():
        known = ", ".join(sorted(registered_protocols()))
        order = f" ({DISCOVERY} comes first, and once)" if DISCOVERY[:-1] in protocol.split("+") else ""
        raise ConfigurationError(
            f"a FaaS URL must name a known protocol ({known}, or none for coze-loop's), got {safe_repr(url)}{order}"
        )
    scheme = http_url.partition("://")[0].lower()
    if scheme not in ("http", "https") or not parts.hostname or not port_ok or any(c.isspace() for c in url):
        example = (DISCOVERY if url.startswith(DISCOVERY) else "") + (f"{protocol}+http" if protocol else "http")
        raise ConfigurationError(f"a FaaS URL must look like {example}://host:port, got {safe_repr(url)}")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"a FaaS URL must have no query and no fragment, got {safe_repr(url)}")
    if (server := url.rstrip("/").removesuffix(_RUN_PATH)) != url.rstrip("/"):
        if protocol:
            use = safe_repr(server)
        else:
            server = server.removesuffix("/sandboxfusion")
            discovery, http = (DISCOVERY, server[len(DISCOVERY) :]) if server.startswith(DISCOVERY) else ("", server)
            itself = safe_repr(f"{discovery}sandboxfusion+{http}")
            use = f"{safe_repr(server)}, or {itself} for a server of SandboxFusion itself"
        raise ConfigurationError(f"a FaaS URL must not end with {_RUN_PATH}: use {use}, got {safe_repr(url)}")
    if url.startswith(DISCOVERY) and _is_address(parts.hostname):
        raise ConfigurationError(
            f"a FaaS URL with {DISCOVERY} must have a host name, not an address, got {safe_repr(url)}"
        )
    return url.rstrip("/")


def parse_urls(text: object) -> tuple[str, ...]:
    """Return one base URL, or several that are separated by commas."""
    parts = [part for part in text.split(",") if part.strip()] if isinstance(text, str) else []
    return tuple(map(parse_base_url, parts)) or (parse_base_url(text),)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _without_userinfo(url: str) -> str:
    scheme, _, rest = url.rpartition("@")
    return f"{scheme.partition('//')[0]}//...@{rest}" if scheme else url


def endpoints(value: Endpoints) -> dict[Language | str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f'endpoints must map languages to URLs, such as {{"python": "http://faas:8000"}}, got {safe_repr(value)}'
        )
    endpoints: dict[Language | str, tuple[str, ...]] = {}
    for name, urls in value.items():
        if isinstance(urls, (bytes, bytearray, Mapping)) or not isinstance(urls, Iterable):
            raise ConfigurationError(
                f"endpoints[{safe_repr(name)}] must be a URL or a sequence of URLs, got {safe_repr(urls)}"
            )
        texts = [urls] if isinstance(urls, str) else list(urls)
        if texts:
            # Drop duplicates, and keep the order.
            parsed = tuple(dict.fromkeys(url for text in texts for url in parse_urls(text)))
            # coze-loop's protocol has no other languages.
            has_others = all(split_endpoint(url)[0] for url in parsed)
            endpoints[parse_language(name) if has_others else Language.parse(name)] = parsed
    return endpoints


def check_token(value: Any) -> str:
    """Raise ConfigurationError if a bearer token cannot be sent. The error does not contain it."""
    # HTTP removes spaces at the ends of a header. aiohttp refuses the other characters at the first request, with an
    # error that may contain the token.
    if not value or not _is_printable(value) or value != value.strip():
        raise ConfigurationError("a token must be printable ASCII, not empty, and without spaces at its ends")
    return str(value)


def token(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is not None:
        check_token(value)


def headers(value: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"headers must map names to values, got {safe_repr(value)}")
    for name, text in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ConfigurationError(
                f"headers must not contain {safe_repr(name)}: the name is invalid, or the client sets it itself"
            )
        if not _is_printable(text):
            raise ConfigurationError(f"headers[{name!r}] must be a str of printable ASCII characters")
    return dict(value)


def _is_printable(text: object) -> bool:
    return isinstance(text, str) and text.isascii() and text.isprintable()


def proxy(value: str | None) -> str | None:
    """Unlike the URL of a FaaS, the URL of a proxy may contain a user name and a password."""
    if value is None:
        return None
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        parts = urlsplit(value)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.geturl()
    raise ConfigurationError("proxy must be an http or https URL such as http://proxy:3128")


def http_session(instance: object, attribute: "attrs.Attribute[Any]", value: Any) -> None:
    if value is not None:
        import aiohttp  # not at the top, because loading the settings must not load aiohttp

        if not isinstance(value, aiohttp.ClientSession):
            raise ConfigurationError(f"http_session must be an aiohttp.ClientSession, got {safe_repr(value)}")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
