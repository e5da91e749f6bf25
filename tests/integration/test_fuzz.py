"""Random programs. `python -m support.fuzz` runs thousands of them."""

from __future__ import annotations

from support import fuzz


async def test_random_programs_have_the_expected_results() -> None:
    """Outcome, output and value are as expected on the embedded FaaS and on both doubles."""
    outcomes, problems = await fuzz.run(30, seed=38, in_flight=4)
    assert problems == []
    assert sum(outcomes.values()) == 30
    assert len(outcomes) == 5
