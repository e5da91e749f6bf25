"""`faasrt serve` answers the clients of SandboxFusion and Piston as these services do."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from benchmarks.rewards import load_verl, reward
from faasrt import Language, RuntimeManager, SandboxConfig
from faasrt.local import LocalFaaS
from faasrt.local.sandbox_limits import largest_sandbox
from faasrt.protocol import piston, sandboxfusion
from support.helpers import FOUND_IN_TMP, Clock, fast_forward, skip_without
from support.levels import NATIVE, NATIVE_PYTHON
from support.served import PATIENCE_S, Caller, call, connected, exchange, request, served, until
from support.tables import block
from unit.test_recorded_services import PISTON, SANDBOXFUSION, read, rows

FUSION_PATH, PISTON_PATH = "/sandboxfusion/run_code", "/piston/api/v2/execute"
FUSION_LIMITS = SandboxConfig(timeout_limit_s=10, memory_limit_mb=512, max_output_bytes=250_000)
PISTON_LIMITS = SandboxConfig(timeout_limit_s=3, memory_limit_mb=512, max_output_bytes=1_024)
ANY = object()
# Recorded rows whose answer is another one here, with the parts that differ. Lost output is not imitated, and a request
# that cannot be fulfilled is refused.
FUSION_DEVIATIONS: dict[str, dict[str, Any]] = {
    "python memory limit too small to start": {"status": 422},
    "python invalid utf-8 output": {"run_result.stdout": "ok \ufffd\ufffd\n"},
    "python 400 KB output": {"message": "stdout exceeded the output limit of this server", "run_result.stdout": ANY},
    "python 2 MB output": {"message": "stdout exceeded the output limit of this server", "run_result.stdout": ANY},
    "python 2 MB stderr": {"message": "stderr exceeded the output limit of this server", "run_result.stderr": ANY},
    "python network": {"run_result.stdout": "no [Errno 13] Permission denied\n"},
    "python reads host file": {
        "status": "Failed",
        "run_result.return_code": 1,
        "run_result.stdout": "",
        "run_result.stderr": "FileNotFoundError: [Errno 2] No such file or directory: '/etc/hostname'",
    },
    "typescript syntax error": {"run_result.stderr": "SyntaxError: Expression expected"},
    "cpp compile timeout": {
        "compile_result.stderr": "the compiler was stopped: timeout after 200 ms (limit of the server)\n"
    },
    # A toolchain that is missing is never the program's failure.
    "csharp, whose toolchain is missing": {"status": "SandboxError", "message": ANY, "run_result": None},
    "pytest": {"status": "SandboxError", "message": ANY, "run_result": None},
    "sql": {"message": ANY},
    "lone surrogate in code": {"status": 422},
    "files not base64": {"status": 422},
    "file path escapes": {"status": 422},
    "bad json": {"detail": ANY},
    "timeout as text": {"detail": ANY},
    "no code": {"detail": ANY},
    "sandbox error: memory limit beyond what the kernel takes": {"status": 422},
    "sandbox error: file name with NUL": {"status": 422},
    "request of 20 MB": {"status": 413},
    # Native programs end as CPython does if stdout is a pipe and is buffered.
    "return_code of python that prints to a closed stdout": {"run_result.return_code": 120, "run_result.stderr": ANY},
    # The recorded service lacks jupyter_client.
    "run_jupyter": {"status": "Success", "driver.return_code": 0, "driver.stderr": "", "cells": ANY},
}
TOO_LONG = {"run.stdout": ANY, "run.stderr": ANY, "run.output": ANY}
PISTON_DEVIATIONS: dict[str, dict[str, Any]] = {
    "python cpu timeout": {"status": 400},
    "python os._exit 7": {"run.stdout": "lost?\n", "run.output": "lost?\n"},
    "python memory limit too small to start": {"status": 400},
    "python timeout above the limit": {
        "message": "run_timeout cannot exceed the configured limit of 3000; --max-timeout-s of faasrt serve raises it"
    },
    "python unicode split over chunks": {"run.stdout": "你好", "run.output": "你好"},
    "python 1025 bytes of output": TOO_LONG,
    "python 2 MB output": TOO_LONG,
    "python 2 KB stderr then exit 0": TOO_LONG,
    "python two writes, the second too much": TOO_LONG,
    "python network": {
        "run.stdout": "no [Errno 13] Permission denied\n",
        "run.output": "no [Errno 13] Permission denied\n",
    },
    "c++ compile error": dict.fromkeys(
        ("compile.stderr", "compile.output", "run.stderr", "run.output"),
        ANY,  # the command of the service prints another line
    ),
    "c++ compile timeout": dict.fromkeys(
        ("compile.stderr", "compile.output", "run.stderr", "run.output"),
        "the compiler was stopped: timeout after 200 ms (limit of the server)\n",
    ),
    "file path escapes": {"status": 400},
    "bad json": {"message": ANY, "stack": None},
    "request over 100 kB": {"status": 200},
    "runtimes": {"": ANY},
    "root": {"status": 404},
}
# As WebAssembly, Python has no signals, no ctypes, no sockets, and other numbers of errors.
_NO_KILL = "AttributeError: module 'os' has no attribute 'kill'"
_NO_CTYPES = "OSError: ctypes is unavailable on wasm32-wasi"
_NO_SOCKETS = "AttributeError: module '_socket' has no attribute 'getaddrinfo'"
WASM_DEVIATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sandboxfusion": {
        "python SIGKILL itself": {"run_result.return_code": 1, "run_result.stderr": _NO_KILL},
        "python SIGSEGV": {"run_result.return_code": 1, "run_result.stderr": _NO_CTYPES},
        "python network": {
            "status": "Failed",
            "run_result.return_code": 1,
            "run_result.stdout": "",
            "run_result.stderr": _NO_SOCKETS,
        },
        "python reads host file": {
            **FUSION_DEVIATIONS["python reads host file"],
            "run_result.stderr": "FileNotFoundError: [Errno 44] No such file or directory: '/etc/hostname'",
        },
        "return_code of python that prints to a closed stdout": {"run_result.return_code": 1, "run_result.stderr": ANY},
    },
    "piston": {
        name: {
            "run.code": 1,
            "run.message": "Exited with error status 1",
            "run.status": "RE",
            "run.stdout": ANY,
            "run.stderr": error,
            "run.output": error,
        }
        for name, error in {
            "python SIGKILL itself": _NO_KILL,
            "python SIGSEGV": _NO_CTYPES,
            "python network": _NO_SOCKETS,
        }.items()
    },
}
# Of the rows of Python, those that take a second or more.
SLOW = ("timeout", "2 MB", "two writes", "threads", "fork bomb", "default", "child outlives", "20 MB")


def replayable(row: dict[str, Any]) -> bool:
    return row["path"] != "/submit" and "at once" not in row["name"]


def body_of(row: dict[str, Any]) -> bytes | None:
    """Return the body of a recorded request. Long texts were recorded as their length."""
    sent = row["request"]
    if sent is None or isinstance(sent, str):
        return None if sent is None else sent.encode()
    if isinstance(sent.get("code"), dict):
        sent["code"] = f"x = '{'a' * 20_000_000}'\nprint(len(x))"
    for file in sent["files"] if isinstance(sent.get("files"), list) else ():
        if isinstance(file["content"], dict):
            file["content"] = f"x = '{'a' * 150_000}'"
    return json.dumps(sent).encode()


def comparable(name: str, value: Any) -> Any:
    """Return a part of an answer without what depends on the machine: paths, frames of tracebacks."""
    if name == "aliases" or not isinstance(value, str):
        return value
    if len(value) > 1_000:
        return {"length": len(value), "head": value[:40], "tail": value[-40:]}
    text = re.sub(r"(?:/tmp/tmp\w+/tmp\w+|/box/submission/file0\.code)(?=\.|\")", "main", value)
    text = re.sub(r"(?m)^\S+: line \d+: +\d+ (.{24}).*$", r"\1", text)  # what bash says about a signal
    text = text.translate(str.maketrans("‘’", "''"))
    errors = [line for line in text.split("\n") if re.match(r"\w*Error\b", line)]
    if errors:
        return errors[0]
    return "\n".join(sorted(text.split("\n"))) if name == "output" else text


def parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parts of an answer by path, without times and versions."""
    if isinstance(value, dict) and value.keys() != {"length", "head", "tail"}:
        for name, item in value.items():
            if name not in ("execution_time", "wall_time", "cpu_time", "version", "url"):
                yield from parts(item, f"{path}.{name}" if path else name)
    else:
        yield path, comparable(path.rpartition(".")[2], value)


