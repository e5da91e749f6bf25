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


CPP = {"language": "cpp", "code": "x"}
TIMEOUT_HINT = "; --max-timeout-s of faasrt serve raises it"
MEMORY_HINT = "; --max-memory-mb of faasrt serve raises it"


@pytest.mark.parametrize(
    ("fields", "kind", "place", "message", "shown"),
    [
        (
            {"run_timeout": 41},
            "less_than_equal",
            "run_timeout",
            f"Input should be less than or equal to 40, which is the limit of this server{TIMEOUT_HINT}",
            41,
        ),
        (
            {"compile_timeout": 31},
            "less_than_equal",
            "compile_timeout",
            "Input should be less than or equal to 30, which is the limit of this server",
            31,
        ),
        (
            {"memory_limit_MB": 1_025},
            "less_than_equal",
            "memory_limit_MB",
            f"Input should be less than or equal to 1024, which is the limit of this server{MEMORY_HINT}",
            1_025,
        ),
        ({"run_timeout": "soon"}, "float_parsing", "run_timeout", "Input should be a valid number", "soon"),
        ({"run_timeout": [1]}, "float_type", "run_timeout", "Input should be a valid number", None),
        ({"memory_limit_MB": "64"}, "int_parsing", "memory_limit_MB", "Input should be a valid integer", "64"),
        ({"memory_limit_MB": None}, "int_type", "memory_limit_MB", "Input should be a valid integer", None),
        (
            {"memory_limit_MB": 1.5},
            "int_from_float",
            "memory_limit_MB",
            "Input should be a valid integer, got a number with a fractional part",
            1.5,
        ),
        (
            {"x" * 300: "y" * 300},
            "extra_forbidden",
            "x" * 200,
            "Extra inputs are not permitted, because this server would ignore them",
            "y" * 200,
        ),
        (
            {"code": "\ud800"},
            "string_unicode",
            "code",
            "Input should be a valid string, unable to parse raw data as a unicode string",
            None,
        ),
        ({"stdin": 5}, "string_type", "stdin", "Input should be a valid string", 5),
        ({"files": []}, "dict_type", "files", "Input should be a valid dictionary", None),
        ({"files": {"a": 5}}, "string_type", "files", "Input should be a valid string", 5),
        ({"files": {"a": "?"}}, "value_error", "files", "Value error, a file is not base64", "a"),
        ({"fetch_files": [5]}, "list_type", "fetch_files", "Input should be a valid list of strings", None),
        (
            {"files": {"../a": ""}},
            "value_error",
            "",
            "Value error, the path of a file must be a relative path, such as data/in.csv; '../a' has a part that is "
            'empty, "." or ".."',
            None,
        ),
    ],
)
def test_refusals_of_sandboxfusion_are_those_of_pydantic(
    fields: dict[str, Any], kind: str, place: str, message: str, shown: object
) -> None:
    """They name the field, and show the beginning of its value. A limit of the server is also the reason phrase."""
    with pytest.raises(RefusedError) as refused:
        sandboxfusion.SERVER.read_run(CPP | fields, SERVER)
    (detail,) = refused.value.body["detail"]
    context = detail.pop("ctx", None)
    assert detail == {
        "type": kind,
        "loc": ["body", place] if place else ["body"],
        "msg": message,
        "input": shown,
        "url": f"https://errors.pydantic.dev/2.6/v/{kind}",
    }
    assert (context is not None) is (kind == "less_than_equal")
    assert refused.value.reason == (f"{place}: {message}" if context else None)
    assert bool(refused.value.logged) is bool(context)


def test_a_missing_field_of_sandboxfusion() -> None:
    """The refusal names the field, as that of pydantic does."""
    with pytest.raises(RefusedError) as refused:
        sandboxfusion.SERVER.read_run({"language": "cpp"}, SERVER)
    assert (refused.value.body["detail"][0]["type"], refused.value.body["detail"][0]["loc"]) == (
        "missing",
        ["body", "code"],
    )


@pytest.mark.parametrize(
    ("fields", "timeout_ms", "compile_timeout_ms", "memory_mb", "patience_s"),
    [
        ({}, 10_000, 10_000, 256, 30),
        ({"run_timeout": 40, "compile_timeout": 30, "memory_limit_MB": 1_024}, 40_000, 30_000, 1_024, 80),
        ({"run_timeout": -1, "compile_timeout": 0, "memory_limit_MB": -1}, 0, 0, 256, 10),
        ({"run_timeout": 0.5, "compile_timeout": 1.25, "memory_limit_MB": 0}, 500, 1_250, 256, 11.75),
    ],
)
def test_limits_of_sandboxfusion(
    fields: dict[str, Any], timeout_ms: float, compile_timeout_ms: float, memory_mb: int, patience_s: float
) -> None:
    """The defaults are those of the service, and the memory limit that of this server. verl waits 10 s longer."""
    run = sandboxfusion.SERVER.read_run(CPP | fields, SERVER)
    limits = (run.timeout_ms, run.compile_timeout_ms, run.memory_limit_mb, run.patience_s)
    assert limits == (timeout_ms, compile_timeout_ms, memory_mb, patience_s)
    interpreted = sandboxfusion.SERVER.read_run({**CPP, **fields, "language": "python"}, SERVER)
    assert (interpreted.timeout_ms, interpreted.compile_timeout_ms) == (timeout_ms, None)


