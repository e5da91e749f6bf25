"""Grades generated solutions of contest problems, in the manner of LiveCodeBench.

    python -m faasrt.examples.contest_grader

Each problem has several candidate solutions. The score of a problem is pass@1: the share of candidates that pass all of
its tests. An infrastructure failure leaves a candidate without a judgement; it is never a wrong answer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from faasrt import CodeTask, RuntimeManager, TestCase

PROBLEMS = {
    "sum": [TestCase("1 2 3\n", "6\n"), TestCase("-1 1\n", "0\n"), TestCase("10\n", "10\n")],
    "palindrome": [TestCase("abba\n", "YES\n"), TestCase("abc\n", "NO\n"), TestCase("a\n", "YES\n")],
}
CANDIDATES = {
    "sum": ["print(sum(map(int, input().split())))", "a, b = map(int, input().split())\nprint(a + b)"],
    "palindrome": ["s = input()\nprint('YES' if s == s[::-1] else 'NO')", "print('YES')", "while True: pass"],
}


async def main() -> None:
    tasks = [
        CodeTask(code, "python", id=name, tests=PROBLEMS[name], timeout_ms=1_000)
        for name, candidates in CANDIDATES.items()
        for code in candidates
    ]
    passed: dict[str, list[bool]] = defaultdict(list)
    async with RuntimeManager.from_env(local_fallback=True) as manager:
        async for item in manager.map(tasks, ordered=True):
            if item.error is not None:
                print(f"{item.task.id}: not judged: {item.error}")
                continue
            assert item.judgement is not None
            failure = item.judgement.first_failure
            passed[item.task.id or ""].append(failure is None)
            print(f"{item.task.id}: {item.judgement.verdict} {failure.difference if failure else ''}".rstrip())
    for name, solved in passed.items():
        print(f"pass@1 of {name}: {sum(solved) / len(solved):.2f}")


if __name__ == "__main__":
    asyncio.run(main())
