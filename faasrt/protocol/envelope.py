"""The envelope: a guest program that contains the user's program, runs it, and returns its results undamaged.

The reference servers damage the results of programs. Therefore the client sends a guest program in the same language,
which contains the job as base64 of JSON. It runs the user's code in a new module with `return_val` defined. It records
stdout, stderr, the exception with line numbers of the user's code, the exit code and the return value, and returns all
of them in one frame (see `frames`), which it passes to the server like a return value:

    python-faas        between the lines __COZE_RETURN_VAL_START__ and __COZE_RETURN_VAL_END__ of stdout
    js-faas            `ret_val` of the last line of stdout that is a JSON object, written when the process ends
    lossless servers   their own `return_val`
    SandboxFusion,     a line of stdout, in ASCII and at most `EndpointProfile.max_frame_bytes` long
      Piston
    a killed process   a line on the process's stderr, which the servers return when a process ends without an answer

First the guest program announces its start with an empty frame on stderr, and in Python on stdout too, because
python-faas returns stdout when the program raises and stderr when the process dies. On a lossless server this is not
necessary.

In this package, "the definitions" are the user's program when it runs only to define the function that is then called.

The job, besides `nonce`, `code`, `language` and `max_output_bytes`:

    function           the name of the function to call, or null for a whole program
    cases, first       [[args, kwargs] ...], or inputs (see below), and the index of the first
    single             whether there is one result, of a program or a call, instead of one for each case
    isolate            whether each case runs the definitions again
    exact              whether return values must be JSON, with tuples as in `faasrt.FunctionTest`
    imported           whether the definitions run without their block `if __name__ == "__main__"`; Python only
    input              the fields of `faasrt.inputs` that the guest program, and not the server, passes on
    has_folder         whether the server gives the program a folder, from which JavaScript programs can import files
    capture            whether the guest program, and not the server, records stdout and stderr
    replace_fds        whether the guest program also records what child processes write to descriptors 1 and 2
    case_ms            the guard stops a case after this time; null if the server stops programs. In a batch in Python,
                       its wait for a CPU puts this off, until the time of the batch has passed
    limit_ms           a case that took more, without its wait for a CPU if that is known, counts as TIMEOUT,
                       however it ended; null for a program
    begin_within_ms    no case begins later than this after the definitions
    batch_bytes        no case begins after the size of the records exceeds this
    progress_bytes     no case begins after the size of the progress sent exceeds this
    definition_bytes   the maximum size of the output of the definitions, which is part of every case's result
    record_bytes       the maximum size of a record without its files; its streams are halved until it fits
    files_bytes        the maximum size of the JSON of the files in a record
    lossless           whether the frame is passed to the `return_val` of the server

Unless the job is single, each record is also sent as soon as its case ends: on stderr, or with the `return_val` of a
lossless server. In JavaScript, on servers that are not lossless, the cases then run in a worker, which can be stopped.

**Input.** In Python, the standard input becomes descriptor 0. Where the platform does not allow this, `sys.stdin` and
`os.read(0, n)` still read it. The definitions and each case read it from its start. Files are put into a new folder,
the working folder and the first entry of `sys.path`. At the end, whatever the outcome, the files that match `collect`
are added to the record, and the folder is removed.

**Cases of a whole program** (Python only): if `function` is null and `single` is false, `isolate` must be true, and
each case is an input as in `ProgramInput.to_wire`. The program runs once for each case, in a new namespace and folder.
The fields of a case replace the fields of `input`, and its files are added. An exit ends only its case. The modules
that a program imports from its folder are loaded again in each case; other modules are shared. This is for servers that
start interpreters slowly. On the engine `wasm` of the embedded FaaS, cases with files end as CRASHED.

**The loop guard** stops Python programs on servers that are not known to enforce timeouts. On CPython it uses a timer
signal, at no measurable cost. Pyodide has no signals, but reads an interrupt buffer every few dozen steps, which the
guard replaces by an object that checks the time: a bare loop takes up to 1.15 times as long. Elsewhere,
`sys.monitoring` counts jumps and calls, and the guard checks the clock every 500 events: 4 to 6 times as long.
`benchmarks/guard.py` measures this. At the deadline the guard raises a BaseException in the program, up to ten times,
and then ends the process. In the event loop of Pyodide, the exception would end the process, so the guard waits until
code of the program runs. It cannot interrupt a single long call of C code, and a hostile program can disable it.

**Forged frames.** A program can find the nonce and forge a frame. This affects only its own result.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import re
import sys
import zlib
from collections.abc import Sequence
from importlib.resources import files

import attrs

from faasrt.inputs import NO_INPUT, ProgramInput
from faasrt.languages import Language
from faasrt.protocol.frames import frame_bytes, max_files_json_bytes
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Program

_GUEST = files("faasrt.protocol.guest")


def _source(comment: str, *names: str) -> str:
    lines = "\n".join(_GUEST.joinpath(name).read_text("utf-8") for name in names).split("\n")
    return "\n".join(line for line in lines if not re.match(rf"\s*({comment}|$)", line))


def _python_source(*input_files: str) -> str:
    first = ("python_errors.py", "python_encode.py", "python_streams.py", "python_guard.py")
    source = _source("#", *first, *input_files, "python_frames.py", "python_guest.py")
    return base64.b64encode(source.encode()).decode()


_PYTHON = _python_source("python_no_inputs.py")
_PYTHON_WITH_INPUT = _python_source("python_files.py", "python_modules.py", "python_inputs.py")
_CALLS = ("js_encode.js", "js_frames.js", "js_calls.js")
_JAVASCRIPT = re.sub(r"(?m)^export ", "", _source("//", "js_errors.js", *_CALLS, "js_input.js", "js_guest.js"))
_NODE = _source("//", *_CALLS, "node_guest.js")
# python-faas rewrites quoted text that spans several lines, so every line here has complete pairs of quotes. The last
# line is an assignment, because python-faas would return the value of an expression as the result.
_PYTHON_LOADER = """\
_faasrt = {{"__name__": "faasrt", "__builtins__": dict(vars(__import__("builtins")))}}
exec(compile(__import__("base64").b64decode("{guest}"), "faasrt_guest.py", "exec"), _faasrt)
"""
_PYTHON_CALL = """\
_faasrt = _faasrt["main"]("{job}"{return_val})
"""
PYTHON_BEGINNING = _PYTHON_LOADER.format(guest=_PYTHON)
"""The first lines of each program that calls Python functions and has no input."""

# The embedded FaaS chooses an interpreter by the names of packages in a program, which the guest program hides.
_IMPORT = re.compile(r"^[ \t]*(?:import|from)[ \t]+([\w., \t]{1,200})", re.MULTILINE)
_MAX_IMPORTS = 100
# Piston accepts requests of up to 100 kB.
_CPYTHON_LOADER = """\
import base64, zlib
_faasrt = {{"__name__": "faasrt", "__builtins__": dict(vars(__import__("builtins")))}}
exec(compile(zlib.decompress(base64.b64decode("{guest}")), "faasrt_guest.py", "exec"), _faasrt)
_faasrt["main"]("{job}")
"""


@functools.cache
def _compressed(guest: str) -> str:
    return base64.b64encode(zlib.compress(base64.b64decode(guest), 9)).decode()


@attrs.frozen(kw_only=True)
class GuestJob:
    """The calls of a function, or the cases of a whole program, which by default runs once. The docstring of the module
    explains the fields.
    """

    function: str | None = None
    cases: Sequence[str] = ()
    first: int = 0
    single: bool = True
    isolate: bool = False
    exact: bool = False
    imported: bool = False
    input: ProgramInput = NO_INPUT

    @property
    def has_whole_programs(self) -> bool:
        return self.function is None and not self.single


WHOLE_PROGRAM = GuestJob()
_BATCH_BYTES, _PROGRESS_BYTES, _DEFINITION_BYTES = 65_536, 4 * 2**20, 8_192


def wrap(
    program: Program,
    job: GuestJob,
    profile: EndpointProfile,
    nonce: str,
    *,
    max_output_bytes: int,
    begin_within_ms: float = 0.0,
) -> str:
    """Return the program that is sent in place of the user's program.

    Args:
        program: The user's program, with the time limit of the program or of each case.
        nonce: Letters and digits that distinguish the frames of this call from the program's output.
    """
    room = min(frame_bytes(max_output_bytes), profile.max_frame_bytes or sys.maxsize) * 3 // 4
    batch_bytes, definition_bytes = min(_BATCH_BYTES, room // 4), min(max_output_bytes, _DEFINITION_BYTES, room // 32)
    # A frame must have room for the definitions, a batch of records that is almost full, and one more record.
    reserved = 0 if job.single else batch_bytes + 6 * definition_bytes
    files_bytes = max_files_json_bytes(max_output_bytes)
    if profile.max_frame_bytes is not None and job.input.collect:
        files_bytes = min(files_bytes, room // 2)
        reserved += files_bytes
    if profile.lossless and job.has_whole_programs:
        # Lossless servers cut a return value that is larger than a frame without files.
        files_bytes = max_output_bytes // 2
        reserved += files_bytes
    fields = {
        **attrs.asdict(job, filter=attrs.filters.exclude("cases", "input")),
        "input": job.input.to_wire(),
        "nonce": nonce,
        "code": program.code,
        "language": str(program.language),
        "max_output_bytes": max_output_bytes,
        "has_folder": profile.lossless and bool(program.input.files or program.input.collect),
        # A lossless server itself returns the output of a single call, even if it stops the call.
        "capture": not (profile.lossless and job.single and job.function is not None),
        "replace_fds": profile.on_cpython_and_node,
        "case_ms": None if profile.enforces_timeouts else program.timeout_ms,
        "limit_ms": None if job.single and job.function is None else program.timeout_ms,
        "begin_within_ms": begin_within_ms,
        "batch_bytes": batch_bytes,
        "definition_bytes": definition_bytes,
        "progress_bytes": _PROGRESS_BYTES,
        "record_bytes": room - reserved - 1_000,
        "files_bytes": files_bytes,
        "lossless": profile.lossless,
    }
    # The cases are already JSON.
    text = json.dumps(fields)[:-1] + f', "cases": [{", ".join(job.cases)}]}}'
    payload = base64.b64encode(text.encode()).decode()
    if program.language is Language.PYTHON:
        return_val = ", return_val" if profile.lossless else ""
        guest = _PYTHON_WITH_INPUT if job.input.used or job.has_whole_programs else _PYTHON
        if profile.on_cpython_and_node:
            return _CPYTHON_LOADER.format(guest=_compressed(guest), job=payload)
        loader = _PYTHON_LOADER.format(guest=guest) + _PYTHON_CALL.format(job=payload, return_val=return_val)
        return f"{loader}# imports: {_imports_of(program.code)}\n" if profile.lossless else loader
    if profile.on_cpython_and_node:
        return f'(function guest(text, require) {{\n"use strict";\n{_NODE}\n}})("{payload}", require);\n'
    return f'(function guest(text, inWorker) {{\n"use strict";\n{_JAVASCRIPT}\n}})("{payload}", false);\n'


def _imports_of(code: str) -> str:
    return "; ".join(match[1] for match in itertools.islice(_IMPORT.finditer(code), _MAX_IMPORTS))
