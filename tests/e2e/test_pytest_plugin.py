"""The fixtures of the pytest plugin, each tested in a pytest session of its own, in this process."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import textwrap

import pytest

from faasrt.local.engines.wasm.module_cache import module_dir
from faasrt.testing import pytest_plugin

pytest_plugins = ["pytester"]

# pytester gives each session a new home folder, so the Python sandbox would have to be compiled again.
CACHE = str(module_dir().parent)
# Plugins that these sessions do not need, and that take most of the time of their start. `faulthandler` would replace
# the handlers of signals of wasmtime, which other tests use in this process.
OTHER_PLUGINS = tuple(
    part
    for name in ("schemathesis", "hypothesispytest", "randomly", "xdist", "faulthandler")
    for part in ("-p", f"no:{name}")
)
OPTIONS = (*OTHER_PLUGINS, "-W", "error", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
LOCAL = """
import asyncio, pytest
from faasrt import RuntimeManager

async def check(url):
    async with RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": url}) as manager:
        for language in ("python", "typescript"):
            assert (await manager.validate_code("x = 1", language, where="remote")).valid
    return url

@pytest.mark.asyncio
async def test_function(faasrt_local):
    await check(faasrt_local)

@pytest.mark.asyncio(loop_scope="module")
async def test_module(faasrt_local):
    await check(faasrt_local)

@pytest.mark.asyncio(loop_scope="session")
async def test_session(faasrt_local):
    await check(faasrt_local)

@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_with_anyio_mark(faasrt_local):
    await check(faasrt_local)

def test_without_an_event_loop(faasrt_local):
    asyncio.run(check(faasrt_local))
"""
FAKE = """
import pytest
from faasrt import RuntimeManager, Settings

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.MARK
async def test(faasrt_fake):
    async with RuntimeManager(settings=Settings(endpoints={"python": faasrt_fake.url})) as manager:
        assert (await manager.run_code("1", "python")).ok
    assert faasrt_fake.executions == 1
"""


# pytester forgets the modules that a session imports. Import these before, so that they are not imported twice.
for _name in ("anyio.from_thread", "faasrt.local.server", "faasrt.client.manager", "faasrt.testing.fake_faas"):
    importlib.import_module(_name)


@pytest.fixture(autouse=True)
def _warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAASRT_CACHE_DIR", CACHE)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_example_in_the_plugin_docstring_passes(pytester: pytest.Pytester, mode: str) -> None:
    """It passes in both modes of pytest-asyncio."""
    documentation = inspect.cleandoc(pytest_plugin.__doc__ or "")
    example = documentation.partition("A test file, for example:\n\n")[2].partition("\n\n`-p ")[0]
    pytester.makepyfile(textwrap.dedent(example))
    pytester.runpytest_inprocess(*OPTIONS, "-o", f"asyncio_mode={mode}").assert_outcomes(passed=3)


def test_faasrt_local_works_with_every_event_loop(pytester: pytest.Pytester) -> None:
    """One FaaS serves tests with event loops of any scope, tests of anyio, and tests without an event loop."""
    pytester.makepyfile(LOCAL)
    pytester.runpytest_inprocess(*OPTIONS).assert_outcomes(passed=5)


def test_faasrt_local_without_its_extra_is_an_error(pytester: pytest.Pytester) -> None:
    """The test is not skipped, and the error says which extra to install."""
    pytester.makeconftest("import sys; sys.modules['deno'] = None")
    pytester.makepyfile(LOCAL)
    done = pytester.runpytest_inprocess(*OPTIONS, "-k", "test_without")
    done.assert_outcomes(errors=1, deselected=4)
    done.stdout.fnmatch_lines(["*faasrt_local cannot start: * deno * pip install 'faasrt?local?'"])


@pytest.mark.parametrize(
    ("mark", "options"),
    [
        ("asyncio", ()),
        ("asyncio(loop_scope='session')", ("-o", "asyncio_default_fixture_loop_scope=session")),
        ("anyio", ()),
    ],
)
def test_faasrt_fake_runs_in_the_event_loop_of_its_test(
    pytester: pytest.Pytester, mark: str, options: tuple[str, ...]
) -> None:
    """The fixture works with pytest-asyncio, in any loop scope, and with anyio."""
    pytester.makepyfile(FAKE.replace("MARK", mark))
    pytester.runpytest_inprocess(*OPTIONS, *options).assert_outcomes(passed=1)


def test_faasrt_fake_does_not_need_pytest_asyncio(pytester: pytest.Pytester) -> None:
    """Without pytest-asyncio, tests of anyio pass. For other tests an error says what to install."""
    pytester.makepyfile(FAKE.replace("MARK", "anyio") + "\ndef test_without_mark(faasrt_fake): pass\n")
    done = pytester.runpytest_inprocess(*OTHER_PLUGINS, "-p", "no:asyncio")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["faasrt_fake needs pytest-asyncio, or a test that is marked with anyio"])


def test_the_plugin_may_be_listed_in_pytest_plugins(pytester: pytest.Pytester) -> None:
    """pytest has loaded the plugin already, and the fixtures are defined once."""
    pytester.makeconftest("pytest_plugins = ['faasrt.testing.pytest_plugin']")
    done = pytester.runpytest_inprocess(*OPTIONS, "--fixtures")
    assert done.ret == 0
    assert done.stdout.str().count("\nfaasrt_local [session scope]") == 1


def test_the_plugin_imports_no_server_and_no_client() -> None:
    """Every start of pytest loads the plugin, so its imports must be cheap."""
    heavy = {"aiohttp", "anyio", "attrs", "structlog", "faasrt.config", "faasrt.testing.loopback"}
    code = (
        "import sys, pytest_asyncio; known = set(sys.modules); import faasrt.testing.pytest_plugin;"
        f"print({heavy} & (set(sys.modules) - known))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
