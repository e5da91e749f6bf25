"""A batch whose command and server are killed again and again has each task once, with the outcome of its program.

    python -m benchmarks.batch [--tasks 3000] [--kills 6]

`faasrt batch` runs mixed tasks in three languages on a `faasrt serve` of its own: programs that end well, fail, hang,
use too much memory, print too much or do not parse, and solutions of contest problems with tests of functions, right
and wrong ones and some that cheat. The command and the server are killed with SIGKILL in turn, at random moments. The
server starts again on the same port, and the command with `--resume`, until every task has an outcome.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import forget_endpoints, parser
from benchmarks.problems import PROBLEMS, as_function
from benchmarks.report import Report
from benchmarks.server import FAASRT, Server, wait_ready

_INFRASTRUCTURE = 3
# Programs with the outcomes of their tasks. Those that end well print {n}, the number of the task.
_PROGRAMS: list[tuple[str, str, str]] = [
    ("python", "print({n})", "OK"),
    ("javascript", "console.log({n})", "OK"),
    ("typescript", "const n: number = {n}; console.log(n)", "OK"),
    ("python", "print({n} // 0)", "USER_ERROR"),
    ("python", "while True: pass", "TIMEOUT"),
    ("python", "x = [0] * 10**9", "MEMORY_LIMIT"),
    ("python", "while True: print('x' * 100_000)", "OUTPUT_LIMIT"),
    ("python", "print({n}", "SYNTAX_ERROR"),
    ("python", "import os; os._exit(3)", "CRASHED"),
    ("javascript", "throw new Error('{n}')", "USER_ERROR"),
    ("javascript", "while (true) {}", "TIMEOUT"),
    ("javascript", "for (;;) console.log('x'.repeat(100_000))", "OUTPUT_LIMIT"),
    ("javascript", "let = {n};;(", "SYNTAX_ERROR"),
]
_DOUBLE: list[dict[str, Any]] = [{"args": [n], "expected": n * 2} for n in range(10)]
# Programs that are tested as `solve`.
_FUNCTIONS: list[tuple[str, str, str]] = [
    ("javascript", "const solve = (n) => n * 2;", "OK"),
    ("typescript", "export function solve(n: number): number { return n * 2; }", "OK"),
    ("javascript", "const solve = (n) => n < 5 ? n * 2 : n;", "WRONG_ANSWER"),
    ("javascript", "const solve = (n) => Deno.exit(0);", "USER_ERROR"),
    ("python", "import sys\ndef solve(n): sys.exit(0)", "USER_ERROR"),
    ("python", "import os\ndef solve(n): os._exit(0)", "CRASHED"),
    ("python", "class Any:\n    __eq__ = lambda *_: True\ndef solve(n): return Any()", "USER_ERROR"),
    ("python", "import json\njson.dumps = lambda *_: '0'\ndef solve(n): return {n * 2}", "USER_ERROR"),
    ("python", "def solve(n): return str(n * 2)", "WRONG_ANSWER"),
    ("python", "def solve(n):\n    while n == 7: pass\n    return n * 2", "TIMEOUT"),
    ("python", "def solve(n) return n * 2", "SYNTAX_ERROR"),
]


def make_tasks(count: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield tasks with the outcomes that they must have. Half of them are programs, and most of these end well. The
    others have tests of functions, and most of these are solutions of contest problems.
    """
    chosen = random.Random(7)
    solutions = []
    for problem in PROBLEMS:
        tests = [{"args": test.args, "expected": test.expected} for test in problem.function_tests()]
        solutions += [
            (as_function(code), tests, outcome)
            for code, outcome in ((problem.right, "OK"), (problem.wrong, "WRONG_ANSWER"))
        ]
    for number in range(count):
        task: dict[str, Any] = {"id": f"task-{number}"}
        if chosen.random() < 0.5:
            ends_well = chosen.random() < 0.8
            language, code, outcome = chosen.choice(_PROGRAMS[:3] if ends_well else _PROGRAMS)
            task |= {"language": language, "code": code.replace("{n}", str(number)), "timeout_ms": 5_000}
        else:
            task |= {"function": "solve", "timeout_ms": 5_000}
            if chosen.random() < 0.75:
                code, tests, outcome = chosen.choice(solutions)
                task |= {"language": "python", "code": code, "tests": tests}
            else:
                language, code, outcome = chosen.choice(_FUNCTIONS)
                task |= {"language": language, "code": code, "tests": _DOUBLE}
        yield task | ({"timeout_ms": 400} if outcome == "TIMEOUT" else {}), outcome


def start_server(port: int) -> Server:
    command = [*FAASRT, "serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    return Server(process, f"http://127.0.0.1:{port}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def measure(count: int, kills: int) -> dict[str, float]:
    """Return the figures. Raise AssertionError if a task has no result, two results, or a wrong one."""
    with tempfile.TemporaryDirectory() as name:
        tasks, results = Path(name, "tasks.jsonl"), Path(name, "results.jsonl")
        expected = {}
        with tasks.open("w") as file:
            for task, outcome in make_tasks(count):
                expected[task["id"]] = outcome
                file.write(json.dumps(task) + "\n")
        server = start_server(free_port())
        wait_ready(server.url)
        command = [*FAASRT, "batch", str(tasks), "-o", str(results), "--url", server.url, "--quiet", "--resume"]
        killed: Counter[str] = Counter()
        left = kills
        try:
            while True:
                batch = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                while left and batch.poll() is None:
                    # Each kill comes after a share of the results, so that the kills are spread over all of them.
                    done = count_lines(results)
                    wanted = done + random.uniform(0.3, 1) * (count - done) / (left + 1)
                    while batch.poll() is None and count_lines(results) < wanted:
                        time.sleep(0.05)
                    left -= 1
                    if left % 2:
                        batch.kill()
                        killed["batch"] += 1
                        batch.wait()
                    else:
                        server.process.kill()
                        killed["server"] += 1
                        server.process.wait()
                        server = start_server(int(server.url.rpartition(":")[2]))
                if (exit_code := batch.wait()) == 0:
                    break
                assert exit_code in (_INFRASTRUCTURE, -signal.SIGKILL), exit_code
        finally:
            server.process.terminate()
            server.process.wait()
        records = [json.loads(line) for line in results.read_text().splitlines()]
    found = {record["id"]: record for record in records}
    assert sorted(record["id"] for record in records) == sorted(expected), "a task has no result, or more than one"
    wrong = {
        key: (outcome, found[key]["outcome"], found[key].get("error"))
        for key, outcome in expected.items()
        if found[key]["outcome"] != outcome
    }
    assert not wrong, wrong
    for key, outcome in expected.items():
        if "tests" in found[key]:
            assert (found[key]["tests"]["passed"] == 10) is (outcome == "OK")
        elif outcome == "OK":
            assert found[key]["stdout"] == f"{key.removeprefix('task-')}\n"
    return {"tasks": count, **{f"kills of the {name}": number for name, number in killed.items()}}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", type=int, default=3_000)
    options.add_argument("--kills", type=int, default=6)
    args = options.parse_args()
    forget_endpoints()
    report = Report("batch", vars(args))
    report.row("Killed and resumed: each task once, with its outcome", **measure(args.tasks, args.kills))
    report.print(args.json)


if __name__ == "__main__":
    main()
