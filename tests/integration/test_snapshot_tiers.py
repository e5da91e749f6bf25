"""Programs on the engine `wasm` start with their packages imported, and do not share any random numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from faasrt import Outcome, RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.engines.python_tiers import TIERS
from support.helpers import WASM, manager_for
from support.programs import RANDOM
from support.tables import first_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.usefixtures("wasm_sandbox")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def manager(wasm_sandbox: None) -> AsyncIterator[RuntimeManager]:
    """Yield a manager with one worker. The snapshots of all packages are there."""
    async with LocalFaaS(["python"], workers=1, engines=WASM) as faas:
        await faas.wait_ready("python")
        await faas.make_snapshots()
        async with manager_for(faas.url) as manager:
            yield manager


@pytest.mark.parametrize("tier", TIERS)
async def test_the_packages_are_already_imported(manager: RuntimeManager, tier: str) -> None:
    """The name of a package in a program is enough."""
    result = await manager.run_code(f"import sys; print({tier!r} in sys.modules)", "python")
    assert result.stdout == "True\n"


@pytest.mark.parametrize("packages", ["sys", "numpy", "sklearn"])
async def test_the_snapshot_does_not_count_against_the_memory_limit(manager: RuntimeManager, packages: str) -> None:
    """With the smallest limit, 48 MiB, a program can use 40 MiB but not 56 MiB, whatever the server has imported."""
    sandbox = SandboxConfig(memory_limit_mb=48)
    small, large = [
        await manager.run_code(f"import {packages}\nprint(len(bytearray({size} << 20)))", "python", sandbox=sandbox)
        for size in (40, 56)
    ]
    assert (small.outcome, small.stdout, large.outcome) == (Outcome.OK, "41943040\n", Outcome.MEMORY_LIMIT), small


async def test_several_large_packages_fit_into_the_default_limit(manager: RuntimeManager) -> None:
    """No snapshot has all three of them, so the program imports at least one of them itself."""
    result = await manager.run_code("import numpy, sympy, sklearn; print('imported')", "python", 25_000)
    assert (result.outcome, result.stdout) == (Outcome.OK, "imported\n"), result


# Finds each random generator in the memory, such as those in default values of functions, and prints its state.
_STATES = """
import gc, random, sys, hashlib
gc.unfreeze()
numpy = sys.modules.get("numpy.random")
states = set()
for owner in gc.get_objects():
    for found in (owner, *gc.get_referents(owner)):
        if isinstance(found, random.Random) and not isinstance(found, random.SystemRandom):
            states.add(repr(found.getstate()))
        elif numpy and isinstance(found, numpy.BitGenerator):
            state = found.state
            states.add(repr(state["state"].get("key", state)) if "state" in state else repr(state))
for state in sorted(states):
    print(hashlib.sha256(state.encode()).hexdigest())
"""


@pytest.mark.parametrize("tier", first_of(list(TIERS)))
async def test_no_generator_has_the_same_state_in_two_programs(manager: RuntimeManager, tier: str) -> None:
    """This also covers generators that packages keep for themselves."""
    results = [await manager.run_code(f"# {tier}\n{_STATES}", "python") for _ in range(2)]
    first, second = (set(result.stdout.split()) for result in results)
    assert [result.outcome for result in results] == [Outcome.OK] * 2, results
    assert first
    assert not first & second
    assert len(first) == len(second)


@pytest.mark.parametrize("name", RANDOM)
async def test_random_numbers_differ_between_programs(manager: RuntimeManager, name: str) -> None:
    """The public ways to get random numbers. The same program prints something else each time, in the same worker."""
    results = [await manager.run_code(RANDOM[name], "python") for _ in range(3)]
    assert [result.outcome for result in results] == [Outcome.OK] * 3, results
    assert len({result.stdout for result in results}) == 3


SEEDED = {
    "numpy": "import numpy; numpy.random.seed(1); print(numpy.random.random())",
    "random": "import numpy, random; random.seed(1); print(random.random())",
    "sympy": "import sympy.core.random as r; r.seed(1); print(r.rng.random())",
}
EXPECTED = {"numpy": "0.417022004702574", "random": "0.13436424411240122", "sympy": "0.13436424411240122"}


@pytest.mark.parametrize("name", SEEDED)
async def test_seeds_of_a_program_work(manager: RuntimeManager, name: str) -> None:
    """A program that seeds a generator gets the numbers that CPython gets."""
    assert (await manager.run_code(SEEDED[name], "python")).stdout.strip() == EXPECTED[name]
