"""The public records: the attrs classes with fields that users read."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import attrs

MODULES = ("faasrt", "faasrt.rewards", "faasrt.telemetry.events", "faasrt.telemetry.metrics", "faasrt.testing")


def public_records() -> dict[str, list[str]]:
    """Return the names of the public fields of each record, by the dotted name of the record."""
    records = {}
    for module in MODULES:
        imported = importlib.import_module(module)
        for name in imported.__all__:
            kind: Any = getattr(imported, name)
            if inspect.isclass(kind) and attrs.has(kind):
                fields = [field.name for field in attrs.fields(kind) if not field.name.startswith("_")]
                records[f"{module}.{name}"] = fields
    return records
