"""Twenty problems in the style of programming contests, each with a right solution, a wrong one, and ten inputs."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from textwrap import indent
from typing import NamedTuple
from unittest import mock

from faasrt import FunctionTest, TestCase


class Problem(NamedTuple):
    """A problem.

    Attributes:
        name: The name.
        right: A right solution in Python.
        wrong: A wrong solution, which is right for some of the inputs.
        make_input: Returns an input.
    """

    name: str
    right: str
    wrong: str
    make_input: Callable[[random.Random], str]

    def tests(self) -> list[TestCase]:
        """Return ten tests. The right solution defines what is expected."""
        source = random.Random(self.name)
        return [self._test(str(number), self.make_input(source)) for number in range(10)]

    def function_tests(self) -> list[FunctionTest]:
        """Return the same tests for `as_function` of a solution."""
        return [FunctionTest([test.stdin], test.expected.splitlines(), id=test.id) for test in self.tests()]

    def _test(self, name: str, text: str) -> TestCase:
        output = io.StringIO()
        with redirect_stdout(output), mock.patch("sys.stdin", io.StringIO(text)):
            exec(self.right, {"__name__": "__main__"})
        return TestCase(text, output.getvalue(), id=name)


def as_function(solution: str) -> str:
    """Return a program with the function `solve`, which takes the input and returns the lines of the output."""
    return _FUNCTION + indent(solution, "    ") + "\n    return printed\n"


_FUNCTION = """\
def solve(text):
    lines, printed = iter(text.splitlines()), []
    input = lambda: next(lines)
    print = lambda *values: printed.append(" ".join(map(str, values)))
