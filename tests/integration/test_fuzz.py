"""Random programs; `python -m support.fuzz` runs thousands."""

from __future__ import annotations

from support import fuzz


async def test_random_programs_end_as_they_were_made_to() -> None:
    """On the embedded FaaS and on both kinds of doubles: outcome, output and value."""
    outcomes, problems = await fuzz.run(60, seed=5, in_flight=4)
    assert problems == []
    assert sum(outcomes.values()) == 60
    assert len(outcomes) == 5
