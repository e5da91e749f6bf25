"""Failures of SandboxFusion and Piston are errors. Retries, breakers and groups work as with coze-loop's servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import web
from anyio.from_thread import start_blocking_portal

import faasrt._endpoint_urls as endpoint_urls
from faasrt import (
    BreakerSettings,
    CodeTask,
    ConfigurationError,
    DeadlineExceededError,
    ExecutionOutput,
    ExecutionResult,
    InvalidRequestError,
    Language,
    Outcome,
    RejectedError,
    RuntimeManager,
    ServerError,
    Settings,
    TestCase,
    TimeoutSettings,
    UnsupportedLanguageError,
)
from faasrt.protocol.answer import Answer, ParsedAnswer, raise_for_status
from faasrt.protocol.health import EndpointProfile
from faasrt.protocol.interface import ServiceProtocol
from faasrt.protocol.program import Program
from faasrt.protocol.registry import protocol_of
from faasrt.testing import FakeFaaS, Reply
from support.cli import faasrt
from support.doubles import PythonFaas
from support.doubles.piston import Piston
from support.doubles.sandboxfusion import SandboxFusion
from support.doubles.services import Service


def manager_of(*services: Any, **settings: Any) -> RuntimeManager:
    urls = [service.url for service in services]
    return RuntimeManager(settings=Settings.from_url(urls, **settings))


class BusyFusion(SandboxFusion):
    """Answers a run after its deadline. `headers` are those of the answers to requests for the health."""

    headers: Mapping[str, str] = MappingProxyType({})
    patience_s = 0.0

    async def ping(self, _: web.Request) -> web.Response:
        return web.json_response("pong", headers=self.headers)

    async def run_code(self, request: web.Request) -> web.Response:
        self.patience_s = float(request.headers["x-faasrt-patience-s"])
        await asyncio.sleep(self.patience_s + 1)
        return self.answer("Failed", {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""})


async def test_a_busy_server_of_faasrt_has_more_time_in_place_of_a_service() -> None:
    """A program that waits for a CPU there still has its outcome after the deadline. The deadline of the service itself
    stays. Both include the time that is added to the limit.
    """
    timeouts = TimeoutSettings(grace_s=3)
    async with (
        BusyFusion() as service,
        BusyFusion() as posing,
        manager_of(service, timeouts=timeouts) as manager,
        manager_of(posing, timeouts=timeouts) as manager_of_posing,
    ):
        posing.headers = {"x-faasrt-counts-running-time": "1"}
        calls = [each.run_code("1", "python", timeout_ms=500) for each in (manager, manager_of_posing)]
        error, result = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(error, DeadlineExceededError)
        assert isinstance(result, ExecutionResult)
        assert result.outcome is Outcome.TIMEOUT
        assert service.patience_s == posing.patience_s == 0.5 + 1 + 3


async def test_failed_sandbox_is_no_outcome() -> None:
    """A SandboxError in a 200 is an error, and is retried only if the program may run twice."""
    async with SandboxFusion() as service, manager_of(service) as manager:
        service.failing = True
        with pytest.raises(ServerError, match="SandboxFusion failed: exception on running code") as caught:
            await manager.run_code("print(1)", "python")
        assert (caught.value.sent, caught.value.attempts) == ("maybe", 1)
        with pytest.raises(ServerError) as caught:
            await manager.run_code("print(1)", "python", idempotent=True)
        assert caught.value.attempts == 3


@pytest.mark.parametrize("lost", [("stdout", "stderr"), ("stdout",)])
@pytest.mark.parametrize(("code", "language"), [("print(1)", "python"), ("console.log(1)", "js")])
async def test_lost_output_is_no_outcome(lost: tuple[str, ...], code: str, language: str) -> None:
    """Under load, SandboxFusion can lose output. Then the program has no result, rather than an empty one."""
    async with SandboxFusion() as service, manager_of(service) as manager:
        service.lost = lost
        with pytest.raises(ServerError, match="lost the output of the program"):
            await manager.run_code(code, language)


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("def f(x):\n    import time\n    time.sleep(0.02)\n    return x", "python"),
        ("const f = (x) => new Promise((resolve) => setTimeout(resolve, 20, x));", "js"),
    ],
)
async def test_cases_without_stdout(code: str, language: str) -> None:
    """The results of cases are on stderr too. Cases that had not begun run in the next execution."""
    async with SandboxFusion() as service, manager_of(service) as manager:
        service.lost = ("stdout",)
        results = await manager.run_cases(code, "f", [(n,) for n in range(40)], language=language, timeout_ms=500)
        assert [(result.outcome, result.value) for result in results] == [(Outcome.OK, n) for n in range(40)]
        assert service.executions > 1


async def test_output_that_is_not_utf_8() -> None:
    """Bytes of a child process of Node.js that are not UTF-8 make SandboxFusion replace stdout, with the result."""
    child = r"""require("child_process").execSync("printf '\\377' FDS", {stdio: "inherit"});"""
    async with SandboxFusion() as service, manager_of(service) as manager:
        for fds in ("", "| tee /dev/stderr"):
            result = await manager.run_code(child.replace("FDS", fds) + "console.log(1)", "js")
            assert (result.outcome, result.exit_code, result.truncated & {"stdout"}) == (
                Outcome.USER_ERROR,
                0,
                {"stdout"},
            )
            assert result.error.name == "UnicodeDecodeError"
            assert "a child process wrote bytes that are not UTF-8" in result.error.message
        result = await manager.run_code(child.replace("FDS", ">&2") + "console.log(1)", "js")
        assert (result.outcome, result.stdout) == (Outcome.OK, "1\n")
        code = "function f(x) {" + child.replace("FDS", "") + "return x; }"
        results = await manager.run_cases(code, "f", [(1,), (2,)], language="js")
        assert [(result.outcome, result.value) for result in results] == [(Outcome.OK, 1), (Outcome.OK, 2)]


@pytest.mark.parametrize(
    ("failing", "message"), [("XX", "the sandbox of Piston failed: Cannot mount"), ("500", "HTTP 500")]
)
async def test_failed_piston(failing: str, message: str) -> None:
    """Neither the status XX nor an empty 500 is an outcome."""
    async with Piston() as service, manager_of(service) as manager:
        service.failing = failing
        with pytest.raises(ServerError, match=message) as caught:
            await manager.run_code("print(1)", "python", timeout_ms=1_000)
        assert caught.value.attempts == 1


async def test_refused_time_limit() -> None:
    """A time limit above that of Piston is an error that names the setting; nothing runs."""
    async with Piston() as service, manager_of(service) as manager:
        with pytest.raises(
            RejectedError, match="raise PISTON_RUN_TIMEOUT of the server, or lower timeout_ms"
        ) as caught:
            await manager.run_code("print(1)", "python")
        assert (service.executions, caught.value.attempts) == (0, 1)


async def test_frame_above_the_output_limit() -> None:
    """With Piston's default limit of 1,024 bytes, short results arrive, and others are errors that name the setting."""
    async with Piston(run_timeout=60_000) as service, manager_of(service) as manager:
        assert (await manager.run_code("print(1)", "python")).stdout == "1\n"
        assert (await manager.run_code("console.log(1)", "js")).stdout == "1\n"
        for code, language in (("print('x' * 900)", "python"), ("console.log('x'.repeat(900))", "js")):
            with pytest.raises(ServerError, match="set PISTON_OUTPUT_MAX_SIZE") as caught:
                await manager.run_code(code, language)
            assert caught.value.attempts == 1
        assert {state.breaker for state in manager.get_metrics().states} == {"closed"}


