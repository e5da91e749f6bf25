"""The embedded FaaS compiles and runs C, C++ and other languages whose toolchain is installed."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Container, Iterable
from pathlib import Path
from signal import Signals
from textwrap import dedent
from typing import Any

import attrs
import psutil
import pytest
import pytest_asyncio

from faasrt import (
    ConfigurationError,
    ConnectError,
    InvalidRequestError,
    Language,
    Outcome,
    OverloadedError,
    RetrySettings,
    RuntimeManager,
    SandboxConfig,
    ServerError,
    Settings,
    TestCase,
    UnsupportedLanguageError,
    Verdict,
)
from faasrt.client.cache import is_stored
from faasrt.local import LocalFaaS, engine_choice
from faasrt.local.engines import engine as engine_module
from faasrt.local.engines.jailed_run import start_runner
from faasrt.local.engines.native_jail import native_jail
from faasrt.local.engines.toolchain import engine as toolchain_engine
from faasrt.local.engines.toolchain.engine import engine_for
from faasrt.local.engines.toolchain.languages import TOOLCHAINS
from faasrt.local.engines.toolchain.toolchain import Installation, Toolchain
from faasrt.local.errors import EngineError
from faasrt.local.jail.jail import JailedProcess
from faasrt.local.jail.launcher import landlock
from support import toolchain_programs as programs
from support.helpers import NO_WAIT, Clock, fast_forward, manager_for, url_of
from support.levels import NATIVE
from support.served import PATIENCE_S, Caller, until, with_word
from support.tables import first_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), NATIVE]
MISSING = {str(language): toolchain.missing for language, toolchain in TOOLCHAINS.items()}
# A loaded machine takes many times as long to compile as an idle one.
SANDBOX = SandboxConfig(timeout_limit_s=60)


def each_of(names: Iterable[str], sample: Container[str] | None = None) -> list[object]:
    """Return the names of languages as parameters. Those whose toolchain is not installed are skipped.

    Without `pytest -m tables`, only those in `sample` run, if it is given.
    """
    return [
        pytest.param(
            name, marks=[is_installed(name), *([] if sample is None or name in sample else [pytest.mark.tables])]
        )
        for name in names
    ]


def is_installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(MISSING[name] != "", reason=MISSING[name])


each_language = pytest.mark.parametrize("language", each_of(MISSING))
c_and_java = pytest.mark.parametrize("language", each_of(MISSING, ("c", "java")))
"""A compiler and a virtual machine; with `pytest -m tables`, also the other languages."""
c_first = pytest.mark.parametrize("language", each_of(MISSING, ("c",)))
"""C; with `pytest -m tables`, also the other languages."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def manager(go_library: None) -> AsyncIterator[RuntimeManager]:
    found = [language for language, reason in MISSING.items() if not reason]
    async with RuntimeManager.local(found, workers=2, sandbox=SANDBOX) as one:
        yield one


@each_language
async def test_a_program_reads_stdin_and_prints(manager: RuntimeManager, language: str) -> None:
    """The result has the output and the exit code of the program, and names its compiler."""
    result = await manager.run_code(programs.SUM[language], language, stdin="20 22\n")
    assert (result.outcome, result.stdout, result.stderr, result.exit_code) == (Outcome.OK, "42\n", "", 0), result
    assert result.metadata["level"] == "namespaces"
    assert re.search(r"\d+\.\d+", str(result.metadata["runtime"]))


@c_and_java
async def test_a_program_gets_arguments(manager: RuntimeManager, language: str) -> None:
    result = await manager.run_code(programs.ARGUMENTS[language], language, argv=["-x", "a b", "ü"])
    assert result.stdout == "[-x][a b][ü]", result


@c_and_java
async def test_a_program_reads_and_leaves_files(manager: RuntimeManager, language: str) -> None:
    """Collected files do not include those of the compiler."""
    files = {"data/in.txt": b"\x00\xff\n"}
    result = await manager.run_code(programs.COPY[language], language, files=files, collect=["**"])
    assert (result.outcome, result.files) == (Outcome.OK, {**files, "out.txt": b"\x00\xff\n"}), result


