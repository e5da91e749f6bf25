"""The routes of sessions. `sessions` keeps the sessions themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from aiohttp import web

from faasrt.config import SandboxConfig
from faasrt.inputs import files_to_wire
from faasrt.languages import Language
from faasrt.local.engines.session import EngineSessionOptions, UnreadFilesError
from faasrt.local.http.access_log import note_program
from faasrt.local.http.admission import AdmissionQueue
from faasrt.local.http.body_memory import Share
from faasrt.local.http.request_body import (
    BadRequestError,
    parse_files,
    parse_idle_timeout,
    parse_language,
    parse_patterns,
    parse_session,
    parse_session_id,
    parse_session_job,
    read_fields,
)
from faasrt.local.http.responses import Handler, json_response
from faasrt.local.http.run_answers import RunAnswers
from faasrt.local.http.sessions import OpenSession, Sessions

_PREFIX = "/sessions/"


class SessionRoutes:
    """Answers the requests for sessions, which outlive this object. In `routes`, `{id}` stands for the id."""

    def __init__(
        self,
        queues: Mapping[Language, AdmissionQueue],
        missing: Mapping[Language, str],
        sessions: Sessions,
        runs: RunAnswers,
    ) -> None:
        self._queues, self._missing, self._sessions, self._runs = queues, missing, sessions, runs
        self.routes: dict[str, dict[str, Handler]] = {
            "/sessions": {"POST": self._open},
            "/sessions/{id}": {"GET": self._show, "DELETE": self._close},
            "/sessions/{id}/run": {"POST": self._run},
            "/sessions/{id}/interrupt": {"POST": self._interrupt},
            "/sessions/{id}/fork": {"POST": self._fork},
            "/sessions/{id}/files": {"GET": self._list_files, "POST": self._read_files, "PUT": self._write_files},
        }

    async def _open(self, request: web.BaseRequest, share: Share) -> web.Response:
        fields = await read_fields(request, share)
        language = parse_language(fields, tuple(self._queues), self._missing)
        note_program(request, language=language.value)
        queue = self._queues[language]
        if not self._sessions.features(queue.engine):
            raise BadRequestError(f"this server has no sessions for {language}")
        options = parse_session(fields, language, queue.engine, self._runs.limits)
        idle_timeout_s, new_id = parse_idle_timeout(fields), parse_session_id(fields)
        await queue.enter()
        try:
            session = await self._sessions.open(queue, options, _sandbox_of(options), idle_timeout_s, new_id)
        finally:
            queue.leave()
        return json_response(201, _describe(session))

    async def _show(self, request: web.BaseRequest, share: Share) -> web.Response:
        session = self._find(request)
        state = {"runs": session.runs, "idle_s": session.idle_s, "busy": session.busy}
        return json_response(200, _describe(session) | state)

    async def _close(self, request: web.BaseRequest, share: Share) -> web.Response:
        await self._sessions.close(session_id(request))
        return json_response(200, {})

    async def _run(self, request: web.BaseRequest, share: Share) -> web.StreamResponse:
        fields = await read_fields(request, share)
        session = self._find(request)
        job = parse_session_job(fields, session.engine_session.options, session.queue.engine, session.sandbox)
        if not job.code.strip():
            raise BadRequestError("'code' must not be empty")
        return await self._runs.answer(request, share, job, session.queue, session)

    async def _interrupt(self, request: web.BaseRequest, share: Share) -> web.Response:
        await read_fields(request, share)
        return json_response(200, {"interrupted": self._find(request).interrupt()})

    async def _fork(self, request: web.BaseRequest, share: Share) -> web.Response:
        fields = await read_fields(request, share)
        idle_timeout_s, new_id = parse_idle_timeout(fields), parse_session_id(fields)
        session = self._find(request)
        async with session.turn() as waited_s:
            await session.queue.enter(waited_s=waited_s)
            try:
                branch = await self._sessions.fork(session, idle_timeout_s, new_id)
            finally:
                session.queue.leave()
        return json_response(201, _describe(branch))

    async def _read_files(self, request: web.BaseRequest, share: Share) -> web.Response:
        patterns = parse_patterns(await read_fields(request, share))
        session = self._find(request)
        async with session.turn():
            files, complete = await session.engine_session.read_files(patterns, session.sandbox.max_output_bytes)
        if not complete:
            limit = session.sandbox.max_output_bytes
            raise UnreadFilesError(f"some cannot be read, or all are more than {limit} bytes together: name fewer")
        return json_response(200, {"files": files_to_wire(files)})

    async def _list_files(self, request: web.BaseRequest, share: Share) -> web.Response:
        session = self._find(request)
        async with session.turn():
            sizes, complete = await session.engine_session.list_files(session.sandbox.max_output_bytes)
        if not complete:
            raise UnreadFilesError("there are too many to list")
        return json_response(200, {"sizes": sizes})

    async def _write_files(self, request: web.BaseRequest, share: Share) -> web.Response:
        fields = await read_fields(request, share)
        session = self._find(request)
        files = parse_files(fields, session.queue.engine)
        async with session.turn():
            await session.engine_session.write_files(files)
        return json_response(200, {})

    def _find(self, request: web.BaseRequest) -> OpenSession:
        return self._sessions.get(session_id(request))


def template_of(path: str) -> str:
    if not path.startswith(_PREFIX):
        return ""
    _, slash, rest = path.removeprefix(_PREFIX).partition("/")
    return f"/sessions/{{id}}{slash}{rest}"


def session_id(request: web.BaseRequest) -> str:
    return request.raw_path.partition("?")[0].removeprefix(_PREFIX).partition("/")[0]


def _sandbox_of(options: EngineSessionOptions) -> SandboxConfig:
    """Return the limits of a session. The limits of its programs are not higher."""
    limits = options.limits
    return SandboxConfig(
        memory_limit_mb=limits.memory_limit_mb,
        timeout_limit_s=limits.timeout_ms / 1000,
        max_output_bytes=limits.max_output_bytes,
    )


def _describe(session: OpenSession) -> dict[str, Any]:
    engine = session.queue.engine
    return {
        "id": session.id,
        "language": session.engine_session.options.language,
        "runtime": engine.runtime,
        "engine": engine.name,
        "idle_timeout_s": session.idle_timeout_s,
        "features": list(engine.session_features),
        "limits": attrs.asdict(session.sandbox),
    }
