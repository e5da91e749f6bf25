"""A batch that is killed again and again gets the same results as one that is not.

    python -m benchmarks.batch [--tasks 3000] [--kills 5]

`faasrt batch` runs mixed tasks in three languages on a `faasrt serve` of its own: good programs, errors, endless loops,
programs that use too much memory or print too much, and syntax errors. First it runs without interruption. Then it runs
the same tasks again, is killed with SIGKILL at random moments and resumed each time, and the results are compared. The
server's metrics show how many programs ran twice.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.harness import forget_endpoints, parser
from benchmarks.report import Report
from benchmarks.server import FAASRT, faas

TASKS: list[dict[str, Any]] = [
    {"language": "python", "code": "print({n})"},
    {"language": "python", "code": "print({n} // 0)"},
    {"language": "python", "code": "while True: pass", "timeout_ms": 150},
    {"language": "python", "code": "def f(a):\n    return a * 2", "function": "f", "args": ["{n}"]},
    {"language": "python", "code": "x = [0] * 10**9"},
    {"language": "python", "code": "while True: print('x' * 100_000)"},
    {"language": "python", "code": "print({n}"},
    {"language": "python", "code": "import os; os._exit(3)"},
    {"language": "javascript", "code": "console.log({n})"},
    {"language": "javascript", "code": "throw new Error('{n}')"},
    {"language": "javascript", "code": "while (true) {}", "timeout_ms": 150},
    {"language": "javascript", "code": "for (;;) console.log('x'.repeat(100_000))"},
    {"language": "javascript", "code": "let = {n};;("},
    {"language": "typescript", "code": "const n: number = {n}; console.log(n)"},
]
GOOD = [0, 3, 8, 13]


def make_tasks(count: int) -> list[dict[str, Any]]:
    """Return tasks. Four of five are good programs, as in real batches."""
    chosen = random.Random(7)
    tasks = []
    for number in range(count):
        kind = chosen.choice(GOOD) if chosen.random() < 0.8 else chosen.randrange(len(TASKS))
        text = json.dumps(TASKS[kind]).replace("{n}", str(number))
        tasks.append({"id": f"task-{number}", **json.loads(text)})
    return tasks


def read(path: Path) -> dict[str, tuple[Any, ...]]:
    """Return the results in a results file, by id. Raise AssertionError if an id occurs twice."""
    results: dict[str, tuple[Any, ...]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        assert record["id"] not in results, f"the id {record['id']} occurs twice"
        error = record["error"] or {}
        stdout = record["stdout"] if record["outcome"] in ("OK", "USER_ERROR") else ""
        results[record["id"]] = (record["outcome"], stdout, record["value"], error.get("name"))
    return results


def executions(url: str) -> int:
    """Return how many programs the server has run to their ends."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        engines = json.load(answer)["engines"].values()
    return sum(sum(counts.values()) for engine in engines for counts in engine["executions"].values())


def run_batch(tasks: Path, results: Path, url: str, *, kill_after_s: float | None, resume: bool) -> int:
    """Run the command, and return its exit code. If `kill_after_s` is not None, kill it after this time."""
    command = [*FAASRT, "batch", str(tasks), "-o", str(results), "--url", url, "--concurrency", "8", "--quiet"]
    process = subprocess.Popen([*command, *(["--resume"] if resume else [])])
    try:
        return process.wait(kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


def measure(count: int, kills: int) -> dict[str, float]:
    """Return the figures of a batch. Raise AssertionError if a result is wrong or missing."""
    with tempfile.TemporaryDirectory() as name, faas() as server:
        folder = Path(name)
        tasks, results, calm = folder / "tasks.jsonl", folder / "results.jsonl", folder / "calm.jsonl"
        tasks.write_text("".join(json.dumps(task) + "\n" for task in make_tasks(count)))
        started = time.perf_counter()
        assert run_batch(tasks, calm, server.url, kill_after_s=None, resume=False) == 0
        calm_s = time.perf_counter() - started
        before = executions(server.url)
        killed = 0
        while killed < kills:
            after_s = random.uniform(0.5, 0.5 + calm_s / (kills + 1))
            if run_batch(tasks, results, server.url, kill_after_s=after_s, resume=killed > 0) == 0:
                break
            killed += 1
        done = len(results.read_bytes().splitlines()) if results.exists() else 0
        assert run_batch(tasks, results, server.url, kill_after_s=None, resume=killed > 0 or done > 0) == 0
        again = executions(server.url) - before - count
        wanted, results_after_kills = read(calm), read(results)
    assert len(wanted) == count
    differing = [key for key, result in wanted.items() if results_after_kills.get(key) != result]
    assert not differing, {key: (wanted[key], results_after_kills.get(key)) for key in differing[:5]}
    # A kill makes some programs run again: at most 8 in flight, and 8 whose results had not been written yet.
    assert again <= 16 * killed, again
    return {"tasks": count, "tasks/s undisturbed": count / calm_s, "kills": killed, "executions more": again}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", type=int, default=3_000)
    options.add_argument("--kills", type=int, default=5)
    args = options.parse_args()
    forget_endpoints()
    report = Report("batch", vars(args))
    report.row("Killed and resumed: each id once, the same results", **measure(args.tasks, args.kills))
    report.print(args.json)


if __name__ == "__main__":
    main()