@c_and_java
async def test_an_exit_code_is_the_error_of_the_program(manager: RuntimeManager, language: str) -> None:
    result = await manager.run_code(programs.EXIT[language], language)
    assert (result.outcome, result.exit_code, result.stderr) == (Outcome.USER_ERROR, 3, "bad\n"), result
    assert result.error is not None
    assert result.error.message == "the program exited with code 3"


@c_first
async def test_a_program_is_ended_at_its_time_limit(manager: RuntimeManager, language: str) -> None:
    result = await manager.run_code(programs.LOOP[language], language, timeout_ms=300)
    assert result.outcome is Outcome.TIMEOUT, result
    assert result.stdout in ("before\n", "")  # a busy machine may not have started it


@c_first
async def test_a_program_is_ended_for_its_output(manager: RuntimeManager, language: str) -> None:
    sandbox = SandboxConfig(max_output_bytes=1_000, timeout_limit_s=60)
    result = await manager.run_code(programs.FLOOD[language], language, sandbox=sandbox)
    assert result.outcome is Outcome.OUTPUT_LIMIT, result
    assert result.stdout.startswith("0123456789\n")


@c_and_java
async def test_a_program_is_ended_for_its_memory(manager: RuntimeManager, language: str) -> None:
    result = await manager.run_code(programs.MEMORY[language], language)
    assert result.outcome is Outcome.MEMORY_LIMIT, result


@each_language
async def test_errors_of_the_compiler_are_syntax_errors(manager: RuntimeManager, language: str) -> None:
    """Nothing runs, and the result and the validation have the diagnostics of the compiler."""
    code, line, column = programs.BROKEN[language]
    code = dedent(code).strip()
    result = await manager.run_code(code, language)
    assert (result.outcome, result.stdout) == (Outcome.SYNTAX_ERROR, ""), result
    assert result.error is not None
    assert result.error.name == "CompileError"
    assert result.error.traceback == result.stderr
    checked = await manager.validate_code(code, language)
    assert not checked.valid
    assert (checked.diagnostics[0].line, checked.diagnostics[0].column) == (line, column), checked
    assert checked.diagnostics[0].message in result.error.message


TOOLS = {
    "orphans": (
        "bash",
        """
        for i in {1..100}; do
            x=$(bash -c 'sleep 0.01 & exit 0')
        done
        echo end
        """,
        "end\n",
    ),
    "/dev/zero": ("bash", "head -c 3 /dev/zero | od -An -tx1", " 00 00 00\n"),
    "clock": (
        "c",
        r"""
        #include <stdio.h>
        #include <time.h>
        int main() {
            int ticks = 0;
            for (int i = 0; i < 100; i++) {
                clock_t start = clock();
                for (volatile int j = 0; j < 100000; j++);
                ticks += clock() > start;
            }
            printf("%d\n", ticks);
        }
        """,
        "100\n",
    ),
}


@pytest.mark.parametrize(
    ("language", "code", "stdout"),
    [pytest.param(*tool, id=name, marks=is_installed(tool[0])) for name, tool in TOOLS.items()],
)
async def test_a_program_behaves_as_without_a_jail(
    manager: RuntimeManager, language: str, code: str, stdout: str
) -> None:
    """Orphans are reaped, so that they do not count as processes. /dev/zero exists. The CPU clock is exact."""
    result = await manager.run_code(code, language)
    assert (result.outcome, result.stdout) == (Outcome.OK, stdout), result


@c_first
async def test_a_program_is_judged(manager: RuntimeManager, language: str) -> None:
    """Each test has a verdict, with many tests at once that all need the same compilation."""
    tests = [TestCase(f"{n} 1", str(n + 1)) for n in range(20)] + [TestCase("1 1", "3")]
    judgement = await manager.judge(programs.SUM[language] + "\n", tests, language=language)
    verdicts = [result.verdict for result in judgement.results]
    assert verdicts == [Verdict.PASSED] * 20 + [Verdict.WRONG_ANSWER]


