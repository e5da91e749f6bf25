"""The line on stderr that says how a program ended that printed nothing there.

The backend of coze-loop takes an empty stderr for success. Our own client removes the line again: the answer's `notice`
says that it is there.
"""

from __future__ import annotations

from faasrt.local.engines.base import Job, Verdict
from faasrt.results import Outcome

_MAX_WORDS = 200


def notice_of(job: Job, verdict: Verdict) -> str:
    """Return one line that says how a program ended, or "" for a success.

    Args:
        job: The program and its limits.
        verdict: How it ended.
    """
    reason = _reason(job, verdict)
    return f"faasrt: {reason}\n" if reason else ""


def _reason(job: Job, verdict: Verdict) -> str:
    match verdict.outcome:
        case Outcome.OK:
            return ""
        case Outcome.TIMEOUT:
            return f"ended after {job.timeout_ms:.15g} ms (timeout)"
        case Outcome.MEMORY_LIMIT:
            return f"ended at {job.memory_limit_mb} MiB of memory (memory limit)"
        case Outcome.OUTPUT_LIMIT:
            return f"ended at the limit of {job.max_output_bytes} bytes of output (output limit)"
    error, code = verdict.error, verdict.exit_code
    if verdict.outcome is Outcome.CRASHED:
        words = _one_line(error.message) if error else "" if code is None else f"exit code {code}"
        return f"crashed ({words})" if words else "crashed"
    if error is None or error.name in ("SystemExit", "Exit"):
        return f"exited with code {code} (error)"
    return f"ended by an error ({_one_line(error.name)})"


def _one_line(text: str) -> str:
    """Bound words that a program may have chosen."""
    return " ".join(text[:_MAX_WORDS].split())