def differences(row: dict[str, Any], status: int, answer: Any, expected: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of an answer that are neither as recorded nor as expected."""
    if status != row["status"] or isinstance(expected.get("status"), int):
        return {} if status == expected.get("status") and status < 500 else {"status": (status, answer)}
    found, recorded = dict(parts(answer)), dict(parts(row["response"]))
    # `run_result` is None in one answer, and has parts in the other one.
    gone = [path for path, value in expected.items() if value is None]
    recorded = {path: value for path, value in recorded.items() if not path.startswith(tuple(f"{at}." for at in gone))}
    known = {path: comparable(path.rpartition(".")[2], value) for path, value in expected.items()}
    wanted = {path: value for path, value in (recorded | known).items() if value is not ANY}
    return {
        path: (found.get(path), value)
        for path, value in wanted.items()
        if found.get(path) != value and not (value is None and path not in found)
    }


SERVICES = {
    "sandboxfusion": ("/sandboxfusion", FUSION_LIMITS, FUSION_DEVIATIONS),
    "piston": ("/piston", PISTON_LIMITS, PISTON_DEVIATIONS),
}


@pytest.mark.parametrize(
    "languages", [pytest.param(("python",), id="python"), pytest.param(None, id="all", marks=pytest.mark.tables)]
)
@pytest.mark.parametrize("service", SERVICES)
async def test_recorded_requests(service: str, languages: tuple[str, ...] | None) -> None:
    """Recorded requests have the recorded answers, but for times and documented deviations. Read by faasrt's client,
    they have the recorded outcomes.
    """
    prefix, limits, deviations = SERVICES[service]
    recorded = {name: row for name, row in rows(service).items() if replayable(row)}
    if languages is not None:
        others = ("node", "typescript", "cpp", "c++", "bash")
        recorded = {name: row for name, row in recorded.items() if not name.startswith(others)}
        recorded = {name: row for name, row in recorded.items() if not any(word in name for word in SLOW)}
    wrong: dict[str, Any] = {}
    async with LocalFaaS(languages, workers=3, sandbox=limits) as faas, aiohttp.ClientSession() as http:
        for language in faas.languages:
            await faas.wait_ready(language)
        if python_of(faas)["engine"] == "wasm":
            deviations = deviations | WASM_DEVIATIONS[service]
        elif service == "sandboxfusion" and python_of(faas)["level"] in ("users", "filters"):
            # There a program has no root folder of its own, and Landlock refuses files of the machine.
            refused = "PermissionError: [Errno 13] Permission denied: '/etc/hostname'"
            name = "python reads host file"
            deviations = {**deviations, name: {**deviations[name], "run_result.stderr": refused}}

        async def replay(name: str, row: dict[str, Any]) -> None:
            data = body_of(row)
            method = "GET" if data is None else "POST"
            headers = {} if data is None else {"Content-Type": "application/json"}
            stream = None if data is None else io.BytesIO(data)
            async with (
                slots,
                http.request(method, faas.url + prefix + row["path"], data=stream, headers=headers) as got,
            ):
                answer = json.loads(await got.read())
            if found := differences(row, got.status, answer, deviations.get(name, {})):
                wrong[name] = found
            elif name in outcomes and name not in deviations and answer is not None:
                outcome = read(protocol, row | {"status": got.status, "response": answer})
                if outcome != outcomes[name]:
                    wrong[name] = (outcome, outcomes[name])

        protocol = {"sandboxfusion": sandboxfusion.PROTOCOL, "piston": piston.PROTOCOL}[service]
        outcomes = {"sandboxfusion": SANDBOXFUSION, "piston": PISTON}[service]
        slots = asyncio.Semaphore(3)
        async with asyncio.TaskGroup() as group:
            for name, row in recorded.items():
                group.create_task(replay(name, row))
    assert len(recorded) > 20
    assert wrong == {}


async def post(
    url: str, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], dict[str, str]]:
    async with aiohttp.ClientSession() as http, http.post(url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.json(), {name.lower(): value for name, value in answer.headers.items()}


def fusion(code: str = "print(1)", **fields: Any) -> dict[str, Any]:
    return {"language": "python", "code": code, **fields}


def execution(code: str = "print(1)", **fields: Any) -> dict[str, Any]:
    return {"language": "python", "version": "*", "files": [{"content": code}], **fields}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server() -> AsyncIterator[LocalFaaS]:
    """Yield a server for Python, with a time limit of 20 s and a memory limit of 256 MiB."""
    limits = SandboxConfig(timeout_limit_s=20, memory_limit_mb=256)
    async with LocalFaaS(["python"], workers=2, sandbox=limits) as faas:
        await faas.wait_ready("python")
        yield faas


in_session = pytest.mark.asyncio(loop_scope="session")


def python_of(faas: LocalFaaS) -> dict[str, Any]:
    """Return what the server says about its Python."""
    state: dict[str, Any] = faas.health()["languages"]["python"]
    return state


def version_of(faas: LocalFaaS) -> str:
    return str(python_of(faas)["runtime"]).split()[1]


def least_memory(faas: LocalFaaS) -> str:
    engine = faas.engine("python")
    assert engine is not None
    return str(engine.min_memory_mb)


def check_detail(body: dict[str, Any]) -> str:
    """Return the message of a refusal as FastAPI sends it."""
    (detail,) = body["detail"]
    assert detail["loc"][0] == "body"
    assert detail["type"] in detail["url"]
    return f"{'.'.join(detail['loc'])}: {detail['msg']}"


REFUSED_BY_FUSION = {
    "memory above the limit": (
        {"memory_limit_MB": 257},
        "body.memory_limit_MB: Input should be less than or equal to 256",
    ),
    "memory below the least": ({"memory_limit_MB": 1}, "must be at least LEAST"),
    "time above the limit": ({"run_timeout": 20.5}, "body.run_timeout: Input should be less than or equal to 20"),
    "huge time": ({"run_timeout": 10**400}, "body.run_timeout: Input should be less than or equal to 20"),
    "time of a wrong type": ({"run_timeout": [1]}, "body.run_timeout: Input should be a valid number"),
    "time as a bool": ({"run_timeout": True}, "body.run_timeout: Input should be a valid number"),
    "no time": ({"run_timeout": None}, "body.run_timeout: Input should be a valid number"),
    "compile time as text": ({"compile_timeout": "soon"}, "body.compile_timeout: Input should be a valid number"),
    "memory as text": ({"memory_limit_MB": "64"}, "body.memory_limit_MB: Input should be a valid integer"),
    "unknown field": ({"run_timout": 1}, "body.run_timout: Extra inputs are not permitted"),
    "code of a wrong type": ({"code": 5}, "body.code: Input should be a valid string"),
    "stdin of a wrong type": ({"stdin": ["a"]}, "body.stdin: Input should be a valid string"),
    "language of a wrong type": ({"language": ["python"]}, "body.language: Input should be 'python', 'cpp'"),
    "files of a wrong type": ({"files": ["a"]}, "body.files: Input should be a valid dictionary"),
    "content of a wrong type": ({"files": {"a": 5}}, "body.files: Input should be a valid string"),
    "absolute path": ({"files": {"/etc/a": "eA=="}}, "'/etc/a' is absolute"),
    "file above the folder": ({"files": {"a/../../b": "eA=="}}, "'../b' has a part"),
    "the program's own file": ({"files": {"./main.py": "eA=="}}, "main.py, which is the program itself"),
    "file that would be lost": (
        {"files": {"a": "eA==", "./a": "eA=="}},
        "body.files: Value error, two names are those of the same file, of which one would be lost: a",
    ),
    "memory that would be rounded": (
        {"memory_limit_MB": 200.5},
        "body.memory_limit_MB: Input should be a valid integer, got a number with a fractional part",
    ),
    "fetched files of a wrong type": ({"fetch_files": "a"}, "body.fetch_files: Input should be a valid list"),
    "fetched file elsewhere": ({"fetch_files": ["/etc/passwd"]}, "'/etc/passwd' is absolute"),
    "fetched file above": ({"fetch_files": ["../a"]}, "'../a' has a part"),
}


@in_session
@pytest.mark.parametrize("name", REFUSED_BY_FUSION)
async def test_sandboxfusion_refuses_what_it_cannot_do(server: LocalFaaS, name: str) -> None:
    """A limit above the server's, an unknown field, or a wrong value is a 422 in the format of the service."""
    fields, message = REFUSED_BY_FUSION[name]
    status, body, _ = await post(server.url, FUSION_PATH, fusion(**fields))
    assert status == 422
    assert message.replace("LEAST", least_memory(server)) in check_detail(body)


REFUSED_BY_PISTON = {
    "memory above the limit": (
        {"run_memory_limit": 2**28 + 1},
        "run_memory_limit cannot exceed the configured limit of 268435456",
    ),
    "memory below the least": ({"run_memory_limit": 2**20}, "must be at least LEAST"),
    "negative memory": ({"run_memory_limit": -2}, "run_memory_limit must be non-negative"),
    "negative time": ({"run_timeout": -1}, "run_timeout must be non-negative"),
    "time above the limit": ({"run_timeout": 20_001}, "run_timeout cannot exceed the configured limit of 20000"),
    "huge time": ({"run_timeout": 10**400}, "run_timeout cannot exceed the configured limit of 20000"),
    "CPU time": ({"run_cpu_time": 500}, "run_cpu_time cannot be less than run_timeout (20000)"),
    "compile time as text": ({"compile_timeout": "1"}, "If specified, compile_timeout must be a number"),
    "compile memory as a list": ({"compile_memory_limit": [1]}, "If specified, compile_memory_limit must be a number"),
    "unknown field": ({"run_timout": 1}, "run_timout is unknown"),
    "language of a wrong type": ({"language": 5}, "language is required as a string"),
    "stdin of a wrong type": ({"stdin": 5}, "If specified, stdin must be a string"),
    "arguments of a wrong type": ({"args": "a b"}, "argv must be a sequence of strings"),
    "argument of a wrong type": ({"args": [1]}, "argv must be a sequence of strings"),
    "files of a wrong type": ({"files": {"a": "x"}}, "files is required as an array"),
    "file of a wrong type": ({"files": ["x"]}, "files[0].content is required as a string"),
    "only a binary file": ({"files": [{"content": "eA==", "encoding": "base64"}]}, "at least one utf8 encoded file"),
    "unknown encoding": ({"files": [{"content": "x", "encoding": "utf16"}]}, "files[0].encoding must be one of"),
    "not base64": ({"files": [{"content": "1"}, {"name": "a", "content": "!", "encoding": "base64"}]}, "not base64"),
    "not hexadecimal": ({"files": [{"content": "1"}, {"name": "a", "content": "x", "encoding": "hex"}]}, "not hex"),
    "file above the folder": ({"files": [{"content": "1"}, {"name": "../a", "content": "x"}]}, "'../a' has a part"),
    "name of a wrong type": ({"files": [{"content": "1", "name": 5}]}, "files[0].name must be a string"),
    "unknown field of a file": ({"files": [{"content": "1", "mode": "755"}]}, "files[0].mode is unknown"),
    "two files of the same name": (
        {"files": [{"content": "1"}, {"name": "a/b", "content": "1"}, {"name": "a//./b", "content": "2"}]},
        "files[2].name is that of an earlier file, which would be lost: a/b",
    ),
    "two programs of the same name": (
        {"files": [{"name": "main.py", "content": "1"}, {"name": "main.py", "content": "2"}]},
        "files[1].name is that of an earlier file, which would be lost: main.py",
    ),
    "default name of another file": (
        {"files": [{"content": "1"}, {"name": "file0.code", "content": "2"}]},
        "files[1].name is that of an earlier file",
    ),
    "program in a folder": (
        {"files": [{"name": "a/b.py", "content": "1"}, {"name": "c", "content": "2"}]},
        "the program must not be in a folder beside other files, got a/b.py",
    ),
    "unknown version": ({"version": "2.x"}, "python-2.x runtime is unknown"),
    "no version": ({"version": "newest"}, "python-newest runtime is unknown"),
    "lone surrogate in the program": ({"files": [{"content": "'\ud800'"}]}, "lone surrogates"),
    "lone surrogate": ({"stdin": "\ud800"}, "lone surrogates"),
}


@in_session
@pytest.mark.parametrize("name", REFUSED_BY_PISTON)
async def test_piston_refuses_what_it_cannot_do(server: LocalFaaS, name: str) -> None:
    """A limit above the server's, an unknown field, or a wrong value is a 400 in the format of the service."""
    fields, message = REFUSED_BY_PISTON[name]
    status, body, _ = await post(server.url, PISTON_PATH, execution(**fields))
    assert status == 400
    assert body.keys() == {"message"}
    assert message.replace("LEAST", least_memory(server)) in body["message"]


@in_session
async def test_the_example_of_piston_runs(server: LocalFaaS) -> None:
    """Many clients send the limits in the example of Piston's README, where -1 is not a limit of the request."""
    limits = {"compile_timeout": 10_000, "run_timeout": 3_000, "compile_cpu_time": 10_000, "run_cpu_time": 3_000}
    limits |= {"compile_memory_limit": -1, "run_memory_limit": -1}
    status, body, _ = await post(server.url, PISTON_PATH, execution(**limits))
    assert (status, body.get("run", body).get("code")) == (200, 0)


BROKEN = {
    "no JSON": b"{",
    "no object": b"[1]",
    "no UTF-8": b'{"code": "\xff"}',
    "nothing": b"",
    "nested too deeply": b'{"code":' + b"[" * 100_000,
    "NaN": b'{"run_timeout": NaN}',
    "duplicate": b'{"code": "1", "code": "2"}',
    "too many values": b'{"files": [' + b"1," * 100_000 + b"1]}",
}


@in_session
@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(("path", "status", "key"), [(FUSION_PATH, 422, "detail"), (PISTON_PATH, 400, "message")])
async def test_a_broken_body_is_refused(server: LocalFaaS, name: str, path: str, status: int, key: str) -> None:
    """A body that is not a valid JSON object is refused with the status and the fields of the service."""
    answer = await exchange(server.url, request(BROKEN[name], target=path))
    assert answer.status == status
    assert answer.json().keys() == {key}
    assert "the body" in str(answer.json()[key])


@in_session
@pytest.mark.parametrize(("path", "key"), [(FUSION_PATH, "detail"), (PISTON_PATH, "message")])
async def test_the_rules_of_access_are_those_of_the_server(server: LocalFaaS, path: str, key: str) -> None:
    """Other hosts, web pages, other types, encodings, methods and paths are refused in the format of the service."""
    body = json.dumps(fusion()).encode()
    for changed, status, text in (
        ({"Host": "evil.example"}, 403, "Host"),
        ({"Origin": "http://evil.example"}, 403, "Origin"),
        ({"Content-Type": "text/plain"}, 415, "application/json"),
        ({"Content-Encoding": "gzip"}, 415, "compressed"),
        ({"Content-Length": str(2**30)}, 413, "8388608"),
    ):
        answer = await exchange(server.url, request(body, target=path, headers=changed))
        assert (answer.status, answer.json().keys()) == (status, {key})
        assert text in answer.json()[key]
    answer = await exchange(server.url, request(body, target=f"{path}/more"))
    assert (answer.status, answer.json()) == (404, {key: "Not Found"})
    answer = await exchange(server.url, request(body, target=path, method="PUT"))
    assert (answer.status, answer.json(), answer.headers["allow"]) == (405, {key: "use POST"}, "POST")


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


async def test_a_token_can_stand_in_the_url() -> None:
    """With a token, requests without it are refused. Clients that cannot send a header put it into the URL."""
    async with LocalFaaS(["python"], workers=1, token="s3cret/+") as faas:
        await faas.wait_ready("python")
        for credentials, status in (
            (basic("anyone:s3cret/+"), 200),
            (basic("s3cret/+:"), 401),
            (basic("anyone:s3cret"), 401),
            ("Basic !", 401),
            ("Basic", 401),
            ("Bearer s3cret/+", 200),
        ):
            headers = {"Authorization": credentials}
            assert (await post(faas.url, FUSION_PATH, fusion(), headers))[0] == status
        for path, key in ((FUSION_PATH, "detail"), (PISTON_PATH, "message")):
            refused, body, headers = await post(faas.url, path, fusion())
            assert (refused, body.keys(), headers["www-authenticate"]) == (401, {key}, "Bearer")
        with_token = faas.url.replace("//", "//anyone:s3cret%2F%2B@")
        request = sandbox_fusion_request(fusion("print(input())", stdin="5\n"))
        answer = await asyncio.to_thread(run_with_sdk, f"{with_token}/sandboxfusion", request)
        assert answer.run_result.stdout == "5\n"
        assert (await post(with_token, PISTON_PATH, execution()))[0] == 200  # aiohttp does the same


@in_session
async def test_files_of_sandboxfusion(server: LocalFaaS) -> None:
    """Files are written before the program runs. Requested files are returned under the names in the request, if they
    exist; names may be absolute, and may have characters of patterns.
    """
    code = block("""
        import os
        print(open('data/in.txt').read(), sorted(os.listdir()))
        os.mkdir('out')
        for name in ('out/[a]*.bin', 'out/a.bin', '.hidden'):
            open(name, 'wb').write(b'\\xff' + name.encode())
    """)
    content = base64.encodebytes(b"text" * 30).decode()  # with line ends
    files = {"./data/in.txt": content, "none.txt": None, "data/IGNORE_THIS_FILE.txt": "eA=="}
    fetched = ["out/[a]*.bin", "/tmp/.hidden", "./out/../out/a.bin", "missing", ".", "out"]
    _, body, _ = await post(server.url, FUSION_PATH, fusion(code, files=files, fetch_files=fetched))
    assert body["run_result"]["stdout"] == f"{'text' * 30} {sorted(['data', 'main.py', *FOUND_IN_TMP])}\n"
    assert {name: base64.b64decode(content) for name, content in body["files"].items()} == {
        "out/[a]*.bin": b"\xffout/[a]*.bin",
        "/tmp/.hidden": b"\xff.hidden",
        "./out/../out/a.bin": b"\xffout/a.bin",
    }


@in_session
async def test_files_of_piston_may_import_the_program(server: LocalFaaS) -> None:
    """The program has its name in the request, as in the service, if there are other files."""
    files = [
        {"name": "solution.py", "content": "import helper\nVALUE = 5\nif __name__ == '__main__': print(helper.read())"},
        {"name": "helper.py", "content": "def read():\n    import solution\n    return solution.VALUE"},
        {"name": "none", "content": "", "encoding": None},
    ]
    _, body, _ = await post(server.url, PISTON_PATH, execution(files=files))
    assert (body["run"]["stdout"], body["run"]["stderr"]) == ("5\n", "")


@in_session
async def test_requested_files_that_are_too_large_are_an_error(server: LocalFaaS) -> None:
    """The answer is a SandboxError that says so, and not one in which files are missing."""
    code = "open('a', 'wb').write(bytes(2**20 + 1)); print('done')"
    status, body, _ = await post(server.url, FUSION_PATH, fusion(code, fetch_files=["a"]))
    assert (status, body["status"], body["run_result"]["stdout"]) == (200, "SandboxError", "done\n")
    assert "larger than the output limit" in body["message"]


@in_session
@NATIVE_PYTHON
async def test_a_program_that_uses_too_much_memory_is_killed(server: LocalFaaS) -> None:
    """Without a MemoryError, which programs on `wasm` get."""
    killed = "x = b'x' * (150 * 2**20)\nimport time\ntime.sleep(10)"
    _, body, _ = await post(server.url, FUSION_PATH, fusion(killed, memory_limit_MB=64))
    assert (body["status"], body["run_result"]["return_code"]) == ("Failed", -9)
    _, body, _ = await post(server.url, PISTON_PATH, execution(killed, run_memory_limit=2**26))
    assert (body["run"]["code"], body["run"]["status"], body["run"]["memory"]) == (137, "RE", 2**26)
    assert ": line 1:     3 Killed" in body["run"]["stderr"]


@in_session
async def test_memory_limits(server: LocalFaaS) -> None:
    """A program that asks for too much memory at once gets a MemoryError."""
    raised = "x = bytearray(2**31 - 1)"  # the most that can be asked for on 32 bits
    _, body, _ = await post(server.url, FUSION_PATH, fusion(raised, memory_limit_MB=64))
    assert (body["status"], body["run_result"]["return_code"]) == ("Failed", 1)
    assert body["run_result"]["stderr"].endswith("MemoryError\n")
    _, body, _ = await post(server.url, PISTON_PATH, execution(raised, run_memory_limit=2**26))
    assert (body["run"]["code"], body["run"]["status"], body["run"]["memory"]) == (1, "RE", None)


@in_session
async def test_piston_lists_its_runtimes(server: LocalFaaS) -> None:
    """`/runtimes` and `/packages` list the languages with their versions, and `version` is a range of them.

    Like SandboxFusion's ping, `/runtimes` says that time limits do not count the wait for a CPU.
    """
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{server.url}/piston/api/v2/runtimes") as answer:
            (runtime,) = await answer.json()
            assert answer.headers["x-faasrt-counts-running-time"] == "1"
        async with http.get(f"{server.url}/sandboxfusion/v1/ping") as answer:
            assert answer.headers["x-faasrt-counts-running-time"] == "1"
        async with http.get(f"{server.url}/piston/api/v2/packages") as answer:
            packages = await answer.json()
    version = version_of(server)
    assert runtime == {"language": "python", "version": version, "aliases": ["py", "py3", "python3"]}
    assert packages == [{"language": "python", "language_version": version, "installed": True}]
    major, minor, _ = version.split(".")
    for versions in (
        version,
        f"{major}.x",
        f"^{major}.{minor}",
        f">={major}.{minor} <{int(major) + 1}",
        f"2 || {major}",
    ):
        status, body, _ = await post(server.url, PISTON_PATH, execution(language="py3", version=versions))
        assert (status, body["version"]) == (200, version)


NOTEBOOK_PATH = "/sandboxfusion/run_jupyter"
SHOWS = """
class Table:
    def _repr_html_(self): return "<b>1</b>"
    def _repr_png_(self): return b"png"
    def __repr__(self): return "1"
Table()
"""


@in_session
async def test_a_notebook(server: LocalFaaS) -> None:
    """Its cells run in order and share their names and files. An error ends only its own cell."""
    cells = ["a = open('in.txt').read()", "a", "1 / 0", "", "def f(:", SHOWS]
    cells.append("import sys; print(a); print(2, file=sys.stderr); open('out.txt', 'w').write(a); None")
    fields = {"cells": cells, "files": {"in.txt": "aGk="}, "fetch_files": ["/tmp/out.txt", "lost"]}
    status, body, _ = await post(server.url, NOTEBOOK_PATH, fields)
    assert body["driver"].pop("execution_time") > 0
    empty: dict[str, Any] = {"stdout": "", "stderr": "", "display": [], "error": []}
    errors = [cell["error"] for cell in body["cells"]]
    assert (status, body) == (
        200,
        {
            "status": "Success",
            "message": "",
            "driver": {"status": "Finished", "return_code": 0, "stdout": "", "stderr": ""},
            "cells": [
                empty,
                empty | {"display": [{"text/plain": "'hi'"}]},
                empty | {"error": errors[2]},
                empty,
                empty | {"error": errors[4]},
                empty | {"display": [{"text/plain": "1", "text/html": "<b>1</b>", "image/png": "cG5n"}]},
                empty | {"stdout": "hi\n", "stderr": "2\n"},
            ],
            "executor_pod_name": None,
            "files": {"/tmp/out.txt": "aGk="},
        },
    )
    assert [(error["ename"], error["evalue"]) for error in errors[2] + errors[4]] == [
        ("ZeroDivisionError", "division by zero"),
        ("SyntaxError", "invalid syntax"),
    ]
    assert errors[2][0]["traceback"][-1] == "ZeroDivisionError: division by zero"


@in_session
@pytest.mark.parametrize(
    ("fields", "status", "driver", "last"),
    [
        ({"cells": ["while True: pass", "print(1)"], "cell_timeout": 0.3}, "Success", "Finished", "1\n"),
        ({"cells": ["print(1)", "while True: pass", "2"], "total_timeout": 0.5}, "Failed", "TimeLimitExceeded", ""),
        ({"cells": ["print(1)"], "total_timeout": 0}, "Failed", "TimeLimitExceeded", None),
        ({"cells": ["import os; print(1, flush=True); os._exit(3)", "2"]}, "Failed", "Finished", "1\n"),
        ({"cells": ["x = bytearray(2**31 - 1)", "print(1)"]}, "Success", "Finished", "1\n"),
    ],
)
async def test_limits_of_a_notebook(
    server: LocalFaaS, fields: dict[str, Any], status: str, driver: str, last: str | None
) -> None:
    """A cell that reaches its time limit, or the memory limit, is interrupted. The notebook ends with its kernel, or
    with its time. The cells that ran are returned.
    """
    _, body, _ = await post(server.url, NOTEBOOK_PATH, fields)
    assert (body["status"], body["driver"]["status"]) == (status, driver)
    assert (body["cells"][-1]["stdout"] if body["cells"] else None) == last
    names = {error["ename"]: error["traceback"][-1] for cell in body["cells"] for error in cell["error"]}
    assert names.items() <= {"KeyboardInterrupt": "KeyboardInterrupt", "MemoryError": "MemoryError"}.items()
    assert ("kernel has ended" in body["driver"]["stderr"]) == ("os._exit" in fields["cells"][0])
    assert (await call(server.url, "GET", "/metrics"))[1]["sessions"] == 0


@in_session
@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "cells"),
        ({"cells": "1"}, "cells"),
        ({"cells": [1]}, "cells"),
        ({"cells": [], "kernel": "ir"}, "kernel"),
        ({"cells": [], "cell_timeout": 21}, "cell_timeout"),
        ({"cells": [], "total_timeout": 200.5}, "total_timeout"),
        ({"cells": [], "memory_limit_MB": 257}, "memory_limit_MB"),
        ({"cells": [], "run_timeout": 1}, "run_timeout"),
    ],
)
async def test_notebooks_that_are_refused(server: LocalFaaS, fields: dict[str, Any], place: str) -> None:
    status, body, _ = await post(server.url, NOTEBOOK_PATH, fields)
    assert (status, body["detail"][0]["loc"]) == (422, ["body", place])