@c_first
async def test_the_output_of_a_program_is_streamed(manager: RuntimeManager, language: str) -> None:
    async with manager.stream_code(programs.STREAM[language], language) as run:
        chunk = await anext(run)
        assert (chunk.stream, chunk.text, run.live) == ("stdout", "one\n", True)


@pytest.mark.parametrize("language", each_of([name for name in programs.RAISES if name in MISSING]))
async def test_the_error_of_a_program_has_its_name_and_message(manager: RuntimeManager, language: str) -> None:
    code, name, message = programs.RAISES[language]
    result = await manager.run_code(code, language)
    assert result.outcome in (Outcome.USER_ERROR, Outcome.CRASHED)
    assert result.error is not None
    assert (result.error.name, result.error.message) == (name, message), result
    assert message in result.error.traceback


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT", "SIGFPE", "SIGTERM", "SIGPIPE", "SIGUSR1", "SIGKILL"])
@pytest.mark.parametrize("language", each_of(["c"]))
async def test_a_signal_is_a_crash(manager: RuntimeManager, language: str, signal: str) -> None:
    code = """
        #include <signal.h>
        #include <stdlib.h>
        int main(int n, char **v) { raise(atoi(v[1])); }
    """
    result = await manager.run_code(code, language, argv=[str(int(Signals[signal]))])
    assert result.outcome is Outcome.CRASHED, result
    assert result.error is not None
    assert (result.error.name, result.exit_code) == (signal, None)


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_a_large_binary_is_in_memory_once(manager: RuntimeManager, language: str) -> None:
    """The server copies it neither after the compilation, nor for the cache, nor for the process that runs it."""
    size = 29_000_000
    code = f"volatile char a[{size}] = {{1}}; int main(void) {{ return a[0] + a[{size} - 1]; }} // {uuid.uuid4()}"
    await manager.run_code("int main(void) { return 0; }", language)
    for _ in ("compiled", "cached"):
        tracemalloc.start()
        try:
            assert (await manager.run_code(code, language)).exit_code == 1
            assert size < tracemalloc.get_traced_memory()[1] < 1.5 * size
        finally:
            tracemalloc.stop()


ENDLESS = ["/dev/zero", "/dev/urandom", "/dev/random", "/dev/full", "/proc/self/pagemap"]


@pytest.mark.skipif(landlock.abi_version() == 0, reason="the kernel has no Landlock")
@pytest.mark.parametrize("path", first_of(ENDLESS))
@pytest.mark.parametrize("language", each_of(["c", "rust"]))
async def test_a_compiler_cannot_read_endless_files(manager: RuntimeManager, language: str, path: str) -> None:
    """Programs can."""
    code = f'#include "{path}"' if language == "c" else f'static X: &[u8] = include_bytes!("{path}");'
    result = await manager.run_code(code, language)
    assert result.outcome is Outcome.SYNTAX_ERROR
    assert "Permission denied" in result.stderr
    assert (await manager.run_code(f"head -c 8 {path} | wc -c", "bash")).stdout == "8\n"


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_several_files_are_compiled_together(manager: RuntimeManager, language: str) -> None:
    """Headers are found, other sources are linked, and names that look like options do no harm."""
    defined = """
        #include "../f.h"
        int f(void) { return 7; }
    """
    files = {"f.h": "int f(void);", "lib/f.c": defined, "-E.c": "int g;"}
    code = """
        #include "f.h"
        int main(void) { return f(); }
    """
    result = await manager.run_code(code, language, files=files)
    assert (result.outcome, result.exit_code) == (Outcome.USER_ERROR, 7), result
    files["f.h"] = "int f(void"
    result = await manager.run_code(code, language, files=files)
    assert result.outcome is Outcome.SYNTAX_ERROR


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_deep_recursion_and_many_threads_work(manager: RuntimeManager, language: str) -> None:
    """The stack has 64 MiB, and 50 threads have one each, of which the used part counts only."""
    code = """
#include <pthread.h>
#include <stdio.h>
static long deep(long n) { volatile char pad[32]; pad[0] = 1; return n ? deep(n - 1) + pad[0] : 0; }
static void *run(void *unused) { return (void *)deep(100); }
int main(void) {
  pthread_t threads[50]; long sum = deep(400000); void *value;
  for (int i = 0; i < 50; i++) if (pthread_create(threads + i, 0, run, 0)) return 9;
  for (int i = 0; i < 50; i++) { pthread_join(threads[i], &value); sum += (long)value; }
  printf("%ld\\n", sum);
}"""
    result = await manager.run_code(code, language)
    assert (result.outcome, result.stdout) == (Outcome.OK, "405000\n"), result


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_the_first_thread_of_a_program_may_end_before_the_others(manager: RuntimeManager, language: str) -> None:
    """The memory of the process is then read from the other threads, several times within 400 ms."""
    code = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void *run(void *unused) { usleep(400000); puts("done"); exit(0); }
