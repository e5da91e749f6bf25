"""Numbers on which both sides of a pipe agree. The workers import this, so it must load nothing."""

from __future__ import annotations

import struct

LENGTH = struct.Struct("!I")
"""Stands in front of each frame between the Python engine and its workers."""
HELLO = 0
"""The number of the frame with which a worker says that it can run programs; theirs begin at 1."""
FLOOD_FACTOR = 2
"""A program that writes more than this many times its limit to a stream is ended."""
ERROR_BYTES = 32_768
"""The most UTF-8 bytes of an exception's name, and of its traceback."""
