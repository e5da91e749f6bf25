"""The files of the checkout and of the package."""

from __future__ import annotations

import functools
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "faasrt"
WIRE = Path(__file__).parent / "wire"
"""The recorded answers of the reference servers."""


@functools.cache
def modules() -> dict[str, Path]:
    """Return the files of the package's modules by their dotted names, without those that run inside the sandboxes."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name in ("guest", "runners") and path.name != "__init__.py":
            continue
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files