async def test_missing_toolchain() -> None:
    """A toolchain that is not installed is an error. The same exit code of a Bash program is its own."""
    async with SandboxFusion() as fusion, manager_of(fusion) as manager:
        with pytest.raises(ServerError, match="the toolchain of csharp is not installed"):
            await manager.run_code("class P {}", "csharp")
        result = await manager.run_code("no-such-command", "bash")
        assert (result.outcome, result.exit_code) == (Outcome.USER_ERROR, 127)
    async with Piston(run_timeout=60_000) as piston, manager_of(piston) as manager:
        with pytest.raises(ServerError, match="the toolchain of haskell is not installed"):
            await manager.run_code("main = print 1", "haskell")


async def test_own_languages() -> None:
    """A service runs the further languages that it lists, in any spelling, and judges them; other services do not."""
    async with SandboxFusion() as service, manager_of(service) as manager:
        result = await manager.run_code("echo $((6 * 7)); exit 4", "Bash")
        assert (result.outcome, result.exit_code, result.stdout) == (Outcome.USER_ERROR, 4, "42\n")
        judgement = await manager.judge(
            "read n; echo $((2 * n))", [TestCase("1\n", "2"), TestCase("2\n", "5")], language="bash"
        )
        assert judgement.score == 0.5
        found = [item async for item in manager.map([CodeTask("echo 1", "bash"), CodeTask("x", "cobol")])]
        assert {type(item.error) for item in found} == {type(None), UnsupportedLanguageError}
        with pytest.raises(UnsupportedLanguageError, match="cobol"):
            await manager.run_code("x", "cobol")
        with pytest.raises(InvalidRequestError, match="a bash program can only print its results"):
            await manager.call_function("f() { echo; }", "f", language="bash")
        assert manager.get_metrics().total.outcomes["OK"] == 3
    async with FakeFaaS() as fake, manager_of(fake) as manager:
        with pytest.raises(UnsupportedLanguageError, match="lua"):
            await manager.run_code("print(1)", "lua")


