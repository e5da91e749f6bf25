"""A batch evaluation: many answers through graders that nobody has vetted, and an account that adds up.

    pip install 'faasrt[local]'
    python -m faasrt.examples.batch --answers 200

An answer ends in one of four ways. Two say something about the answer: it is right or wrong. Two do not, and are kept
apart: its grader failed, which is for the grader's author to mend; or it was not graded, because the infrastructure
failed, and can be tried again. The exit code is 3 when some were not graded.

`asyncio.gather` is right for what fits in memory. `RuntimeManager.map` reads its tasks lazily, for more than that; and
the command `faasrt batch` can be resumed.

The servers are those of the environment (COZE_LOOP_FAAS_URL and the like), and the embedded FaaS where it names none.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from collections import Counter
from typing import Literal, get_args

import attrs

from faasrt import LimiterSettings, QueueFullError, ReturnValueError, Runtime, RuntimeManager, ServiceError, Settings

Verdict = Literal["right", "wrong", "grader failed", "not graded"]

GRADERS = {
    "exact": "def grade(answer, expected): return answer == expected",
    "tolerant": "def grade(answer, expected): return abs(float(answer) - float(expected)) <= 1",
    "careless": "def grade(answer, expected): return 10 / (int(expected) % 5) > 0 and answer == expected",
    "endless": """
def grade(answer, expected):
    while answer == expected:
        pass
    return False
""",
}


@attrs.frozen
class Item:
    """An answer, and the name of the grader that is to judge it."""

    grader: str
    answer: str
    expected: str


@attrs.frozen
class Graded:
    """What became of an item, and why where there is no verdict on the answer."""

    item: Item
    verdict: Verdict
    reason: str = ""


async def grade(runtime: Runtime, item: Item) -> Graded:
    """Grade one item. Nothing that can happen to it keeps the others from being graded."""
    try:
        result = await runtime.call_function(GRADERS[item.grader], "grade", item.answer, item.expected, timeout_ms=500)
    except (ServiceError, QueueFullError) as error:
        return Graded(item, "not graded", type(error).__name__)
    if not result.ok:
        return Graded(item, "grader failed", result.error.name if result.error else result.outcome)
    try:
        correct = result.value
    except ReturnValueError:
        correct = None
    if not isinstance(correct, bool):
        return Graded(item, "grader failed", "returned no bool")
    return Graded(item, "right" if correct else "wrong")


async def grade_all(items: list[Item]) -> list[Graded]:
    """Grade every item, in order, as many at once as the servers take."""
    # All of them come at once, and the last one waits for as long as the batch takes.
    limiter = LimiterSettings(max_queue=max(1, len(items)), queue_timeout_s=3_600)
    configured = any(name.startswith("COZE_LOOP_") and "_FAAS_" in name for name in os.environ)
    manager = (
        RuntimeManager.from_env(limiter=limiter)
        if configured
        else RuntimeManager.local(["python"], settings=Settings(limiter=limiter))
    )
    async with manager:
        runtime = await manager.get_runtime("python")
        return await asyncio.gather(*(grade(runtime, item) for item in items))


def describe(graded: list[Graded]) -> str:
    """Write the account: a line for each grader, and the reasons below."""
    verdicts = get_args(Verdict)
    counts = Counter((one.item.grader, one.verdict) for one in graded)
    reasons = Counter((one.verdict, one.reason) for one in graded if one.reason)
    return "\n".join(
        [
            f"{'grader':10}" + "".join(f"{verdict:>15}" for verdict in verdicts),
            *(f"{grader:10}" + "".join(f"{counts[grader, verdict]:15}" for verdict in verdicts) for grader in GRADERS),
            *(f"{verdict}: {reason} ({count})" for (verdict, reason), count in reasons.most_common()),
        ]
    )


def sample(count: int) -> list[Item]:
    """Make up answers, the same ones each time; some are off by one, and some are no numbers at all."""
    seeded = random.Random(1)  # noqa: S311
    items = []
    for number in range(count):
        answer = seeded.choice([str(number), str(number), str(number + 1), "no idea"])
        grader = seeded.choices(list(GRADERS), weights=[10, 10, 10, 1])[0]
        items.append(Item(grader, answer, expected=str(number)))
    return items


def main() -> None:
    """Grade the sample, and print the account."""
    parser = argparse.ArgumentParser(description="Grade many answers at once.")
    parser.add_argument("--answers", type=int, default=200)
    graded = asyncio.run(grade_all(sample(parser.parse_args().answers)))
    print(describe(graded))
    sys.exit(3 if any(one.verdict == "not graded" for one in graded) else 0)


if __name__ == "__main__":
    main()
