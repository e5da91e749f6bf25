"""Properties: any answer of a server gives a result or a FaasrtError. Cut texts stay within their limit."""

from __future__ import annotations

import contextlib
import enum
import json
from typing import Any

from hypothesis import given, strategies as st

from faasrt import ExecutionResult, FaasrtError, Language, SandboxConfig, ValidationResult
from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.answer import Answer, read_answer, read_validation
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import Program
from faasrt.protocol.streams import cut, cut_text, decode
from support.package import WIRE

REAL = [
    json.dumps(json.loads(line)["response"]).encode()
    for path in sorted(WIRE.glob("*-faas.jsonl"))
    for line in path.read_text().splitlines()
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
STREAMS = st.dictionaries(
    st.sampled_from(["stdout", "stderr", "ret_val", "x"]), st.text(max_size=300) | JSON, max_size=4
)
METADATA = st.dictionaries(st.sampled_from(["exit_code", "duration", "timed_out", "status", "x"]), JSON, max_size=5)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "output": STREAMS | JSON,
        "metadata": METADATA | JSON,
        "outcome": st.sampled_from(["OK", "TIMEOUT", "x"]) | JSON,
        "error_info": st.dictionaries(st.sampled_from(["name", "message", "traceback"]), JSON) | JSON,
        "truncated": st.lists(st.sampled_from(["stdout", "x"])) | JSON,
        "error": JSON,
        "details": JSON,
    },
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a recorded answer with some of its bytes changed, removed or repeated."""
    data = bytearray(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 20))
        data[place : place + length] = draw(st.binary(max_size=20)) or data[place : place + length] * 2
    return bytes(data)


def check_answer(body: bytes, status: int, limit: int) -> None:
    try:
        result = read_answer(Answer(status=status, body=body), None, timeout_ms=1_000, max_output_bytes=limit).result()
    except FaasrtError:
        return
    assert isinstance(result, ExecutionResult)
    for text in (result.stdout, result.stderr, result.ret_val):
        assert len(text.encode("utf-8", "surrogatepass")) <= limit
    json.dumps(result.to_dict())


RESULTS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["Finished", "TimeLimitExceeded", "RE", "TO", "XX", "OL"]) | JSON,
        "return_code": st.integers(-70, 300) | JSON,
        "code": st.integers(0, 300) | JSON,
        "signal": st.sampled_from(["SIGKILL", "SIGSEGV"]) | JSON,
        "stdout": st.text(max_size=300) | JSON,
        "stderr": st.text(max_size=300) | JSON,
        "execution_time": JSON,
        "wall_time": JSON,
        "memory": JSON,
        "message": JSON,
    },
)
SERVICE_ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["Success", "Failed", "SandboxError"]) | JSON,
        "message": st.sampled_from(["run_timeout cannot exceed the configured limit of 5"]) | JSON,
        "stack": JSON,
        "detail": st.lists(st.dictionaries(st.sampled_from(["loc", "msg"]), JSON)) | JSON,
        "language": JSON,
        **dict.fromkeys(["compile_result", "run_result", "compile", "run"], RESULTS | JSON),
    },
)
STATUSES = st.sampled_from([200, 200, 200, 204, 301, 400, 408, 429, 500, 503, 599]) | st.integers(100, 999)
LIMITS = st.integers(1, 2_000)


@given(body=st.binary(max_size=400) | mutated(), status=STATUSES, limit=LIMITS)
def test_answers_of_arbitrary_bytes(body: bytes, status: int, limit: int) -> None:
    """Arbitrary bytes, or a recorded answer with some bytes changed, give a result or a FaasrtError."""
    check_answer(body, status, limit)


@given(body=ANSWERS, status=STATUSES, limit=LIMITS)
def test_answers_with_arbitrary_fields(body: dict[str, Any], status: int, limit: int) -> None:
    """JSON objects with the right names and arbitrary values give a result or a FaasrtError."""
    check_answer(json.dumps(body).encode(), status, limit)


@given(
    protocol=st.sampled_from([sandboxfusion.PROTOCOL, piston.PROTOCOL]),
    body=SERVICE_ANSWERS | JSON,
    status=STATUSES,
    limit=LIMITS,
    language=st.sampled_from([Language.PYTHON, Language.JAVASCRIPT, "bash"]),
    nonce=st.sampled_from([None, "0123456789abcdef"]),
)
def test_answers_of_services_with_arbitrary_fields(
    protocol: ServiceProtocol, body: Any, status: int, limit: int, language: str, nonce: str | None
) -> None:
    """Answers of SandboxFusion and Piston with arbitrary values give a result or a FaasrtError."""
    sandbox = SandboxConfig(max_output_bytes=limit)
    run = Program(language=language, code="1", timeout_ms=1_000, sandbox=sandbox, priority="normal", ext={})
    answer = Answer(status=status, body=json.dumps(body).encode())
    with contextlib.suppress(FaasrtError):
        protocol.read_health(answer)
    with contextlib.suppress(FaasrtError):
        result = protocol.decode(answer, run, nonce=nonce, timeout_ms=1_000).result()
        assert all(len(text.encode("utf-8", "surrogatepass")) <= limit for text in (result.stdout, result.stderr))
        json.dumps(result.to_dict())


@given(
    body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps({"valid": True, "diagnostics": value}).encode())
)
def test_arbitrary_answers_to_validations(body: bytes) -> None:
    """Arbitrary bytes and arbitrary diagnostics give a `ValidationResult` or a FaasrtError."""
    with contextlib.suppress(FaasrtError):
        assert isinstance(read_validation(Answer(200, body)), ValidationResult)


@given(text=st.text(st.characters(), max_size=400), limit=st.integers(1, 400))
def test_cut_text_of_any_characters_stays_within_the_limit(text: str, limit: int) -> None:
    """A text within the limit is unchanged. A longer one is cut to the limit, and reported as cut."""
    kept, was_cut = cut_text(text, limit)
    size = len(text.encode("utf-8", "surrogatepass"))
    assert was_cut is (size > limit)
    assert kept == text if not was_cut else len(kept.encode("utf-8", "surrogatepass")) <= limit


@given(data=st.binary(max_size=400), limit=st.integers(1, 400))
def test_cut_bytes_stay_within_the_limit(data: bytes, limit: int) -> None:
    """Arbitrary bytes are decoded to a text within the limit."""
    kept, was_cut = cut(data, limit)
    assert len(kept.encode("utf-8", "surrogatepass")) <= limit
    assert was_cut or kept == decode(data)


UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


class Memory(int, enum.Enum):
    """An int whose `str` is not its number."""

    SMALL = 128


@given(UNICODE.filter(str.strip), UNICODE.filter(bool), st.just({}) | st.dictionaries(UNICODE, UNICODE), st.booleans())
def test_requests_encode_every_field(code: str, priority: str, ext: dict[str, str], network: bool) -> None:
    """This holds even if most of the JSON was encoded for an earlier request, with another code."""
    sandbox = SandboxConfig(memory_limit_mb=Memory.SMALL, network_enabled=network)
    request = Program.checked(Language.TYPESCRIPT, code, sandbox, timeout_ms=1_500, ext=ext, priority=priority)
    assert json.loads(request.encode()) == {
        "language": "typescript",
        "code": code,
        "timeout": 1_500,
        "priority": priority,
        "ext": ext,
        "sandbox": {
            "memory_limit_mb": 128,
            "timeout_ms": 1_500,
            "max_output_bytes": 1_048_576,
            "network_enabled": network,
        },
    }
