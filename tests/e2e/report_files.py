"""Result files in the format of `faasrt batch`, for the tests of `faasrt report`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

START = 1_795_626_909.0
TRACEBACK = """Traceback (most recent call last):
  File "<string>", line 14, in grade
    return {"score": 1 / len(turn["answers"])}
                     ~~^~~~~~~~~~~~~~~~~~~~~~
ZeroDivisionError: division by zero
"""
NASTY = [
    "</script><script>alert(1)</script>",
    "</style><style>* { display: none }</style>",
    '"><img src=x onerror=alert(1)>',
    "' autofocus onfocus='alert(1)",
    "<!-- <![CDATA[ &lt; &amp; &#60; &nbsp",
    "\ud800 lone \udfff surrogates",
    "\x00\x01\x1b[31m\x7f\x85\x9b control",
    "\u202eright to left\u2066 override\u200f",
    "\u2028line\u2029separators\ufeff\uffff",
    "x" * 100_000,
    "<" * 100_000,
    "\U0001f600" * 50_000,
    "$style ${body} %s {0}",
    "Z\u0351\u034e\u0316" * 500,
]


def result(number: int, outcome: str = "OK", **fields: Any) -> dict[str, Any]:
    """Return a result in the format of `faasrt batch`."""
    return {
        "id": f"case-{number:06d}", "line": number, "language": "python", "outcome": outcome, "value": None,
        "ret_val": "", "stdout": "", "stderr": "", "error": None, "truncated": [],
        "exit_code": 0 if outcome == "OK" else None, "duration_ms": 10.0, "total_ms": 12.0, "attempts": 1,
        "endpoint": "http://127.0.0.1:8000",
        "finished_at": START + number / 100, **fields,
    }  # fmt: skip


def infrastructure(number: int, message: str = "refused the connection", **fields: Any) -> dict[str, Any]:
    """Return the result of a task that failed with a ServiceError."""
    error = {"type": "ConnectError", "message": f"http://10.0.0.7:8000 {message}", "sent": "no", "attempts": 3}
    return {
        "id": f"case-{number:06d}", "line": number, "language": "python", "infra_error": error,
        "total_ms": 1_204.5, "finished_at": START + number / 100, **fields,
    }  # fmt: skip


def invalid(number: int, words: str = "'code' must be a string") -> dict[str, Any]:
    """Return the result of a line that is not a valid task."""
    return {"id": None, "line": number, "invalid_task": words, "finished_at": START + number / 100}


def ordinary(count: int) -> Iterator[dict[str, Any]]:
    """Yield the results of a typical run with few failures. They are always the same."""
    chance = random.Random(7)
    at = START
    for number in range(1, count + 1):
        at += chance.expovariate(90 + 40 * math.sin(number / count * 7))
        took = chance.lognormvariate(2.6, 0.55) + 2
        language = "typescript" if number % 5 == 0 else "javascript" if number % 3 == 0 else "python"
        fields: dict[str, Any] = {
            "task_id": f"Problem/{number % 50}",
            "language": language,
            "finished_at": round(at, 3),
            "total_ms": round(took, 2),
            "duration_ms": round(took * 0.8, 2),
        }
        place = chance.random() / (10 if 0.55 < number / count < 0.62 else 1)
        if place > 0.03:
            yield result(number, **fields)
        elif place > 0.015:
            error = {"name": "ZeroDivisionError", "message": "division by zero", "traceback": TRACEBACK}
            texts = {"stdout": "grading turn 3\n", "stderr": f"a warning\n{TRACEBACK}"}
            yield result(number, "USER_ERROR", error=error, exit_code=1, **texts, **fields)
        elif place > 0.012:
            error = {"name": "SyntaxError", "message": "invalid syntax (<string>, line 3)", "traceback": ""}
            yield result(number, "SYNTAX_ERROR", error=error, exit_code=1, **fields)
        elif place > 0.006:
            yield result(
                number, "TIMEOUT", stdout="step 1\n", **fields | {"total_ms": 5_003 + took, "duration_ms": 5_000}
            )
        elif place > 0.004:
            yield result(number, "MEMORY_LIMIT", **fields)
        elif place > 0.001:
            yield infrastructure(number, finished_at=fields["finished_at"])
        else:
            yield invalid(number) | {"finished_at": fields["finished_at"]}


def hostile() -> Iterator[dict[str, Any]]:
    """Yield results with texts and types that could break an HTML page, in every field."""
    for number, text in enumerate(NASTY):
        error: dict[str, Any] = {"name": text, "message": text, "traceback": text}
        fields: dict[str, Any] = {
            "error": error,
            "stdout": text,
            "stderr": f"{text}!",
            "endpoint": text,
            "language": text,
            "task_id": text,
        }
        yield result(
            number, "USER_ERROR", id=f"{number} {text}", **fields, exit_code=text, truncated=[text], attempts=text
        )
        yield result(number, text, id=f"other {text}", total_ms=10.0**number)
        error = {"type": text, "message": text, "sent": text, "attempts": [text]}
        yield {"id": f"infra {text}", "infra_error": error, "total_ms": text, "finished_at": 1e300}
        yield {"id": None, "line": text, "invalid_task": text, "finished_at": -1}
    yield result(99, "CRASHED", id={"a": [1]}, error="words", stdout=["x"], stderr=7, total_ms=-1, duration_ms=True)
    yield {"outcome": None}
    yield {"infra_error": "words", "outcome": "OK"}
    yield {"invalid_task": 7, "id": 10**400, "total_ms": 10**400}


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write results to a file, one per line."""
    with path.open("w") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