async def test_typescript_of_a_service_for_other_languages() -> None:
    """A service that lists TypeScript runs it like its further languages. coze-loop's servers do not list it."""
    async with SandboxFusion() as service, FakeFaaS() as fake:
        settings = Settings(endpoints={"python": fake.url, "js": service.url})
        async with RuntimeManager(settings=settings) as manager:
            assert (await manager.get_runtime("ts")).get_supported_languages() == ("javascript", "typescript")
        async with RuntimeManager.from_url({"js": fake.url}) as manager:
            with pytest.raises(UnsupportedLanguageError, match="typescript is not supported here"):
                await manager.get_runtime("ts")


async def test_errors_of_a_runtime_for_another_language() -> None:
    """They name the languages of the runtime."""
    async with RuntimeManager.from_url({"haskell": "piston+http://127.0.0.1:9/api/v2"}) as manager:
        runtime = await manager.get_runtime("haskell")
        with pytest.raises(InvalidRequestError, match="return_val is for Python, JavaScript and TypeScript"):
            runtime.get_return_val_function()
        with pytest.raises(UnsupportedLanguageError, match=r"one of this runtime \(haskell\), got ocaml"):
            await runtime.run_code("x", "ocaml")


async def test_unknown_language_of_piston() -> None:
    """Each Piston has other packages. It refuses the others, and the error says what to do."""
    async with Piston(run_timeout=60_000) as service, manager_of(service) as manager:
        assert (await manager.run_code("echo $1", "sh", argv=["a b"])).stdout == "a b\n"
        with pytest.raises(RejectedError, match="cobol-\\* runtime is unknown; install its package"):
            await manager.run_code("x", "cobol", timeout_ms=1_000)


async def test_many_languages_of_piston() -> None:
    """The names of languages that callers pass do not let a client grow without bound."""
    async with RuntimeManager.from_url({"bash": "piston+http://127.0.0.1:9/api/v2"}) as manager:
        for number in range(100):
            await manager.get_runtime(f"language{number}")
        await manager.close_runtimes()
        with pytest.raises(UnsupportedLanguageError, match="haskell is one language too many: 100 languages"):
            await manager.get_runtime("haskell")
        for language in ("bash", "language7"):
            await manager.get_runtime(language)


async def test_wrong_path_of_piston() -> None:
    """The error of a URL without /api/v2 says so."""
    async with Piston() as service:
        url = service.url.removesuffix("/api/v2")
        async with RuntimeManager(settings=Settings.from_url(url)) as manager:
            with pytest.raises(RejectedError, match="the URL of Piston ends in /api/v2"):
                await manager.run_code("print(1)", "python", timeout_ms=1_000)


async def test_health() -> None:
    """The health of each service is requested in its own way."""
    async with SandboxFusion() as fusion, Piston() as piston, PythonFaas() as coze:
        async with manager_of(fusion, piston, coze) as manager:
            status = await manager.get_health_status()
            assert [endpoint.healthy for endpoint in status.endpoints] == [True, True, True]
            languages = [runtime["language"] for runtime in status.endpoints[1].details["runtimes"]]
            assert "python" in languages
        async with RuntimeManager(settings=Settings.from_url(fusion.url.partition("+")[2])) as manager:
            assert not (await manager.get_health_status()).healthy


async def test_mixed_group() -> None:
    """Replicas with different protocols share the calls, and one that fails gets no more of them."""
    async with SandboxFusion() as fusion, FakeFaaS() as coze, Piston(run_timeout=60_000) as piston:
        coze.default = Reply.ok("é\n")
        breaker = BreakerSettings(consecutive_failures=1, base_open_s=3_600, max_open_s=3_600)
        settings = Settings(endpoints={"python": [fusion.url, coze.url, piston.url]}, breaker=breaker)
        async with RuntimeManager(settings=settings) as manager:
            used: set[str] = set()
            while len(used) < 3:
                result = await manager.run_code("print('é')", "python")
                assert result.stdout == "é\n"
                used.add(result.endpoint)
            fusion.failing = True
            with contextlib.suppress(ServerError):
                while True:
                    await manager.run_code("print(1)", "python")
            for _ in range(3):
                assert (await manager.run_code("print(1)", "python")).endpoint != fusion.url


