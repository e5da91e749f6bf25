"""Doubles of the two reference servers: what they were recorded to answer, over real sockets and interpreters."""

from __future__ import annotations

from .js_faas import JsFaas
from .python_faas import PythonFaas

__all__ = ["JsFaas", "PythonFaas"]