int main(void) { pthread_t thread; pthread_create(&thread, 0, run, 0); pthread_exit(0); }"""
    result = await manager.run_code(code, language)
    assert (result.outcome, result.stdout) == (Outcome.OK, "done\n"), result


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("language", each_of(["c"]))
async def test_a_compiler_that_takes_too_long_is_ended(
    language: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome is SYNTAX_ERROR with the reason. It is kept for a minute only, so that equal programs do not wait."""
    # It is not in the cache, and needs much more than the limit, in which the wait for a CPU does not count.
    functions = "".join(f"int f{n}(int x) {{ return x * {n} + x / {n + 1}; }}\n" for n in range(1_000))
    code = f"{functions}int main(void) {{ return 0; }} // {uuid.uuid4()}"
    async with LocalFaaS([language], workers=1, sandbox=SANDBOX) as faas:
        async with manager_for_c(faas.url) as manager:
            assert (await manager.run_code("int main(void) { return 0; }", language)).ok
            with monkeypatch.context() as patch:
                limits = attrs.evolve(toolchain_engine.COMPILE_LIMITS, timeout_ms=1)
                patch.setattr(toolchain_engine, "COMPILE_LIMITS", limits)
                result = await manager.run_code(code, language)
            assert result.outcome is Outcome.SYNTAX_ERROR
            assert result.error is not None
            assert "timeout after 1 ms (limit of the server)" in result.error.message
            assert not is_stored(result)
            assert (await manager.run_code(code, language)).error == result.error
        clock.advance(60)
        async with manager_for_c(faas.url) as manager:  # the server may have closed the connections of the other one
            assert (await manager.run_code(code, language)).ok


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_the_compiler_runs_in_the_jail(manager: RuntimeManager, language: str) -> None:
    """Hostile source code reads no file of the machine, and gets no more memory than the compiler's limit."""
    shadow = """
        #include "/etc/shadow"
        int main(void) {}
    """
    result = await manager.run_code(shadow, language)
    assert result.outcome is Outcome.SYNTAX_ERROR
    assert "/etc/shadow: No such file" in result.stderr
    passwd = r"""
        __asm__(".incbin \"/etc/passwd\"");
        int main(void) {}
    """
    result = await manager.run_code(passwd, language)
    assert result.ok  # a file of the jail
    huge = """
        char x[1 << 28] = {1};
        int main(void) { return x[5]; }
    """
    result = await manager.run_code(huge, language)
    assert result.outcome is Outcome.SYNTAX_ERROR
    assert result.stderr


async def test_functions_and_return_values_are_refused_before_anything_is_sent() -> None:
    """They exist in Python, JavaScript and TypeScript only."""
    async with manager_for_c("http://127.0.0.1:9") as manager:
        runtime = await manager.get_runtime("c")
        with pytest.raises(InvalidRequestError, match="call_function is for Python, JavaScript and TypeScript"):
            await runtime.call_function("int f(int x);", "f", [1])
        with pytest.raises(InvalidRequestError, match=r"run_cases is for Python, .* a c program can only print"):
            await runtime.run_cases("int f(int x);", "f", [(1,)])
        with pytest.raises(InvalidRequestError, match="return_val is for Python"):
            runtime.get_return_val_function()


