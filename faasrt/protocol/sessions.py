"""The requests and answers about sessions. Only the embedded FaaS has them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any

import attrs

from faasrt.config import SandboxConfig
from faasrt.errors import InvalidRequestError, OverloadedError, ProtocolError, SessionLostError
from faasrt.inputs import files_to_wire
from faasrt.languages import Language
from faasrt.protocol import cozeloop
from faasrt.protocol.answer import (
    Answer,
    ParsedAnswer,
    check_type,
    decode_object,
    raise_for_status,
    server_message,
)
from faasrt.protocol.execution import Execution, WireRequest, check_listed
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import encode_json
from faasrt.protocol.response import Response
from faasrt.results import Outcome

IDLE_TIMEOUT_S = 600.0
"""The idle limit of a session whose client names none, in seconds."""
TOO_MANY = "too many sessions"
"""The `error` of a server that has no room for another session, and runs programs as before."""
_ID, _MIN_NEW = re.compile(r"[A-Za-z0-9_-]{1,200}"), 32


def check_id(session_id: object) -> str:
    if not isinstance(session_id, str) or not _ID.fullmatch(session_id):
        raise InvalidRequestError("the id of a session must be a str of letters, digits, - and _")
    return session_id


def check_new_id(session_id: object) -> str:
    """Return an id that a client has chosen. Raise InvalidRequestError if it is too short to be a secret."""
    if len(check_id(session_id)) < _MIN_NEW:
        raise InvalidRequestError(f"the id of a session must have at least {_MIN_NEW} characters")
    return str(session_id)


def new_id() -> str:
    return secrets.token_urlsafe(24)


def session_path(session_id: str, action: str = "") -> str:
    return f"/sessions/{session_id}/{action}".rstrip("/")


@attrs.frozen
class SessionInfo:
    id: str
    language: Language
    sandbox: SandboxConfig


def decode_info(fields: Mapping[str, Any]) -> SessionInfo:
    limits = check_type(fields.get("limits"), "limits", dict)
    names = ("memory_limit_mb", "timeout_limit_s", "max_output_bytes")
    try:
        return SessionInfo(
            check_id(fields.get("id")),
            Language.parse(check_type(fields.get("language"), "language", str)),
            SandboxConfig(**{name: limits[name] for name in names if name in limits}),
        )
    except ValueError as error:
        raise ProtocolError("the answer does not describe a session", quote=str(error)[:200], sent="yes") from None


def check_answer(answer: Answer) -> dict[str, Any]:
    """Return the decoded body. Raise SessionLostError if the session has ended, or is not known there."""
    _check_lost(answer)
    _check_room(answer)
    return decode_object(answer.body)


def _check_room(answer: Answer) -> None:
    try:
        raise_for_status(answer)
    except OverloadedError as error:
        error.blames_endpoint = server_message(answer)[0] != TOO_MANY
        raise


def _check_lost(answer: Answer) -> None:
    if answer.status == 404:
        error, details = server_message(answer)
        quote = (details or error)[:1000] or "the server does not say why"
        raise SessionLostError("the session is lost", quote=quote, sent="yes", status=404)


@attrs.define
class _OpeningRequest(WireRequest):
    """`POST /sessions`. The session is the metadata of the result."""

    path: str = "/sessions"

    def read(self, answer: Answer | None) -> Response:
        if answer is None:
            raise ProtocolError("the answer is larger than the description of a session", sent="yes", status=200)
        _check_room(answer)
        fields = decode_object(answer.body)
        decode_info(fields)  # raises an error of the call
        return Response(ParsedAnswer(Outcome.OK, metadata=fields, declared=True), self)


@attrs.define
class _RunRequest(WireRequest):
    """`POST /sessions/{id}/run`."""

    path: str = attrs.field(kw_only=True)

    def read(self, answer: Answer | None) -> Response:
        if answer is not None:
            _check_lost(answer)
        return super().read(answer)


@attrs.define(kw_only=True)
class SessionOpening(Execution):
    """The opening of a session. `program` has its language, its limits and, as input, its files.

    Attributes:
        session_id: Chosen by the client, so that it can end the session if the answer is lost.
        endpoint: The one to which it was sent last; "" before.
    """

    idle_timeout_s: float
    session_id: str = attrs.field(factory=new_id)
    endpoint: str = ""

    def request(
        self, profile: EndpointProfile, timeout_ms: int, endpoint: str, protocol: ServiceProtocol = cozeloop.PROTOCOL
    ) -> WireRequest:
        program = self.program
        features = profile.sessions.get(program.language, frozenset())
        lacks = "run" not in features or (program.input.files and "files" not in features)
        if lacks and profile.answered:  # otherwise the server may be down, which sending the request shows
            check_listed(program.language, profile, endpoint)
            server = f" ({profile.version})" if profile.version else ""
            missing = "files in sessions of" if features else "sessions for"
            raise InvalidRequestError(
                f"{endpoint}{server} has no {missing} {program.language}; faasrt/docs/sessions.md names those that have"
            )
        self.endpoint = endpoint
        body = {
            "id": self.session_id,
            "language": str(program.language),
            "sandbox": program.to_wire()["sandbox"],
            "files": files_to_wire(program.input.files),
            "idle_timeout_s": self.idle_timeout_s,
        }
        return _OpeningRequest(encode_json(body), program, timeout_ms, profile)


@attrs.define(kw_only=True)
class SessionRun(Execution):
    session_id: str

    def request(
        self, profile: EndpointProfile, timeout_ms: int, endpoint: str, protocol: ServiceProtocol = cozeloop.PROTOCOL
    ) -> WireRequest:
        program = attrs.evolve(self.program, timeout_ms=timeout_ms)
        fields = program.to_wire()
        del fields["language"], fields["displays"]
        path = session_path(self.session_id, "run")
        return _RunRequest(encode_json(fields), program, timeout_ms, profile, path=path)