async def test_a_server_without_sessions_has_no_notebooks() -> None:
    """The answer is a SandboxError."""
    async with LocalFaaS(["js"], workers=1) as faas:
        await faas.wait_ready("js")
        status, body, _ = await post(faas.url, NOTEBOOK_PATH, {"cells": ["1"]})
        assert (status, body["status"], body["cells"]) == (200, "SandboxError", [])
        assert "no sessions of Python" in body["message"]


@in_session
async def test_the_sdk_runs_notebooks(server: LocalFaaS) -> None:
    sdk = import_sdk()
    request = sdk.RunJupyterRequest(cells=["a = 1", "a + 1"])
    answer = await asyncio.to_thread(sdk.run_jupyter, request, f"{server.url}/sandboxfusion", 1)
    assert (answer.status, answer.cells[1].display) == (sdk.RunStatus.Success, [{"text/plain": "2"}])


async def test_a_notebook_leaves_the_sandbox_to_programs_between_its_cells() -> None:
    """With a single sandbox, programs are answered while a notebook runs that would take a minute. A client that
    disconnects ends it, and its session.
    """
    async with LocalFaaS(["python"], workers=1, sandbox=SandboxConfig(timeout_limit_s=10)) as faas:
        await faas.wait_ready("python")
        fields = {"cells": ["import time; time.sleep(0.2)"] * 300, "total_timeout": 100}
        async with connected(faas.url) as connection:
            await connection.send(request(json.dumps(fields).encode(), target=NOTEBOOK_PATH))
            await started(faas.url)
            for path, body in ((FUSION_PATH, fusion()), (PISTON_PATH, execution())):
                assert (await post(faas.url, path, body))[0] == 200
            assert (await call(faas.url, "GET", "/metrics"))[1]["sessions"] == 1
        async with asyncio.timeout(PATIENCE_S):
            while (await call(faas.url, "GET", "/metrics"))[1]["sessions"] != 0:
                await asyncio.sleep(0.01)


