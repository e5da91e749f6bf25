"""Programs of sessions have the same results in the Python engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from faasrt import Language
from faasrt.local.engines.engine import Engine
from faasrt.local.engines.session import EngineSession, EngineSessionOptions
from support.engines import native_engine, wasm_engine
from support.session_programs import HOSTILE, LIMITS, PROGRAMS
from support.tables import chosen

ALL = {**PROGRAMS, **HOSTILE}
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("wasm_sandbox")]


@pytest_asyncio.fixture(
    params=["native", pytest.param("wasm", marks=pytest.mark.tables)], scope="module", loop_scope="module"
)
async def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    start = native_engine if request.param == "native" else wasm_engine
    async with start(Path(tmp_path_factory.mktemp("sessions"))) as engine:
        if not engine.session_features:
            pytest.skip("the engine has no sessions")
        yield engine


@pytest_asyncio.fixture(loop_scope="module")
async def session(engine: Engine) -> AsyncIterator[EngineSession]:
    session = await engine.open_session(EngineSessionOptions(language=Language.PYTHON, limits=LIMITS))
    try:
        yield session
    finally:
        await session.aclose()


@pytest.mark.parametrize("name", ALL)
async def test_each_program_has_its_result(session: EngineSession, name: str) -> None:
    """The programs run in one session, which goes on after each of them."""
    for cell in ALL[name]:
        await cell.check(session)
    assert not session.ended.is_set()


@pytest.mark.parametrize("engine", ["wasm"], indirect=True)
@pytest.mark.parametrize("name", sorted(chosen(ALL, 3)))
async def test_some_programs_have_the_same_result_in_webassembly(session: EngineSession, name: str) -> None:
    """All of them have it with `-m tables`."""
    await test_each_program_has_its_result(session, name)
