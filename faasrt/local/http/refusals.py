"""Logs why requests were refused: one line for each reason and ten seconds, with the number of requests."""

from __future__ import annotations

from faasrt.local.http.admission import BusyError
from faasrt.local.http.request_body import BadRequestError
from faasrt.local.machine_memory import MachineMemory
from faasrt.protocol.served import RefusedError
from faasrt.telemetry.counted_lines import CountedLines
from faasrt.telemetry.logs import log_warning

_GIB = 1024  # MiB


class RefusalLog:
    """The reasons have no text of a request."""

    def __init__(self) -> None:
        self._memory = MachineMemory()
        self._lines = CountedLines(self._write)

    def count(self, error: Exception, service: str) -> None:
        """Count a request that was refused. `service` is the name of the service whose client has sent it, or ""."""
        match error:
            case BusyError():
                self._lines.count(error.reason)
            case RefusedError() if error.limit:
                self._lines.count(f"requests of {service} clients asked for more than the maximum: {error.limit}")
            case RefusedError() | BadRequestError() if service:
                self._lines.count(f"requests of {service} clients were not valid here; the answers say why")

    def flush(self) -> None:
        self._lines.flush()

    def _write(self, reason: str, number: int) -> None:
        total, in_use = self._memory.total_mb, ""
        if total is not None and reason.startswith("programs"):
            used = total - self._memory.available_mb()
            in_use = f" (memory in use: {used / _GIB:.1f} of {total / _GIB:.1f} GiB)"
        log_warning("refused in 10 s: %s %s%s", f"{number:,}", reason, in_use, name="faasrt.local")
