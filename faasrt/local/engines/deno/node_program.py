from __future__ import annotations

import re

import attrs

from faasrt.errors import InvalidRequestError
from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.runner_messages import read_runner

_MAIN = read_runner([], ["node_main.js"]).decode()
_FILES = {Language.JAVASCRIPT: "main.cjs", Language.TYPESCRIPT: "main.cts"}
_ES_MODULE = re.compile(r"^[^\S\n]*(?:import\b(?![^\S\n]*\()|export\b)", re.MULTILINE)
_COMMON_JS = re.compile(r"\b(?:require|module|exports|__dirname|__filename)\b")
_IMPORT = re.compile(
    r"^(?P<head>[^\S\n]*(?:import|(?:import\b|export\b|\})[^'\"\n]*\bfrom)[^\S\n]*)(?P<quote>['\"])(?P<name>"
    "(?:assert|async_hooks|buffer|child_process|cluster|console|constants|crypto|dgram|dns|events|fs|http|http2|https|"
    "module|net|os|path|perf_hooks|process|punycode|querystring|readline|stream|string_decoder|timers|tls|tty|url|util|"
    r"v8|vm|worker_threads|zlib)(?:/[a-z]+)?(?P=quote))",
    re.MULTILINE,
)
_STANDARD_INPUT = re.compile(r"(?P<call>\breadFileSync\(\s*+)(?:'/dev/stdin'|\"/dev/stdin\")")


def as_node_program(job: EngineJob) -> EngineJob:
    """Return a program that does in Deno what this one does in Node.js, or in `tsx` if it is in TypeScript. The clients
    of other services send such programs.

    It runs as a CommonJS module, which is a file beside the main module. As an ES module, and in TypeScript without
    names of CommonJS, it is the main module. Deno needs a prefix in the imports of Node's modules, and may not open
    /dev/stdin.
    """
    code = _STANDARD_INPUT.sub(r"\g<call>0           ", job.code)  # as long as before, because errors have columns
    if _ES_MODULE.search(code):
        return attrs.evolve(job, code=_IMPORT.sub(r"\g<head>\g<quote>node:\g<name>", code))
    if job.language is Language.TYPESCRIPT and not _COMMON_JS.search(code):
        return attrs.evolve(job, code=code)
    name = _FILES[job.language]
    if job.input.files.get(name, job.code.encode()) != job.code.encode():
        raise InvalidRequestError(f"files must not contain {name}, which is the program itself")
    program_input = attrs.evolve(job.input, files={**job.input.files, name: code.encode()})
    return attrs.evolve(job, code=_MAIN.replace("main.cjs", name), input=program_input)
