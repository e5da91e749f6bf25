"""Programs for Node.js, as the clients of SandboxFusion and Piston send them, become programs for Deno."""

from __future__ import annotations

import json
import time

import pytest

from faasrt import InvalidRequestError
from faasrt.inputs import ProgramInput
from faasrt.languages import Language
from faasrt.local.engines.deno import node_program
from faasrt.local.engines.deno.node_program import as_node_program
from faasrt.local.engines.engine import EngineJob
from faasrt.protocol.execution_limits import ExecutionLimits

LIMITS = ExecutionLimits(timeout_ms=1_000, memory_limit_mb=64, max_output_bytes=1_000)
LONG_LINE = "let a = '" + "x import " * 20 + "';\n"


def job_of(code: str, language: Language = Language.JAVASCRIPT, **files: bytes) -> EngineJob:
    return EngineJob(language=language, code=code, limits=LIMITS, input=ProgramInput(files=files))


@pytest.fixture(params=[65_536, 40], ids=lambda size: f"pieces of {size}")
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_program, "_PIECE_CHARS", request.param)


@pytest.mark.parametrize("before", ["", "// 1\n\n", "x;\n" * 50, LONG_LINE, LONG_LINE + "\n"])
@pytest.mark.usefixtures("_pieces")
async def test_the_kind_of_a_module_does_not_depend_on_its_length(before: str) -> None:
    """A line that begins with `import` or `export` makes an ES module, wherever it is. The same words elsewhere do
    not.
    """
    for line in ("import", "export"):
        assert (await as_node_program(job_of(before + line))).code == before + line
    for line in ("import('x')", "imported", "; export"):
        job = await as_node_program(job_of(before + line))
        assert job.input.files == {"main.cjs": (before + line).encode()}
    typed = "let a: number = 1"
    assert (await as_node_program(job_of(before + typed, Language.TYPESCRIPT))).code == before + typed
    for line in (f"{typed}; require", "__dirname", "module.x", "a; exports\n"):
        job = await as_node_program(job_of(before + line, Language.TYPESCRIPT))
        assert job.input.files == {"main.cts": (before + line).encode()}
    for line in ("required", "a_module", "my__filename", "exportsa"):
        assert (await as_node_program(job_of(before + line, Language.TYPESCRIPT))).code == before + line


@pytest.mark.parametrize("size", [65_536, 40])
async def test_imports_get_prefixes_in_all_pieces(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_program, "_PIECE_CHARS", size)
    code = "import 'x'\n" + LONG_LINE + "  import { a } from 'fs'\n" * 9 + 'let b = \' from "fs"\'\n} from "path";\n'
    expected = "import 'x'\n" + LONG_LINE + "  import { a } from 'node:fs'\n" * 9
    assert (await as_node_program(job_of(code))).code == f'{expected}let b = \' from "fs"\'\n}} from "node:path";\n'


async def test_standard_input_is_a_descriptor() -> None:
    """Columns stay the same. Other uses of the name are not changed."""
    code = "export {}; fs.readFileSync('/dev/stdin'); readFileSync(\n  \"/dev/stdin\", 'utf8')"
    expected = "export {}; fs.readFileSync(0           ); readFileSync(\n  0           , 'utf8')"
    assert (await as_node_program(job_of(code))).code == expected
    for other in ("export {}; xreadFileSync('/dev/stdin')", "export {}; '/dev/stdin'", "export {}; f('/dev/stdin\")"):
        assert (await as_node_program(job_of(other))).code == other


async def test_the_file_of_the_program_may_be_sent_too() -> None:
    """But only with the same content."""
    assert (await as_node_program(job_of("1", **{"main.cjs": b"1"}))).input.files == {"main.cjs": b"1"}
    with pytest.raises(InvalidRequestError, match=r"must not contain main\.cjs, which is the program itself"):
        await as_node_program(job_of("1", **{"main.cjs": b"2"}))


@pytest.mark.parametrize(
    "piece",
    [
        *(" ", "\n", "a", "\n ", "import ", "\nimport ", "export ", "require ", "xrequire ", "\n} from ", "'fs' "),
        *("\nimport a from 'fs'", "readFileSync(", "readFileSync('/dev/stdin')", "'/dev/stdin'", "readFileSync(    "),
    ],
)
async def test_a_large_program_does_not_keep_the_event_loop(piece: str) -> None:
    """The longest step for a program of 4 MiB takes about as long as decoding its JSON."""
    code = piece * (4 * 2**20 // len(piece))
    text = json.dumps(code)
    decode_s = max(_cpu_s(lambda: json.loads(text)) for _ in range(3))
    for language in (Language.JAVASCRIPT, Language.TYPESCRIPT):
        # The further comparisons are for busy machines.
        assert any(_longest_step_s(job_of(code, language)) < 6 * decode_s for _ in range(3))


def _cpu_s(action: object) -> float:
    started = time.thread_time()
    action()  # type: ignore[operator]
    return time.thread_time() - started


def _longest_step_s(job: EngineJob) -> float:
    work, longest_s = as_node_program(job), 0.0
    while True:
        started = time.thread_time()
        try:
            work.send(None)
        except StopIteration:
            return max(longest_s, time.thread_time() - started)
        longest_s = max(longest_s, time.thread_time() - started)