async def test_interpreter_that_does_not_start_opens_the_breaker() -> None:
    """A replica without a working interpreter gets no more calls."""
    breaker = BreakerSettings(consecutive_failures=1, base_open_s=3_600, max_open_s=3_600)
    async with SandboxFusion() as service, manager_of(service, breaker=breaker) as manager:
        service.broken = True
        with pytest.raises(ServerError, match=r"did not start its interpreter.*no-such-interpreter"):
            await manager.run_code("print(1)", "python")
        assert {state.breaker for state in manager.get_metrics().states} == {"open"}


async def test_refused_connection_moves_to_another_protocol() -> None:
    """A program that was never sent runs on a replica with another protocol."""
    async with SandboxFusion() as fusion, FakeFaaS() as fake:
        fake.down()
        async with RuntimeManager(settings=Settings(endpoints={"python": [fake.url, fusion.url]})) as manager:
            for _ in range(5):
                assert (await manager.run_code("print(1)", "python")).endpoint == fusion.url


async def test_many_cases_on_piston() -> None:
    """Many cases go into several requests, each of which is small enough for Piston, with answers that are too."""
    async with Piston(run_timeout=3_600_000, output_max_size=65_536) as service, manager_of(service) as manager:
        cases = [(f"{number:04}" * 25,) for number in range(600)]
        for code, language in (("def f(x): return x[:4]", "python"), ("const f = (x) => x.slice(0, 4);", "js")):
            before = service.executions
            results = await manager.run_cases(code, "f", cases, language=language)
            assert [result.value for result in results] == [f"{number:04}" for number in range(600)]
            assert service.executions > before + 1
        results = await manager.run_cases("def f(x): return x * 50", "f", cases[:5], language="python")
        assert [len(result.value) for result in results] == [5_000] * 5


async def test_stored_results(tmp_path: Path) -> None:
    """Results of services can be stored, for their further languages too, unless their output may be lost."""
    async with SandboxFusion() as service, RuntimeManager.from_url(service.url, cache=tmp_path) as manager:
        for code, language in (("print(1)", "python"), ("echo 1", "bash")):
            found = [await manager.run_code(code, language) for _ in range(2)]
            assert [(result.cached, result.stdout) for result in found] == [(False, "1\n"), (True, "1\n")]
        for code, language, is_stored in (("1", "python", True), ("true", "bash", False)):
            found = [await manager.run_code(code, language) for _ in range(2)]
            assert [(result.cached, result.outcome) for result in found] == [
                (False, Outcome.OK),
                (is_stored, Outcome.OK),
            ]


async def test_live_output_is_not_sent() -> None:
    """`stream_code` works; the output comes at the end."""
    async with (
        SandboxFusion() as service,
        manager_of(service) as manager,
        manager.stream_code("print(1)", "python") as run,
    ):
        assert [chunk.text async for chunk in run] == ["1\n"]
        assert not run.live