async def test_a_notebook_for_which_there_is_no_session_is_refused() -> None:
    """The refusal is that of an overload, after which the client may send the notebook again."""
    async with LocalFaaS(["python"], workers=1, max_sessions=1) as faas:
        await faas.wait_ready("python")
        _, session = await call(faas.url, "POST", "/sessions", language="python")
        status, body, headers = await post(faas.url, NOTEBOOK_PATH, {"cells": ["1"]})
        assert (status, body) == (504, {"detail": "the limit of open sessions is 1"})
        assert (headers["retry-after"], headers["x-faasrt-not-started"]) == ("1", "1")
        await call(faas.url, "DELETE", f"/sessions/{session['id']}")
        assert (await post(faas.url, NOTEBOOK_PATH, {"cells": ["1"]}))[0] == 200


async def started(url: str) -> None:
    await Caller(url).until_pool("python", active=1)


@pytest.mark.parametrize(("path", "body"), [(FUSION_PATH, fusion), (PISTON_PATH, execution)])
async def test_a_disconnect_frees_the_sandbox(path: str, body: Callable[[str], dict[str, Any]]) -> None:
    """A client that disconnects ends its program, and the only sandbox runs the next one."""
    async with LocalFaaS(["python"], workers=1, max_programs=1, sandbox=SandboxConfig(timeout_limit_s=300)) as faas:
        await faas.wait_ready("python")
        async with connected(faas.url) as connection:
            await connection.send(request(json.dumps(body("while True: pass")).encode(), target=path))
            await started(faas.url)
        status, answer, _ = await post(faas.url, path, body("print(1)"))
        assert (status, "1\\n" in json.dumps(answer)) == (200, True)


