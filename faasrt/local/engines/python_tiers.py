"""The packages that both Python engines import ahead of time, in tiers.

A tier is a set of modules that are already imported when a program starts. Every program that names no package runs in
the tier of the standard library.
"""

from __future__ import annotations

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


def tiers_of(code: str) -> list[str]:
    """Return the tiers with packages whose names occur in a program: those with most of these packages first, and of
    those the smallest. If this guess is wrong, the program is only slower. The time is linear in the length of the
    program.
    """
    named = {tier for tier in TIERS if tier in code}
    common = {tier: len(named & packages_of(tier)) for tier in TIERS} if named else {}
    return sorted((tier for tier in common if common[tier]), key=lambda tier: -common[tier])


def packages_of(tier: str) -> set[str]:
    """Return the packages that a tier has imported; none for that of the standard library."""
    return {module.partition(".")[0] for module in TIERS.get(tier, [])}