def test_commands(tmp_path: Path) -> None:
    """The commands take URLs with protocols, and the languages of the service."""
    tasks, results = tmp_path / "tasks.jsonl", tmp_path / "results.jsonl"
    lines = [{"id": language, "code": "echo 1", "language": language} for language in ("bash", "cobol")]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(SandboxFusion()) as service:
        url = ("--url", service.url)
        assert faasrt("run", "-l", "bash", "-c", "echo 1", *url) == (0, "1\n", "")
        code, _, err = faasrt("run", "-l", "cobol", "-c", "x", *url)
        assert (code, "unknown language 'cobol'" in err) == (2, True)
        code, out, _ = faasrt("health", *url)
        assert (code, out.split()[:2]) == (0, ["healthy", service.url])
        assert faasrt("batch", tasks, "-o", results, *url)[0] == 2
    found = {row["id"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert (found["bash"]["outcome"], found["bash"]["stdout"]) == ("OK", "1\n")
    assert "unknown language 'cobol'" in found["cobol"]["invalid_task"]


@pytest.mark.parametrize(
    ("kind", "line"),
    [(SandboxFusion, "  the service does not list its languages"), (Piston, "  bash, sh         1.0.0")],
)
def test_languages_of_services(kind: Callable[[], Service], line: str) -> None:
    """The command lists the runtimes of Piston. SandboxFusion does not list its languages."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(kind()) as service:
        code, out, _ = faasrt("languages", "--url", service.url)
        lines = out.splitlines()
        assert (code, lines[0]) == (0, service.url)
        assert line in lines


async def test_validation() -> None:
    """These services cannot validate programs. Python is checked locally."""
    async with SandboxFusion() as service, manager_of(service) as manager:
        assert (await manager.validate_code("x = 1", "python")).valid
        with pytest.raises(RejectedError, match="no endpoint of javascript validates programs") as caught:
            await manager.validate_code("x = 1", "js")
        assert caught.value.sent == "no"


async def test_plain_programs() -> None:
    """Without the envelope, the outcome is what the service reports."""
    async with SandboxFusion() as fusion, Piston(run_timeout=60_000) as piston:
        for service in (fusion, piston):
            async with manager_of(service, envelope="never") as manager:
                options: dict[str, Any] = {"language": "python"}
                result = await manager.run_code("import sys; print(1); sys.exit(3)", **options)
                assert (result.outcome, result.exit_code, result.stdout) == (Outcome.USER_ERROR, 3, "1\n")
                assert (await manager.run_code("def f(:", **options)).outcome is Outcome.SYNTAX_ERROR
                endless = await manager.run_code("import time; time.sleep(600)", **options, timeout_ms=200)
                assert endless.outcome is Outcome.TIMEOUT
                killed = await manager.run_code("import os; os.kill(os.getpid(), 9)", **options)
                assert (killed.outcome, killed.error.name) == (Outcome.CRASHED, "SIGKILL")
                result = await manager.run_code(
                    "print(input(), open('a').read())", stdin="x\n", files={"a": "A"}, **options
                )
                assert result.stdout == "x A\n"


async def test_output_that_the_service_cuts() -> None:
    """Output that SandboxFusion cut without a word is marked; a program that it blocked exceeded the output limit."""
    async with SandboxFusion() as service, manager_of(service, envelope="never") as manager:
        whole = await manager.run_code("print('x' * 100_000)", "python")
        assert (len(whole.stdout), whole.truncated) == (100_001, frozenset())
        blocked = await manager.run_code("print('x' * 2_000_000)", "python", timeout_ms=1_000)
        assert (blocked.outcome, blocked.truncated) == (Outcome.OUTPUT_LIMIT, {"stdout"})
        assert "limit of SandboxFusion" in blocked.error.message


class EchoProtocol(ServiceProtocol):
    name = "Echo"
    run_path = "/echo"
    health_path = "/alive"
    profile = EndpointProfile(lossless=True)

    def lists(self, language: Language | str) -> bool:
        return language == "text"

    def encode(self, program: Program, *, in_envelope: bool) -> bytes:
        return program.code.encode()

    def decode(self, answer: Answer, program: Program, *, nonce: str | None, timeout_ms: float) -> ParsedAnswer:
        raise_for_status(answer)
        return ParsedAnswer(outcome=Outcome.OK, output=ExecutionOutput(answer.body.decode()))


PROTOCOL = EchoProtocol()


class EchoService(Service):
    scheme = "echo"

    def routes(self, app: web.Application) -> None:
        app.router.add_post("/echo", self.echo)
        app.router.add_get("/alive", self.echo)

    async def echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    values = {
        "echo": f"{__name__}:PROTOCOL",
        "broken": "support.no_module:X",
        "wrong": f"{__name__}:EchoService",
    }
    points = [EntryPoint(name, value, endpoint_urls.PROTOCOL_GROUP) for name, value in values.items()]
    monkeypatch.setattr(endpoint_urls, "entry_points", lambda group: points)
    endpoint_urls.registered_protocols.cache_clear()
    protocol_of.cache_clear()
    yield
    endpoint_urls.registered_protocols.cache_clear()
    protocol_of.cache_clear()


@pytest.mark.usefixtures("entry_points")
async def test_protocol_of_another_package() -> None:
    """A protocol that is registered as an entry point works like those of faasrt."""
    async with EchoService() as service:
        async with RuntimeManager(settings=Settings(endpoints={"text": service.url})) as manager:
            assert (await manager.run_code("hello", "text")).stdout == "hello"
            assert (await manager.get_health_status()).healthy
        async with RuntimeManager(settings=Settings.from_url(service.url)) as manager:
            assert (await manager.run_code("hello", "text")).stdout == "hello"


@pytest.mark.usefixtures("entry_points")
@pytest.mark.parametrize("name", ["broken", "wrong"])
async def test_broken_protocol_of_another_package(name: str) -> None:
    """A protocol that cannot be loaded is an error in the configuration."""
    settings = Settings(endpoints={"python": f"{name}+http://127.0.0.1:9"})
    async with RuntimeManager(settings=settings) as manager:
        with pytest.raises(ConfigurationError, match=f"the protocol '{name}'"):
            await manager.run_code("1", "python")
