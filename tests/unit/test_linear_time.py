"""Text that programs or servers control is processed in linear time.

The texts are so large that a quadratic algorithm would take minutes or hours, and the test would time out. The property
test compares the CPU time of each step with that of decoding the same text as JSON, in the same thread.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from faasrt import InvalidRequestError, SandboxConfig, ServiceError, _strict_json
from faasrt.inputs import check_path
from faasrt.languages import Language
from faasrt.local.engines.deno.run import StdoutParser
from faasrt.local.engines.engine import EngineJob
from faasrt.local.engines.python_tiers import tiers_of
from faasrt.local.engines.toolchain.languages import TOOLCHAINS
from faasrt.local.http.responses import fit_response
from faasrt.protocol.answer import Answer, decode_object, read_answer
from faasrt.protocol.execution import WireRequest
from faasrt.protocol.execution_limits import ExecutionLimits
from faasrt.protocol.frames import take_frames
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.processes import ProcessEnd, read_end
from faasrt.protocol.program import Program
from faasrt.protocol.return_val import defines_return_val, take_return_val
from faasrt.protocol.streams import decode

LIMIT = 2**20
NONCE = "0123456789abcdef"
LIMITS = ExecutionLimits(timeout_ms=1_000, memory_limit_mb=64, max_output_bytes=LIMIT)
JOB = EngineJob(language=Language.PYTHON, code="pass", limits=LIMITS)
RUN = Program.checked(Language.PYTHON, "pass", SandboxConfig(max_output_bytes=LIMIT), timeout_ms=1_000)
RUNS = [attrs.evolve(RUN, language=language) for language in (*Language, "c")]
START, END = "__COZE_RETURN_VAL_START__\n", "__COZE_RETURN_VAL_END__\n"
FRAME = "faasrt1:" + base64.b64encode(f'{{"nonce":"{NONCE}","final":false,"records":[]}}'.encode()).decode()
FOREIGN = "faasrt1:" + base64.b64encode(b'{"nonce":"another","final":true}').decode()
REPORT = '{"stdout":"","stderr":"","ret_val":""}\n'
PIECES = [START, END, FRAME, FRAME[:40], FOREIGN, "faasrt1:", REPORT, '{"stdout":"', "{", "}", "{}\n", "{\n"]
PIECES += [
    "\n",
    "'",
    '"',
    "\\",
    " ",
    "\t",
    "=",
    "A",
    "\x00",
    "é",
    "\ud800",
    "return_val",
    "function return_val",
    "const ",
]
PIECES += [
    "Traceback (most recent call last)\n",
    "SyntaxError",
    "    at temp.js\n",
    "run: line 3: node: command",
    ": not found",
    "a.b: c\n",
    "\n... 5 bytes cut ...\n",
]


@pytest.mark.parametrize("language", [Language.PYTHON, Language.JAVASCRIPT])
@pytest.mark.parametrize(
    "piece", [START, END, START + END, "{\n", "{}x}\n", '{"}\n', "\n{", "{", "\n... 5 bytes cut ...\n"]
)
def test_searching_the_return_value_takes_linear_time(piece: str, language: Language) -> None:
    """An stdout of 4 MiB consists of unpaired markers, or of lines that are not JSON objects."""
    stdout = piece * (4 * 2**20 // len(piece))
    for truncated in (frozenset[str](), frozenset({"stdout"})):
        rest, value, _ = take_return_val(stdout, language, truncated)
        assert len(rest) + len(value) <= len(stdout)


@pytest.mark.parametrize("piece", [FRAME, FRAME + "\n", FRAME[:40], FOREIGN, "faasrt1:", "faasrt1:A", "A", "=", "\n"])
def test_searching_frames_takes_linear_time(piece: str) -> None:
    """An stdout of 4 MiB consists of frames, parts of frames, or frames of other calls."""
    text = piece * (4 * 2**20 // len(piece))
    report, rest = take_frames({"stdout": text}, NONCE, LIMIT)
    assert report.started is (piece in (FRAME, FRAME + "\n"))
    assert rest["stdout"] == ("" if report.started else text)


def test_a_forged_frame_takes_linear_time() -> None:
    """A program that knows the nonce writes a frame of 1 MiB whose JSON is an unclosed string with many quotes."""
    text = f'{{"nonce":"{NONCE}",' + '"' + 'a\\"a' * 200_000
    stdout = "faasrt1:" + base64.b64encode(text.encode()).decode()
    assert take_frames({"stdout": stdout}, NONCE, LIMIT)[1]["stdout"] == stdout


def test_a_message_that_arrives_in_small_pieces_takes_linear_time() -> None:
    """Deno's runner sends 16 MiB in pieces of 16 bytes, and then a second message."""
    mark = b"\0faasrt:0123:"
    parser = StdoutParser(mark, LIMIT, 32 * LIMIT, LIMIT)
    for piece in [mark, b'{"kind":"ret_val","text":"', *[b"0123456789abcdef"] * LIMIT, b'"}']:
        assert parser.feed(piece) == b""
    assert parser.feed(b"\nout" + mark + b'{"kind":"done"') == b"out"
    assert not parser.complete
    parser.feed(b"}\n")
    assert parser.complete
    assert len(parser.messages["ret_val"]["text"]) == 16 * LIMIT