def manager_for_c(url: str) -> RuntimeManager:
    return RuntimeManager.from_url({"c": url})


async def test_a_server_that_does_not_name_the_language_gets_no_program(local: RuntimeManager) -> None:
    """python-faas would run every program as Python, so a server must say that it compiles a language."""
    url = url_of(local)
    async with LocalFaaS(["js"]) as faas, manager_for_c(faas.url) as manager:
        with pytest.raises(UnsupportedLanguageError, match="does not run c programs"):
            await manager.run_code("int main(void) {}", "c")
    async with manager_for(url) as manager:
        with pytest.raises(UnsupportedLanguageError, match="no endpoint is configured"):
            await manager.run_code("int main(void) {}", "c")


async def test_an_unreachable_server_is_no_invalid_request(unused_tcp_port: int) -> None:
    """While a server does not answer, it is unknown whether it runs the language."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    async with RuntimeManager.from_url({"c": url}, retry=NO_WAIT) as manager:
        with pytest.raises(ConnectError, match="cannot connect: Connection refused") as failure:
            await manager.run_code("int main(void) {}", "c")
        assert (failure.value.sent, failure.value.attempts) == ("no", 3)


async def test_a_missing_toolchain_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By default the language is left out; if it was asked for, it fails. Both errors name the Debian package."""
    monkeypatch.setenv("PATH", str(tmp_path))
    message = r"rustc is not installed on the server \(on Debian and Ubuntu, it is in the package rustc\)"
    manager = RuntimeManager.local(workers=1)
    languages = manager.get_supported_languages()
    assert Language.RUST not in languages
    async with manager:
        with pytest.raises(UnsupportedLanguageError, match=message):
            await manager.run_code("fn main() {}", "rust")
        assert manager.get_supported_languages() == languages
        await manager.get_runtime("js")
        health = (await manager.get_health_status()).endpoints[0].details
        assert re.fullmatch(message, health["missing"]["rust"])
    async with RuntimeManager.local(["rust"]) as manager:
        with pytest.raises(ServerError, match=message):
            await manager.run_code("fn main() {}", "rust")


@pytest.mark.skipif(MISSING["c"] != "", reason=MISSING["c"])
async def test_a_compiler_that_is_not_in_the_jail_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its version would be that of `/health` and of the keys of results, but another compiler would run."""
    used = TOOLCHAINS[Language.C].locate()
    other = tmp_path / "gcc"
    other.write_text("#!/bin/sh\necho 99.0.0\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert TOOLCHAINS[Language.C].locate() == used


async def test_a_missing_toolchain_is_named_after_a_start_that_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        manager = RuntimeManager.local(workers=1, port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await manager.run_code("", "java")
    async with manager:
        with pytest.raises(UnsupportedLanguageError, match="on Debian and Ubuntu, it is in the package"):
            await manager.run_code("", "java")


async def test_the_level_filters_is_refused() -> None:
    """A compiler needs processes and files, which programs do not have at this level."""
    async with LocalFaaS(["c"], level="filters") as faas:
        with pytest.raises(ServerError, match="needs the level namespaces"):
            await faas.wait_ready("c")
    async with LocalFaaS(level="filters") as faas:
        assert Language.C not in faas.languages


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_an_engine_starts_with_the_first_program(language: str) -> None:
    """Until then it has no process, but /health says that the language can run, and names the version."""
    async with RuntimeManager.local(["javascript", language], workers=1, sandbox=SANDBOX) as manager:
        await manager.get_runtime("javascript")

        async def health() -> dict[str, object]:
            details = (await manager.get_health_status()).endpoints[0].details["languages"][language]
            return {name: details[name] for name in ("status", "idle", "engine")}

        server = Caller(url_of(manager))
        await server.until_pool(language, status="ready")
        assert await health() == {"status": "ready", "idle": 0, "engine": "gcc"}
        assert (await manager.run_code("int main(void) { return 0; }", language)).ok
        await server.until_pool(language, idle=1)


PERL = Toolchain(
    language=Language.BASH,
    name="perl",
    executable="perl",
    package="perl-base",
    find=lambda path: Installation(version=f"perl 5.0 at {path}"),
    compile=lambda _, sources: ["perl", "-c", sources[0]],
    run=lambda _, name, memory_mb: ["perl", name],
    keeps_source=True,
    diagnostic=re.compile(r"^(?P<message>.*) at \S+ line (?P<line>\d+)", re.MULTILINE),
    sample='print "ok";',
)


@pytest.mark.skipif(PERL.missing != "", reason=PERL.missing)
async def test_a_new_language_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in Perl run with this record, in place of Bash."""
    monkeypatch.setitem(engine_choice.ENGINES, Language.BASH, (engine_for(PERL),))
    async with RuntimeManager.local(["bash"], workers=1, sandbox=SANDBOX) as manager:
        result = await manager.run_code("my $x = <STDIN>; print $x * 2, @ARGV", "bash", stdin="21", argv=["!"])
        assert (result.outcome, result.stdout) == (Outcome.OK, "42!"), result
        broken = """
            print 1;
            my $x = ;
        """
        checked = await manager.validate_code(broken, "bash")
        assert (checked.valid, checked.diagnostics[0].line) == (False, 3)