@pytest.mark.parametrize(
    ("path", "body", "refusal"), [(FUSION_PATH, fusion, 504), (PISTON_PATH, execution, 429)], ids=["fusion", "piston"]
)
async def test_programs_wait_longer_than_those_of_faasrt(
    path: str, body: Callable[[str], dict[str, Any]], refusal: int, clock: Clock
) -> None:
    """While all sandboxes are in use, a program waits for up to 8 s. Then it is refused, and nothing has run."""
    async with LocalFaaS(["python"], workers=1, max_programs=1, sandbox=SandboxConfig(timeout_limit_s=3_000)) as faas:
        await faas.wait_ready("python")
        async with connected(faas.url) as running, connected(faas.url) as waiting:
            await running.send(request(json.dumps(body("import time; time.sleep(600)")).encode(), target=path))
            await started(faas.url)
            await waiting.send(request(json.dumps(body("print(1)")).encode(), target=path))
            await Caller(faas.url).until_pool("python", queued=1)
            clock.advance(7)
            await Caller(faas.url).until_pool("python", queued=1)
            status, _, headers = await fast_forward(clock, post(faas.url, path, body("print(2)")))
            assert status == refusal
            assert (headers["retry-after"], headers["x-faasrt-not-started"]) == ("1", "1")
            assert (await waiting.answer()).status == refusal