@pytest.mark.parametrize(
    "piece", ["{", "{}", ";", "''", '"', "/**/", "class A", "public class ", "void main ", "numpy "]
)
def test_choosing_how_to_run_a_program_takes_little_time(piece: str) -> None:
    """The name of a Java file and the tiers of a Python program are found about as fast as its 4 MiB are decoded."""
    code = piece * (4 * 2**20 // len(piece))
    decode_s = cpu_s(lambda: json.loads(json.dumps(code)))
    file = TOOLCHAINS[Language.JAVA].file
    assert file is not None
    assert min(cpu_s(lambda: file(code)) for _ in range(3)) < 5 * decode_s
    assert min(cpu_s(lambda: tiers_of(code)) for _ in range(3)) < 5 * decode_s


@pytest.mark.parametrize("ret_val", ["faasrt1:" + "\x01" * 4_398_000, "faasrt1:" + "A" * 4_398_000, "\x01" * LIMIT])
@pytest.mark.parametrize("stdout", ["", "\x01" * LIMIT, '"' * LIMIT, "é\ud800" * (LIMIT // 5)])
def test_a_response_is_encoded_at_most_twice(ret_val: str, stdout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response fits into the size that the client accepts, even if escapes make its JSON much larger."""
    encoded: list[int] = []
    dump_bytes = _strict_json.dump_bytes

    def count_encoded(value: Any) -> bytes:
        data = dump_bytes(value)
        encoded.append(len(data))
        return data

    monkeypatch.setattr(_strict_json, "dump_bytes", count_encoded)
    output = {"stdout": stdout, "stderr": stdout, "ret_val": ret_val}
    fields = {"output": dict(output), "error_info": {"message": stdout}, "truncated": []}
    response = fit_response(fields, JOB)
    assert len([size for size in encoded if size > 1_000]) <= 2
    assert isinstance(response.body, bytes)
    assert len(response.body) <= 4 * LIMIT + 262_144
    kept = json.loads(response.body)["output"]
    for name, text in output.items():
        was_cut = name in json.loads(response.body)["truncated"]
        assert was_cut is (kept[name] != text)


def cpu_s(action: Callable[[], object]) -> float:
    """Return the CPU seconds that an action takes in this thread."""
    started = time.thread_time()
    action()
    return time.thread_time() - started


@st.composite
def mixtures(draw: st.DrawFn) -> str:
    """Return a text of up to 2 MiB from a few groups of pieces, each repeated many times."""
    runs = draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), st.integers(1, 20_000)), max_size=6
        )
    )
    return "".join("".join(pieces) * count for pieces, count in runs)[: 2 * 2**20]


@settings(max_examples=40, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(
    text=mixtures(), stream=st.sampled_from(["stdout", "stderr", "ret_val"]), exit_code=st.sampled_from([None, 0, 1])
)
def test_reading_an_answer_takes_linear_time(text: str, stream: str, exit_code: int | None) -> None:
    """Each step of reading an answer takes at most a constant multiple of the time to decode its JSON."""
    metadata = {"exit_code": exit_code, "duration": 5}
    body = json.dumps({"output": {stream: text}, "metadata": metadata}).encode()
    answer = Answer(status=200, body=body)
    decode_s = cpu_s(lambda: decode_object(body))

    def read_it(profile: EndpointProfile) -> None:
        with contextlib.suppress(ServiceError):  # a reference server's answer without a started frame
            WireRequest(body=b"", program=RUN, timeout_ms=1_000, profile=profile, nonce=NONCE).read(answer)

    end = ProcessEnd(stdout="", stderr=text, exit_code=1)
    steps: dict[str, Callable[[], object]] = {
        "read": lambda: read_it(EndpointProfile()),
        "read, reference": lambda: read_it(EndpointProfile(reference=True)),
        "read_result": lambda: read_answer(answer, None, timeout_ms=1_000, max_output_bytes=LIMIT).result(),
        "read_end": lambda: [read_end(end, run, None, {}) for run in RUNS],
        "definition": lambda: [defines_return_val(text, language) for language in Language],
        "value": lambda: [take_return_val(text, language, frozenset({"stdout"})) for language in Language],
    }
    # Searching frames takes about 35 times as long as decoding. A quadratic step would take thousands of times as long.
    for name, step in steps.items():
        assert cpu_s(step) < 150 * decode_s + 1.0, name


@pytest.mark.parametrize("piece", [b"\xff", b"a\x80", b"\xe2\x82", b"a" * 50 + b"\xff"])
def test_bytes_that_are_not_utf_8_take_little_time(piece: bytes) -> None:
    """A stream of 4 MiB is searched for surrogates faster than Python replaces its invalid bytes."""
    data = piece * (4 * 2**20 // len(piece))
    replace_s = max(cpu_s(lambda: data.decode("utf-8", "replace")) for _ in range(3))
    assert min(cpu_s(lambda: decode(data)) for _ in range(3)) < 2 * replace_s + 0.01


def test_a_path_of_megabytes_takes_little_time() -> None:
    """It is refused as too long, about as fast as it is encoded."""
    path = "a/" * 4_000_000
    encode_s = max(cpu_s(lambda: json.dumps(path)) for _ in range(3))

    def check() -> None:
        with pytest.raises(InvalidRequestError, match="is longer than 1024 bytes or 32 parts"):
            check_path(path, "the path")

    assert min(cpu_s(check) for _ in range(3)) < 2 * encode_s
