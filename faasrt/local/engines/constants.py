"""Constants that an engine and its processes share. The workers import this module, so it must load quickly."""

from __future__ import annotations

import struct

FRAME_LENGTH = struct.Struct("!I")
"""The length in front of each frame between the Python engine and its workers."""
READY_ID = 0
"""The job id of the frame in which a worker reports that it is ready. The ids of programs begin at 1."""
ERROR_BYTES = 32_768
"""UTF-8 bytes to keep of an exception's name, and of its traceback."""
