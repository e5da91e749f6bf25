"""Sessions, as the client sees them: `Session` for callers, and `SessionHost`, which ends the sessions of a runtime
when it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, Unpack

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt._endpoint_urls import split_endpoint
from faasrt._run_option_checks import check_sandbox, check_timeout_ms, is_number
from faasrt._shielded_wait import wait_shielded
from faasrt.client.executor import Executor
from faasrt.client.streaming import StreamedRun
from faasrt.config import SandboxConfig
from faasrt.errors import (
    ConnectError,
    FaasrtError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    RejectedError,
    RuntimeClosedError,
    ServiceError,
    SessionLostError,
    safe_repr,
)
from faasrt.inputs import NO_INPUT, ProgramInput, check_patterns, files_to_wire
from faasrt.languages import Language, OtherLanguage
from faasrt.protocol.answer import max_answer_bytes, read_files, read_sizes
from faasrt.protocol.program import Program, encode_json
from faasrt.protocol.sessions import (
    IDLE_TIMEOUT_S,
    SessionInfo,
    SessionOpening,
    SessionRun,
    check_answer,
    decode_info,
    new_id,
    session_path,
)
from faasrt.results import ExecutionResult
from faasrt.tasks import Priority, SessionRunOptions, check_options
from faasrt.transport.endpoint_registry import EndpointRegistry
from faasrt.transport.exchange import BodyTooLargeError, RequestBody
from faasrt.transport.lifecycle import run_for_each
from faasrt.transport.live_reader import LiveReader
from faasrt.transport.requests import ControlRequest

_MAX_IDLE_S = 86_400.0
DESCRIPTION_BYTES = 65_536
"""The size of the largest answer about a session."""
_MOST_ASKED = 64


@attrs.frozen
class SessionOptions:
    sandbox: SandboxConfig | None
    input: ProgramInput
    idle_timeout_s: float

    @classmethod
    def checked(
        cls, *, sandbox: object = None, files: object = None, idle_timeout_s: object = IDLE_TIMEOUT_S
    ) -> SessionOptions:
        program_input = NO_INPUT if files is None else ProgramInput.checked(None, files=files)
        return cls(check_sandbox(sandbox), program_input, _check_idle_timeout(idle_timeout_s))


def _check_idle_timeout(value: object) -> float:
    if not is_number(value) or not 0 < value <= _MAX_IDLE_S:
        raise InvalidRequestError(
            f"idle_timeout_s must be a number above 0 and at most {_MAX_IDLE_S:g}, got {safe_repr(value)}"
        )
    return float(value)


@attrs.frozen(eq=False)
class _RemoteSession:
    """A session that a server has. The transport of the executor sends every call to this server."""

    info: SessionInfo
    executor: Executor

    @property
    def url(self) -> str:
        return self.executor.transport.registry.http.address(self.endpoint)

    @property
    def endpoint(self) -> str:
        return self.executor.transport.pinned_url

    @property
    def max_files_bytes(self) -> int:
        return max_answer_bytes(self.info.sandbox.max_output_bytes, collects=True)

    async def run(self, program: Program, live: LiveReader | None) -> ExecutionResult:
        return await self.executor.run(SessionRun(program=program, session_id=self.info.id), live)

    async def request(
        self,
        action: str,
        fields: Mapping[str, Any] | None = None,
        *,
        method: str = "POST",
        within_s: float | None = None,
        max_body_bytes: int = DESCRIPTION_BYTES,
        at_once: bool = False,
    ) -> dict[str, Any]:
        """Return the decoded answer. With `at_once`, do not wait for a permit."""
        transport = self.executor.transport
        limit_s = self.info.sandbox.timeout_limit_s + transport.settings.timeouts.grace_s
        request = ControlRequest(
            path=session_path(self.info.id, action),
            body=b"" if fields is None else encode_json(fields),
            read=check_answer,
            limit_s=limit_s if within_s is None else within_s,
            max_body_bytes=max_body_bytes,
            method=method,
            endpoint=self.endpoint if at_once else "",
        )
        return await transport.run(transport.call(self.executor.calls, self.info.language), request)


@attrs.define(eq=False)
class SessionHost:
    """Opens the sessions of a runtime, and ends those it has opened (`owned`) when the runtime is closed."""

    _executor: Executor
    owned: set[Session] = attrs.field(factory=set, init=False)

    async def open(self, language: Language | OtherLanguage, options: SessionOptions) -> _RemoteSession:
        sandbox = options.sandbox or self._executor.transport.settings.sandbox
        program = Program(
            language=language,
            code="",
            timeout_ms=check_timeout_ms(None, sandbox),
            sandbox=sandbox,
            priority="normal",
            ext={},
            input=options.input,
        )
        opening = SessionOpening(program=program, idle_timeout_s=options.idle_timeout_s)
        try:
            result = await self._executor.run(opening)
        except BaseException as error:
            if opening.endpoint and isinstance(language, Language):
                self.end_unanswered(error, SessionInfo(opening.session_id, language, sandbox), opening.endpoint)
            raise
        return self.remote(decode_info(result.metadata), result.endpoint)

    def end_unanswered(self, error: BaseException, info: SessionInfo, endpoint: str) -> None:
        """End a session, if the server may have opened it although this failed with an error. Do not wait for it."""
        is_refused = isinstance(error, (RejectedError, OverloadedError, SessionLostError))
        if getattr(error, "sent", "maybe") != "no" and not is_refused:
            session = self.attach(info, endpoint, owned=True)
            session._begin_end(session._known_remote)

    def remote(self, info: SessionInfo, endpoint: str) -> _RemoteSession:
        transport = self._executor.transport.pinned(info.language, endpoint)
        return _RemoteSession(info, attrs.evolve(self._executor, transport=transport))

    def attach(self, info: SessionInfo, endpoint: str, *, owned: bool) -> Session:
        session = Session(info.language, SessionOptions.checked(), self._itself)
        session._attach(self, self.remote(info, endpoint), owned=owned)
        return session

    async def _itself(self) -> SessionHost:
        return self

    async def aclose(self) -> None:
        await run_for_each(Session.aclose, self.owned.copy())


@list_attributes
class Session:
    r"""An interpreter that keeps variables, imports and files between runs.

    `RuntimeManager.session` returns it. It is an asynchronous context manager: entering opens the session on a server,
    and leaving ends it. Any number of tasks may use a session. It does one thing at a time; the others wait in order.

    Example:
        >>> async with manager.session("python") as session:
        ...     result = await session.run_code("x = 41")
        ...     result = await session.run_code("x + 1")
        >>> result.displays[0].text
        '42'
    """

    def __init__(
        self,
        language: Language | OtherLanguage,
        options: SessionOptions,
        find_host: Callable[[], Awaitable[SessionHost]],
    ) -> None:
        self.language = language
        """The language of its programs."""
        self._options: SessionOptions | None = options
        self._find_host = find_host
        self._host: SessionHost | None = None
        self._remote: _RemoteSession | None = None
        self._turn = asyncio.Lock()  # first come, first served
        self._lost = ""
        self._closing: asyncio.Task[None] | None = None

    def _attach(self, host: SessionHost, remote: _RemoteSession, *, owned: bool) -> None:
        self._options = None
        self._host, self._remote = host, remote
        if owned:
            host.owned.add(self)

    @property
    def id(self) -> str:
        """The id of the session. With it, another process can use the session; see `RuntimeManager.resume_session`.

        It is a secret: a client of the same server that knows it can use the session, too.
        """
        return self._known_remote.info.id

    @property
    def endpoint(self) -> str:
        """The base URL of the server that has the session. Another process can use the session with this URL. Results,
        health and metrics name the embedded FaaS `http://local` instead.
        """
        return self._known_remote.url

    @property
    def lost_reason(self) -> str:
        """Why the session has ended, other than by `aclose`; "" while it is open, as far as this client knows."""
        return self._lost

    async def run_code(
        self,
        code: str,
        *,
        timeout_ms: float | None = None,
        ext: Mapping[str, str] | None = None,
        sandbox: SandboxConfig | None = None,
        priority: Priority = "normal",
        stdin: str | bytes = "",
    ) -> ExecutionResult:
        r"""Run a program in the session, at most once, and return the result.

        It sees the variables, imports and files of the programs before it. `result.displays` has the value of its last
        expression, open figures of matplotlib, and the arguments of `display`, a function that it can call.

        At its time limit, the program is interrupted (KeyboardInterrupt in Python), and the outcome is TIMEOUT. If it
        does not end within a second, the session ends. The session also ends if the program crashes, or exceeds the
        memory limit other than by a single allocation, which is a MemoryError. Then `lost_reason` has the reason, and
        later calls raise `SessionLostError`.

        Args:
            code: The program; not empty.
            timeout_ms: The time limit of the program in milliseconds, above 0 and at most the limit of `sandbox`. The
                time for which it waits for its turn does not count. Default: None, which means the time limit of
                `sandbox`.
            ext: Further fields for the server. Default: None, no fields.
            sandbox: The limits of time and output of this program. Its memory limit is not used, because the memory
                limit of the session applies. Default: None, which means the limits of the session.
            priority: See `Runtime.run_code`. Default: "normal".
            stdin: The standard input of this program; a str is sent as UTF-8. Default: "", an empty input.

        Returns:
            The result. A program that fails is an outcome, not an exception.

        Raises:
            InvalidRequestError: An argument is wrong, or the session is not open yet; nothing was sent.
            SessionLostError: The session has ended, or its server cannot be reached. The program did not run, or was
                ended with the session.
            RuntimeClosedError: The session, its runtime or its manager was closed.
            ServiceError: The infrastructure failed in another way. `sent` says whether the program may have run.

        Cancellation: interrupts the program, and returns the permit. The session stays, if the program ends within a
            second.

        Example:
            >>> async with manager.session("python") as session:
            ...     result = await session.run_code("words = input().split()", stdin="a b")
            ...     result = await session.run_code("print(words); len(words)")
            >>> result.stdout, result.displays[0].text
            ("['a', 'b']\n", '2')
        """
        program = self._program(code, timeout_ms=timeout_ms, ext=ext, sandbox=sandbox, priority=priority, stdin=stdin)
        return await self._run(program)

    def stream_code(self, code: str, **options: Unpack[SessionRunOptions]) -> StreamedRun:
        """Run a program in the session, at most once, and yield its output while it runs.

        Args:
            code: The program; not empty.
            **options: The other arguments of `run_code`.

        Returns:
            See `Runtime.stream_code`. Leaving its block early interrupts the program.

        Raises:
            FaasrtError: See `run_code`. Wrong arguments are refused at once.

        Example:
            >>> async with manager.session("python") as session:
            ...     async with session.stream_code("for n in range(3): print(n)") as run:
            ...         print("".join([chunk.text async for chunk in run]).split())
            ['0', '1', '2']
        """
        check_options("stream_code", options, SessionRunOptions)
        return StreamedRun(functools.partial(self._run, self._program(code, **options)))

    async def fork(self, *, idle_timeout_s: float | None = None) -> Session:
        """Return a new session with the same variables and files. From then on, the two are separate.

        It is open. Use it in an `async with` statement, or call its `aclose`; closing the manager also ends it.

        Args:
            idle_timeout_s: See `RuntimeManager.session`. Default: None, which means the time of this session.

        Raises:
            RejectedError: The session cannot be forked, now or ever; `details` says why. It is as before.
            OverloadedError: The server has too many sessions, even after retries.
            FaasrtError: See `run_code`.

        Cancellation: ends the new session.

        Example:
            >>> async with manager.session("python") as session:
            ...     result = await session.run_code("numbers = [1]")
            ...     async with await session.fork() as branch:
            ...         print((await branch.run_code("numbers.append(2); numbers")).displays[0].text)
            ...     print((await session.run_code("numbers")).displays[0].text)
            [1, 2]
            [1]
        """
        fields = {} if idle_timeout_s is None else {"idle_timeout_s": _check_idle_timeout(idle_timeout_s)}
        async with self._using() as remote:
            assert self._host is not None
            info = attrs.evolve(remote.info, id=new_id())
            try:
                info = decode_info(await remote.request("fork", {**fields, "id": info.id}))
            except BaseException as error:
                self._host.end_unanswered(error, info, remote.endpoint)
                raise
            return self._host.attach(info, remote.endpoint, owned=True)

    async def write_files(self, files: Mapping[str, str | bytes]) -> None:
        """Write files into the working folder. Folders are created, and existing files replaced.

        Args:
            files: The contents by relative path; see `Runtime.run_code`.

        Raises:
            InvalidRequestError: `files` is wrong; nothing was sent.
            RejectedError: A file cannot be written; `details` says why.
            FaasrtError: See `run_code`.

        Example:
            >>> async with manager.session("python") as session:
            ...     await session.write_files({"data/a.txt": "hi"})
            ...     (await session.run_code("open('data/a.txt').read()")).displays[0].text
            "'hi'"
        """
        checked = ProgramInput.checked(None, files=files).files
        async with self._using() as remote:
            await remote.request("files", {"files": files_to_wire(checked)}, method="PUT")

    async def read_files(self, patterns: Sequence[str]) -> dict[str, bytes]:
        """Return the contents of files in the working folder by path.

        Args:
            patterns: Which files; see `collect` of `Runtime.run_code`.

        Raises:
            InvalidRequestError: `patterns` is wrong; nothing was sent.
            RejectedError: The files do not fit into the `max_output_bytes` of the session, or cannot all be read.
            FaasrtError: See `run_code`.

        Example:
            >>> async with manager.session("python") as session:
            ...     result = await session.run_code("open('a.txt', 'w').write('hi')")
            ...     await session.read_files(["*.txt"])
            {'a.txt': b'hi'}
        """
        wanted = {"patterns": check_patterns(patterns, "patterns")}
        async with self._using() as remote:
            fields = await remote.request("files", wanted, max_body_bytes=remote.max_files_bytes)
            return read_files(fields.get("files"))

    async def list_files(self) -> dict[str, int]:
        """Return the size in bytes of each file in the working folder, by path.

        Files are left out if `read_files` cannot name them, such as a file whose name is not UTF-8.

        Raises:
            RejectedError: There are too many files: more than 10,000 files and folders, or their paths do not fit into
                the `max_output_bytes` of the session.
            FaasrtError: See `run_code`.

        Example:
            >>> async with manager.session("python", files={"data/a.txt": "hi"}) as session:
            ...     await session.list_files()
            {'data/a.txt': 2}
        """
        async with self._using() as remote:
            fields = await remote.request("files", method="GET", max_body_bytes=remote.max_files_bytes)
            return read_sizes(fields.get("sizes"))

    async def interrupt(self) -> bool:
        """Interrupt the program that runs, as if by Ctrl-C, and return whether there was one.

        The result of its `run_code` is USER_ERROR with KeyboardInterrupt, unless it catches that. In JavaScript, its
        evaluation ends.

        Raises:
            FaasrtError: See `run_code`.

        Example:
            >>> async with manager.session("python") as session:
            ...     await session.interrupt()
            False
        """
        async with self._using(in_order=False) as remote:
            fields = await remote.request("interrupt", {}, at_once=True)
            return fields.get("interrupted") is True

    async def aclose(self) -> None:
        """End the session on the server, and the program that runs in it. Closing twice is harmless.

        It waits for at most `TimeoutSettings.health_s`, and raises no error if the server does not answer: then the
        server ends the session when it has been idle for too long.

        Cancellation: the session is still ended; the wait for it is not shortened.
        """
        remote = self._remote
        if remote is None or (self._closing is None and remote.executor.calls.released):
            return  # it was never opened, or only resumed, and its runtime was closed
        await wait_shielded(self._begin_end(remote))

    def _begin_end(self, remote: _RemoteSession) -> asyncio.Task[None]:
        if self._closing is None:
            remote.executor.transport.registry.loop.check()
            # A task, so that a cancellation does not leave the session on the server.
            self._closing = asyncio.create_task(self._end(remote), name="faasrt-session-end")
        return self._closing

    async def __aenter__(self) -> Self:
        if self._remote is None:
            options, self._options = self._options, None  # they hold the contents of files
            if options is None:
                raise InvalidRequestError("a session can be opened only once: call `session` again")
            host = await self._find_host()
            self._attach(host, await host.open(self.language, options), owned=True)
        self._open_remote()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if self._remote is None:
            return f"<Session {self.language} (not open)>"
        state = " (closed)" if self._closing is not None else " (lost)" if self._lost else ""
        return f"<Session {self.language} at {self.endpoint}{state}>"

    @property
    def _known_remote(self) -> _RemoteSession:
        if self._remote is None:
            raise InvalidRequestError(
                "the session is not open: enter it with `async with`, or with `with` in `faasrt.sync`"
            )
        return self._remote

    def _open_remote(self) -> _RemoteSession:
        remote = self._known_remote
        if self._closing is not None:
            raise RuntimeClosedError("this session was closed: open another")
        if self._lost:
            raise SessionLostError("the session is lost", quote=self._lost, endpoint=remote.endpoint, sent="no")
        remote.executor.calls.check_open()
        return remote

    def _program(self, code: str, **options: Unpack[SessionRunOptions]) -> Program:
        own = self._open_remote().info.sandbox
        program = Program.checked(self.language, code, own, displays=True, **options)
        program.sandbox = attrs.evolve(program.sandbox, memory_limit_mb=own.memory_limit_mb)
        return program

    async def _run(self, program: Program, live: LiveReader | None = None) -> ExecutionResult:
        async with self._using() as remote:
            result = await remote.run(program, live)
        session = result.metadata.get("session")
        if isinstance(session, dict) and session.get("ended"):
            self._lost = str(session["ended"])[:1000]
        return result

    @contextlib.asynccontextmanager
    async def _using(self, *, in_order: bool = True) -> AsyncIterator[_RemoteSession]:
        """Use the session in the block, after waiting for the turn of the caller if `in_order`."""
        with self._known_remote.executor.calls.track():
            async with self._turn if in_order else contextlib.nullcontext():
                remote = self._open_remote()
                try:
                    yield remote
                except ConnectError as error:
                    raise SessionLostError(
                        "the server of the session cannot be reached",
                        quote=error.message,
                        endpoint=error.endpoint,
                        attempts=error.attempts,
                        elapsed_s=error.elapsed_s,
                        sent=error.sent,
                    ) from error
                except ServiceError as error:
                    error.endpoint = error.endpoint or remote.endpoint
                    if isinstance(error, SessionLostError):
                        if self._closing is not None:
                            raise RuntimeClosedError("this session was closed while the call was in flight") from error
                        self._lost = error.quote
                    raise

    async def _end(self, remote: _RemoteSession) -> None:
        within_s = remote.executor.transport.settings.timeouts.health_s
        with contextlib.suppress(FaasrtError):
            await remote.request("", method="DELETE", within_s=within_s, at_once=True)
        if self._host is not None:
            self._host.owned.discard(self)


async def find_session(registry: EndpointRegistry, session_id: str, endpoint: str | None) -> tuple[SessionInfo, str]:
    """Return a session that a server has, and the base URL of its endpoint. None as `endpoint` asks all endpoints.

    Raises:
        InvalidRequestError: The endpoint is not one of these, or none of them can have sessions.
        SessionLostError: No server has the session, and all have answered.
        ServiceError: No server has the session, and one could not be asked.
    """
    replicas = [url for url in await registry.all_replicas() if not split_endpoint(url)[0]]
    if endpoint is not None:
        wanted = str(endpoint).rstrip("/")
        replicas = [url for url in replicas if wanted in (url, registry.http.address(url))]
    if not replicas:
        which = "no endpoint of this manager can have sessions"
        if endpoint is not None:
            which = f"endpoint must be the URL of one of this manager, got {safe_repr(endpoint)}"
        raise InvalidRequestError(which)
    room = asyncio.Semaphore(_MOST_ASKED)

    async def ask(url: str) -> SessionInfo | ServiceError:
        async with room:
            try:
                answer = await registry.http.send(
                    url,
                    session_path(session_id),
                    RequestBody(b""),
                    within_s=registry.settings.timeouts.health_s,
                    max_body_bytes=DESCRIPTION_BYTES,
                    method="GET",
                )
                return decode_info(check_answer(answer))
            except BodyTooLargeError:
                failure: ServiceError = ProtocolError("the answer is too large", sent="yes")
            except ServiceError as error:
                failure = error
            failure.endpoint, failure.attempts = url, 1
            return failure

    failures = []
    for url, answer in zip(replicas, await run_for_each(ask, replicas), strict=True):
        if isinstance(answer, SessionInfo):
            return answer, url
        failures.append(answer)
    for failure in failures:
        if not isinstance(failure, SessionLostError):
            raise failure
    raise SessionLostError(
        f"no endpoint has the session ({len(replicas)} asked)",
        quote="; ".join(dict.fromkeys(error.message for error in failures))[:1000],
        endpoint=replicas[0] if len(replicas) == 1 else "",
        attempts=1,
        sent="no",
    )
