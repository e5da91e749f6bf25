"""Work on text that programs and servers control grows no faster than the text.

The sizes are such that quadratic work would take minutes or hours: those tests end by their timeout then. The property
compares the CPU time of a step with that of decoding the same text, in the same thread and the same run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from faasrt import SandboxConfig, ServiceError
from faasrt.languages import Language
from faasrt.local.app import _fit_response
from faasrt.protocol.frames import take_frames
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.program import Request
from faasrt.protocol.request import RunRequest
from faasrt.protocol.response import Answer, decode_object, read_answer
from faasrt.protocol.return_val import defines_return_val, take_return_val

LIMIT = 2**20
NONCE = "0123456789abcdef"
RUN = RunRequest.checked(Language.PYTHON, "pass", 1_000, SandboxConfig(max_output_bytes=LIMIT), None, "normal")
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
    "a.b: c\n",
    "\n... 5 bytes cut ...\n",
]


@pytest.mark.parametrize("language", [Language.PYTHON, Language.JAVASCRIPT])
@pytest.mark.parametrize(
    "piece", ["\n", " ", "\t\n", "function ", "const ", "return_val", "return_val ", "\nfunction\t"]
)
def test_definitions_in_eight_megabytes(piece: str, language: Language) -> None:
    """The largest program that a server takes, made of white space and words of a definition."""
    code = piece * (8 * 2**20 // len(piece)) + "x return_val"
    assert not defines_return_val(code, language)


@pytest.mark.parametrize("language", [Language.PYTHON, Language.JAVASCRIPT])
@pytest.mark.parametrize(
    "piece", [START, END, START + END, "{\n", "{}x}\n", '{"}\n', "\n{", "{", "\n... 5 bytes cut ...\n"]
)
def test_return_values_in_eight_megabytes(piece: str, language: Language) -> None:
    """Markers without an end, and lines that are no objects."""
    stdout = piece * (8 * 2**20 // len(piece))
    for truncated in (frozenset[str](), frozenset({"stdout"})):
        rest, value, _ = take_return_val(stdout, language, truncated)
        assert len(rest) + len(value) <= len(stdout)


@pytest.mark.parametrize("piece", [FRAME, FRAME + "\n", FRAME[:40], FOREIGN, "faasrt1:", "faasrt1:A", "A", "=", "\n"])
def test_frames_in_eight_megabytes(piece: str) -> None:
    """Frames, beginnings of frames and frames of other calls, as often as they fit."""
    text = piece * (8 * 2**20 // len(piece))
    report, rest = take_frames({"stdout": text}, NONCE, LIMIT)
    assert report.started is (piece in (FRAME, FRAME + "\n"))
    assert rest["stdout"] == ("" if report.started else text)


@pytest.mark.parametrize("ret_val", ["faasrt1:" + "\x01" * 4_398_000, "faasrt1:" + "A" * 4_398_000, "\x01" * LIMIT])
@pytest.mark.parametrize("stdout", ["", "\x01" * LIMIT, '"' * LIMIT, "é\ud800" * (LIMIT // 5)])
def test_an_answer_is_encoded_a_few_times(ret_val: str, stdout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever grows in it, it is written twice at most, and fits into the body that a client reads."""
    from faasrt.local import app

    encoded: list[int] = []

    original: Any = vars(app)["json_response"]

    def answer(status: int, fields: Any, headers: Any = None) -> Any:
        response = original(status, fields, headers)
        encoded.append(response.content_length)
        return response

    monkeypatch.setattr(app, "json_response", answer)
    output = {"stdout": stdout, "stderr": stdout, "ret_val": ret_val}
    fields = {"output": dict(output), "error_info": {"message": stdout}, "truncated": []}
    response = _fit_response(fields, LIMIT)
    assert len(encoded) <= 2
    assert isinstance(response.body, bytes)
    assert len(response.body) <= 4 * LIMIT + 262_144
    kept = json.loads(response.body)["output"]
    for name, text in output.items():
        was_cut = name in json.loads(response.body)["truncated"]
        assert was_cut is (kept[name] != text)


def cpu_s(action: Callable[[], object]) -> float:
    """CPU seconds of this thread."""
    started = time.thread_time()
    action()
    return time.thread_time() - started


@st.composite
def mixtures(draw: st.DrawFn) -> str:
    """Runs of pieces, each repeated many times, of up to 2 MB."""
    runs = draw(
        st.lists(
            st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=3), st.integers(1, 20_000)), max_size=6
        )
    )
    return "".join("".join(pieces) * count for pieces, count in runs)[: 2 * 2**20]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow])
@given(
    text=mixtures(), stream=st.sampled_from(["stdout", "stderr", "ret_val"]), exit_code=st.sampled_from([None, 0, 1])
)
def test_reading_an_answer_takes_a_multiple_of_decoding_it(text: str, stream: str, exit_code: int | None) -> None:
    """No mixture holds the event loop for longer than a small multiple of the time that decoding takes."""
    metadata = {"exit_code": exit_code, "duration": 5}
    body = json.dumps({"output": {stream: text}, "metadata": metadata}).encode()
    answer = Answer(status=200, body=body)
    decode_s = cpu_s(lambda: decode_object(body))

    def read_it(profile: EndpointProfile) -> None:
        with contextlib.suppress(ServiceError):  # of a reference server whose answer holds no announcement
            Request(body=b"", run=RUN, timeout_ms=1_000, profile=profile, nonce=NONCE).read(answer)

    steps: dict[str, Callable[[], object]] = {
        "read": lambda: read_it(EndpointProfile()),
        "read, reference": lambda: read_it(EndpointProfile(reference=True)),
        "read_verdict": lambda: read_answer(answer, None, timeout_ms=1_000, max_output_bytes=LIMIT).verdict,
        "definition": lambda: [defines_return_val(text, language) for language in Language],
        "value": lambda: [take_return_val(text, language, frozenset({"stdout"})) for language in Language],
    }
    # Frames take the most, about 35 times as long. Quadratic work would take thousands of times as long.
    for name, step in steps.items():
        assert cpu_s(step) < 150 * decode_s + 1.0, name
