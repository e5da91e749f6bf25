"""A batch evaluation: run untrusted graders on many answers, and print a summary.

    pip install 'faasrt[local]'
    python -m faasrt.examples.batch_evaluation --answers 200

Each answer gets one of four verdicts. "right" and "wrong" are about the answer. "grader failed" means that the author
of the grader must fix it. "not graded" means that the infrastructure failed; the exit code is then 3.

`asyncio.gather` is for batches that fit in memory. `RuntimeManager.map` reads its tasks lazily, and the command
`faasrt batch` can resume.

Endpoints come from the environment (COZE_LOOP_FAAS_URL and the like). If there are none, the embedded FaaS is used.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from typing import Literal, get_args

import attrs

from faasrt import ReturnValueError, RuntimeManager, ServiceError

Verdict = Literal["right", "wrong", "grader failed", "not graded"]

GRADERS = {
    "exact": "def grade(answer, expected): return answer == expected",
    "tolerant": "def grade(answer, expected): return abs(float(answer) - float(expected)) <= 1",
    "careless": "def grade(answer, expected): return 10 / (int(expected) % 5) > 0 and answer == expected",
    "endless": "def grade(answer, expected):\n    while answer == expected: pass\n    return False",
}


@attrs.frozen
class Item:
    """An answer, and the name of its grader."""

    grader: str
    answer: str
    expected: str


@attrs.frozen
class Graded:
    """The verdict on an item, and the reason if the verdict is not about the answer."""

    item: Item
    verdict: Verdict
    reason: str = ""


async def grade(manager: RuntimeManager, item: Item) -> Graded:
    """Grade one item. A failure is returned as a verdict, so that the other items are still graded."""
    args = [item.answer, item.expected]
    try:
        result = await manager.call_function(GRADERS[item.grader], "grade", args, language="python", timeout_ms=500)
        correct = result.value if result.ok else None
    except ServiceError as error:
        return Graded(item, "not graded", type(error).__name__)
    except ReturnValueError:
        correct = None
    if isinstance(correct, bool):
        return Graded(item, "right" if correct else "wrong")
    if result.ok:
        return Graded(item, "grader failed", "returned no bool")
    return Graded(item, "grader failed", result.error.name if result.error else result.outcome)


async def grade_all(items: list[Item]) -> list[Graded]:
    """Grade every item, in order. Calls beyond the limits of the endpoints wait."""
    async with RuntimeManager.from_env(local_fallback=True) as manager:
        return await asyncio.gather(*(grade(manager, item) for item in items))


def show(graded: list[Graded]) -> None:
    """Print a table of verdicts by grader, and the reasons."""
    counts = Counter((answer.item.grader, answer.verdict) for answer in graded)
    print(f"{'grader':10}" + "".join(f"{verdict:>15}" for verdict in get_args(Verdict)))
    for grader in GRADERS:
        print(f"{grader:10}" + "".join(f"{counts[grader, verdict]:15}" for verdict in get_args(Verdict)))
    reasons = Counter(f"{answer.verdict}: {answer.reason}" for answer in graded if answer.reason)
    for reason, count in reasons.most_common():
        print(f"{reason} ({count})")


def sample(count: int) -> list[Item]:
    """Return answers, the same ones each time. Some are off by one, and some are not numbers."""
    seeded = random.Random(1)  # noqa: S311
    items = []
    for number in range(count):
        answer = seeded.choice([str(number), str(number), str(number + 1), "no idea"])
        (grader,) = seeded.choices(list(GRADERS), weights=[10, 10, 10, 1])
        items.append(Item(grader, answer, expected=str(number)))
    return items


def main() -> None:
    """Grade the sample and print the summary."""
    parser = argparse.ArgumentParser(description="Grade many answers at once.")
    parser.add_argument("--answers", type=int, default=200)
    graded = asyncio.run(grade_all(sample(parser.parse_args().answers)))
    show(graded)
    sys.exit(3 if any(answer.verdict == "not graded" for answer in graded) else 0)


if __name__ == "__main__":
    main()
