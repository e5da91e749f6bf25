from __future__ import annotations

_NAME_OF_LIMIT = {"TIMEOUT": "Timeout", "MEMORY_LIMIT": "MemoryLimit", "OUTPUT_LIMIT": "OutputLimit"}


def describe_error(outcome: str, name: str, message: str) -> str:
    """Return the name and the message of an error. The name of a limit is left out, because the outcome says it."""
    return ": ".join(part for part in ("" if is_limit(outcome, name) else name, message) if part)


def is_limit(outcome: str, name: str) -> bool:
    return _NAME_OF_LIMIT.get(outcome) == name
