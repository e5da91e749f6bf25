"""`AgentSession`: what the model learns, and how a session that is lost is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from faasrt import (
    ConnectError,
    Display,
    ErrorInfo,
    ExecutionOutput,
    ExecutionResult,
    InvalidRequestError,
    Outcome,
    RejectedError,
    RetrySettings,
    RuntimeManager,
    Session,
    sync,
)
from faasrt.agents import MAX_TEXT_BYTES, AgentSession, describe
from faasrt.testing import FakeFaaS, FaultProxy, Reply

QUICK = RetrySettings(connect_retry_s=0)


@pytest.fixture
async def fake() -> AsyncIterator[FakeFaaS]:
    async with FakeFaaS() as fake:
        yield fake


async def texts(session: AgentSession, *programs: str) -> list[str]:
    return [(await session.run_code(program)).text for program in programs]


@pytest.mark.parametrize(
    ("stdout", "displays", "beginning", "end"),
    [
        ("a" * 100_000, [], "aaa", "USER_ERROR: the limit is 7"),
        ("a" * 100_000, ["b" * 100_000], "aaa", "bbb"),
        ("a", ["b" * 100_000], "a\nUSER_ERROR: the limit is 7\nbbb", "bbb"),
        ("a", ["b" * 1_000] * 100, "a\n", "b\n(61 further displays were left out)"),
        ("", [], "USER_ERROR", "the limit is 7"),
        ("\ud800", [], "?\n", "the limit is 7"),
    ],
)
def test_text_for_a_model_has_a_limit(stdout: str, displays: list[str], beginning: str, end: str) -> None:
    """Output and displays are cut in the middle, so that the outcome with the reason is kept."""
    result = ExecutionResult(
        Outcome.USER_ERROR,
        ExecutionOutput(stdout=stdout),
        error=ErrorInfo("Limit", "the limit is 7"),
        displays=tuple(Display({"text/plain": text}) for text in displays),
    )
    text = describe(result).text
    assert len(text) <= MAX_TEXT_BYTES + len("\n(61 further displays were left out)\n")
    assert (text[: len(beginning)], text[-len(end) :]) == (beginning, end)


def test_a_hint_that_is_not_in_the_traceback_is_shown() -> None:
    """The message of an error is, if the traceback lacks it. Images are apart from the text."""
    display = Display({"image/png": b"png", "text/plain": "<Figure>"})
    for message, end in (
        ("No module", "USER_ERROR: E"),
        ("No module (install it)", "USER_ERROR: E: No module (install it)"),
    ):
        error = ErrorInfo("E", message, traceback="Traceback\nE: No module")
        observation = describe(ExecutionResult(Outcome.USER_ERROR, error=error, displays=(display,)), "last")
        assert observation.text == f"Traceback\nE: No module\n{end}\nlast"
        assert observation.images == (("image/png", b"png"),)
    assert describe(ExecutionResult(Outcome.OK)).text == "(no output)"


async def test_a_lost_session_is_replaced(fake: FakeFaaS) -> None:
    """The model learns it, whether a run has ended the session or the server. `begin` is called with each session."""
    begun: list[Session] = []

    async def begin(session: Session) -> None:
        begun.append(session)
        await session.write_files({"a": "b"})

    async with RuntimeManager.from_url(fake.url) as manager, AgentSession(manager, begin=begin) as session:
        assert not session.is_open
        fake.script(Reply.ok("1"), Reply(stdout="2", session_ended="it crashed"), Reply.ok("3"), Reply.ok("4"))
        assert await texts(session, "1") == ["1"]
        assert session.is_open
        lost = "Its variables and files are lost. The next call begins anew."
        assert await texts(session, "2") == [f"2\nThe session has ended: it crashed. {lost}"]
        assert not session.is_open
        assert await texts(session, "3") == ["3"]
        fake.end_session(begun[1].id)
        [text] = await texts(session, "x")
        assert text == f"the session is lost: the session was idle for 600 s\n{lost}"
        assert await texts(session, "4") == ["4"]
        assert [*fake.sessions] == [begun[2].id]
        assert await texts(session, " ") == ["code must not be empty"]
        observation = await session.run_code("1", timeout_ms=10**6)
        assert "timeout_ms" in observation.text
        assert observation.result is None
        assert [*fake.sessions] == [begun[2].id]
    assert not fake.sessions


async def test_two_calls_at_once_share_a_session(fake: FakeFaaS) -> None:
    """Only one is opened."""
    async with RuntimeManager.from_url(fake.url) as manager, AgentSession(manager) as session:
        await asyncio.gather(*(session.run_code("1") for _ in range(5)))
        assert len(fake.sessions) == 1


async def test_a_server_that_cannot_be_reached_twice_is_given_up(fake: FakeFaaS) -> None:
    """The first time, the session may still be there. Failures that the model cannot mend are raised."""
    async with (
        FaultProxy(fake.url) as proxy,
        RuntimeManager.from_url(proxy.url, retry=QUICK) as manager,
        AgentSession(manager) as session,
    ):
        await texts(session, "1")
        for is_down in (True, False, True, True):
            if is_down:
                proxy.down()
            else:
                await proxy.up()
            while "the connection broke" in (text := (await session.run_code("1")).text):
                pass  # a connection was not closed yet
            assert ("cannot be reached" in text) is is_down
            assert "sent: " not in text
            assert session.is_open is ("variables and files are lost" not in text)
        assert not session.is_open
        with pytest.raises(ConnectError):
            await session.run_code("1")
        await proxy.up()
        assert await texts(session, "1") == ["(no output)"]
        assert len(fake.sessions) == 2


async def test_a_connection_that_breaks_is_a_text(fake: FakeFaaS) -> None:
    """The model learns that the code may have run. A wrong token is an error of the application."""
    async with RuntimeManager.from_url(fake.url, retry=QUICK) as manager, AgentSession(manager) as session:
        fake.script(Reply(disconnect=True), Reply.ok("1"), Reply(status=403, body=b"{}"), Reply.ok("1"))
        [broken, ok] = await texts(session, "1", "1")
        assert "The code may have run. The session may still be there: try again." in broken
        assert ok == "1"
        with pytest.raises(RejectedError):
            await session.run_code("1")


async def test_branches(fake: FakeFaaS) -> None:
    """They are kept or dropped, and one that is lost gives way to its original."""
    async with RuntimeManager.from_url(fake.url) as manager, AgentSession(manager) as session:
        with pytest.raises(InvalidRequestError, match="no branch"):
            await session.end_branch(keep=True)
        await session.begin_branch()
        await session.begin_branch()
        assert (session.branches, len(fake.sessions)) == (2, 3)
        [_, second, third] = fake.sessions
        fake.end_session(third)
        [text] = await texts(session, "1")
        assert "It was a branch. The next call uses its original again" in text
        assert session.branches == 1
        await session.end_branch(keep=True)
        assert [*fake.sessions] == [second]
        await session.begin_branch()
        await session.end_branch(keep=False)
        assert ([*fake.sessions], session.branches) == ([second], 0)
        results = await asyncio.gather(session.begin_branch(), session.begin_branch(), return_exceptions=True)
        assert [type(each) for each in results if each is not None] == [InvalidRequestError]
        assert (session.branches, len(fake.sessions)) == (1, 2)
    assert not fake.sessions


def test_without_asyncio() -> None:
    """`faasrt.sync.AgentSession` is the same."""
    with sync.RuntimeManager.local(["python"], workers=1) as manager, sync.AgentSession(manager) as session:
        programs: list[dict[str, Any]] = [
            {"code": "x = 1"},
            {"code": "input()", "stdin": "2"},
            {"code": "import os; os._exit(3)"},
        ]
        shown = [session.run_code(**program).text for program in programs]
        assert shown[:2] == ["(no output)", "'2'"]
        assert shown[2].endswith("The next call begins anew.")
        assert (session.is_open, session.branches) == (False, 0)
        assert "NameError" in session.run_code("x").text
        assert repr(session) == "<sync.AgentSession python>"
        session.close()
        assert not session.is_open
