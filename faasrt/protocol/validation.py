"""The answer of `POST /validate_code`, which our own FaaS knows and the reference servers do not."""

from __future__ import annotations

from typing import Any

from faasrt.errors import ProtocolError
from faasrt.protocol.messages import decode_object
from faasrt.results import Diagnostic, ValidationResult


def decode_validation(body: bytes) -> ValidationResult:
    """Read the answer.

    Raises:
        ProtocolError: It is not the protocol.
    """
    fields = decode_object(body)
    valid, listed, checked_by = fields.get("valid"), fields.get("diagnostics"), fields.get("checked_by")
    if not isinstance(valid, bool) or not isinstance(listed, list) or not isinstance(checked_by, str):
        raise ProtocolError("the answer to a validation has wrong or missing fields", sent="yes", status=200)
    return ValidationResult(valid, tuple(_diagnostic(item) for item in listed), checked_by)


def _diagnostic(item: Any) -> Diagnostic:
    if isinstance(item, dict):
        message, line, column = item.get("message"), item.get("line"), item.get("column")
        if isinstance(message, str) and _position(line) and _position(column):
            return Diagnostic(message, line, column)
    raise ProtocolError("a diagnostic in the answer has wrong or missing fields", sent="yes", status=200)


def _position(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