"""


def _numbers(source: random.Random, least: int = -50, most: int = 50, count: int = 20) -> str:
    return " ".join(str(source.randint(least, most)) for _ in range(source.randint(1, count)))


def _list(source: random.Random) -> str:
    numbers = _numbers(source)
    return f"{len(numbers.split())}\n{numbers}\n"


def _word(source: random.Random) -> str:
    return "".join(source.choice("abcab") for _ in range(source.randint(1, 12))) + "\n"


def _brackets(source: random.Random) -> str:
    return "".join(source.choice("()[]") for _ in range(source.randint(1, 3) * 2)) + "\n"


def _grid(source: random.Random) -> str:
    height, width = source.randint(2, 6), source.randint(2, 6)
    rows = ["".join(source.choice("..#") for _ in range(width)) for _ in range(height)]
    return "\n".join([f"{height} {width}", *rows]) + "\n"


def _graph(source: random.Random) -> str:
    nodes = source.randint(2, 8)
    edges = [f"{source.randint(1, nodes)} {source.randint(1, nodes)}" for _ in range(source.randint(1, 10))]
    return "\n".join([f"{nodes} {len(edges)}", *edges]) + "\n"


def _number(most: int) -> Callable[[random.Random], str]:
    return lambda source: f"{source.randint(1, most)}\n"


_READ = "n = int(input())\na = list(map(int, input().split()))\n"
PROBLEMS = [
    Problem("sum", _READ + "print(sum(a))", _READ + "print(sum(map(abs, a)))", _list),
    Problem("largest", _READ + "print(max(a))", _READ + "print(a[-1])", _list),
    Problem("sorted", _READ + "print(*sorted(a))", _READ + "print(*sorted(set(a)))", _list),
    Problem("second largest", _READ + "print(sorted(a)[-2:][0])", _READ + "print(sorted(a)[-1])", _list),
    Problem(
        "longest run",
        _READ
        + "best = run = 1\nfor x, y in zip(a, a[1:]):\n    run = run + 1 if y > x else 1\n    best = max(best, run)\nprint(best)",
        _READ
        + "best = run = 1\nfor x, y in zip(a, a[1:]):\n    run = run + 1 if y > x else 0\n    best = max(best, run)\nprint(best)",
        _list,
    ),
    Problem(
        "largest sum of a range",
        _READ + "best = now = a[0]\nfor x in a[1:]:\n    now = max(x, now + x)\n    best = max(best, now)\nprint(best)",
        _READ + "best = now = 0\nfor x in a:\n    now = max(0, now + x)\n    best = max(best, now)\nprint(best)",
        lambda source: f"5\n{' '.join(str(source.randint(-9, 3)) for _ in range(5))}\n",
    ),
    Problem(
        "pairs with an even sum",
        _READ + "e = sum(x % 2 == 0 for x in a)\no = n - e\nprint(e * (e - 1) // 2 + o * (o - 1) // 2)",
        _READ + "e = sum(x % 2 == 0 for x in a)\nprint(e * (e - 1) // 2)",
        _list,
    ),
    Problem("reverse", "print(input()[::-1])", "print(''.join(sorted(input())))", _word),
    Problem(
        "palindrome",
        "s = input()\nprint('YES' if s == s[::-1] else 'NO')",
        "s = input()\nprint('YES' if s[0] == s[-1] else 'NO')",
        _word,
    ),
    Problem(
        "letters",
        "from collections import Counter\nfor letter, count in sorted(Counter(input()).items()):\n    print(letter, count)",
        "s = input()\nfor letter in sorted(set(s)):\n    print(letter, min(2, s.count(letter)))",
        _word,
    ),
    Problem(
        "distinct substrings",
        "s = input()\nprint(len({s[i:j] for i in range(len(s)) for j in range(i + 1, len(s) + 1)}))",
        "s = input()\nprint(len(s) * (len(s) + 1) // 2)",
        _word,
    ),
    Problem(
        "brackets",
        "s = input()\nwhile True:\n    t = s.replace('()', '').replace('[]', '')\n    if t == s: break\n    s = t\nprint('NO' if s else 'YES')",
        "s = input()\nprint('YES' if s.count('(') == s.count(')') and s.count('[') == s.count(']') else 'NO')",
        _brackets,
    ),
    Problem(
        "prime",
        "n = int(input())\nprint('prime' if n > 1 and all(n % d for d in range(2, int(n ** .5) + 1)) else 'composite')",
        "n = int(input())\nprint('prime' if n % 2 else 'composite')",
        _number(200),
    ),
    Problem(
        "steps of Collatz",
        "n = int(input())\nsteps = 0\nwhile n != 1:\n    n = n // 2 if n % 2 == 0 else 3 * n + 1\n    steps += 1\nprint(steps)",
        "n = int(input())\nsteps = 0\nwhile n > 1 and steps < 15:\n    n = n // 2 if n % 2 == 0 else 3 * n + 1\n    steps += 1\nprint(steps)",
        _number(1_000),
    ),
    Problem(
        "digits of a factorial",
        "import math\nprint(sum(map(int, str(math.factorial(int(input()))))))",
        "n = int(input())\nproduct = 1.0\nfor k in range(1, n + 1): product *= k\nprint(sum(int(d) for d in str(int(product))))",
        _number(60),
    ),
    Problem(
        "ways to climb",
        "n = int(input())\na, b = 1, 1\nfor _ in range(n - 1):\n    a, b = b, a + b\nprint(b)",
        "n = int(input())\nprint(round(1.618 ** n))",
        _number(80),
    ),
    Problem(
        "coins",
        "n = int(input())\nbest = [0] + [10 ** 9] * n\nfor x in range(1, n + 1):\n    best[x] = 1 + min(best[x - c] for c in (1, 7, 10) if c <= x)\nprint(best[n])",
        "n = int(input())\ncount = 0\nfor c in (10, 7, 1):\n    count += n // c\n    n %= c\nprint(count)",
        _number(40),
    ),
    Problem(
        "islands",
        "h, w = map(int, input().split())\nfree = {(y, x) for y in range(h) for x, c in enumerate(input()) if c == '.'}\ncount = 0\n"
        "while free:\n    count += 1\n    stack = [free.pop()]\n    while stack:\n        y, x = stack.pop()\n"
        "        for p in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):\n            if p in free:\n                free.remove(p)\n                stack.append(p)\nprint(count)",
        "h, w = map(int, input().split())\nprint(sum(input().count('.') > 0 for _ in range(h)))",
        _grid,
    ),
    Problem(
        "components",
        "n, m = map(int, input().split())\np = list(range(n + 1))\ndef find(x):\n    while p[x] != x: x = p[x]\n    return x\n"
        "for _ in range(m):\n    x, y = map(int, input().split())\n    p[find(x)] = find(y)\nprint(sum(p[x] == x for x in range(1, n + 1)))",
        "n, m = map(int, input().split())\nprint(max(1, n - m))",
        _graph,
    ),
    Problem(
        "mean",
        _READ + "print(f'{sum(a) / n:.6f}')",
        _READ + "print(f'{sum(a) // n:.6f}')",
        _list,
    ),
]
