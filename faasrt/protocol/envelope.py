"""The envelope: a guest program that contains the user's program, runs it, and returns its results undamaged.

The reference servers damage the results of programs. Therefore a guest program in the same language is sent, with the
job as base64 of JSON inside it. It runs the user's code in a fresh module with `return_val` defined, records stdout,
stderr, the exception with the user's own line numbers, the exit code and the return value, and sends all of it as one
frame (see `frames`) through the server's channel for return values:

    python-faas        between the lines __COZE_RETURN_VAL_START__ and __COZE_RETURN_VAL_END__ of stdout
    js-faas            `ret_val` of the last line of stdout that is a JSON object, written when the process ends
    lossless servers   their own `return_val`
    a killed process   a line on the process's stderr, which the servers return when a process ends without an answer

First the guest program announces its start with an empty frame: on stderr, and in Python on stdout too, because
python-faas returns stdout when the program raises and stderr when the process dies. On a lossless server this is not
needed.

The job:

    nonce, code, language, max_output_bytes
    function           the name of the function to call, or null for a whole program
    cases, first       [[args, kwargs] ...] and the index of the first
    single             whether there is one result, of a program or a call, instead of one for each case
    isolate            whether each case runs the definitions again
    capture            whether stdout and stderr are recorded here; otherwise the server returns them
    case_ms            milliseconds after which the guard ends a case; null where the server ends programs
    limit_ms           milliseconds after which a case counts as TIMEOUT, however it ended; null for a program
    begin_within_ms    milliseconds after the definitions within which a further case may begin
    batch_bytes        size of the records from which no further case begins
    progress_bytes     size of the progress sent from which no further case begins
    definition_bytes   limit of the output of the definitions, which is a part of every case's result
    record_bytes       limit of a record; its streams are halved until it fits
    progress           whether each record is sent at once: on stderr, or to a lossless server's `return_val`
    worker             (JavaScript) whether the cases run in a worker, which can be stopped
    lossless           whether the frame goes to the server's own `return_val`

**The loop guard** ends Python programs on servers that are not known to enforce timeouts. On CPython it is a timer
signal, whose cost is not measurable. Pyodide has no signals, but reads an interrupt buffer every few dozen steps; there
the buffer is an object that compares the time. A bare loop takes up to 1.15 times as long. Elsewhere, `sys.monitoring`
counts jumps and calls, and the guard checks the clock every 500 events: 4 to 6 times as long. `benchmarks/guard.py`
measures them. The guard raises a BaseException in the program, up to ten times, and then ends the process. It cannot
interrupt a single long call of C code, such as a sum over an endless iterator or a huge power, and a hostile program
can disable it.

**Forged frames.** The program can find the nonce and forge a frame. This affects only its own result.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import attrs

from faasrt.languages import Language
from faasrt.protocol.frames import frame_bytes
from faasrt.protocol.health import EndpointProfile

_GUEST = files("faasrt.protocol.guest")


def _sources(*names: str) -> str:
    return "\n".join(_GUEST.joinpath(name).read_text("utf-8") for name in names)


def _without_comments(source: str, mark: str) -> str:
    return "\n".join(line for line in source.split("\n") if not re.match(rf"\s*({mark}|$)", line))


_PYTHON = _without_comments(
    _sources("python_errors.py", "python_encode.py", "python_streams.py", "python_guard.py", "python_guest.py"), "#"
)
_PYTHON_BASE64 = base64.b64encode(_PYTHON.encode()).decode()
_JAVASCRIPT = re.sub(
    "^export ", "", _without_comments(_sources("js_errors.js", "js_encode.js", "js_guest.js"), "//"), flags=re.MULTILINE
)
# python-faas rewrites text between quotes that spans lines, so each line here holds pairs of quotes. The last line is
# an assignment, because python-faas would take the value of an expression as the result.
_PYTHON_LOADER = """\
_faasrt = {{"__name__": "faasrt", "__builtins__": dict(vars(__import__("builtins")))}}
exec(compile(__import__("base64").b64decode("{guest}"), "faasrt_guest.py", "exec"), _faasrt)
_faasrt = _faasrt["main"]("{job}"{return_val})
"""


@attrs.frozen(kw_only=True)
class GuestJob:
    """The job of a guest program. The module's docstring documents the fields that are sent."""

    code: str
    language: Language
    limit_ms: int
    max_output_bytes: int
    function: str | None = None
    cases: Sequence[str] = ()
    first: int = 0
    single: bool = True
    isolate: bool = False
    begin_within_ms: float = 0.0


_BATCH_BYTES, _PROGRESS_BYTES, _DEFINITION_BYTES = 65_536, 4 * 2**20, 8_192


def wrap(job: GuestJob, profile: EndpointProfile, nonce: str) -> str:
    """Return the program that is sent in place of the user's program.

    Args:
        job: The job. Its cases are JSON: `[[args ...], {kwargs}]`.
        profile: The endpoint.
        nonce: Letters and digits that distinguish the frames of this call from the program's output.
    """
    limit = job.max_output_bytes
    definition_bytes = min(limit, _DEFINITION_BYTES)
    # A frame must hold the definitions, a batch of records that was not quite full, and one more record.
    reserved = 0 if job.single else _BATCH_BYTES + 6 * definition_bytes
    fields: dict[str, Any] = {
        "nonce": nonce,
        "code": job.code,
        "language": job.language.value,
        "function": job.function,
        "first": job.first,
        "single": job.single,
        "isolate": job.isolate,
        "max_output_bytes": limit,
        # A lossless server returns the output of a single call even when it has to end the call.
        "capture": not (profile.lossless and job.single and job.function is not None),
        "case_ms": None if profile.enforces_timeouts else job.limit_ms,
        "limit_ms": None if job.function is None else job.limit_ms,
        "begin_within_ms": job.begin_within_ms,
        "batch_bytes": _BATCH_BYTES,
        "definition_bytes": definition_bytes,
        "progress_bytes": _PROGRESS_BYTES,
        "record_bytes": frame_bytes(limit) * 3 // 4 - reserved - 1_000,
        "progress": not job.single,
        "worker": not job.single and not profile.lossless,
        "lossless": profile.lossless,
    }
    # The cases are already JSON.
    text = json.dumps(fields)[:-1] + f', "cases": [{", ".join(job.cases)}]}}'
    payload = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
    if job.language is Language.PYTHON:
        return_val = ", return_val" if profile.lossless else ""
        return _PYTHON_LOADER.format(guest=_PYTHON_BASE64, job=payload, return_val=return_val)
    return f'(function guest(text, inWorker) {{\n"use strict";\n{_JAVASCRIPT}\n}})("{payload}", false);\n'
