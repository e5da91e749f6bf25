"""The packages that both Python engines import ahead of time, in tiers.

A tier is a set of modules that are already imported when a program starts. Every program that names no package runs in
the tier of the standard library.
"""

from __future__ import annotations

from collections.abc import Collection

STANDARD_TIER = "standard"
"""The name of the tier of the standard library."""
STANDARD_LIBRARY = [
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "bisect",
    "collections",
    "concurrent.futures",
    "contextlib",
    "copy",
    "csv",
    "ctypes",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "inspect",
    "io",
    "itertools",
    "json",
    "logging",
    "math",
    "multiprocessing",
    "operator",
    "os",
    "pathlib",
    "pickle",
    "pprint",
    "queue",
    "random",
    "re",
    "shutil",
    "sqlite3",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "sys",
    "tempfile",
    "textwrap",
    "threading",
    "time",
    "traceback",
    "typing",
    "unittest",
    "urllib.parse",
    "uuid",
    "warnings",
    "zlib",
]
_NUMPY = ["numpy", "numpy.random", "numpy.linalg", "numpy.fft"]
_SCIPY = ["scipy", "scipy.linalg", "scipy.optimize", "scipy.stats"]
_SKLEARN = ["sklearn", "sklearn.linear_model", "sklearn.ensemble", "sklearn.metrics", "sklearn.model_selection"]
# The smallest ones first. All of them contain the standard library too.
TIERS = {
    "numpy": _NUMPY,
    "sympy": ["sympy"],
    "pandas": [*_NUMPY, "pandas"],
    "scipy": [*_NUMPY, *_SCIPY],
    "sklearn": [*_NUMPY, *_SCIPY, "pandas", *_SKLEARN],
}
"""The modules that each tier has imported, by the name of the tier."""

_SEARCHED_CHARS = 2**20

# Code that uses each package, because packages import and prepare much when they are first used. It avoids OpenBLAS,
# which allocates 16 MiB that a program may need for something else.
_EXERCISES = {
    "numpy": """
import numpy as np
repr(np.arange(4.0).reshape(2, 2).T * 2), repr(np.sort(np.array(["b", "a"])))
np.random.default_rng().normal(size=3).mean()
""",
    "pandas": """
import io, pandas as pd
frame = pd.DataFrame({"k": ["a", "b"], "v": [1.5, 2]})
repr(frame.groupby("k").sum()), repr(frame.merge(frame, on="k").describe()), frame.sort_values("v").to_csv()
pd.read_csv(io.StringIO("a,b")), pd.to_datetime(["2020-01-01"])
""",
    "scipy": """
import scipy.stats
scipy.stats.norm.cdf(0.5)
""",
    "sympy": """
import sympy
x = sympy.symbols("x")
sympy.diff(x**2), sympy.integrate(sympy.sin(x), x), sympy.solve(x**2 - 1), str(sympy.expand((x + 1) ** 2))
sympy.simplify((x**2 - 1) / (x - 1)), sympy.factor(x**2 - 1), sympy.Matrix([[1, 2], [3, 4]]).det(), sympy.N(sympy.pi)
""",
    "sklearn": """
import numpy as np, sklearn.ensemble, sklearn.linear_model
data, labels = np.arange(8.0)[:, None], [0, 1] * 4
sklearn.linear_model.LinearRegression().fit(data, labels).predict(data)
sklearn.ensemble.RandomForestClassifier(2).fit(data, labels).predict(data)
""",
}


def exercise_of(packages: Collection[str]) -> str:
    return "".join(code for package, code in _EXERCISES.items() if package in packages)


def tiers_of(code: str) -> list[str]:
    """Return the tiers with packages whose names occur in a program. Tiers with more of these packages come first, and
    among equal tiers the smaller tier. Only the beginning of a long program is searched, because the event loop waits
    for it. If the guess is wrong, the program is only slower.
    """
    beginning = code[:_SEARCHED_CHARS]
    named = {tier for tier in TIERS if tier in beginning}
    common = {tier: len(named & packages_of(tier)) for tier in TIERS} if named else {}
    return sorted((tier for tier in common if common[tier]), key=lambda tier: -common[tier])


def packages_of(tier: str) -> set[str]:
    return {module.partition(".")[0] for module in TIERS.get(tier, [])}
