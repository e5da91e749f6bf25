"""Recognizes JavaScript that was written for Node.js, and wraps it for Deno.

Clients of SandboxFusion and Piston send it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import attrs

from faasrt.errors import InvalidRequestError
from faasrt.languages import Language
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.runner_sources import read_runner

_MAIN = read_runner("node")
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
_STANDARD_INPUT = "/dev/stdin"
_READ_CALL = re.compile(r"\breadFileSync\(\s*\Z")
# Programs that read it in more places, or with more white space before its name, are not changed there.
_MAX_PLACES, _MAX_SPACES = 1_000, 200
# Searching this much of the worst program takes two milliseconds. The event loop must not wait for a large program.
_PIECE_CHARS = 65_536
_WORD_CHARS = 16  # more than the longest name of CommonJS, and the character after it


async def as_node_program(job: EngineJob) -> EngineJob:
    """Return a program that does in Deno what this one does in Node.js, or in `tsx` if it is in TypeScript. The clients
    of other services send such programs.

    It runs as a CommonJS module, which is a file beside the main module. As an ES module, and in TypeScript without
    names of CommonJS, it is the main module. Deno needs a prefix in the imports of Node's modules, and may not open
    /dev/stdin.
    """
    code = _read_descriptor(job.code)
    if await _is_es_module(code):
        return attrs.evolve(job, code=await _with_prefixes(code))
    if job.language is Language.TYPESCRIPT and not await _names_common_js(code):
        return attrs.evolve(job, code=code)
    name = _FILES[job.language]
    own_file = job.input.files.get(name)
    if own_file is not None and own_file != job.code.encode():
        raise InvalidRequestError(f"files must not contain {name}, which is the program itself")
    program_input = attrs.evolve(job.input, files={**job.input.files, name: code.encode()})
    return attrs.evolve(job, code=_MAIN.replace("main.cjs", name), input=program_input)


async def _pieces(code: str) -> AsyncIterator[tuple[slice, bool]]:
    """Yield the pieces of a program, and whether each begins a line. Other work of the event loop runs in between.

    A piece that begins a line consists of whole lines, or of the first `_PIECE_CHARS` of a longer line.
    """
    start, begins_line = 0, True
    while start < len(code):
        if start:
            await asyncio.sleep(0)
        end = min(start + _PIECE_CHARS, len(code))
        if end < len(code) or not begins_line:
            find = code.rfind if begins_line else code.find
            end = find("\n", start, end) + 1 or end
        yield slice(start, end), begins_line
        start, begins_line = end, code[end - 1] == "\n"


async def _is_es_module(code: str) -> bool:
    async for piece, begins_line in _pieces(code):
        if begins_line and _ES_MODULE.search(code[piece]):
            return True
    return False


async def _names_common_js(code: str) -> bool:
    async for piece, _ in _pieces(code):
        # A name may begin in this piece, and end in the next one.
        found = _COMMON_JS.search(code, piece.start, piece.stop + _WORD_CHARS)
        if found is not None and found.start() < piece.stop:
            return True
    return False


async def _with_prefixes(code: str) -> str:
    parts = []
    async for piece, begins_line in _pieces(code):
        part = code[piece]
        parts.append(_IMPORT.sub(r"\g<head>\g<quote>node:\g<name>", part) if begins_line else part)
    return "".join(parts)


def _read_descriptor(code: str) -> str:
    """Let a program read descriptor 0 in place of /dev/stdin. It stays as long, because errors have columns."""
    parts, end, at = [], 0, -1
    for _ in range(_MAX_PLACES):
        at = code.find(_STANDARD_INPUT, at + 1)
        if at < 0:
            break
        after = at + len(_STANDARD_INPUT)
        quote = code[at - 1 : at]
        is_string = quote in ("'", '"') and code.startswith(quote, after)
        if is_string and _READ_CALL.search(code, max(0, at - 1 - _MAX_SPACES), at - 1):
            parts += [code[end : at - 1], "0".ljust(after + 1 - (at - 1))]
            end = after + 1
    return "".join([*parts, code[end:]]) if parts else code