@pytest.mark.skipif(PERL.missing != "", reason=PERL.missing)
async def test_a_compiler_that_is_killed_is_no_error_of_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel may kill a process of a compiler if the memory is low. The next call compiles again."""
    message = r"gcc: fatal error: Killed signal terminated program cc1\ncompilation terminated."
    command = f"""
        grep -q low "$0" && {{ printf "{message}\\n" >&2; exit 1; }}
        exec perl -c "$0"
    """
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path))
    killed = attrs.evolve(PERL, compile=lambda _, sources: ["sh", "-c", command, sources[0]])
    monkeypatch.setitem(engine_choice.ENGINES, Language.BASH, (engine_for(killed),))
    settings = Settings(sandbox=SANDBOX, retry=RetrySettings(max_attempts=1))
    async with RuntimeManager.local(["bash"], workers=1, settings=settings) as manager:
        for _ in range(2):
            with pytest.raises(OverloadedError, match="a process of the compiler was killed"):
                await manager.run_code("print 'low'", "bash")
        assert (await manager.run_code("print 'ok'", "bash")).stdout == "ok"


@pytest.mark.skipif(PERL.missing != "", reason=PERL.missing)
@pytest.mark.asyncio(loop_scope="function")
async def test_the_time_of_the_compiler_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    """A program whose compilation takes longer than its time limit runs to its end."""
    command = """
        grep -q slow "$0" && sleep "$1"
        exec perl -c "$0"
    """
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path))
    slow = attrs.evolve(PERL, compile=lambda _, sources: ["sh", "-c", command, sources[0], "9876"])
    monkeypatch.setitem(engine_choice.ENGINES, Language.BASH, (engine_for(slow),))
    sleeping: list[psutil.Process] = []

    def compiles() -> bool:
        """Return whether the compiler sleeps."""
        sleeping[:] = with_word(psutil.Process().children(recursive=True), "sleep 9876")
        return sleeping != []

    async with RuntimeManager.local(["bash"], workers=1, sandbox=SANDBOX) as manager:
        call = asyncio.create_task(manager.run_code("print 'slow'", "bash", timeout_ms=10_000))
        await until(compiles)
        # In small steps, because time limits do not count the time in which the event loop is blocked.
        await fast_forward(clock, asyncio.sleep(15), 0.05)
        sleeping[0].kill()
        result = await call
    assert (result.outcome, result.stdout) == (Outcome.OK, "slow"), result


NOT_COMPILED = {
    "a name that does not exist": (
        "c",
        """
        int Killed(void);
        int main(void) { return Killed(); }
        """,
    ),
    "a warning": (
        "c",
        """
        #warning Cannot fork: Resource temporarily unavailable
        int f(void);
        int main(void) { return f(); }
        """,
    ),
    "a name of a file": (
        "c",
        r"""
        #line 1 "gcc: fatal error: Killed signal terminated program cc1\ncompilation terminated.\n"
        #warning x
        int f(void);
        int main(void) { return f(); }
        """,
    ),
    "a message of the assembler": (
        "c",
        r"""
        asm(".print \"Killed\"\n.err");
        int main(void) {}
        """,
    ),
    "a name in C++": (
        "cpp",
        """
        int Killed();
        int main() { return Killed(); }
        """,
    ),
    "a name in Rust": (
        "rust",
        """
        extern "C" { fn Killed(); }
        fn main() { unsafe { Killed() } }
        """,
    ),
    "files with long paths": (
        "java",
        f"""
        package {".".join(["a" * 200] * 6)};
        class Main {{}}
        """,
    ),
}


@pytest.mark.parametrize(
    ("language", "code"),
    [pytest.param(*row, marks=is_installed(row[0]), id=name) for name, row in NOT_COMPILED.items()],
)
async def test_a_program_that_does_not_compile_gets_its_verdict(
    manager: RuntimeManager, language: str, code: str
) -> None:
    """A compiler that was killed, or had no time, is an error of the server. A program cannot look like one."""
    result = await manager.run_code(f"{code}\n// {uuid.uuid4()}", language)  # not in the cache of compiled programs
    assert (result.outcome, result.attempts) == (Outcome.SYNTAX_ERROR, 1), result


JAVA_NAMES = [
    (
        """
        class Main {
            public enum Color {RED}
            public static void main(String[] a) {}
        }
        """,
        "Main",
    ),
    (
        """
        class Helper {
            public record P(int x) {}
        }
        public class Solution { void f() {} }
        """,
        "Solution",
    ),
    (
        """
        /*
         public class Old {}
        */
        public class New {}
        """,
        "New",
    ),
    (
        '''
        // public class A {}
        class B { String s = """
        public class Z {}
        """; char c = '{'; String t = "{"; }
        ''',
        "B",
    ),
    ('@SuppressWarnings({"x"}) public final class Foo {}', "Foo"),
    ("public non-sealed class Foo {}", "Foo"),
    ("public class \u00c9 {}", "\u00c9"),
    (
        """
        interface Shape {}
        class Solution { public static void main(String[] a) {} }
        """,
        "Solution",
    ),
    (
        """
        class A {}
        class Main {}
        """,
        "Main",
    ),
    (
        """
        class A { class B { void main() {} } }
        class C {}
        """,
        "A",
    ),
    (
        """
        public/* class X */class // Y
        /**/ Z {}
        """,
        "Z",
    ),
    ("public static int x; class A {} class B { void/**/main() {} }", "B"),
    ("", "Main"),
    ("/* unclosed public class X {}", "Main"),
]


@pytest.mark.parametrize(("code", "name"), JAVA_NAMES)
async def test_the_file_of_a_java_program_is_named_after_its_main_class(code: str, name: str) -> None:
    file = TOOLCHAINS[Language.JAVA].file
    assert file is not None
    assert file(code) == f"{name}.java"


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_a_program_is_compiled_once(language: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Validation, many runs at once and a new server need one compilation of the same program, even of a broken one.

    Other source files, but not other input, are another program.
    """
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path))
    compilers: list[JailedProcess] = []

    async def count(*arguments: Any, compiles: bool = False) -> JailedProcess:
        process = await start_runner(*arguments, compiles=compiles)
        if compiles:
            compilers.append(process)
        return process

    monkeypatch.setattr("faasrt.local.engines.toolchain.engine.start_runner", count)
    broken = "int main("
    code = """
        #include "x.h"
        int main(void) { return X; }
    """
    for new in (3, 0):  # with the sample of the engine
        compilers.clear()
        async with RuntimeManager.local([language], workers=2, sandbox=SANDBOX) as manager:
            runs = [
                manager.run_code(code, language, stdin=str(n), files={"x.h": "#define X 3", "data": str(n)})
                for n in range(5)
            ]
            runs += [manager.run_code(broken, language) for _ in range(5)]
            results = await asyncio.gather(*runs)
            assert [result.exit_code for result in results] == [3] * 5 + [1] * 5
            assert (await manager.validate_code(broken, language)).valid is False
        assert len(compilers) == new
    async with RuntimeManager.local([language], workers=2, sandbox=SANDBOX) as manager:
        for value in (4, 5):
            result = await manager.run_code(code, language, files={"x.h": f"#define X {value}"})
            assert result.exit_code == value
        assert len(compilers) == 2
        assert (await manager.validate_code("int main(void) { return 6; }", language)).valid
        assert len(compilers) == 3
        assert (await manager.run_code("int main(void) { return 6; }", language)).exit_code == 6
        assert len(compilers) == 3


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_programs_run_without_a_cache(language: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder that cannot be written costs time, but no result."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path / "file"))
    async with RuntimeManager.local([language], workers=1, sandbox=SANDBOX) as manager:
        for _ in range(2):
            assert (await manager.run_code("int main(void) { return 5; }", language)).exit_code == 5


@pytest.mark.parametrize("language", each_of(["c"]))
async def test_a_toolchain_that_does_not_work_is_no_error_of_the_program(
    language: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing linker or missing headers would look like errors in the program. So a sample is compiled first."""
    monkeypatch.setenv("FAASRT_CACHE_DIR", str(tmp_path))
    toolchain = attrs.evolve(TOOLCHAINS[Language.C], sample="#include <missing.h>\n")
    monkeypatch.setitem(engine_choice.ENGINES, Language.C, (engine_for(toolchain),))
    async with RuntimeManager.local([language], workers=1) as manager:
        with pytest.raises(ServerError, match=r"cannot run a short program in the jail; is the package gcc complete\?"):
            await manager.run_code("int main(void) { return 5; }", language)


@c_first
async def test_small_problems_are_solved(manager: RuntimeManager, language: str) -> None:
    """Every solution passes all of its tests, and fails a wrong one."""

    async def judge(name: str, code: str, tests: list[TestCase]) -> None:
        wrong = attrs.evolve(tests[0], expected=f"{tests[0].expected}1")
        judgement = await manager.judge(code, [*tests, wrong], language=language, compare="tokens")
        verdicts = [result.verdict for result in judgement.results]
        assert verdicts == [Verdict.PASSED] * len(tests) + [Verdict.WRONG_ANSWER], (name, judgement)

    solved = programs.problems(language)
    assert len(solved) == 3
    async with asyncio.TaskGroup() as group:
        for name, (code, tests) in solved.items():
            group.create_task(judge(name, code, tests))


@is_installed("bash")
async def test_the_first_program_waits_until_the_engine_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine starts only when a program needs it. Building its jail may take long."""
    build, started, may_go_on = native_jail, threading.Event(), threading.Event()

    def build_slowly(*arguments: Any, **fields: Any) -> Any:
        started.set()
        may_go_on.wait(PATIENCE_S)
        return build(*arguments, **fields)

    monkeypatch.setattr(toolchain_engine, "native_jail", build_slowly)
    async with LocalFaaS(["bash"]) as faas, RuntimeManager.from_url({"bash": faas.url}) as manager:
        run = asyncio.create_task(manager.run_code("echo well", "bash", 30_000))
        await until(started.is_set)
        may_go_on.set()
        assert (await run).stdout == "well\n"


@is_installed("c")
async def test_the_first_program_also_waits_after_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has found its toolchain only at the second time."""
    locate, failures = Toolchain.locate, [EngineError("gcc does not answer")]

    def locate_later(self: Toolchain) -> Installation:
        if failures:
            raise failures.pop()
        return locate(self)

    monkeypatch.setattr(Toolchain, "locate", locate_later)
    monkeypatch.setattr(engine_module, "_RESTART_S", 0.01)
    async with LocalFaaS(["c"]) as faas, RuntimeManager.from_url({"c": faas.url}) as manager:
        await until(lambda: not failures and faas.health()["languages"]["c"]["status"] == "ready")
        code = f"int main(void) {{ return 3; }} // {uuid.uuid4()}"
        assert (await manager.run_code(code, "c", 30_000)).exit_code == 3
