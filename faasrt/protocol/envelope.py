"""The envelope: a guest program of ours that carries the user's, runs it, and hands back what became of it.

Sent as they are, programs come back damaged from the reference servers. So what is sent is a small program in the same
language, with the job as base64 of JSON inside it. It runs the user's code in a fresh module with `return_val` defined,
records stdout, stderr, the exception with the user's own line numbers, the exit code and the return value, and hands
all of it back as one frame (see `frames`) through the channel that the server has for return values:

    python-faas        between the lines __COZE_RETURN_VAL_START__ and __COZE_RETURN_VAL_END__ of stdout
    js-faas            `ret_val` of the last line of stdout that is a JSON object, written when the process is done
    faithful servers   their own `return_val`
    a hard end         a line of the process's stderr, which the servers return when a process ends without an answer

Its first act is to announce that it started: an empty frame on stderr, and on stdout too in Python, as python-faas
returns stdout when the program raises and stderr when the process dies. On a faithful server nothing needs announcing.

The job:

    nonce, code, language, max_output_bytes
    function           the name of the function to call, or null for a whole program
    cases, first       [[args, kwargs] ...] and the index of the first
    single             one case in place of a whole program
    isolate            each case gets the definitions anew
    capture            whether stdout and stderr are recorded, or left to the server
    case_ms            the guard ends a case after so long; null where the server does
    limit_ms           a case that took longer counts as TIMEOUT, however it ended; null for a program
    begin_within_ms    no further case begins later after the definitions than this,
    batch_bytes        nor when the records have grown to this,
    progress_bytes     nor when so much has been said of the progress
    definition_bytes   what the definitions printed is cut to this, as every case's result holds it
    record_bytes       what a record may take; streams are cut to half and half again until it does
    progress           whether each record is told at once: on stderr, or to a faithful server's `return_val`
    worker             (JavaScript) whether the cases run in a worker, which can be ended
    faithful           whether the frame goes to the server's own `return_val`

**The loop guard** (Python, where the server is not known to enforce timeouts). On CPython it is a timer signal, which
costs nothing measurable. In Pyodide, where there are no signals, the interrupt buffer that the interpreter looks at
every few dozen steps is an object that tells the time: between nothing and 1.15 times the time of a bare loop. Where
there is neither, `sys.monitoring` counts jumps and calls and looks at the clock every 500th time: 4 to 6 times.
`benchmarks/guard.py` measures them. The guard raises a BaseException in the midst of the program, ten times if need be;
then it ends the process under it. It cannot reach into a single long call of C code, such as a sum over an endless
iterator or a huge power, and a program that means to can take it away.

**What it does not hide.** The program can find the nonce, and forge a frame; all that it reaches is its own verdict.
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
from faasrt.protocol.profile import EndpointProfile

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
# python-faas rewrites what stands between quotes when it spans lines: each line here holds pairs of them. And the value
# of a last line that is an expression would become the result.
_PYTHON_LOADER = """\
_faasrt = {{"__name__": "faasrt", "__builtins__": dict(vars(__import__("builtins")))}}
exec(compile(__import__("base64").b64decode("{guest}"), "faasrt_guest.py", "exec"), _faasrt)
_faasrt = _faasrt["main"]("{job}"{return_val})
"""


@attrs.frozen(kw_only=True)
class Job:
    """What a guest program is to do; the module's docstring explains the fields that are sent on."""

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


def wrap(job: Job, profile: EndpointProfile, nonce: str) -> str:
    """Give the program that is sent in place of the user's.

    Args:
        job: What is to be done. Its cases are JSON: `[[args ...], {kwargs}]`.
        profile: Where it is sent.
        nonce: Tells the frames of this call from what the user prints; letters and digits.
    """
    limit = job.max_output_bytes
    definition_bytes = min(limit, _DEFINITION_BYTES)
    # In a frame there is room for the definitions, a batch of records that has just not been full, and one record more.
    taken = 0 if job.single else _BATCH_BYTES + 6 * definition_bytes
    fields: dict[str, Any] = {
        "nonce": nonce,
        "code": job.code,
        "language": job.language.value,
        "function": job.function,
        "first": job.first,
        "single": job.single,
        "isolate": job.isolate,
        "max_output_bytes": limit,
        # A faithful server keeps what a single call printed, even when it has to end the call.
        "capture": not (profile.faithful and job.single and job.function is not None),
        "case_ms": None if profile.enforces_timeouts else job.limit_ms,
        "limit_ms": None if job.function is None else job.limit_ms,
        "begin_within_ms": job.begin_within_ms,
        "batch_bytes": _BATCH_BYTES,
        "definition_bytes": definition_bytes,
        "progress_bytes": _PROGRESS_BYTES,
        "record_bytes": frame_bytes(limit) * 3 // 4 - taken - 1_000,
        "progress": not job.single,
        "worker": not job.single and not profile.faithful,
        "faithful": profile.faithful,
    }
    # The cases are JSON already.
    text = json.dumps(fields)[:-1] + f', "cases": [{", ".join(job.cases)}]}}'
    payload = base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()
    if job.language is Language.PYTHON:
        return_val = ", return_val" if profile.faithful else ""
        return _PYTHON_LOADER.format(guest=_PYTHON_BASE64, job=payload, return_val=return_val)
    return f'(function guest(text, inWorker) {{\n"use strict";\n{_JAVASCRIPT}\n}})("{payload}", false);\n'
