"""The error of a program that was stopped at a limit names the limit, its value, and who set it: client or server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from faasrt import ErrorInfo, ExecutionError, Outcome, RuntimeManager, SandboxConfig, Settings
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaaS, Reply
from support.doubles import JsFaas, PythonFaas
from support.helpers import manager_for
from support.levels import NATIVE
from support.served import exchange, request
from support.tables import first_of

pytestmark = pytest.mark.asyncio(loop_scope="session")

ENDLESS = {"python": "while True: pass", "js": "for (;;);"}
WAITING = {"python": "import time; time.sleep(60)", "js": "await new Promise((r) => setTimeout(r, 60_000))"}
ALLOCATING = {
    "python": """
import gc
gc.disable()
while True:
    x = [0] * 1000
    x.append(x)
""",
    "js": "const x = []; for (;;) x.push(new Array(1000).fill(x.length))",
}
PRINTING = {"python": "while True: print('x' * 99)", "js": "for (;;) console.log('x'.repeat(99))"}
CASES = [
    pytest.param(language, programs, limit, outcome, name, message, id=f"{language}-{limit}")
    for language in ("python", "js")
    for programs, limit, outcome, name, message in [
        (WAITING, "timeout_ms", Outcome.TIMEOUT, "Timeout", "timeout after {} ms ({})"),
        (
            ALLOCATING,
            "memory_limit_mb",
            Outcome.MEMORY_LIMIT,
            "MemoryLimit",
            "more than {} MiB of memory ({})",
        ),
        (
            PRINTING,
            "max_output_bytes",
            Outcome.OUTPUT_LIMIT,
            "OutputLimit",
            "more than {} bytes of output (twice {})",
        ),
    ]
]
# With 48 MiB, the interpreter itself runs out of memory. A limit that both set counts as the client's.
SERVER = {"timeout_ms": 700, "memory_limit_mb": 48, "max_output_bytes": 5_000}
CLIENT = {"timeout_ms": 200, "memory_limit_mb": 48, "max_output_bytes": 1_000}


@contextlib.asynccontextmanager
async def serving(timeout_limit_s: float) -> AsyncIterator[LocalFaaS]:
    """Yield an embedded FaaS with low limits."""
    limits = SandboxConfig(timeout_limit_s=timeout_limit_s, memory_limit_mb=48, max_output_bytes=5_000)
    async with LocalFaaS(["python", "js"], workers=1, sandbox=limits) as server:
        await asyncio.gather(server.wait_ready("python"), server.wait_ready("js"))
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faas() -> AsyncIterator[LocalFaaS]:
    async with serving(SERVER["timeout_ms"] / 1000) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def patient_faas() -> AsyncIterator[LocalFaaS]:
    """Yield an embedded FaaS in which programs reach other limits before the time limit, even on a busy machine."""
    async with serving(60) as server:
        yield server


@pytest.mark.parametrize("owner", ["client", "server"])
@pytest.mark.parametrize(("language", "programs", "limit", "outcome", "name", "message"), CASES)
async def test_embedded_faas_names_the_lower_limit(
    faas: LocalFaaS,
    patient_faas: LocalFaaS,
    language: str,
    programs: dict[str, str],
    limit: str,
    outcome: Outcome,
    name: str,
    message: str,
    owner: str,
) -> None:
    """The answer, the notice and the result of the client name the limit that applied."""
    asked = CLIENT[limit] if owner == "client" else 10 * SERVER[limit]
    value = CLIENT[limit] if owner == "client" else SERVER[limit]
    is_output = outcome is Outcome.OUTPUT_LIMIT
    named = limit if owner == "client" else f"{'the ' if is_output else ''}limit of the server"
    expected = message.format(2 * value if is_output else value, named)
    sent = asked if owner == "client" else 9e9
    body = json.dumps({"language": language, "code": programs[language], "sandbox": {limit: sent}}).encode()
    server = faas if limit == "timeout_ms" else patient_faas
    answer = (await exchange(server.url, request(body))).json()
    assert answer["outcome"] == outcome
    assert answer["error_info"] == {"name": name, "message": expected, "traceback": ""}
    assert answer.get("notice") in (None, f"faasrt: {expected}\n")
    assert ("notice" in answer) is (answer["output"]["stderr"].startswith("faasrt: "))
    if limit == "timeout_ms":
        sandbox = SandboxConfig(timeout_limit_s=asked / 1000)
    else:
        sandbox = SandboxConfig(timeout_limit_s=60, **{limit: asked})  # type: ignore[arg-type]
    async with manager_for(server.url, sandbox=sandbox) as manager:
        result = await manager.run_code(programs[language], language)
    assert (result.outcome, result.error) == (outcome, ErrorInfo(name, expected))
    with pytest.raises(ExecutionError, match=f"ended as {outcome}: {name}: "):
        result.raise_for_outcome()


@NATIVE
async def test_requests_can_raise_the_defaults_to_the_maximum() -> None:
    """A request without limits gets the defaults of the server, one above them what it asks for, and one above the
    maximum the maximum. The health report has both.
    """
    code = "while :; do :; done"
    default = SandboxConfig(timeout_limit_s=0.1, memory_limit_mb=32, max_output_bytes=1_000)
    largest = SandboxConfig(timeout_limit_s=0.3, memory_limit_mb=64, max_output_bytes=2_000)
    async with LocalFaaS(["bash"], workers=1, sandbox=default, max_sandbox=largest) as server:
        await server.wait_ready("bash")
        for asked, named in (
            (None, "100 ms (limit of the server)"),
            (200, "200 ms (timeout_ms)"),
            (9e9, "300 ms (limit"),
        ):
            body = {"language": "bash", "code": code} | ({} if asked is None else {"sandbox": {"timeout_ms": asked}})
            answer = (await exchange(server.url, request(json.dumps(body).encode()))).json()
            assert named in answer["error_info"]["message"]
        for asked, kept in ((None, 1_000), (1_500, 1_500), (10**9, 2_000)):
            body = {"language": "bash", "code": "printf %1999s x", "sandbox": {"max_output_bytes": asked}}
            answer = (await exchange(server.url, request(json.dumps(body).encode()))).json()
            assert (answer["outcome"], len(answer["output"]["stdout"]) <= kept) == ("OK", True)
            assert answer["truncated"] == ([] if kept == 2_000 else ["stdout"])
        health = server.health()
        assert SandboxConfig(**health["limits"]) == default
        assert SandboxConfig(**health["max_limits"]) == largest


async def test_limits_are_the_servers_if_the_client_sends_none(faas: LocalFaaS) -> None:
    """If a request contains no limits, the message says "limit of the server"."""
    answer = (await exchange(faas.url, request(json.dumps({"language": "js", "code": "for (;;);"}).encode()))).json()
    assert answer["error_info"]["message"] == "timeout after 700 ms (limit of the server)"


@pytest.mark.parametrize(
    ("double", "language"),
    [(PythonFaas, "python"), (JsFaas, "js"), pytest.param(JsFaas, "ts", marks=pytest.mark.tables)],
)
@pytest.mark.parametrize("mode", first_of(["auto", "always"]))
async def test_limit_errors_of_reference_servers(
    double: Callable[[], PythonFaas | JsFaas], language: str, mode: str
) -> None:
    """The client adds the error, because these servers only report that a program ended, if at all."""
    family = "python" if language == "python" else "js"
    sandbox = SandboxConfig(timeout_limit_s=60, max_output_bytes=1_000)
    async with double() as server, manager_for(server.url, sandbox=sandbox, envelope=mode) as manager:
        slow = await manager.run_code(ENDLESS[family], language, 300)
        loud = await manager.run_code(PRINTING[family], language)
    assert (slow.outcome, slow.error) == (
        Outcome.TIMEOUT,
        ErrorInfo("Timeout", "timeout after 300 ms (timeout_ms)"),
    )
    assert (loud.outcome, loud.error) == (
        Outcome.OUTPUT_LIMIT,
        ErrorInfo("OutputLimit", "more than 2000 bytes of output (twice max_output_bytes)"),
    )


async def test_limits_that_the_server_lowers_for_a_session_are_the_servers(
    faas: LocalFaaS, patient_faas: LocalFaaS
) -> None:
    """A session asks for more than the server allows. The errors of its runs name the limits of the server, and a lower
    one of the run as that of the client.
    """
    generous = SandboxConfig(timeout_limit_s=60, memory_limit_mb=512, max_output_bytes=100_000)
    async with manager_for(faas.url) as manager, manager.session("python", sandbox=generous) as session:
        slow = await session.run_code(WAITING["python"])
        hasty = await session.run_code(WAITING["python"], timeout_ms=200)
    async with manager_for(patient_faas.url) as manager, manager.session("python", sandbox=generous) as session:
        large = await session.run_code(ALLOCATING["python"])
    assert [result.error.message for result in (slow, hasty, large) if result.error] == [
        "timeout after 700 ms (limit of the server)",
        "timeout after 200 ms (timeout_ms)",
        "more than 48 MiB of memory (limit of the server)",
    ]


LOOPING = {
    "python": """