@pytest.mark.parametrize(
    ("path", "body"),
    [(FUSION_PATH, fusion), (PISTON_PATH, execution), ("/run_code", fusion)],
    ids=["fusion", "piston", "faasrt"],
)
async def test_programs_wait_for_an_engine_that_starts(
    path: str, body: Callable[..., dict[str, Any]], clock: Clock
) -> None:
    """The first program of a server runs as soon as the engine is ready. A version of Piston's is checked then."""
    clock.stop()
    async with LocalFaaS(["python"], workers=1) as faas:
        assert faas.health()["languages"]["python"]["status"] == "starting"
        calls = [post(faas.url, path, body("print(6 * 7)"))]
        if path == PISTON_PATH:
            calls.append(post(faas.url, path, execution(version="2.x")))
        (status, answer, _), *refused = await asyncio.gather(*calls)
        assert (status, "42\\n" in json.dumps(answer)) == (200, True)
        if path == PISTON_PATH:
            assert answer["version"] == version_of(faas)
            assert refused[0][:2] == (400, {"message": "python-2.x runtime is unknown"})


@pytest.mark.parametrize(
    ("path", "body", "refusal"), [(FUSION_PATH, fusion, 504), (PISTON_PATH, execution, 503)], ids=["fusion", "piston"]
)
async def test_draining_refuses_new_programs(
    path: str, body: Callable[[str], dict[str, Any]], refusal: int, clock: Clock
) -> None:
    """A server that is about to stop finishes programs in flight, and refuses new ones, which have not run."""
    async with LocalFaaS(["python"], workers=1, drain_s=3_000) as faas:
        await faas.wait_ready("python")
        async with connected(faas.url) as running, connected(faas.url) as late:
            await running.send(request(json.dumps(body("import time; time.sleep(60)")).encode(), target=path))
            await started(faas.url)
            draining = asyncio.create_task(faas.drain())
            await until(lambda: faas.listener.draining)
            await late.send(request(json.dumps(body("print(1)")).encode(), target=path))
            answer = await late.answer()
            assert answer.status == refusal
            assert answer.headers["x-faasrt-not-started"] == "1"
            assert "about to stop" in json.dumps(answer.json())
            draining.cancel()


def import_sdk() -> Any:
    skip_without("sandbox_fusion")
    import sandbox_fusion

    return sandbox_fusion


