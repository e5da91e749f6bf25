"""Requests of other services' clients are read, or refused in the format of the service; nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from faasrt import Language, OverloadedError, SandboxConfig, ServerError
from faasrt.protocol import piston, sandboxfusion
from faasrt.protocol.answer import Answer
from faasrt.protocol.processes import ProcessEnd, signal_name, signal_number
from faasrt.protocol.program import Program
from faasrt.protocol.served import RefusedError, ServedLanguage, ServedProtocol, ServedResult, ServerProfile

SERVER = ServerProfile(
    languages={
        Language.PYTHON: ServedLanguage(version="3.11.7"),
        Language.CPP: ServedLanguage(version="12.2.0", compile_timeout_ms=30_000, compile_memory_mb=1_024),
        Language.RUST: ServedLanguage(version=""),  # it starts
    },
    missing={Language.GO: "go is not installed"},
    timeout_ms=20_000,
    memory_limit_mb=256,
    max_timeout_ms=40_000,
    max_memory_limit_mb=1_024,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def request_of(names: list[str], **usual: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Return requests in which some of the fields have unusual values."""
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=2).map(lambda fields: usual | fields)


FUSION = request_of(
    ["language", "code", "stdin", "files", "fetch_files", "run_timeout", "compile_timeout", "memory_limit_MB", "more"],
    language="cpp",
    code="int main() {}",
)
PISTON = request_of(
    ["language", "version", "files", "stdin", "args", "run_timeout", "compile_timeout", "run_cpu_time", "more"],
    language="c++",
    version="*",
    files=[{"content": "int main() {}"}],
) | st.lists(st.dictionaries(st.sampled_from(["name", "content", "encoding"]), VALUES), max_size=3).map(
    lambda files: {"language": "python", "version": "*", "files": files}
)


@given(fields=FUSION)
def test_any_request_of_sandboxfusion(fields: dict[str, Any]) -> None:
    """A request is read, or refused with a 200 or 422 whose body is JSON."""
    check(sandboxfusion.SERVER, fields, (200, 422))


@given(fields=PISTON)
def test_any_request_of_piston(fields: dict[str, Any]) -> None:
    """A request is read, or refused with a 400 whose body is JSON."""
    check(piston.SERVER, fields, (400,))


def check(protocol: ServedProtocol, fields: dict[str, Any], statuses: tuple[int, ...]) -> None:
    try:
        run = protocol.read_run(fields, SERVER)
    except RefusedError as error:
        refusal = error
    else:
        run.code.encode()
        assert run.language in SERVER.languages
        assert 0 <= run.timeout_ms <= SERVER.max_timeout_ms
        assert 0 < run.memory_limit_mb <= SERVER.max_memory_limit_mb
        return
    assert refusal.status in statuses
    json.dumps(refusal.body, allow_nan=False)


@pytest.mark.parametrize(
    ("versions", "matching"),
    {
        "*": True,
        "": True,
        "x": True,
        "3": True,
        "3.x": True,
        "3.11": True,
        "3.11.7": True,
        "v3.11.7": True,
        "=3.11.7": True,
        "3.11.8": False,
        "3.1": False,
        "2": False,
        "^3.9": True,
        "^3.12": False,
        "^2.0.0": False,
        "~3": True,
        "~2": False,
        "~3.11": True,
        "~3.11.7": True,
        "~3.11.5": True,
        "~3.11.8": False,
        "~3.10": False,
        ">=3.9": True,
        ">=3.11.7": True,
        "<3.11.7": False,
        ">3.11.7": False,
        "<=3.11.7": True,
        "^3.11.7": True,
        ">= 3.9  <3.12": True,
        ">=3.9 <3.11": False,
        ">3.11": False,
        ">3.10": True,
        "<=3.11": True,
        "<4": True,
        "2 || 3": True,
        "1 || 2": False,
        "newest": False,
        "3.11.7-beta": False,
        "3.9 - 3.12": False,
        "3" * 101: False,
    }.items(),
)
def test_ranges_of_versions(versions: str, matching: bool) -> None:
    """Ranges of npm match as there, apart from those with a hyphen, which match nothing, as do invalid ones."""
    assert piston.satisfies("3.11.7", versions) is matching


def test_a_range_with_zeros() -> None:
    """A caret allows no change of the first number that is not zero."""
    assert [piston.satisfies("0.2.5", versions) for versions in ("^0.2.3", "^0.1", "^0", "^0.0.5")] == [
        True,
        False,
        True,
        False,
    ]


def test_the_client_knows_refusals_of_the_server() -> None:
    """A 504 that states that nothing was started is an overload, which may be retried. A proxy's 504 is a failure."""
    run = Program.checked(Language.PYTHON, "1", SandboxConfig())
    for not_started, error in ((True, OverloadedError), (False, ServerError)):
        answer = Answer(status=504, body=b'{"detail": "busy"}', retry_after_s=1, not_started=not_started)
        with pytest.raises(error):
            sandboxfusion.PROTOCOL.decode(answer, run, nonce=None, timeout_ms=1_000)


def test_whole_streams_of_the_server() -> None:
    """A stream that is longer than those of SandboxFusion is not reported as cut."""
    run = Program.checked(Language.PYTHON, "1", SandboxConfig())
    for size, cut in ((219_264, {"stdout"}), (219_265, set())):
        end = ProcessEnd(stdout="x" * size, stderr="", exit_code=0)
        served = sandboxfusion.SERVER.read_run({"language": "python", "code": "1"}, SERVER)
        body = sandboxfusion.SERVER.encode_result(ServedResult(end=end), served, SERVER)
        answer = Answer(status=200, body=json.dumps(body).encode())
        assert sandboxfusion.PROTOCOL.decode(answer, run, nonce=None, timeout_ms=1_000).truncated == cut


def test_names_of_signals() -> None:
    """Names and numbers of signals belong together, also those without a name."""
    assert [signal_number(signal_name(number)) for number in (6, 9, 11, 40)] == [6, 9, 11, 40]


def test_languages_that_do_not_run_here() -> None:
    """SandboxFusion names the reason, and Piston's runtime is unknown. A language that starts may be requested."""
    with pytest.raises(RefusedError) as refused:
        sandboxfusion.SERVER.read_run({"language": "go", "code": ""}, SERVER)
    assert refused.value.body["message"] == "this server does not run go: go is not installed"
    with pytest.raises(RefusedError) as refused:
        piston.SERVER.read_run({"language": "golang", "version": "1.x", "files": [{"content": ""}]}, SERVER)
    assert refused.value.body == {"message": "golang-1.x runtime is unknown"}
    starting = {"language": "rs", "version": "1.x", "files": [{"content": ""}]}
    assert piston.SERVER.read_run(starting, SERVER).language is Language.RUST
    assert [runtime["language"] for runtime in piston.SERVER.runtimes(SERVER)] == ["python", "c++"]
