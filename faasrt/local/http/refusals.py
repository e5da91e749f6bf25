"""Logs why requests were refused: one line for each reason and ten seconds, with the number of requests."""

from __future__ import annotations

from aiohttp import web

from faasrt.local.errors import TOO_BUSY, EngineError
from faasrt.local.http import limits
from faasrt.local.http.admission import BusyError
from faasrt.local.http.request_body import BadRequestError
from faasrt.local.machine_memory import MachineMemory
from faasrt.protocol.served import RefusedError
from faasrt.telemetry.counted_lines import CountedLines
from faasrt.telemetry.logs import log_warning

_GIB = 1024  # MiB
_NOT_VALID = "were not valid here: the answers say why, and --access-log shows their addresses"
# By status: the refusals before a request is read.
_OF_STATUS = {
    401: "had no token, or a wrong one: put it into their URL, as http://user:TOKEN@host",
    403: "named another host, or came from a web page: use --host with the name that clients use, and a token",
    404: "were for paths that this server does not have; the page at / lists those of each service",
    405: "had a method that their path does not have; the page at / lists the paths of each service",
    408: f"arrived more slowly than in {limits.REQUEST_TIMEOUT_S:g} s",
    413: f"had more than {limits.MAX_BODY_BYTES >> 20} MiB: send fewer or smaller files",
    415: "were compressed, or did not have the Content-Type application/json",
}


class RefusalLog:
    """The reasons have no text of a request."""

    def __init__(self) -> None:
        self._memory = MachineMemory()
        self._lines = CountedLines(self._write)

    def count(self, error: Exception, service: str) -> None:
        """Count a request that was refused. `service` is the name of the service whose client has sent it, or ""."""
        whose = f"requests of {service} clients" if service else "requests"
        match error:
            case BusyError(reason=reason) | EngineError(__cause__=BusyError(reason=reason)):
                self._lines.count(reason)
            case EngineError() if str(error) == TOO_BUSY:
                self._lines.count(
                    "programs at the limit of their wall-clock time, because they got too little of a CPU: send fewer "
                    "at once, raise --max-wall-factor, or add servers"
                )
            case RefusedError(logged=logged) | BadRequestError(logged=logged) if logged:
                self._lines.count(f"{whose} {logged}")
            case RefusedError() | BadRequestError() if service:
                self._lines.count(f"{whose} {_NOT_VALID}")
            case web.HTTPException(status=status) if service and status in _OF_STATUS:
                self._lines.count(f"{whose} {_OF_STATUS[status]}")

    def count_connection(self, limit: int) -> None:
        """Count a connection that was refused, because `limit` are open."""
        self._lines.count(f"connections, because {limit:,} were open; --max-connections of faasrt serve raises it")

    def flush(self) -> None:
        self._lines.flush()

    def _write(self, reason: str, number: int) -> None:
        total, in_use = self._memory.total_mb, ""
        if total is not None and reason.startswith("programs"):
            used = total - self._memory.available_mb()
            in_use = f" (memory in use: {used / _GIB:.1f} of {total / _GIB:.1f} GiB)"
        log_warning("refused in 10 s: %s %s%s", f"{number:,}", reason, in_use, name="faasrt.local")
