"""Sessions for the code of a model: what they return is for the model, and a session that is lost is replaced.

`faasrt mcp` and the examples for frameworks of agents use it. `faasrt.sync.AgentSession` is the same without asyncio.
`faasrt/docs/agents.md` is the guide.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Self, Unpack

import attrs

from faasrt._attribute_docs import list_attributes
from faasrt.client.manager import RuntimeManager
from faasrt.client.session import Session
from faasrt.config import SandboxConfig
from faasrt.errors import (
    ConnectionLostError,
    InvalidRequestError,
    RejectedError,
    SessionLostError,
)
from faasrt.languages import LanguageOption
from faasrt.protocol.sessions import IDLE_TIMEOUT_S
from faasrt.protocol.streams import cut_text, replace_surrogates
from faasrt.results import Display, ExecutionResult
from faasrt.tasks import SessionRunOptions

__all__ = ["MAX_TEXT_BYTES", "AgentSession", "Observation", "describe"]

MAX_TEXT_BYTES = 40_000
"""The size in UTF-8 of the text for a model. Longer output is cut in the middle."""
# What hosts show to a model.
IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# The formats of a display that suit a model best, in this order. If there is none of these, it gets any other text.
_TEXTS = ("text/plain", "text/markdown")
_UNAUTHORIZED = (401, 403)
_LOST = "Its variables and files are lost. The next call begins anew."
_MAYBE_LOST = "The session may still be there: try again."
_BRANCH_LOST = (
    "It was a branch. The next call uses its original again, with the variables and files from before the branch."
)


@list_attributes
@attrs.frozen
class Observation:
    """The report to a model about a program.

    Example:
        >>> from faasrt.agents import AgentSession
        >>> async with AgentSession(manager) as session:
        ...     observation = await session.run_code("print('x'); 1 / 0")
        >>> observation.text.splitlines()[-1], observation.result.outcome
        ('USER_ERROR: ZeroDivisionError', <Outcome.USER_ERROR: 'USER_ERROR'>)
    """

    text: str
    """The output, the traceback, the outcome of a failure with its limit, and the values that were displayed."""
    images: tuple[tuple[str, bytes], ...] = attrs.field(default=(), repr=False)
    """The MIME type and the content of each image that was displayed, such as a figure."""
    result: ExecutionResult | None = None
    """The result of the program; None if it has none, because the session was lost, or the program is empty."""


def describe(result: ExecutionResult, note: str = "") -> Observation:
    r"""Return a result for a model.

    Args:
        result: The result of a program.
        note: A last line. Default: "", none.

    Example:
        >>> from faasrt.agents import describe
        >>> describe(await manager.run_code("print('a' * 100_000, 'end')", "python")).text[-4:]
        'end\n'
    """
    output = _output_of(result)
    room = left = max(MAX_TEXT_BYTES - _size(output), MAX_TEXT_BYTES // 2)
    shown: list[str] = []
    images: list[tuple[str, bytes]] = []
    omitted = ""
    for number, display in enumerate(result.displays):
        text, image = _describe_display(display)
        left -= _size(text)
        if left < 0 and number:
            omitted = f"({len(result.displays) - number} further displays were left out)"
            break
        shown.append(text)
        if image is not None:
            images.append(image)
    displayed = cut_text(join_lines(*shown), room)[0]
    output = cut_text(output, MAX_TEXT_BYTES - _size(displayed))[0]
    text = join_lines(output, displayed, omitted, note) or ("" if images else "(no output)")
    return Observation(replace_surrogates(text), tuple(images), result)


def _output_of(result: ExecutionResult) -> str:
    error = result.error
    if error is None or not error.traceback:
        failure = f"{result.outcome}: {error.message}" if error is not None else str(result.outcome)
        return join_lines(result.stdout, result.stderr, "" if result.ok else failure)
    traceback = "" if error.traceback.strip() in result.stderr else error.traceback
    hint = "" if error.message in error.traceback else f": {error.message}"
    return join_lines(result.stdout, result.stderr, traceback, f"{result.outcome}: {error.name}{hint}")


def _describe_display(display: Display) -> tuple[str, tuple[str, bytes] | None]:
    omitted = [f"({name} was left out, because it exceeds the output limit)" for name in display.omitted]
    for mime_type in IMAGES:
        if isinstance(image := display.data.get(mime_type), bytes):
            return "\n".join(omitted), (mime_type, image)
    texts = [display.data[name] for name in (*_TEXTS, *display.data) if isinstance(display.data.get(name), str)]
    return "\n".join([*map(str, texts[:1]), *omitted]), None


def join_lines(*texts: str) -> str:
    """Join texts, each in lines of its own."""
    joined = ""
    for text in filter(None, texts):
        joined += text if not joined or joined.endswith("\n") else f"\n{text}"
    return joined


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def refusal(error: InvalidRequestError | RejectedError) -> str:
    """Return why a call was refused, for the model. Raise the error again if the model cannot mend it."""
    if isinstance(error, RejectedError):
        if error.status in _UNAUTHORIZED:
            raise error
        return ": ".join(filter(None, (error.error, error.details))) or error.message
    return str(error)


@list_attributes
class AgentSession:
    r"""The session of an agent. It opens at the first call. When it is lost, the next call opens another one.

    It is an asynchronous context manager, which ends the session. Any number of tasks may use it.

    Args:
        manager: The manager, which other agents may use too.
        language: The language of the code. Default: "python".
        sandbox, files, idle_timeout_s: See `RuntimeManager.session`. Each session begins with the files.
        begin: An asynchronous function that is called with each new session. Default: None.

    Raises:
        InvalidRequestError: An argument is wrong.
        UnsupportedLanguageError: The language is unknown.

    Example:
        >>> from faasrt.agents import AgentSession
        >>> async with AgentSession(manager) as session:
        ...     for code in ("x = 41", "x + 1", "import os; os._exit(3)", "x"):
        ...         print((await session.run_code(code)).text.splitlines()[-1])
        (no output)
        42
        The session has ended: ... Its variables and files are lost. The next call begins anew.
        USER_ERROR: NameError
    """

    def __init__(
        self,
        manager: RuntimeManager,
        language: LanguageOption = "python",
        *,
        sandbox: SandboxConfig | None = None,
        files: Mapping[str, str | bytes] | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        begin: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        self._make = functools.partial(
            manager.session, language, sandbox=sandbox, files=files, idle_timeout_s=idle_timeout_s
        )
        self.language = self._make().language
        """The language of the code."""
        self._begin = begin
        self._sessions: list[Session] = []  # the last one is used; the others are those from which it was branched
        self._unreachable: Session | None = None
        self._lock = asyncio.Lock()  # so that two calls at once do not open two sessions

    @property
    def is_open(self) -> bool:
        """Whether a session is open, with the state of the calls before."""
        return bool(self._sessions)

    @property
    def branches(self) -> int:
        """The number of branches that are open, one in another."""
        return max(0, len(self._sessions) - 1)

    async def run_code(self, code: str, **options: Unpack[SessionRunOptions]) -> Observation:
        """Run a program in the session, at most once, and return what the model learns from it.

        The model also learns that the program is empty, or that the session is lost, and what that means for the next
        call. If the server of a session cannot be reached twice in a row, another session is opened.

        Args:
            code: The program.
            **options: The other arguments of `Session.run_code`.

        Raises:
            ServiceError: The infrastructure failed in a way that the model cannot mend: no session can be opened, for
                example.
            RuntimeClosedError: The manager was closed.

        Cancellation: interrupts the program. The session stays, if the program ends within a second.

        Example:
            >>> from faasrt.agents import AgentSession
            >>> async with AgentSession(manager) as session:
            ...     (await session.run_code(" ")).text
            'code must not be empty'
        """
        try:
            async with self.use() as session:
                try:
                    result = await session.run_code(code, **options)
                except (InvalidRequestError, RejectedError) as error:
                    return Observation(refusal(error))
                return describe(result, self.ending_of(session))
        except SessionLostError as error:
            return Observation(str(error))
        except ConnectionLostError as error:
            return Observation(f"{error.message}\nThe code may have run. {_MAYBE_LOST}")

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Session]:
        """Yield the session, and open one if there is none.

        Raises:
            SessionLostError: In the block, the session was lost, or could not be reached. The message is for a model.
            FaasrtError: See `RuntimeManager.session`.
        """
        await self.open()
        session = self._sessions[-1]
        try:
            yield session
            self._unreachable = None
        except SessionLostError as error:
            # A server that cannot be reached twice has probably ended: each call retries for a while.
            is_lost = bool(session.lost_reason) or self._unreachable is session
            self._unreachable = None if is_lost else session
            quote = f"{error.quote}\n{self._next_state(session) if is_lost else _MAYBE_LOST}"
            if is_lost:
                self._forget(session)
            raise SessionLostError(error.reason, quote=quote, sent=error.sent, status=error.status) from error
        finally:
            if session.lost_reason:
                self._forget(session)

    async def open(self) -> None:
        """Open a session if there is none.

        Raises:
            FaasrtError: See `RuntimeManager.session`.
        """
        async with self._lock:
            if not self._sessions:
                self._sessions.append(await self._new_session())

    def ending_of(self, session: Session) -> str:
        """Return how a session has ended in a run, for the model, and what the next call finds; "" if it is open."""
        if not session.lost_reason:
            return ""
        return f"The session has ended: {session.lost_reason}. {self._next_state(session)}"

    async def begin_branch(self) -> None:
        """Go on in a branch of the session, until `end_branch`. If the branch is lost, its original is used again.

        Raises:
            InvalidRequestError: Another call has begun or ended a branch meanwhile.
            FaasrtError: See `Session.fork`.

        Example:
            >>> from faasrt.agents import AgentSession
            >>> async with AgentSession(manager) as session:
            ...     observation = await session.run_code("x = 1")
            ...     await session.begin_branch()
            ...     observation = await session.run_code("x = 2")
            ...     await session.end_branch(keep=False)
            ...     print((await session.run_code("x")).text)
            1
        """
        async with self.use() as session:
            branch = await session.fork()
            if self._sessions[-1:] != [session]:
                await branch.aclose()
                raise InvalidRequestError("the session has changed meanwhile: try again")
            self._sessions.append(branch)

    async def end_branch(self, *, keep: bool) -> None:
        """End the branch that began last.

        Args:
            keep: Whether the variables and files of the branch replace the variables and files of its original.
                Otherwise, the original is used again.

        Raises:
            InvalidRequestError: There is no branch.
        """
        if not self.branches:
            raise InvalidRequestError("there is no branch to end")
        branch, original = self._sessions.pop(), self._sessions.pop()
        self._sessions.append(branch if keep else original)
        await (original if keep else branch).aclose()

    async def aclose(self) -> None:
        """End the session and its branches. The next call opens another one.

        Cancellation: sessions that have not ended yet stay open.
        """
        while self._sessions:
            await self._sessions.pop().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AgentSession {self.language}{'' if self.is_open else ' (not open)'}>"

    async def _new_session(self) -> Session:
        session = self._make()
        await session.__aenter__()
        try:
            if self._begin is not None:
                await self._begin(session)
        except BaseException:
            await session.aclose()
            raise
        return session

    def _next_state(self, lost: Session) -> str:
        return _BRANCH_LOST if self.branches and self._sessions[-1] is lost else _LOST

    def _forget(self, session: Session) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
