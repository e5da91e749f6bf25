"""TLS failures that do not pass by themselves: the certificate of the server is not accepted, or it does not speak TLS.

Other failures of a handshake may pass. A proxy without certificate yet sends an alert, and a server that is full closes
the connection.
"""

from __future__ import annotations

import ssl

import aiohttp

from faasrt.errors import ConnectError

TRUST = "Settings(ssl=ssl.create_default_context(cafile=FILE))"
"""The setting that trusts a certificate or CA, in messages."""

_NOT_SIGNED_BY_KNOWN_CA = (
    "is signed by an unknown CA",
    f"the file of that CA can be given with {TRUST}; it replaces the CAs of the system",
)
# By the codes of OpenSSL: the problem, and what to do about it.
_PROBLEMS = {
    9: ("is not valid yet", "compare the clocks of both machines"),
    10: ("has expired", "the server needs a new one"),
    18: ("is self-signed", f"its file can be given with {TRUST}"),
    2: _NOT_SIGNED_BY_KNOWN_CA,
    19: _NOT_SIGNED_BY_KNOWN_CA,
    20: _NOT_SIGNED_BY_KNOWN_CA,
    21: _NOT_SIGNED_BY_KNOWN_CA,
    62: ("is for another name", "the URL needs a name that is in the certificate"),
    64: ("is for another name", "the URL needs a name or address that is in the certificate"),
}


def permanent_error(error: aiohttp.ClientConnectorError) -> ConnectError | None:
    """Return the error for a failure that does not pass by itself; None for any other failure."""
    # In aiohttp 3.11, the error of a certificate has no `os_error`.
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        problem, advice = _PROBLEMS.get(cause.verify_code, ("is not accepted", "see `ssl` of faasrt.Settings"))
        quote = f"{error.host}, {cause.verify_message.rstrip('.')}"
        reason = f"the certificate of the server {problem}"
        return ConnectError(reason, quote=quote, hint=advice, sent="no", permanent=True)
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        quote = f"{error.host} needs a URL that begins with http://"
        return ConnectError("the server does not speak TLS", quote=quote, sent="no", permanent=True)
    return None
