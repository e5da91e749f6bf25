"""How displays are sent: as JSON objects with the fields `data` and `omitted` of `Display`; bytes are in Base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from faasrt.results import Display

MAX_DISPLAYS = 1000
"""The largest number of displays of one program."""


def is_binary(mime_type: str) -> bool:
    return mime_type == "application/pdf" or (mime_type.startswith("image/") and mime_type != "image/svg+xml")


def displays_to_wire(displays: Sequence[Display]) -> list[dict[str, Any]]:
    return [display.to_dict() for display in displays]


def displays_from_wire(values: Any) -> tuple[Display, ...]:
    if not isinstance(values, list) or len(values) > MAX_DISPLAYS:
        raise ValueError(f"'displays' must be a list of at most {MAX_DISPLAYS} objects")
    return tuple(map(_display_from_wire, values))


def _display_from_wire(value: Any) -> Display:
    if not isinstance(value, dict):
        raise ValueError("a display must be an object")
    data, omitted = value.get("data"), value.get("omitted", [])
    if not isinstance(data, dict) or not all(isinstance(content, str) for content in data.values()):
        raise ValueError("'data' of a display must be an object with strings")
    if not isinstance(omitted, list) or not all(isinstance(name, str) for name in omitted):
        raise ValueError("'omitted' of a display must be a list of strings")
    try:
        content = {
            mime_type: base64.b64decode(text, validate=True) if is_binary(mime_type) else text
            for mime_type, text in data.items()
        }
    except binascii.Error:
        raise ValueError("bytes in 'data' of a display must be in Base64") from None
    return Display(content, tuple(omitted))
