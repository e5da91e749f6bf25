"""A run in a Deno process.

Its runner has no descriptor for messages, so they are in stdout, between marks that the program cannot guess.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import signal
from collections.abc import Callable, Mapping
from typing import Any

from faasrt import _strict_json
from faasrt.inputs import program_file
from faasrt.languages import Language
from faasrt.local.engines.deno.output_filter import OutputFilter, find_diagnostics
from faasrt.local.engines.engine import EngineJob, EngineResult
from faasrt.local.engines.jailed_run import MESSAGE_BYTES, MESSAGE_FACTOR, TOTAL_BYTES, TOTAL_FACTOR
from faasrt.local.engines.runner_messages import DisplayReader, cut_streams, decode_message, read_error, read_text
from faasrt.local.errors import NotStartedError
from faasrt.local.jail.jail import JailedProcess
from faasrt.local.process import STDERR, STDOUT, STREAMS
from faasrt.protocol.execution_limits import OUTPUT_FACTOR
from faasrt.protocol.processes import signal_name
from faasrt.protocol.return_val import defines_return_val
from faasrt.protocol.streams import OutputBuffer
from faasrt.results import ErrorInfo, Outcome

_NEVER_SETTLED = b"Top-level await promise never resolved"
_BLOB_URL = re.compile(rb"blob:null/[0-9a-f-]{36}")
FOLDER = "/tmp"  # noqa: S108
"""The folder of a program that has one."""
_FATAL_ERROR = re.compile(rb"^# Fatal |^fatal runtime error|panicked at|has panicked", re.MULTILINE)
# V8 and Deno print these when they run out of memory, before they end with a signal.
_OUT_OF_MEMORY = re.compile(
    rb"# Fatal (?:JavaScript|process) out of memory|^memory allocation of \d+ bytes failed", re.MULTILINE
)
# Deno prints one of these and exits with 1 if the stack of a new thread does not fit into RLIMIT_DATA.
_NO_THREAD = re.compile(
    rb"^Deno could not start: unable to create worker threads|^failed to spawn thread: ", re.MULTILINE
)
# V8 reserves 512 MiB for the code of each worker thread, which RLIMIT_DATA counts. If that fails, V8 ends the process.
_NO_WORKER = b"\n# Fatal process out of memory: Failed to reserve virtual memory for CodeRange\n"
_WORKER_ERROR = "a worker thread does not fit into the memory limit: V8 reserves 512 MiB for its code"
# The kinds of messages, and the fields of each that are kept. A program can find the mark and forge messages. This must
# only affect its own result, and must not take much memory.
_MESSAGE_FIELDS = {
    "started": ("location",),
    "ret_val": ("text",),
    "error": ("phase", "name", "message", "traceback", "line", "column"),
    "exit": ("code",),
    "failed": ("text",),
    **dict.fromkeys(("abort", "done", "timeout", "interrupted"), ()),
}
# After these messages the process waits to be killed. The process of a session waits for its next request.
_LAST_MESSAGES, _LAST_SESSION_MESSAGES = frozenset({"error", "done"}), frozenset({"done"})


WAKE = b"%08d" % 0
"""Interrupts the program of a session, or makes its runner wait for the next request."""


class StdoutParser:
    """Separates the runner's messages from the program's output. A message begins with a mark and ends with a newline.

    Attributes:
        output: The output of the program. If `in_session`, output of earlier programs may come first; it is discarded.
        messages: The fields of the last message of each kind. Their total size is limited too.
        complete: Whether the runner's last message has arrived.
    """

    def __init__(
        self,
        mark: bytes,
        max_output_bytes: int,
        max_message_bytes: int,
        kept_bytes: int,
        displays: DisplayReader | None = None,
        *,
        in_session: bool = False,
    ) -> None:
        self._mark, self._max_output_bytes, self._max_message_bytes = mark, max_output_bytes, max_message_bytes
        self._kept_bytes, self._displays, self._in_session = kept_bytes, displays, in_session
        self._messages_left_bytes = TOTAL_FACTOR * max_message_bytes + TOTAL_BYTES
        self._pending = bytearray()
        self._searched_bytes = 0  # of a message that is incomplete, so that each byte is searched once
        self.output = OutputBuffer(kept_bytes)
        self.messages: dict[str, dict[str, Any]] = {}
        self.limit_exceeded = self.message_too_large = self.complete = False

    def feed(self, data: bytes) -> bytes:
        output = b""
        self._pending += data
        while not self.complete and (begin := self._pending.find(self._mark)) >= 0:
            output += self._take_output(begin)
            end = self._pending.find(b"\n", self._searched_bytes)
            self._searched_bytes = len(self._pending) if end < 0 else 0
            unfinished_too_large = end < 0 and len(self._pending) > self._max_message_bytes
            self.message_too_large = unfinished_too_large or end > self._messages_left_bytes
            self.limit_exceeded = self.limit_exceeded or self.message_too_large
            if end < 0 or self.message_too_large:
                return output
            self._messages_left_bytes -= end
            kind = self._parse_message(bytes(self._pending[len(self._mark) : end]))
            del self._pending[: end + 1]
            if kind == "started" and self._in_session:
                self.output, output = OutputBuffer(self._kept_bytes), b""
        if self.complete:
            self._pending.clear()
        # Keep the end of the pending bytes if it may be the beginning of a mark.
        split = self._pending.rfind(self._mark[:1], max(0, len(self._pending) - len(self._mark) + 1))
        return output + self._take_output(len(self._pending) if split < 0 else split)

    def finish(self) -> bytes:
        return b"" if self._pending.startswith(self._mark) else self._take_output(len(self._pending))

    def _take_output(self, size: int) -> bytes:
        data = bytes(self._pending[: min(size, self._max_output_bytes + 1 - self.output.size)])
        del self._pending[:size]
        self.output.add(data)
        self.limit_exceeded = self.limit_exceeded or self.output.size > self._max_output_bytes
        return data

    def _parse_message(self, data: bytes) -> Any:
        message = decode_message(data)
        kind = message.get("kind")
        if kind in _MESSAGE_FIELDS:
            self.messages[kind] = {name: message[name] for name in _MESSAGE_FIELDS[kind] if name in message}
            self.complete = kind in (_LAST_SESSION_MESSAGES if self._in_session else _LAST_MESSAGES)
        elif kind == "display" and self._displays is not None:
            self._displays.add(message)
        return kind


def request(child: JailedProcess, header: Mapping[str, Any], *data: bytes, eof: bool = False) -> None:
    head = _strict_json.dump_bytes(header)
    child.write(b"%08d" % len(head), head, *data, eof=eof)


class DenoRun:
    """One run of a program in a Deno process, which may end later.

    `number` is the number of the run in its session, from 1; None if it is not in a session. `on_limit` is called when
    the program has exceeded its output limit. If `on_limit` is None, the process is ended instead.
    """

    def __init__(
        self, job: EngineJob, child: JailedProcess, *, has_folder: bool = False, number: int | None = None
    ) -> None:
        self.job, self._child, self._has_folder, self._number = job, child, has_folder, number
        self._nonce = secrets.token_hex(16)
        self._limit = limit = job.limits.max_output_bytes
        self._max_stream_bytes = OUTPUT_FACTOR * limit
        self._displays = DisplayReader(limit) if job.displays else None
        self._stdout = StdoutParser(
            f"\0faasrt:{self._nonce}:".encode(),
            self._max_stream_bytes,
            MESSAGE_FACTOR * limit + MESSAGE_BYTES,
            job.kept_bytes,
            self._displays,
            in_session=number is not None,
        )
        self._stderr = OutputBuffer(job.kept_bytes)
        self._early: list[tuple[int, bytes]] = []  # output that arrived before the message that the program begins
        self._filters: dict[int, OutputFilter] = {}
        self._ended_by: set[Outcome | None] = set()
        self.was_interrupted = self.used_much_memory = False
        self.on_limit: Callable[[Outcome], None] | None = None
        self.ended = asyncio.Event()

    def begin(self) -> None:
        self._child.receive(self._receive, self.ended.set)
        program_input = self.job.input
        if self.job.live is not None:
            self.job.live.begin()
            self.job.live.on_taken = self._resume
        fields = {"code": self.job.code, "nonce": self._nonce, "maxMessageBytes": self._limit}
        if self._number:
            fields |= {
                "number": self._number,
                "typed": self.job.language is Language.TYPESCRIPT,
                "timeout": self.job.limits.timeout_ms,
                "stdin": len(program_input.stdin),
            }
        else:
            fields |= {
                "language": self.job.language,
                "check": self.job.check,
                "displays": self.job.displays,
                "argv": program_input.argv,
                "folder": FOLDER if self._has_folder else None,
                "files": [(path, len(content)) for path, content in program_input.files.items()],
            }
        request(self._child, fields, *program_input.files.values(), program_input.stdin, eof=not self._number)

    def interrupt(self, limit: Outcome | None = None) -> None:
        self.was_interrupted = True
        if limit is not None:
            self._ended_by.add(limit)
        self._child.write(WAKE)

    def end(self, limit: Outcome | None = None) -> None:
        if limit is Outcome.TIMEOUT:
            # The message that the program has ended may be in the pipe, because of a slow reader or a busy server.
            self._child.resume()
            self._child.drain(STDOUT)
        if self.ended.is_set():
            return
        is_ending = bool(self._ended_by) or self._child.returncode is not None
        if limit is not Outcome.TIMEOUT or not is_ending:
            self._ended_by.add(limit)
        self._child.kill()

    def result(self) -> EngineResult:
        """Return the result. Raise NotStartedError if the program had not begun, and EngineError if the process was
        killed from outside.
        """
        self._pass_on(STDOUT, self._stdout.finish())
        if self._child.out_of_time and not self._stdout.complete:
            self._ended_by.add(Outcome.TIMEOUT)
        stdout, stderr = self._stdout.output, self._stderr
        printed = stderr.data
        # V8 prints a message before it aborts. Other code aborts without one if it cannot get twice the memory that it
        # has. A program can send this signal to itself, too.
        silent_abort = (
            self._child.returncode == -signal.SIGABRT
            and self.used_much_memory
            and "abort" not in self._stdout.messages
            and _FATAL_ERROR.search(printed) is None
        )
        out_of_memory = (
            Outcome.MEMORY_LIMIT in self._ended_by
            or self._child.out_of_memory
            or (self._signal is not None and (silent_abort or _OUT_OF_MEMORY.search(printed) is not None))
            or (self._ended_alone and _NO_THREAD.search(printed) is not None)
        )
        fields = self._classify(printed, out_of_memory)
        if out_of_memory:
            stderr = stderr.map(lambda data: data[: find_diagnostics(data)])
        messages = self._stdout.messages
        stdout, stderr = (output.map(self._name_file) for output in (stdout, stderr))
        self._pass_on_rest(out_of_memory)
        ret_val = read_text(messages.get("ret_val", {}), "text").encode("utf-8", "surrogatepass")
        own_return_val = Language.JAVASCRIPT if defines_return_val(self.job.code, Language.JAVASCRIPT) else None
        fields |= cut_streams(stdout, stderr, ret_val, self._limit, own_return_val=own_return_val)
        if self._stdout.message_too_large:
            fields["truncated"] = sorted({*fields["truncated"], "ret_val"})
        if self._displays is not None:
            self._displays.add_to(fields)
        return EngineResult(**fields)

    def _name_file(self, output: bytes) -> bytes:
        url, name, _ = self._url
        if self._has_folder and url:
            return re.sub(rb"%b(?=:\d)" % re.escape(url), name, output)
        return output.replace(url, name) if url else output

    @property
    def _ended_alone(self) -> bool:
        """Whether Deno ended the process while a program ran, and not because of the program."""
        messages = self._stdout.messages
        return self._child.returncode == 1 and "started" in messages and not messages.keys() & {"done", "error", "exit"}

    @property
    def _signal(self) -> int | None:
        """The signal that ended the process, unless `end` sent it."""
        number = -(self._child.returncode or 0)
        return None if number <= 0 or (number == signal.SIGKILL and self._ended_by) else number

    def _receive(self, fd: int, data: bytes) -> None:
        was_exceeded = Outcome.OUTPUT_LIMIT in self._ended_by
        if self.ended.is_set() or (was_exceeded and self._child.killed):
            return
        if fd == STDOUT:
            had_started = "started" in self._stdout.messages
            output = self._stdout.feed(data)
            if self._number and not had_started and "started" in self._stdout.messages:
                self._early = [piece for piece in self._early if piece[0] != STDOUT]  # output of an earlier program
            self._pass_on(STDOUT, output)
        else:
            data = data[: self._max_stream_bytes + 1 - self._stderr.size]
            self._stderr.add(data)
            self._pass_on(STDERR, data)
        is_exceeded = self._stdout.limit_exceeded or self._stderr.size > self._max_stream_bytes
        if self._stdout.message_too_large or (is_exceeded and self.on_limit is None):
            self.end(Outcome.OUTPUT_LIMIT)
        elif is_exceeded and not was_exceeded and self.on_limit is not None:
            self.on_limit(Outcome.OUTPUT_LIMIT)
        if fd == STDOUT and self._stdout.complete and not self._child.killed:
            self._child.drain(STDERR)
            if not self._number:
                self.end()
            self.ended.set()

    @property
    def _url(self) -> tuple[bytes, bytes, bool]:
        """The URL of the program, the name of its file, and whether only URLs with a position count: with a folder, the
        program can use its URL for other purposes.
        """
        name = program_file(self.job.language)
        if self._number:
            return b"", b"", False
        if self._has_folder:
            return f"file://{FOLDER}/{name}".encode(), name.encode(), True
        started = self._stdout.messages.get("started", {})
        location = read_text(started, "location").encode("utf-8", "surrogatepass")
        return location if _BLOB_URL.fullmatch(location) else b"", name.encode(), False

    def _pass_on(self, fd: int, data: bytes) -> None:
        live = self.job.live
        if live is None:
            return
        self._early.append((fd, data))
        if "started" not in self._stdout.messages:
            return
        if not self._filters:
            self._filters = {fd: OutputFilter(*self._url) for fd in STREAMS}
            self._filters[STDERR].holds_diagnostics = True
        early, self._early = self._early, []
        for number, piece in early:
            live.put(STREAMS[number], self._filters[number].feed(piece))
        if live.full:
            self._child.pause()

    def _pass_on_rest(self, out_of_memory: bool) -> None:
        """Pass on the output that was kept back, except V8's diagnostics if the program has run out of memory."""
        if self.job.live is None:
            return
        for fd, output_filter in self._filters.items():
            self.job.live.put(STREAMS[fd], output_filter.finish())
            if not out_of_memory:
                self.job.live.put(STREAMS[fd], bytes(output_filter.held))

    def _resume(self, taken_bytes: int) -> None:
        if self.job.live is not None and not self.job.live.full:
            self._child.resume()

    def _classify(self, stderr: bytes, out_of_memory: bool) -> dict[str, Any]:
        messages, returncode = self._stdout.messages, self._child.returncode
        if Outcome.TIMEOUT in self._ended_by or "timeout" in messages:
            return {"outcome": Outcome.TIMEOUT}
        if out_of_memory and self._signal is not None and _NO_WORKER in stderr:
            return {"outcome": Outcome.USER_ERROR, "error": ErrorInfo("Error", _WORKER_ERROR), "exit_code": 1}
        if out_of_memory:
            return {"outcome": Outcome.MEMORY_LIMIT}
        if "started" not in messages:
            raise NotStartedError(f"a Deno process ended before it ran its program (exit code {returncode})")
        if self._signal is not None:
            self._child.check_not_killed("a Deno process")
        if Outcome.OUTPUT_LIMIT in self._ended_by:
            return {"outcome": Outcome.OUTPUT_LIMIT}
        if "interrupted" in messages or (self.was_interrupted and self._signal is None and returncode is not None):
            error = ErrorInfo("Interrupted", "the program was interrupted")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": 1}
        if "error" in messages:
            return read_error(messages["error"], self._limit, unnamed="Error")
        if self._displays is not None and "done" in messages:
            code = messages.get("exit", {}).get("code")
            returncode = code if isinstance(code, int) else 0
        if (returncode or 0) > 0 and "exit" in messages:
            error = ErrorInfo("Exit", f"the program exited with code {returncode}")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": returncode}
        if "done" in messages or (returncode == 0 and "exit" in messages):
            return {"outcome": Outcome.OK, "exit_code": 0}
        if returncode == 1 and _NEVER_SETTLED in stderr:
            error = ErrorInfo("Error", "a promise of a top-level await never settled")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": 1}
        if self._signal is not None:
            return {"outcome": Outcome.CRASHED, "signal": signal_name(self._signal)}
        return {"outcome": Outcome.CRASHED, "exit_code": returncode if (returncode or 0) >= 0 else None}