def sandbox_fusion_request(fields: dict[str, Any]) -> Any:
    return import_sdk().RunCodeRequest(**fields)


def run_with_sdk(url: str, request: Any) -> Any:
    return import_sdk().run_code(request, endpoint=url, max_attempts=1, client_timeout=PATIENCE_S)


@in_session
async def test_the_sdk_of_sandboxfusion(server: LocalFaaS) -> None:
    """The package `sandbox-fusion` runs programs, and summarizes their results as with the real service."""
    sdk, url = import_sdk(), f"{server.url}/sandboxfusion"
    names = sdk.SummaryMapping(Success="ok", Failed="failed", RunFailed="run failed", RunTimeout="time")
    for fields, summary in (
        (fusion("print(input())", stdin="5\n"), "ok"),
        (fusion("raise SystemExit(3)"), "run failed"),
        (fusion("while True: pass", run_timeout=0.3), "time"),
    ):
        answer = await asyncio.to_thread(run_with_sdk, url, sandbox_fusion_request(fields))
        assert sdk.summary_run_code_result(answer, names) == summary
    request = sandbox_fusion_request(fusion("open('o', 'w').write('x')", fetch_files=["o"]))
    answer = await sdk.run_code_async(request, endpoint=f"{url}/", max_attempts=1)
    assert (answer.status, answer.files) == ("Success", {"o": "eA=="})
    for fields, message in (
        ({"language": "php"}, "Sandbox responded with error: this server does not run php: it runs python"),
        ({"run_timeout": 60}, "code 422: .*less than or equal to 20"),
    ):
        with pytest.raises(Exception, match=message):
            await asyncio.to_thread(run_with_sdk, url, sandbox_fusion_request(fusion() | fields))