def f():
    while True:
        pass
""",
    "js": "function f() { while (true); }",
}


@pytest.mark.parametrize("language", ["python", "js"])
@pytest.mark.parametrize("place", ["embedded", "double"])
async def test_limit_errors_of_cases(patient_faas: LocalFaaS, language: str, place: str) -> None:
    """The error of a case names the limit of a case, not the longer one of its execution."""
    async with contextlib.AsyncExitStack() as stack:
        url = patient_faas.url
        if place == "double":
            url = (await stack.enter_async_context({"python": PythonFaas, "js": JsFaas}[language]())).url
        async with manager_for(url, sandbox=SandboxConfig(timeout_limit_s=60)) as manager:
            (result,) = await manager.run_cases(LOOPING[language], "f", [()], language=language, timeout_ms=200)
            single = await manager.call_function(LOOPING[language], "f", language=language, timeout_ms=200)
    expected = ErrorInfo("Timeout", "timeout after 200 ms (timeout_ms)")
    for ended in (result, single):
        assert (ended.outcome, ended.error) == (Outcome.TIMEOUT, expected)


async def test_output_limit_of_the_server_applies_to_cases(patient_faas: LocalFaaS) -> None:
    """If the server's limit is lower than the client's, the guest program applies it, and the error names it."""
    sandbox = SandboxConfig(timeout_limit_s=60, max_output_bytes=100_000)
    async with manager_for(patient_faas.url, sandbox=sandbox) as manager:
        code = f"def f():\n    {PRINTING['python']}"
        (result,) = await manager.run_cases(code, "f", [()], language="python")
    assert (result.outcome, result.error) == (
        Outcome.OUTPUT_LIMIT,
        ErrorInfo("OutputLimit", "more than 10000 bytes of output (twice the limit of the server)"),
    )


async def test_limit_errors_of_servers_that_report_only_the_outcome() -> None:
    """The client adds an error, unless the answer contains one."""
    async with FakeFaaS() as fake, RuntimeManager(settings=Settings(endpoints={"python": fake.url})) as manager:
        fake.handler = lambda request: Reply(outcome="MEMORY_LIMIT")
        bare = await manager.run_code("1", "python")
        given = ErrorInfo("Timeout", "timeout after 3 ms (limit of the server)")
        fake.handler = lambda request: Reply(outcome="TIMEOUT", error=given)
        named = await manager.run_code("1", "python")
    assert bare.error == ErrorInfo("MemoryLimit", "more than 128 MiB of memory (memory_limit_mb)")
    assert named.error == given


async def test_limit_error_of_a_too_large_answer() -> None:
    """The outcome is OUTPUT_LIMIT, and the error names the limit of the client."""
    sandbox = SandboxConfig(max_output_bytes=1_000)
    async with FakeFaaS() as fake:
        fake.handler = lambda request: Reply(stdout="x" * 400_000)
        settings = Settings(endpoints={"python": fake.url}, sandbox=sandbox)
        async with RuntimeManager(settings=settings) as manager:
            result = await manager.run_code("1", "python")
    message = "the answer is too large for 1000 bytes of output (max_output_bytes); it was not read"
    assert (result.outcome, result.error) == (Outcome.OUTPUT_LIMIT, ErrorInfo("OutputLimit", message))
