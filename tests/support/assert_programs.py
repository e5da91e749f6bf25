"""Thirty problems with test programs in the styles of HumanEval and MBPP, each with a right and a wrong solution."""

from __future__ import annotations

from typing import NamedTuple

from support.tables import block


class Problem(NamedTuple):
    """A problem.

    Attributes:
        function: The name of the function.
        right: A right solution.
        wrong: A wrong one, which passes some of the asserts.
        program: The test program.
    """

    function: str
    right: str
    wrong: str
    program: str


def _humaneval(function: str, right: str, wrong: str, body: str) -> Problem:
    """Return a problem whose test program only defines `check`, as in the column `test` of HumanEval."""
    lines = "\n".join(f"    {line}" for line in block(body).split("\n"))
    head = "METADATA = {\n    'author': 'nobody',\n    'dataset': 'test'\n}\n\n\ndef check(candidate):\n"
    return Problem(function, block(right), block(wrong), f"{head}{lines}\n")


def _mbpp(function: str, right: str, wrong: str, *asserts: str) -> Problem:
    """Return a problem whose test program is a list of asserts, as in the column `test_list` of MBPP."""
    return Problem(function, block(right), block(wrong), "\n".join(asserts))


PROBLEMS = [
    _humaneval(
        "close_elements",
        "def close_elements(xs, t): return any(abs(x - y) < t for i, x in enumerate(xs) for y in xs[:i])",
        "def close_elements(xs, t): return any(abs(x - y) < t for x, y in zip(xs, xs[1:]))",
        """
        assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True
        assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False
        assert candidate([1.0, 2.0, 5.9, 4.0, 5.0], 0.95) == True
        assert candidate([1.0, 5.0, 1.1], 0.2) is True
        """,
    ),
    _humaneval(
        "groups",
        """
        def groups(text):
            found, depth = [""], 0
            for letter in text.replace(" ", ""):
                found[-1] += letter
                depth += 1 if letter == "(" else -1
                if depth == 0: found.append("")
            return found[:-1]
        """,
        "def groups(text): return text.split()",
        """
        assert candidate('(()()) ((())) () ((())()())') == ['(()())', '((()))', '()', '((())()())']
        assert candidate('( ) (( )) (( )( ))') == ['()', '(())', '(()())']
        assert candidate('') == [], "no groups"
        """,
    ),
    _humaneval(
        "fraction",
        "def fraction(x): return x % 1.0",
        "def fraction(x): return x - round(x)",
        """
        assert candidate(3.25) == 0.25
        assert abs(candidate(1.33) - 0.33) < 1e-6
        assert abs(candidate(123.756) - 0.756) < 1e-6
        """,
    ),
    _humaneval(
        "sum_product",
        """
        import math
        def sum_product(numbers): return sum(numbers), math.prod(numbers)
        """,
        "def sum_product(numbers): return sum(numbers), 1 if len(numbers) < 2 else numbers[0] * numbers[1]",
        """
        assert candidate([]) == (0, 1)
        assert candidate([1, 1, 1]) == (3, 1)
        assert candidate([100, 0]) == (100, 0)
        assert candidate([3, 5, 7]) == (3 + 5 + 7, 3 * 5 * 7)
        """,
    ),
    _humaneval(
        "find_zero",
        """
        def find_zero(xs):
            low, high = -1.0, 1.0
            value = lambda x: sum(c * x ** i for i, c in enumerate(xs))
            while value(low) * value(high) > 0: low, high = 2 * low, 2 * high
            while high - low > 1e-10:
                middle = (low + high) / 2
                low, high = (low, middle) if value(low) * value(middle) <= 0 else (middle, high)
            return low
        """,
        "def find_zero(xs): return -xs[0] / xs[1]",
        """
        import math
        import random
        import copy

        def poly(xs, x):
            return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])

        rng = random.Random(42)
        for _ in range(30):
            coeffs = []
            for _ in range(2 * rng.randint(1, 3)):
                coeff = rng.randint(-10, 10)
                coeffs.append(1 if coeff == 0 else coeff)
            solution = candidate(copy.deepcopy(coeffs))
            assert math.fabs(poly(coeffs, solution)) < 1e-4
        """,
    ),
    _humaneval(
        "decode_cyclic",
        """
        def decode_cyclic(s):
            parts = [s[i:i + 3] for i in range(0, len(s), 3)]
            return "".join(part[-1] + part[:-1] if len(part) == 3 else part for part in parts)
        """,
        "def decode_cyclic(s): return s",
        """
        from random import randint, choice
        import string

        def encode_cyclic(s):
            parts = [s[i:i + 3] for i in range(0, len(s), 3)]
            return "".join(part[1:] + part[0] if len(part) == 3 else part for part in parts)

        letters = string.ascii_lowercase
        for _ in range(100):
            str = ''.join(choice(letters) for i in range(randint(10, 20)))
            encoded_str = encode_cyclic(str)
            assert candidate(encoded_str) == str
        """,
    ),
    _humaneval(
        "add",
        "def add(x, y): return x + y",
        "def add(x, y): return x | y",
        """
        import random

        assert candidate(0, 1) == 1
        assert candidate(2, 3) == 5
        for i in range(100):
            x, y = random.randint(0, 1000), random.randint(0, 1000)
            assert candidate(x, y) == x + y
        """,
    ),
    _humaneval(
        "largest_even",
        "def largest_even(ns): return max((n for n in ns if n % 2 == 0), default=None)",
        "def largest_even(ns): return max((n for n in ns if n % 2 == 0), default=0)",
        """
        assert candidate([1, 4, 2]) == 4
        assert candidate([1, 3]) is None
        assert candidate(ns=[]) == None
        """,
    ),
    _humaneval(
        "histogram",
        """
        def histogram(test):
            counts = {}
            for letter in test.split(): counts[letter] = counts.get(letter, 0) + 1
            return {letter: n for letter, n in counts.items() if n == max(counts.values())}
        """,
        """
        def histogram(test):
            from collections import Counter
            return dict(Counter(test.split()).most_common(1))
        """,
        """
        assert candidate('a b b a') == {'a': 2, 'b': 2}, "This prints if this assert fails 1 (good for debugging!)"
        assert candidate('r t g') == {'r': 1, 't': 1, 'g': 1}
        assert candidate('') == {}, "This prints if this assert fails 2 (also good for debugging!)"
        assert True
        """,
    ),
    _humaneval(
        "split_words",
        """
        def split_words(txt):
            if " " in txt: return txt.split()
            if "," in txt: return txt.split(",")
            return sum(1 for c in txt if c.islower() and (ord(c) - ord("a")) % 2)
        """,
        "def split_words(txt): return txt.replace(',', ' ').split()",
        """
        assert candidate("Hello world!") == ["Hello", "world!"]
        assert candidate("Hello,world!") == ["Hello", "world!"]
        assert candidate("abcdef") == 3
        assert candidate("aaabb") == 2
        """,
    ),
    _humaneval(
        "is_nested",
        """
        def is_nested(s):
            for i, want in enumerate("[[]]"):
                at = s.find(want)
                if at < 0: return False
                s = s[at + 1:]
            return True
        """,
        "def is_nested(s): return s.count('[') > 1",
        """
        assert candidate('[[]]') == True, "error 1"
        assert not candidate('[]]]]]]][[[[[]')
        assert candidate('[][]') == False
        assert candidate('[[][]]')
        """,
    ),
    _humaneval(
        "by_length",
        "def by_length(names): return sorted((n for n in names if len(n) % 2 == 0), key=lambda n: (len(n), n))",
        "def by_length(names): return [n for n in names if len(n) % 2 == 0]",
        """
        assert candidate(["aa", "a", "aaa"]) == ["aa"]
        assert candidate(["school", "AI", "asdf", "b"]) == ["AI", "asdf", "school"]
        assert candidate(["d", "dcba", "abcd", "a"]) == ["abcd", "dcba"]
        """,
    ),
    _humaneval(
        "compare",
        """
        def compare(a, b):
            x, y = (float(str(v).replace(",", ".")) for v in (a, b))
            return None if x == y else a if x > y else b
        """,
        "def compare(a, b): return a if float(str(a).replace(',', '.')) > float(str(b).replace(',', '.')) else b",
        """
        assert candidate(1, 2) == 2
        assert candidate("5,1", "6") == "6"
        assert candidate("1", 1) == None
        assert candidate(2.5, "2,3") == 2.5
        """,
    ),
    _humaneval(
        "roots",
        "def roots(n): return {complex(0, n), complex(0, -n)}",
        "def roots(n): return {complex(0, n)}",
        """
        assert candidate(1) == {1j, -1j}
        assert len(candidate(2)) == 2
        assert all(abs(root ** 2 + 9) < 1e-9 for root in candidate(3))
        """,
    ),
    _humaneval(
        "steps",
        "def steps(n): return n // 2 if n % 2 == 0 else 3 * n + 1",
        "def steps(n): return max(1, n // 2)",
        """
        n, seen = 6, []
        while n != 1 and len(seen) < 12:
            seen.append(n)
            n = candidate(n)
        assert seen == [6, 3, 10, 5, 16, 8, 4, 2]
        """,
    ),
    _mbpp(
        "shared",
        "def shared(a, b): return tuple(set(a) & set(b))",
        "def shared(a, b): return tuple(a)",
        "assert set(shared((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))",
        "assert set(shared((1, 2, 3, 4),(5, 4, 3, 7))) == set((3, 4))",
        "assert sorted(shared((11, 12, 14, 13),(13, 15, 14))) == [13, 14]",
    ),
    _mbpp(
        "not_prime",
        "def not_prime(n): return any(n % d == 0 for d in range(2, int(n ** 0.5) + 1))",
        "def not_prime(n): return n % 2 == 0",
        "assert not_prime(2) == False",
        "assert not_prime(10) == True",
        "assert not_prime(35) == True",
    ),
    _mbpp(
        "largest",
        "import heapq\ndef largest(ns, n): return heapq.nlargest(n, ns)",
        "def largest(ns, n): return ns[-n:]",
        "assert largest([25, 35, 22, 85, 14], 3) == [85, 35, 25]",
        "assert largest([1, 2], 5) == [2, 1]",
    ),
    _mbpp(
        "area",
        "def area(r): return 3.1415 * r * r",
        "def area(r): return 3 * r * r",
        "import math",
        "assert math.isclose(area(10), 314.15, rel_tol=0.001)",
        "assert math.isclose(area(0), 0, abs_tol=0.001)",
    ),
    _mbpp(
        "add_tuple",
        "def add_tuple(items, t): return t + tuple(items)",
        "def add_tuple(items, t): return list(t) + items",
        "assert add_tuple([5, 6, 7], (9, 10)) == (9, 10, 5, 6, 7)",
        "assert add_tuple([], (1,)) == (1,)",
    ),
    _mbpp(
        "swap",
        "def swap(s): return ''.join(c.lower() if c.isupper() else c.upper() for c in s)",
        "def swap(s): return s.lower()",
        'assert swap("Python") == "pYTHON"',
        'assert swap("é") == "É"',
        'assert swap("ABC") == "abc"',
    ),
    _mbpp(
        "count_keys",
        "def count_keys(d): return {k: len(v) for k, v in d.items()}",
        "def count_keys(d): return {str(k): len(v) for k, v in d.items()}",
        "assert count_keys({1: [1, 2], (2, 3): []}) == {1: 2, (2, 3): 0}",
        "assert count_keys({}) == {}",
    ),
    _mbpp(
        "to_bytes",
        "def to_bytes(s): return s.encode()",
        "def to_bytes(s): return s",
        'assert to_bytes("abc") == b"abc"',
        'assert to_bytes("é") == b"\\xc3\\xa9"',
    ),
    _mbpp(
        "squares",
        "def squares(n):\n    for i in range(n): yield i * i",
        "def squares(n):\n    for i in range(n): yield i + i",
        "assert list(squares(3)) == [0, 1, 4]",
        "assert sum(squares(4)) == 14",
    ),
    _mbpp(
        "parity",
        "def parity(n):\n    if n < 0: raise ValueError('negative')\n    return n % 2",
        "def parity(n): return n % 2",
        "assert parity(3) == 1",
        "try:\n    parity(-1)\n    assert False\nexcept ValueError as error:\n    assert 'negative' in str(error)",
    ),
    _mbpp(
        "biggest",
        "def biggest(n): return 10 ** n",
        "def biggest(n): return float(10 ** min(n, 300))",
        "assert biggest(400) == 10 ** 400",
        "assert isinstance(biggest(2), int)",
    ),
    _mbpp(
        "shape",
        "import re\ndef shape(s): return 'Found a match!' if re.search('ab*', s) else 'Not matched!'",
        "def shape(s): return 'Found a match!' if 'ab' in s else 'Not matched!'",
        'assert shape("ac") == ("Found a match!")',
        'assert shape("dc") == ("Not matched!")',
        'assert shape("abbbba") == ("Found a match!")',
    ),
    _mbpp(
        "distinct",
        "def distinct(items): return frozenset(items)",
        "def distinct(items): return list(items)",
        "assert distinct([1, 1, 2]) == {1, 2}",
        "assert distinct(()) == frozenset()",
    ),
    _mbpp(
        "halves",
        "from fractions import Fraction\ndef halves(n): return [Fraction(n, 2), float('inf') if n else float('nan')]",
        "from fractions import Fraction\ndef halves(n): return [n / 2, float('inf')]",
        "from fractions import Fraction",
        "assert halves(1) == [Fraction(1, 2), float('inf')]",
        "assert halves(0)[1] != halves(0)[1]",
    ),
    _mbpp(
        "grid",
        "def grid(n): return [[x * y for x in range(n)] for y in range(n)]",
        "def grid(n): return [[x + y for x in range(n)] for y in range(n)]",
        "rows = grid(3)",
        "for y, row in enumerate(rows):\n    for x, cell in enumerate(row):\n        assert cell == x * y, (x, y)",
        "assert len(rows) == 3",
    ),
]
