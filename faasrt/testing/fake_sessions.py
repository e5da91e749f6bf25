from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt.config import SandboxConfig
from faasrt.inputs import ProgramInput, check_patterns, files_to_wire
from faasrt.languages import Language
from faasrt.protocol.guest.python_files import PathMatcher
from faasrt.protocol.sessions import IDLE_TIMEOUT_S, check_new_id, new_id

_FEATURES = ("run", "fork", "files")


@attrs.define(eq=False)
class FakeSession:
    """An open session of a `FakeFaaS`. It has files, but no variables, because programs do not run. Its idle limit
    never passes.
    """

    language: str
    limits: SandboxConfig
    idle_timeout_s: float
    files: dict[str, bytes]
    runs: int = 0
    turn: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False, repr=False)
    timeout: asyncio.Timeout | None = attrs.field(default=None, init=False, repr=False)

    def interrupt(self) -> bool:
        if self.timeout is None or self.timeout.expired():
            return False
        self.timeout.reschedule(0)
        return True


class FakeSessions:
    """The sessions of a fake: the open sessions by id, and why the other ones have ended."""

    def __init__(self) -> None:
        self.open: dict[str, FakeSession] = {}
        self.ended: dict[str, str] = {}

    def end(self, session_id: str, reason: str) -> None:
        del self.open[session_id]
        self.ended[session_id] = reason

    def start(self, fields: Mapping[str, Any]) -> web.Response:
        language = Language.parse(str(fields.get("language")))
        if not language.has_return_val:
            raise ValueError(f"this server has no sessions for {language}")
        session = FakeSession(
            str(fields["language"]),
            _limits_of(fields),
            _idle_timeout_of(fields, IDLE_TIMEOUT_S),
            _files_of(fields),
        )
        return self._add(session, fields)

    def answer(self, method: str, session_id: str, action: str, fields: Mapping[str, Any]) -> web.Response:
        session = self.open.get(session_id)
        match method, action:
            case "DELETE", "" if session is not None or session_id in self.ended:
                if session is not None:
                    self.end(session_id, "the session was closed")
                return web.json_response({})
            case _ if session is None:
                return self.lost(session_id)
            case "GET", "":
                busy = session.turn.locked()
                return web.json_response(
                    _describe(session_id, session) | {"runs": session.runs, "idle_s": 0.0, "busy": busy}
                )
            case "POST", "interrupt":
                return web.json_response({"interrupted": session.interrupt()})
            case "POST", "fork":
                idle_timeout_s = _idle_timeout_of(fields, session.idle_timeout_s)
                branch = FakeSession(session.language, session.limits, idle_timeout_s, dict(session.files))
                return self._add(branch, fields)
            case "PUT", "files":
                session.files |= _files_of(fields)
                return web.json_response({})
            case "GET", "files":
                return web.json_response({"sizes": {path: len(data) for path, data in session.files.items()}})
            case "POST", "files":
                files = _matching(session.files, check_patterns(fields.get("patterns"), "patterns"))
                return web.json_response({"files": files_to_wire(files)})
        return web.json_response({"error": "Not Found"}, status=404)

    def lost(self, session_id: str) -> web.Response:
        details = self.ended.get(session_id, "there is no session with this id")
        return web.json_response({"error": "session lost", "details": details}, status=404)

    def _add(self, session: FakeSession, fields: Mapping[str, Any]) -> web.Response:
        session_id = new_id() if fields.get("id") is None else check_new_id(fields["id"])
        if session_id in self.open or session_id in self.ended:
            return web.json_response({"error": "session exists", "details": "the id is not new"}, status=409)
        self.open[session_id] = session
        return web.json_response(_describe(session_id, session), status=201)


def check_run(session: FakeSession, fields: Mapping[str, Any]) -> None:
    """Raise ValueError if `faasrt serve` would not run the program of a request in a session."""
    if not isinstance(fields.get("code"), str) or not fields["code"].strip():
        raise ValueError("'code' must be a string, and not empty")
    for name in ("argv", "files", "collect"):
        if fields.get(name):
            raise ValueError(f"'{name}' cannot be used in a session: write and read its files instead")
    least_mb = session.limits.memory_limit_mb
    if "memory_limit_mb" in (fields.get("sandbox") or {}) and _limits_of(fields).memory_limit_mb < least_mb:
        raise ValueError(f"'memory_limit_mb' cannot be lower than that of the session, {least_mb}")


def _limits_of(fields: Mapping[str, Any]) -> SandboxConfig:
    limits = {name: value for name, value in (fields.get("sandbox") or {}).items() if value is not None}
    if "timeout_ms" in limits:
        limits["timeout_limit_s"] = limits.pop("timeout_ms") / 1000
    if limits.get("network_enabled"):
        raise ValueError("'network_enabled' must be false: no sandbox of this server has a network")
    return SandboxConfig(**limits)


def _files_of(fields: Mapping[str, Any]) -> dict[str, bytes]:
    return dict(ProgramInput.from_wire({"files": fields.get("files")}, None).files)


def _idle_timeout_of(fields: Mapping[str, Any], default: float) -> float:
    value = fields.get("idle_timeout_s")
    if value is None:
        return default
    if isinstance(value, bool) or not value > 0:
        raise ValueError("'idle_timeout_s' must be a finite number above 0")
    return float(value)


def _describe(session_id: str, session: FakeSession) -> dict[str, Any]:
    return {
        "id": session_id,
        "language": session.language,
        "runtime": "fake",
        "engine": "fake",
        "idle_timeout_s": session.idle_timeout_s,
        "features": list(_FEATURES),
        "limits": attrs.asdict(session.limits),
    }


def _matching(files: Mapping[str, bytes], patterns: tuple[str, ...]) -> dict[str, bytes]:
    matcher = PathMatcher(patterns)
    matching = {}
    for path, content in files.items():
        remaining = matcher.start
        for name in path.split("/"):
            remaining = matcher.after(remaining, name)
        if () in remaining:
            matching[path] = content
    return matching