@pytest.fixture(scope="module")
def verl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Yield the module of verl that rewards programs, unchanged."""
    packages = tmp_path_factory.mktemp("verl")
    command = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), "verl")
    subprocess.run(command, check=True)
    return load_verl(packages)


@pytest.mark.clients
async def test_verl_with_many_workers(verl: Any, tmp_path: Path) -> None:
    """No right solution of a batch gets 0 from a server with its defaults, beside endless loops and programs that use
    memory until they are ended.
    """
    counts = {"right": 40, "loop": 4, "hog": 2}
    async with served(tmp_path, "--language", "python", wait_for=["http://"]) as server:
        await server.until_pool("python", status="ready")
        rewards = await asyncio.to_thread(reward, verl, server.url, counts, 128)
    assert rewards["right"] == {"1 (success)": 40}
    assert sum(count for kind in ("loop", "hog") for text, count in rewards[kind].items() if text.startswith("0 ")) == 6


@pytest.mark.clients
async def test_the_reward_of_verl(verl: Any) -> None:
    """The module of verl that rewards programs gives each solution the reward that it deserves."""
    tests = {"inputs": ["1\n", "2\n", "3\n"], "outputs": ["2\n", "4\n", "6\n"]}
    functions = {"inputs": ["[1, 2]\n3", "[]\n4"], "outputs": ["6", "4"], "fn_name": "add"}
    solutions = {
        "print(int(input()) * 2)": (tests, 1.0, ["success"] * 3),
        "print(2)": (tests, 1 / 3, ["success", "wrong_answer", "wrong_answer"]),
        "import sys; sys.exit(3)": (tests, 0.0, ["runtime_error"] * 3),
        "def f(:": (tests, 0.0, ["runtime_error"] * 3),
        "while True: pass": (tests, 0.0, ["timeout"] * 3),
        "def add(many, one): return sum(many) + one": (functions, 1.0, ["success"] * 2),
    }
    async with LocalFaaS(["python"], workers=2, max_sandbox=largest_sandbox(8_192)) as faas:
        await faas.wait_ready("python")
        for code, (cases, score, statuses) in solutions.items():
            timeout = 1 if "while" in code else 10
            found = await asyncio.to_thread(
                verl.compute_score,
                f"{faas.url}{FUSION_PATH}",
                None,
                1_024,
                f"```python\n{code}\n```",
                cases,
                timeout=timeout,
            )
            assert (found[0], [case["status"] for case in found[1]]) == (score, statuses)
        url, solution = f"{faas.url}{FUSION_PATH}", "```python\nprint(2)\n```"
        score, (case, *_) = await asyncio.to_thread(verl.compute_score, url, None, 2_049, solution, tests)
        assert (score, case["status"]) == (0.0, "api_error")
        assert (
            "422 Client Error: memory_limit_MB: Input should be less than or equal to 2048, which is the limit of this "
            "server; --max-memory-mb of faasrt serve raises it"
        ) in case["api_request_error"]


async def test_limits_above_the_defaults_are_accepted() -> None:
    """A server with its defaults runs the requests that verl and the SDK send by default, with the limits that they
    ask for. Requests without limits get its defaults. A refusal names the flag of the server.
    """
    code = "print(len(bytearray(300 * 2**20)))"
    async with LocalFaaS(["python"], workers=1, max_sandbox=largest_sandbox(8_192)) as faas:
        await faas.wait_ready("python")
        asked = fusion(code, run_timeout=40, memory_limit_MB=1_024)
        assert (await post(faas.url, FUSION_PATH, asked))[1]["status"] == "Success"
        assert (await post(faas.url, FUSION_PATH, fusion(code)))[1]["status"] == "Failed"
        limits = {"run_timeout": 40_000, "run_memory_limit": 2**30}
        assert (await post(faas.url, PISTON_PATH, execution(code, **limits)))[1]["run"]["code"] == 0
        # On `wasm`, it gets a MemoryError instead.
        code_of_default = 137 if python_of(faas)["engine"] == "native" else 1
        assert (await post(faas.url, PISTON_PATH, execution(code)))[1]["run"]["code"] == code_of_default
        for fields, flag in (
            ({"run_timeout": 121}, "--max-timeout-s"),
            ({"memory_limit_MB": 2_049}, "--max-memory-mb"),
        ):
            status, body, _ = await post(faas.url, FUSION_PATH, fusion(code, **fields))
            assert (status, flag in check_detail(body)) == (422, True)
        for fields, flag in (
            ({"run_timeout": 121_000}, "--max-timeout-s"),
            ({"run_memory_limit": 2**40}, "--max-memory-mb"),
        ):
            status, body, _ = await post(faas.url, PISTON_PATH, execution(code, **fields))
            assert (status, flag in body["message"]) == (400, True)


@in_session
async def test_requests_of_verl(server: LocalFaaS) -> None:
    """A request as the reward of verl sends it has the fields that it reads."""
    fields = {
        "compile_timeout": 10,
        "run_timeout": 10,
        "stdin": "3\n",
        "memory_limit_MB": 256,
        "files": {},
        "fetch_files": [],
    }
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    status, body, _ = await post(server.url, FUSION_PATH, fusion("print(int(input()) * 2)", **fields), headers)
    assert (status, body["status"], body["compile_result"]) == (200, "Success", None)
    result = body["run_result"]
    assert result.pop("execution_time") > 0
    assert result == {"status": "Finished", "return_code": 0, "stdout": "6\n", "stderr": ""}


@in_session
async def test_requests_of_open_r1(server: LocalFaaS) -> None:
    """A Piston client as that of open-r1 gets results, and an error for a package that this server does not have."""
    endpoint = f"{server.url}/piston/api/v2/"

    async def send_execute(data: dict[str, Any], language: str) -> tuple[int, Any]:
        url, sent = f"{endpoint.rstrip('/')}/execute", data | {"language": language, "version": "*"}
        async with http.post(url, json=sent, headers={"Content-Type": "application/json"}) as response:
            return response.status, await response.json(content_type=None)

    data = {
        "files": [
            {"name": "main.py", "content": "import helper, sys\nprint(helper.double(int(input())), sys.argv[1:])"},
            {"name": "helper.py", "content": "def double(n): return 2 * n"},
        ],
        "stdin": "4",
        "args": ["a b"],
        "run_timeout": 10_000,
        "compile_timeout": 60_000,
        "run_memory_limit": 2**28,
    }
    async with aiohttp.ClientSession() as http:
        status, body = await send_execute(data, "python")
        assert (status, body["run"]["code"], body["run"]["stdout"]) == (200, 0, "8 ['a b']\n")
        status, body = await send_execute(data, "cms_ioi")
        assert (status, body) == (400, {"message": "cms_ioi-* runtime is unknown"})
        assert isinstance(body["message"], str)


NODE = {
    "module": "x = require.main === module && __filename.endsWith('main.cjs'); console.log(x && this === exports)",
    "standard input": "console.log(require('fs').readFileSync('/dev/stdin', 'utf8').trim() === 'in')",
    "descriptor of the input": "console.log(require('fs').readFileSync(0, 'utf8').trim() === 'in')",
    "arguments": "console.log(process.argv.length === 2)",
    "other file": "console.log(require('./other').one === 1)",
    "captured output": block("""
        const { write } = process.stdout;
        let text = '';
        process.stdout.write = (chunk) => { text += chunk; return true; };
        console.log('captured');
        process.stdout.write = write;
        console.log(text === 'captured\\n');
    """),
    "rejection": block("""
        process.on('uncaughtException', (error) => console.log(error.message === 'late'));
        Promise.reject(new Error('late'));
    """),
    "ES module with bare names": block("""
        import { basename } from 'path';
        import {
            readFileSync,
        } from "fs";
        export const x = "fs" + basename('/a/b') + readFileSync('/dev/stdin').toString().trim();
        console.log(x === 'fsbin');
    """),
    "ES module": "import { basename } from 'node:path';\nconsole.log(basename('/a/b') === 'b');",
    "late": "setTimeout(() => console.log(true), 5)",
}


TYPESCRIPT = {
    "bare names": "import * as fs from 'fs'; const x: string = fs.readFileSync(0, 'utf8'); console.log(x === 'in\\n');",
    "require": "const x: string = require('path').basename(__filename); console.log(x === 'main.cts');",
    "standard input": "import * as fs from 'fs'; console.log(fs.readFileSync('/dev/stdin', 'utf8') === 'in\\n')",
    "no module": "const x: number = await Promise.resolve(1); console.log(x === 1);",
}
ROWS = [*(("nodejs", name) for name in NODE), *(("typescript", name) for name in TYPESCRIPT)]


@NATIVE
@in_session
@pytest.mark.parametrize(("language", "name"), ROWS)
async def test_programs_for_node(local: RuntimeManager, language: str, name: str) -> None:
    """JavaScript and TypeScript run as in Node.js and tsx, also what differs in Deno."""
    assert local.local_faas is not None
    files = {"other.js": base64.b64encode(b"exports.one = 1;").decode()}
    code = NODE[name] if language == "nodejs" else TYPESCRIPT[name]
    fields = {"language": language, "code": code, "stdin": "in\n", "files": files}
    _, body, _ = await post(local.local_faas.url, FUSION_PATH, fields)
    assert body["run_result"] | {"execution_time": 0} == {
        "status": "Finished",
        "execution_time": 0,
        "return_code": 0,
        "stdout": "true\n",
        "stderr": "",
    }


@NATIVE
@in_session
async def test_a_file_cannot_replace_a_program_for_node(local: RuntimeManager) -> None:
    """A file with the name of the program is refused."""
    assert local.local_faas is not None
    status, body, _ = await post(
        local.local_faas.url, FUSION_PATH, fusion("console.log(1)", language="nodejs", files={"main.cjs": "eA=="})
    )
    assert status == 422
    assert "must not contain main.cjs" in check_detail(body)


async def test_without_files_only_programs_for_node_are_missing() -> None:
    """At the level "filters", where programs have no folder, other programs run, and JavaScript says what it needs."""
    async with LocalFaaS(["js", "ts"], workers=1, level="filters") as faas:
        await faas.wait_ready("js")
        typescript = fusion("console.log(1 as number)", language="typescript")
        _, body, _ = await post(faas.url, FUSION_PATH, typescript)
        assert (body["status"], body["run_result"]["stdout"]) == ("Success", "1\n")
        _, body, _ = await post(faas.url, FUSION_PATH, fusion("console.log(1)", language="nodejs"))
        assert body["status"] == "SandboxError"
        assert "does not run nodejs: it needs the level namespaces" in body["message"]
        status, body, _ = await post(faas.url, PISTON_PATH, execution("console.log(1)", language="javascript"))
        assert (status, body) == (400, {"message": "javascript-* runtime is unknown"})
        status, body, _ = await post(faas.url, FUSION_PATH, typescript | {"files": {"a": "eA=="}})
        assert status == 422
        assert "'files' cannot be used" in check_detail(body)


@in_session
async def test_the_time_limit_of_a_compilation(local: RuntimeManager) -> None:
    """A compilation ends at the limit of its request. The same program compiles with a higher limit."""
    assert local.local_faas is not None
    if Language.CPP not in local.local_faas.languages:
        pytest.skip("g++ is not installed")
    url, code = local.local_faas.url, f"#include <string>\nint main() {{}} // {uuid.uuid4()}"
    _, body, _ = await post(url, FUSION_PATH, fusion(code, language="cpp", compile_timeout=0.01))
    assert (body["status"], body["run_result"]) == ("Failed", None)
    assert (body["compile_result"]["status"], body["compile_result"]["return_code"]) == ("TimeLimitExceeded", None)
    _, body, _ = await post(url, PISTON_PATH, execution(code, language="c++", compile_timeout=10))
    assert body["compile"]["status"] == body["run"]["status"] == "TO"
    _, body, _ = await post(url, FUSION_PATH, fusion(code, language="cpp", compile_timeout=30))
    assert (body["status"], body["compile_result"]["return_code"], body["run_result"]["return_code"]) == (
        "Success",
        0,
        0,
    )
    _, body, _ = await post(url, PISTON_PATH, execution("int main() { return x; }", language="c++"))
    assert (body["compile"]["code"], body["compile"]["status"], body["run"]) == (1, "RE", body["compile"])
    status, body, _ = await post(url, PISTON_PATH, execution(code, language="c++", compile_timeout=30_001))
    assert (status, body) == (400, {"message": "compile_timeout cannot exceed the configured limit of 30000"})
