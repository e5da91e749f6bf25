"""Runs one program in a native Python process, and turns its output into a result."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import signal
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from faasrt.languages import Language
from faasrt.local.engines.base import EngineJob, EngineResult, NotStartedError
from faasrt.local.engines.report import cut_streams, decode_message, read_python_error, read_text
from faasrt.local.jail.jail import JailedProcess
from faasrt.local.process import MESSAGES, STDERR, STDOUT, STREAMS
from faasrt.protocol.execution_limits import OUTPUT_FACTOR
from faasrt.protocol.streams import OutputBuffer
from faasrt.results import ErrorInfo, Outcome

# The largest message. A return value may be JSON, which is encoded as JSON once more, so that a control character takes
# up to seven bytes. The total of a program's messages is limited too, because reading them costs the server time.
_MESSAGE_FACTOR, _MESSAGE_BYTES = 8, 262_144
_TOTAL_FACTOR, _TOTAL_BYTES = 2, 32 * 2**20
# The kinds of messages, and the fields of each that are kept.
_FIELDS = {
    "started": (),
    "ret_val": ("text",),
    "error": ("phase", "name", "message", "traceback", "line", "column"),
    "missing": ("package",),
    "exit": (),
    "own_return_val": (),
    "done": (),
}
# Packages whose name on PyPI differs from the name of their module.
_PACKAGES = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_LINE_BYTES = 32  # added for each message, because reading even an empty one costs time
_PREFIX = b'{"kind":"'
_KIND_AT = len(_PREFIX)
_KINDS = {_PREFIX + kind.encode(): kind for kind in _FIELDS}


class NativeRun:
    """One run of a program in a warm process of the interpreter `python`. `ended` is set when the program has ended.
    Its process may end later.

    Attributes:
        process_name: The name of the process in errors.
    """

    process_name: ClassVar[str] = "a Python process"

    def __init__(self, job: EngineJob, process: JailedProcess, python: str) -> None:
        self._job, self._process, self._python = job, process, python
        self._limit = job.limits.max_output_bytes
        self._outputs = {STDOUT: OutputBuffer(job.kept_bytes), STDERR: OutputBuffer(job.kept_bytes)}
        self._early: list[tuple[int, bytes]] = []  # output that arrived before the message that the program begins
        self._lines: dict[str, bytearray] = {}
        self._messages: dict[str, dict[str, Any]] = {}
        self._pending = bytearray()
        self._message_bytes = 0
        self._ret_val_too_large = False
        self._started = False
        self._ended_by: Outcome | None = None
        self.ended = asyncio.Event()

    def begin(self, memory_bytes: int) -> None:
        """Send the program to the process."""
        self._process.receive(self._receive, self.ended.set)
        if self._job.live is not None:
            self._job.live.begin()
            self._job.live.on_taken = self._resume
        fields, files = self._describe()
        fields |= {
            "files": [(path, len(content)) for path, content in files.items()],
            "memoryBytes": memory_bytes,
        }
        header, stdin = json.dumps(fields).encode(), self._job.input.stdin
        self._process.write(b"%08d" % len(header), header, *files.values(), stdin, eof=True)

    def _describe(self) -> tuple[dict[str, Any], Mapping[str, bytes]]:
        """Return the fields of the job for the runner, and the files of the program."""
        job = self._job
        fields = {"code": job.code, "check": job.check, "argv": job.input.argv, "maxMessageBytes": self._limit}
        return fields, job.input.files

    def end(self, limit: Outcome) -> None:
        """End the program because it exceeded a limit."""
        if limit is Outcome.TIMEOUT:
            self._process.drain(MESSAGES)  # if this process was busy, it may not have seen the end of the program
        if self.ended.is_set():
            return
        if limit is not Outcome.TIMEOUT or self._process.returncode is None:
            # Otherwise the program has already ended by itself, and some of its output has not been read.
            self._ended_by = self._ended_by or limit
        self._process.kill()

    def result(self) -> EngineResult:
        """Return the result of the program, after `ended` is set. Raise NotStartedError if the process ended before the
        program began, and EngineError if it was killed from outside.
        """
        messages = self._messages = self._decode_messages()
        if self._process.out_of_time and "done" not in messages:
            self._ended_by = self._ended_by or Outcome.TIMEOUT
        fields = self._classify()
        ret_val = read_text(messages.get("ret_val", {}), "text").encode("utf-8", "surrogatepass")
        own_return_val = Language.PYTHON if "own_return_val" in messages else None
        stdout, stderr = self._outputs[STDOUT], self._outputs[STDERR]
        fields |= cut_streams(stdout, stderr, ret_val, self._limit, own_return_val=own_return_val)
        if self._ret_val_too_large:
            fields["truncated"] = sorted({*fields["truncated"], "ret_val"})
        return EngineResult(**fields)

    def _receive(self, fd: int, data: bytes) -> None:
        if self._ended_by is Outcome.OUTPUT_LIMIT or self.ended.is_set():
            return
        if fd == MESSAGES:
            self._receive_messages(data)
            return
        output, most = self._outputs[fd], OUTPUT_FACTOR * self._limit
        data = data[: most + 1 - output.size]
        output.add(data)
        self._pass_on(fd, data)
        if output.size > most:
            self.end(Outcome.OUTPUT_LIMIT)

    def _pass_on(self, fd: int, data: bytes) -> None:
        live = self._job.live
        if live is None:
            return
        if not self._started:
            self._early.append((fd, data))
            return
        live.put(STREAMS[fd], data)
        if live.full:
            self._process.pause()

    def _resume(self, taken_bytes: int) -> None:
        if self._job.live is not None and not self._job.live.full:
            self._process.resume()

    def _receive_messages(self, data: bytes) -> None:
        largest = _MESSAGE_FACTOR * self._limit + _MESSAGE_BYTES
        self._pending += data
        self._message_bytes += len(data) + _LINE_BYTES * data.count(b"\n")
        if len(self._pending) > largest or self._message_bytes > _TOTAL_FACTOR * largest + _TOTAL_BYTES:
            self._ret_val_too_large = True
            self.end(Outcome.OUTPUT_LIMIT)
            return
        if b"\n" not in data:
            return
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            # A program can send millions of messages. Only the last one of each kind counts, so only that is decoded.
            kind = _KINDS.get(bytes(line[: line.find(b'"', _KIND_AT)]))
            if kind is not None:
                self._lines[kind] = line
        if not self._started and "started" in self._lines:  # a program cannot undo it with a later message
            self._started = True
            for fd, early in self._early:
                self._pass_on(fd, early)
        if "done" in self._lines:
            # The process has written all of its output before this message. It is killed, because waiting for its end
            # takes as long as running a short program.
            self._process.drain(STDOUT)
            self._process.drain(STDERR)
            self._process.kill()
            self.ended.set()

    def _decode_messages(self) -> dict[str, dict[str, Any]]:
        """Return the fields of the last message of each kind. Malformed messages are left out."""
        messages = {}
        for kind, line in self._lines.items():
            if message := decode_message(bytes(line)):
                messages[kind] = {name: message[name] for name in _FIELDS[kind] if name in message}
        return messages

    def _classify(self) -> dict[str, Any]:
        returncode = 0 if "done" in self._lines else self._process.returncode or 0  # "done" makes the server kill it
        if self._ended_by is Outcome.TIMEOUT:
            return {"outcome": Outcome.TIMEOUT}
        if self._process.out_of_memory:
            return {"outcome": Outcome.MEMORY_LIMIT}
        if not self._started:
            raise NotStartedError(f"{self.process_name} ended before it ran its program (exit code {returncode})")
        if self._ended_by is Outcome.OUTPUT_LIMIT:
            return {"outcome": Outcome.OUTPUT_LIMIT}
        if returncode < 0:
            self._process.check_not_killed(self.process_name)
            name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
            return {"outcome": Outcome.CRASHED, "error": ErrorInfo(name, f"the program was ended by {name}")}
        return self._classify_exit(returncode)

    def _classify_exit(self, returncode: int) -> dict[str, Any]:
        """Return the fields of the result of a program that has ended by itself."""
        messages = self._messages
        if "error" in messages:
            fields = read_python_error(messages["error"], self._limit)
            if "error" not in fields:
                return fields
            fields["exit_code"] = returncode or fields["exit_code"]
            if "missing" in messages:
                fields["error"] = self._hint(fields["error"], read_text(messages["missing"], "package"))
            return fields
        if returncode and "exit" in messages:
            error = ErrorInfo("SystemExit", f"the program exited with code {returncode}")
            return {"outcome": Outcome.USER_ERROR, "error": error, "exit_code": returncode}
        return {"outcome": Outcome.OK if "done" in messages else Outcome.CRASHED, "exit_code": returncode}

    def _hint(self, error: ErrorInfo, module: str) -> ErrorInfo:
        """Add a hint to an error: the command that installs the missing package."""
        if _MODULE.fullmatch(module) is None:  # the program has forged the message
            return error
        command = f"{shlex.quote(self._python)} -m pip install {_PACKAGES.get(module, module)}"
        return attrs.evolve(error, message=f"{error.message} (to install it for programs, run: {command})")
