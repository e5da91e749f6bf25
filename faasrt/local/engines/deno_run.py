"""One program in one Deno process: what is sent to it, what comes back, and the verdict on that."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
from typing import Any

from faasrt.languages import Language
from faasrt.local.engines.base import EngineError, Job, NotStartedError, Verdict
from faasrt.local.engines.bounds import ERROR_BYTES, FLOOD_FACTOR
from faasrt.local.engines.process import STDERR, STDOUT, Child
from faasrt.protocol.frames import cut_ret_val
from faasrt.protocol.return_val import defines_return_val, take_return_val
from faasrt.protocol.streams import cut, cut_text
from faasrt.results import Outcome, UserError

# A return value is JSON inside JSON: a control character of it takes six bytes and a backslash more.
_FRAME_FACTOR, _FRAME_BYTES = 8, 262_144
# Reading them is work for the server, so that a program may not make reports for ever.
_REPORTS_FACTOR, _REPORTS_BYTES = 2, 32 * 2**20
# V8 prints pages about itself when its heap is full; they are no output of the program.
_V8_LAST_WORDS = (b"\n<--- Last few GCs --->", b"\n\n#\n# Fatal")
_NEVER_SETTLED = b"Top-level await promise never resolved"
_BLOB_URL = re.compile(rb"blob:null/[0-9a-f-]{36}")
_LAST_WORDS = re.compile(rb"^# Fatal |^fatal runtime error|panicked at|has panicked", re.MULTILINE)
# What V8 and Deno say when memory ends them, always by a signal.
_OUT_OF_MEMORY = re.compile(
    rb"# Fatal (?:JavaScript|process) out of memory|^memory allocation of \d+ bytes failed", re.MULTILINE
)
# What the runner writes. Anything else that JSON can say may take seconds and hundreds of MB to read.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_REPORT = re.compile(rb'\{"kind":"[a-z_]+"(?:,"[a-z]+":(?:%b|[0-9]{1,9}|null)){0,6}\}' % _STRING)
# The fields that are kept of each kind of report. A program can find the mark, and may then say what it likes: what it
# says must neither be believed beyond its own verdict nor cost memory.
_REPORTS = {
    "started": ("location",),
    "ret_val": ("text",),
    "error": ("phase", "name", "message", "traceback", "line", "column"),
    "exit": (),
    "abort": (),
    "node": (),
    "watched": (),
    "kill": (),
    "done": (),
}
# The signals with which the system ends a process for what it does itself. Others come from outside, or through Node.
_FAULTS = frozenset({
    signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP,
    signal.SIGXCPU, signal.SIGXFSZ,
})  # fmt: skip
# After these the process only waits to be killed.
_LAST_REPORTS = frozenset({"error", "done"})


class FrameReader:
    """Parts a process's stdout into reports, which begin with a mark and end with the line, and the rest.

    Args:
        mark: Begins a report.
        rest_bytes: More of the rest than this is a flood.
        frame_bytes: A longer report is a flood, and so are a great many.
    """

    def __init__(self, mark: bytes, rest_bytes: int, frame_bytes: int) -> None:
        self._mark, self._rest_bytes, self._frame_bytes = mark, rest_bytes, frame_bytes
        self._reports_bytes = _REPORTS_FACTOR * frame_bytes + _REPORTS_BYTES
        self._pending = bytearray()
        self.rest = bytearray()
        self.reports: dict[str, dict[str, Any]] = {}
        self.flooded = self.overlong = self.complete = False

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._pending += data
        while not self.complete and (begin := self._pending.find(self._mark)) >= 0:
            self._keep(begin)
            end = self._pending.find(b"\n")
            self.overlong = (end < 0 and len(self._pending) > self._frame_bytes) or end > self._reports_bytes
            self.flooded = self.flooded or self.overlong
            if end < 0 or self.overlong:
                return
            self._reports_bytes -= end
            self._report(bytes(self._pending[len(self._mark) : end]))
            del self._pending[: end + 1]
        if self.complete:
            self._pending.clear()
        # The end of what came may be the beginning of a mark.
        split = self._pending.rfind(self._mark[:1], max(0, len(self._pending) - len(self._mark) + 1))
        self._keep(len(self._pending) if split < 0 else split)

    def finish(self) -> None:
        """Take in that nothing more comes: what is neither a whole report nor the rest is lost."""
        if not self._pending.startswith(self._mark):
            self._keep(len(self._pending))

    def _keep(self, size: int) -> None:
        self.rest += self._pending[:size]
        del self._pending[:size]
        if len(self.rest) > self._rest_bytes:
            del self.rest[self._rest_bytes + 1 :]
            self.flooded = True

    def _report(self, data: bytes) -> None:
        if _REPORT.fullmatch(data) is None:
            return
        try:
            report = json.loads(data)
        except ValueError:
            return
        kind = report["kind"]
        if kind in _REPORTS:
            self.reports[kind] = {name: report[name] for name in _REPORTS[kind] if name in report}
            self.complete = kind in _LAST_REPORTS


class DenoRun:
    """A job in a process.

    Args:
        job: See below.
        child: A process that waits for it.

    Attributes:
        job: The program and its limits.
        ended: Set when the program has ended; its process may take longer.
    """

    def __init__(self, job: Job, child: Child) -> None:
        self.job, self._child = job, child
        self._nonce = secrets.token_hex(16)
        self._flood_bytes = FLOOD_FACTOR * job.max_output_bytes
        self._stdout = FrameReader(
            f"\0faasrt:{self._nonce}:".encode(), self._flood_bytes, _FRAME_FACTOR * job.max_output_bytes + _FRAME_BYTES
        )
        self._stderr = bytearray()
        self._flooded = self._timed_out = self._out_of_memory = False
        self.ended = asyncio.Event()

    def begin(self) -> None:
        """Send the program."""
        self._child.receive(self._receive, self.ended.set)
        job = self.job
        fields = {
            "code": job.code,
            "language": job.language.value,
            "check": job.check,
            "network": job.network_enabled,
            "nonce": self._nonce,
            "most": job.max_output_bytes,
        }
        self._child.write(json.dumps(fields).encode(), eof=True)

    def on_deadline(self) -> None:
        """End the program at its time limit."""
        self._timed_out = True
        self._child.kill()

    def on_memory_limit(self) -> None:
        """End the program, whose process holds too much memory."""
        self._out_of_memory = True
        self._child.kill()

    def on_lost_stdout(self) -> None:
        """End the program, which has closed the descriptor on which its end would be told."""
        self._child.kill()

    def verdict(self) -> Verdict:
        """Judge the program after its end.

        Raises:
            EngineError: The process ended before the program began.
        """
        self._stdout.finish()
        stdout, stderr, limit = bytes(self._stdout.rest), bytes(self._stderr), self.job.max_output_bytes
        by_signal = self._signal is not None
        # V8's own failures come with words, but an allocation that fails beneath it aborts without any.
        silent_abort = (
            self._child.returncode == -signal.SIGABRT
            and "abort" not in self._stdout.reports
            and _LAST_WORDS.search(stderr) is None
        )
        out_of_memory = self._out_of_memory or (
            by_signal and (silent_abort or _OUT_OF_MEMORY.search(stderr) is not None)
        )
        fields = self._judge(stderr, out_of_memory)
        if out_of_memory:
            for words in _V8_LAST_WORDS:
                stderr = stderr.partition(words)[0]
        # In stacks that the program or Deno prints, the program has the name under which it was imported.
        location = _text(self._stdout.reports.get("started", {}), "location").encode("utf-8", "surrogatepass")
        if _BLOB_URL.fullmatch(location):
            shown = b"main.ts" if self.job.language is Language.TYPESCRIPT else b"main.js"
            stdout, stderr = stdout.replace(location, shown), stderr.replace(location, shown)
        ret_val = _text(self._stdout.reports.get("ret_val", {}), "text").encode("utf-8", "surrogatepass")
        streams = {"stdout": cut(stdout, limit), "stderr": cut(stderr, limit), "ret_val": cut_ret_val(ret_val, limit)}
        fields |= {name: text for name, (text, _) in streams.items()}
        truncated = frozenset(name for name, (_, was_cut) in streams.items() if was_cut)
        if self._stdout.overlong:
            truncated |= {"ret_val"}
        if not ret_val and defines_return_val(self.job.code, Language.JAVASCRIPT):
            fields["stdout"], fields["ret_val"], truncated = take_return_val(
                fields["stdout"], Language.JAVASCRIPT, truncated
            )
        return Verdict(truncated=tuple(sorted(truncated)), **fields)

    @property
    def _signal(self) -> int | None:
        """The signal that ended the process, other than the server's own."""
        number = -(self._child.returncode or 0)
        return None if number <= 0 or (number == signal.SIGKILL and self._child.killed) else number

    @property
    def _may_have_killed_itself(self) -> bool:
        reports = self._stdout.reports
        return "kill" in reports or ("node" in reports and "watched" not in reports)

    def _receive(self, fd: int, data: bytes) -> None:
        if self._flooded or self.ended.is_set():
            return
        if fd == STDOUT:
            self._stdout.feed(data)
        else:
            self._stderr += data[: self._flood_bytes + 1 - len(self._stderr)]
        if self._stdout.flooded or len(self._stderr) > self._flood_bytes:
            self._flooded = True
            self._child.kill()
        elif fd == STDOUT and self._stdout.complete:
            self._child.drain(STDERR)
            self._child.kill()
            self.ended.set()

    def _judge(self, stderr: bytes, out_of_memory: bool) -> dict[str, Any]:
        reports, returncode = self._stdout.reports, self._child.returncode
        if self._timed_out:
            return {"outcome": Outcome.TIMEOUT}
        if out_of_memory:
            return {"outcome": Outcome.MEMORY_LIMIT}
        if "started" not in reports:
            raise NotStartedError(f"a Deno process ended before it ran its program (exit code {returncode})")
        if self._signal is not None and self._signal not in _FAULTS and not self._may_have_killed_itself:
            # For want of memory as a rule.
            raise EngineError(f"a Deno process was killed from outside (signal {self._signal})")
        if self._flooded:
            return {"outcome": Outcome.OUTPUT_LIMIT}
        if "error" in reports:
            return _error_fields(reports["error"], self.job.max_output_bytes)
        if (returncode or 0) > 0 and "exit" in reports:
            error = UserError("Exit", f"the program exited with code {returncode}")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": returncode}
        if "done" in reports or (returncode == 0 and "exit" in reports):
            return {"outcome": Outcome.OK, "exit_code": 0}
        if returncode == 1 and _NEVER_SETTLED in stderr:
            error = UserError("Error", "a promise of a top-level await never settled")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": 1}
        return {"outcome": Outcome.CRASHED, "exit_code": returncode if (returncode or 0) >= 0 else None}


def _error_fields(report: dict[str, Any], limit: int) -> dict[str, Any]:
    name, traceback = (cut_text(_text(report, key), ERROR_BYTES)[0] for key in ("name", "traceback"))
    message = cut_text(_text(report, "message"), limit)[0]
    in_compiler = report.get("phase") == "compile"
    return {
        "outcome": Outcome.SYNTAX_ERROR if in_compiler else Outcome.USER_ERROR,
        "error": UserError(name or "Error", message, traceback),
        "exit_code": 1,
        "line": _position(report.get("line")),
        "column": _position(report.get("column")),
    }


def _text(report: dict[str, Any], name: str) -> str:
    text = report.get(name)
    return text if isinstance(text, str) else ""


def _position(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**31 else None
