r"""The pytest plugin: fixtures with a FaaS for tests. Installing faasrt adds them to pytest.

`faasrt_fake` is a new `FakeFaaS` for each test, and needs pytest-asyncio (in any mode) or a test marked `anyio`.
`faasrt_local` is the base URL of an embedded FaaS that the whole session shares; it needs the extra `local`.

A test file, for example:

    import pytest

    from faasrt import OverloadedError, RetrySettings, RuntimeManager, Settings
    from faasrt.testing import Reply


    @pytest.mark.asyncio
    async def test_a_full_server(faasrt_fake):
        faasrt_fake.script(Reply.overloaded(retry_after=1))
        settings = Settings(endpoints={"python": faasrt_fake.url}, retry=RetrySettings(max_attempts=1))
        async with RuntimeManager(settings=settings) as manager:
            with pytest.raises(OverloadedError) as caught:
                await manager.run_code("print('hi')", "python")
        assert caught.value.retry_after_s == 1
        assert faasrt_fake.executions == 0


    @pytest.mark.asyncio
    async def test_a_real_program(faasrt_local):
        async with RuntimeManager.from_env({"COZE_LOOP_FAAS_URL": faasrt_local}) as manager:
            result = await manager.run_code("print(6 * 7)", "python")
        assert result.stdout == "42\n"


    def test_an_application_finds_it_in_its_environment(faasrt_local, monkeypatch):
        monkeypatch.setenv("COZE_LOOP_FAAS_URL", faasrt_local)
        assert Settings.from_env().endpoints

`-p no:faasrt.testing.pytest_plugin` disables the plugin; `-p faasrt.testing.pytest_plugin` loads it where
`PYTEST_DISABLE_PLUGIN_AUTOLOAD` is set.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator

import pytest

# Every start of pytest imports this module, so import only the package, which loads its names on first use.
from faasrt import testing


@pytest.fixture
def faasrt_fake(request: pytest.FixtureRequest) -> testing.FakeFaaS:
    """A new `FakeFaaS`, open while the test runs.

    It runs in the event loop of the test's fixtures, so call a client that blocks, such as the `TestClient` of
    FastAPI, in a thread: `asyncio.to_thread`. Where tests have a `loop_scope` other than "function", set
    `asyncio_default_fixture_loop_scope` to the same.
    """
    for_anyio = "anyio_backend" in request.fixturenames
    if not for_anyio and not request.config.pluginmanager.has_plugin("asyncio"):
        pytest.fail("faasrt_fake needs pytest-asyncio, or a test that is marked with anyio", pytrace=False)
    fake: testing.FakeFaaS = request.getfixturevalue(
        "_faasrt_fake_of_anyio" if for_anyio else "_faasrt_fake_of_asyncio"
    )
    return fake


@pytest.fixture
async def _faasrt_fake_of_anyio() -> AsyncIterator[testing.FakeFaaS]:
    async with testing.FakeFaaS() as fake:
        yield fake


if importlib.util.find_spec("pytest_asyncio") is not None:
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def _faasrt_fake_of_asyncio() -> AsyncIterator[testing.FakeFaaS]:
        async with testing.FakeFaaS() as fake:
            yield fake


@pytest.fixture(scope="session")
def faasrt_local() -> Iterator[str]:
    """The base URL of an embedded FaaS that is ready for Python, JavaScript and TypeScript, once for the session.

    It runs in a thread with its own event loop, so it works for tests with any `loop_scope`, anyio tests, and tests
    without a loop. It ends with the process, even if the process is killed. The first start on a machine may compile
    the Python sandbox (about 20 s); `faasrt warmup` does this in advance. Without the extra `local`, the test fails.
    """
    from anyio.from_thread import start_blocking_portal

    from faasrt.errors import ConfigurationError
    from faasrt.local import LocalFaaS

    try:
        faas = LocalFaaS()
    except ConfigurationError as error:
        pytest.fail(f"faasrt_local cannot start: {error}", pytrace=False)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(faas):
        for language in faas.languages:
            if language.has_return_val:  # the engines of other languages start with their first program
                portal.call(faas.wait_ready, language)
        yield faas.url
