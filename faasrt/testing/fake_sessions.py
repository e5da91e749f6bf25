from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt.config import SandboxConfig
from faasrt.inputs import check_patterns, files_from_wire, files_to_wire
from faasrt.protocol.guest.python_files import PathMatcher
from faasrt.protocol.sessions import IDLE_TIMEOUT_S

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
    """The sessions of a fake: the open ones by id, and the reasons of those that have ended."""

    def __init__(self) -> None:
        self.open: dict[str, FakeSession] = {}
        self.ended: dict[str, str] = {}

    def end(self, session_id: str, reason: str) -> None:
        del self.open[session_id]
        self.ended[session_id] = reason

    def start(self, fields: Mapping[str, Any]) -> web.Response:
        sandbox = fields.get("sandbox") or {}
        limits = {name: sandbox[name] for name in ("memory_limit_mb", "max_output_bytes") if name in sandbox}
        if "timeout_ms" in sandbox:
            limits["timeout_limit_s"] = sandbox["timeout_ms"] / 1000
        return self._add(
            FakeSession(
                str(fields.get("language")),
                SandboxConfig(**limits),
                fields.get("idle_timeout_s") or IDLE_TIMEOUT_S,
                files_from_wire(fields.get("files") or {}),
            )
        )

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
                idle_timeout_s = fields.get("idle_timeout_s") or session.idle_timeout_s
                files = dict(session.files)
                return self._add(FakeSession(session.language, session.limits, idle_timeout_s, files))
            case "PUT", "files":
                session.files |= files_from_wire(fields.get("files") or {})
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

    def _add(self, session: FakeSession) -> web.Response:
        session_id = secrets.token_urlsafe(24)
        self.open[session_id] = session
        return web.json_response(_describe(session_id, session), status=201)


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
