"""Programs that cheat get no reward: from tests of functions, and from test programs with asserts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio

from faasrt import AssertTest, RuntimeManager, ServerError
from support.cheats import (
    ASSERT_TESTS,
    ASSERTS,
    CHEATS,
    FUNCTION_TESTS,
    IN_JAILS,
    JS_CHEATS,
    JS_IN_JAILS,
    RIGHT,
    RIGHT_JS,
    WEAK,
)
from support.documents import text_of
from support.doubles import doubles
from support.levels import NATIVE

pytestmark = pytest.mark.asyncio(loop_scope="session")
LIMIT_MS = 1_500
RIGHT_LIMIT_MS = 9_000  # services get more time, for all tests of an execution, and have a limit of 30 s
KINDS = {"function tests": FUNCTION_TESTS, "asserts": ASSERT_TESTS}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def references() -> AsyncIterator[RuntimeManager]:
    """Yield a manager with the doubles of python-faas and js-faas."""
    async with doubles() as (manager, _, _):
        yield manager


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(local: RuntimeManager) -> AsyncIterator[dict[str, RuntimeManager]]:
    """Yield managers that use the embedded FaaS as if it were SandboxFusion or Piston."""
    assert local.local_faas is not None
    url = local.local_faas.url
    async with (
        RuntimeManager.from_url(f"sandboxfusion+{url}/sandboxfusion") as fusion,
        RuntimeManager.from_url(f"piston+{url}/piston/api/v2") as piston,
    ):
        yield {"sandboxfusion": fusion, "piston": piston}


@pytest.fixture
def manager(place: str, request: pytest.FixtureRequest) -> RuntimeManager:
    """Return a manager for the engine, or the server, of a row."""
    if place in SERVICES:
        services: dict[str, RuntimeManager] = request.getfixturevalue("services")
        return services[place]
    fixture = {"native": "local", "deno": "local", "wasm": "local_wasm", "python-faas": "references"}
    found: RuntimeManager = request.getfixturevalue(fixture.get(place, "references"))
    return found


def rows(places: dict[str, Iterable[str]], every: dict[str, int]) -> list[Any]:
    """Return the rows of a table. Only some of each place run without `pytest -m tables`."""
    return [
        pytest.param(place, name, marks=[pytest.mark.tables] if number % every[place] else [])
        for place, names in places.items()
        for number, name in enumerate(names)
    ]


SERVICES = ("sandboxfusion", "piston")
JAILED = ("native", "wasm", *SERVICES)
PYTHON = {place: [*CHEATS, *IN_JAILS] for place in JAILED} | {"python-faas": [*CHEATS]}
JAVASCRIPT = {place: [*JS_CHEATS] for place in ("deno", *SERVICES)} | {
    "js-faas": [name for name in JS_CHEATS if name not in JS_IN_JAILS]
}
# Of each place, every so many rows run without `pytest -m tables`.
SAMPLES = {"native": 12, "wasm": 40, "python-faas": 40, "sandboxfusion": 50, "piston": 50}
JS_SAMPLES = {"deno": 14, "js-faas": 20, "sandboxfusion": 30, "piston": 30}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("place", "name"), rows(PYTHON, SAMPLES))
async def test_no_cheat_in_python_is_rewarded(kind: str, place: str, name: str, manager: RuntimeManager) -> None:
    """Not a single test passes, and the cheat is not an error of the infrastructure. On Piston, output of the broken
    interpreter is one, because it takes the place of the results.
    """
    code = (CHEATS | IN_JAILS)[name]
    judging = manager.judge(code, KINDS[kind], function="f", language="python", timeout_ms=LIMIT_MS)
    if (place, name) == ("piston", "a small int is changed"):
        with pytest.raises(ServerError, match="larger than the output limit of Piston"):
            await judging
        return
    judgement = await judging
    assert judgement.passed_count == 0, [result.verdict for result in judgement.results]


@NATIVE
@pytest.mark.parametrize(("place", "name"), rows(JAVASCRIPT, JS_SAMPLES))
async def test_no_cheat_in_javascript_is_rewarded(place: str, name: str, manager: RuntimeManager) -> None:
    """Not a single test of a function passes."""
    judgement = await manager.judge(
        JS_CHEATS[name], FUNCTION_TESTS, function="f", language="javascript", timeout_ms=LIMIT_MS
    )
    assert judgement.passed_count == 0, [result.verdict for result in judgement.results]


@pytest.mark.parametrize("place", [*PYTHON])
async def test_the_right_program_is_rewarded(place: str, manager: RuntimeManager) -> None:
    """All tests of both kinds pass. So a cheat does not fail because of the tests."""
    for tests in KINDS.values():
        judgement = await manager.judge(RIGHT, tests, function="f", language="python", timeout_ms=RIGHT_LIMIT_MS)
        assert judgement.passed, judgement.first_failure


@NATIVE
@pytest.mark.parametrize("place", [*JAVASCRIPT])
async def test_the_right_program_in_javascript_is_rewarded(place: str, manager: RuntimeManager) -> None:
    judgement = await manager.judge(
        RIGHT_JS, FUNCTION_TESTS, function="f", language="javascript", timeout_ms=RIGHT_LIMIT_MS
    )
    assert judgement.passed, judgement.first_failure


@pytest.mark.tables
async def test_asserts_in_the_process_of_the_program_reward_many_cheats(local: RuntimeManager) -> None:
    """So the table has cheats that work where nothing is done against them."""

    async def is_rewarded(code: str) -> bool:
        programs = (f"{code}\n{program}" for program in ASSERTS)
        results = await asyncio.gather(*(local.run_code(each, "python", timeout_ms=LIMIT_MS) for each in programs))
        return any(result.exit_code == 0 for result in results)

    codes = CHEATS | IN_JAILS
    rewarded = [name for name, code in codes.items() if await is_rewarded(code)]
    assert len(rewarded) > 40, rewarded


async def test_the_guide_states_the_size_of_the_table() -> None:
    assert f"{len(CHEATS | IN_JAILS)} programs in Python and {len(JS_CHEATS)} in JavaScript" in text_of(
        "faasrt/docs/rewards.md"
    )


@pytest.mark.parametrize("name", WEAK)
async def test_weak_tests_reward_cheats_that_the_guide_names(name: str, local: RuntimeManager) -> None:
    """No process can help if a test can be passed without a solution."""
    program, cheat = WEAK[name]
    judgement = await local.judge(cheat, [AssertTest(program)], function="f", language="python")
    assert judgement.passed, judgement.first_failure
    assert f"* {name}" in text_of("faasrt/docs/rewards.md").lower()
