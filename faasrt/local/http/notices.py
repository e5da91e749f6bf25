"""The notice: one line on stderr that says how a program failed, if the program itself printed nothing there.

The backend of coze-loop takes an empty stderr for success. The answer repeats the line as `notice`, and faasrt's own
client removes it from the result.
"""

from __future__ import annotations

from faasrt.local.engines.engine import EngineResult
from faasrt.results import Outcome

_MAX_CHARACTERS = 200


def notice_of(result: EngineResult) -> str:
    return "" if result.outcome is Outcome.OK else f"faasrt: {_reason(result)}\n"


def _reason(result: EngineResult) -> str:
    error, code = result.error, result.exit_code
    match result.outcome:
        case Outcome.TIMEOUT | Outcome.MEMORY_LIMIT | Outcome.OUTPUT_LIMIT if error is not None:
            return error.message
        case Outcome.CRASHED:
            reason = _one_line(error.message) if error else "" if code is None else f"exit code {code}"
            return f"crashed ({reason})" if reason else "crashed"
    if error is None or error.name in ("SystemExit", "Exit"):
        return f"exited with code {code} (error)"
    return f"ended by an error ({_one_line(error.name)})"


def _one_line(text: str) -> str:
    return " ".join(text[:_MAX_CHARACTERS].split())