@pytest.mark.parametrize(
    ("fields", "timeout_ms", "compile_timeout_ms", "memory_mb", "compile_memory_mb"),
    [
        ({}, 20_000, 30_000, 256, 1_024),
        (
            {"run_timeout": 40_000, "compile_timeout": 500, "run_memory_limit": 2**30, "compile_memory_limit": 2**29},
            *(40_000, 500, 1_024, 512),
        ),
        (dict.fromkeys(["run_timeout", "compile_timeout", "run_cpu_time"], 0), 20_000, 30_000, 256, 1_024),
        (dict.fromkeys(["run_memory_limit", "compile_memory_limit"], -1), 20_000, 30_000, 256, 1_024),
        ({"run_memory_limit": 3 * 2**20 - 1, "compile_memory_limit": 1}, 20_000, 30_000, 2, 1),
        ({"run_timeout": 1_000, "run_cpu_time": 1_000}, 1_000, 30_000, 256, 1_024),
    ],
)
def test_limits_of_piston(
    fields: dict[str, Any], timeout_ms: float, compile_timeout_ms: float, memory_mb: int, compile_memory_mb: int
) -> None:
    """The defaults are the limits of this server. Memory is in bytes, and rounded down."""
    request = {"language": "c++", "version": "*", "files": [{"content": "x"}], **fields}
    run = piston.SERVER.read_run(request, SERVER)
    limits = (run.timeout_ms, run.compile_timeout_ms, run.memory_limit_mb, run.compile_memory_mb)
    assert limits == (timeout_ms, compile_timeout_ms, memory_mb, compile_memory_mb)


@pytest.mark.parametrize(
    ("fields", "message", "logged"),
    [
        (
            {"run_timeout": 40_001},
            f"run_timeout cannot exceed the configured limit of 40000{TIMEOUT_HINT}",
            f"run_timeout is at most 40000{TIMEOUT_HINT}",
        ),
        (
            {"compile_timeout": 30_001},
            "compile_timeout cannot exceed the configured limit of 30000",
            "compile_timeout is at most 30000",
        ),
        (
            {"run_memory_limit": 2**30 + 1},
            f"run_memory_limit cannot exceed the configured limit of 1073741824{MEMORY_HINT}",
            f"run_memory_limit is at most 1073741824{MEMORY_HINT}",
        ),
        (
            {"compile_memory_limit": 2**30 + 1},
            "compile_memory_limit cannot exceed the configured limit of 1073741824",
            "compile_memory_limit is at most 1073741824",
        ),
        (
            {"run_cpu_time": 1},
            "run_cpu_time cannot be less than run_timeout (20000): this server limits only wall time",
            "",
        ),
        ({"version": ""}, "version is required as a string", ""),
        ({"run_timeout": -1}, "run_timeout must be non-negative", ""),
    ],
)
def test_refusals_of_piston(fields: dict[str, Any], message: str, logged: str) -> None:
    """A limit that can be raised names the flag, to the client and in the log."""
    with pytest.raises(RefusedError) as refused:
        piston.SERVER.read_run({"language": "c++", "version": "*", "files": [{"content": "x"}], **fields}, SERVER)
    assert refused.value.body == {"message": message}
    assert refused.value.logged == (logged and f"asked for more than the maximum: {logged}")


def test_a_request_of_piston_is_read() -> None:
    """The program is the first file that is text. Its other files are decoded, and stdin ends in a newline."""
    run = piston.SERVER.read_run(
        {
            "language": "py",
            "version": "3.x",
            "files": [
                {"name": "a", "content": "AQI=", "encoding": "base64"},
                {"name": "b", "content": "0102", "encoding": "hex"},
                {"name": "./c", "content": "c", "encoding": ""},
                {"content": "d"},
            ],
            "stdin": "line",
            "args": ["x", "y"],
        },
        SERVER,
    )
    assert (run.language, run.code, run.compile_timeout_ms) == (Language.PYTHON, "c", None)
    assert run.input.files == {"a": b"\1\2", "b": b"\1\2", "c": b"c", "file3.code": b"d"}
    assert (run.input.stdin, run.input.argv, run.patience_s) == (b"line\n", ("x", "y"), 30)
