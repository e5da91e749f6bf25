from __future__ import annotations

import re

from faasrt.results import Outcome

_LIMITS = (Outcome.TIMEOUT, Outcome.MEMORY_LIMIT, Outcome.OUTPUT_LIMIT)
# The messages of `faasrt.protocol.execution_limits`.
_LIMIT = re.compile(r"(timeout )?((?:after|more than) [^()]*) \((twice the )?limit of the (client|server)\)")


def describe(outcome: str, name: str, message: str) -> str:
    """Return an outcome and its reason, such as `TIMEOUT after 2,000 ms (limit)`."""
    match = _LIMIT.fullmatch(message) if outcome in _LIMITS else None
    if match is None:
        return ": ".join(part for part in (outcome, name, message) if part)
    _, text, twice, owner = match.groups()
    text = re.sub(r"\d+", lambda digits: f"{int(digits[0]):,}", text, count=1)
    limit = f"{twice or ''}limit{' of the server' if owner == 'server' else ''}"
    return f"{outcome}{'' if match[1] else ':'} {text} ({limit})"
