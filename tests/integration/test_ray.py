"""`faasrt.ray` on a real local Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from faasrt import Settings
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaaS, Reply
from support import docstrings

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)
TESTS = [{"stdin": "1", "expected": "2"}, {"expected": "0", "argv": ["x"]}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a cluster for this module. It does not use other clusters of the machine."""
    import ray.data  # not at the top: it takes a second in each process that collects the tests

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@contextlib.contextmanager
def serving(server: Any) -> Iterator[Any]:
    """Run a server in its own event loop in another thread, because Ray blocks the main thread."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server) as opened:
        if isinstance(opened, LocalFaaS):
            portal.call(opened.wait_ready, "python")
        yield opened


def run(rows: list[dict[str, Any]], settings: Settings, **options: Any) -> list[dict[str, Any]]:
    import ray.data

    import faasrt.ray

    tasks = ray.data.from_items(rows)
    found: list[dict[str, Any]] = faasrt.ray.run_tasks(tasks, settings=settings, **options).take_all()
    return found


@pytest.mark.usefixtures("cluster")
def test_each_row_gets_its_result() -> None:
    """An invalid row does not affect the others."""
    with serving(LocalFaaS()) as faas:
        rows: list[dict[str, Any]] = [
            {"name": n, "language": "py", "code": f"print({n})", "function": None, "args": None, "tests": None}
            for n in range(60)
        ]
        rows[10] |= {"code": "1 / 0"}
        rows[11] |= {"language": "js", "code": "console.log('\\ud800')"}
        rows[12] |= {"code": "def f(a): return {'a': a}", "function": "f", "args": "[[1, 2]]"}
        rows[13] |= {"language": "cobol"}
        rows[14] |= {"function": "f", "args": "no json"}
        rows[15] |= {"code": " "}
        rows[16] |= {"tests": json.dumps(TESTS)}
        url = faas.url
        settings = Settings(endpoints={"python": url, "javascript": url})
        found = {row["name"]: row for row in run(rows, settings, batch_size=10, concurrency=8)}
    assert len(found) == 60
    assert all(row["stdout"] == f"{name}\n" for name, row in found.items() if not 10 <= name <= 16)
    assert (found[10]["outcome"], found[10]["error_name"]) == ("USER_ERROR", "ZeroDivisionError")
    assert found[11]["outcome"] == "OK"
    assert json.loads(found[12]["value"]) == {"a": [1, 2]}
    assert (found[16]["outcome"], found[16]["tests_passed"]) == ("WRONG_ANSWER", 0)
    for name, words in {13: "cobol", 14: "Expecting", 15: "empty"}.items():
        assert words in found[name]["invalid_task"]
        assert found[name]["outcome"] is None
    assert {row["endpoint"] for name, row in found.items() if name < 10} == {url}


@pytest.mark.usefixtures("cluster")
def test_rows_have_input_and_tests() -> None:
    """Arrow gives every row the columns and fields of the others, with null for the missing ones."""
    with serving(LocalFaaS(["python"])) as faas:
        rows: list[dict[str, Any]] = [
            {"name": "input", "code": "print(input(), open('a').read())", "stdin": "in", "files": {"a": "A"}},
            {"name": "judged", "code": "import sys; print(0 if sys.argv[1:] else int(input()) * 2)", "tests": TESTS},
            {"name": "wrong", "code": "print(2)", "tests": TESTS, "compare": "exact"},
        ]
        rows = [{"language": "py", "stdin": None, "files": None, "tests": None, **row} for row in rows]
        settings = Settings(endpoints={"python": faas.url})
        found = {row["name"]: row for row in run(rows, settings, actors=1)}
    assert found["input"]["stdout"] == "in A\n"
    assert (found["judged"]["outcome"], found["judged"]["tests_passed"], found["judged"]["tests_total"]) == ("OK", 2, 2)
    assert (found["wrong"]["outcome"], found["wrong"]["tests_passed"]) == ("WRONG_ANSWER", 0)


@pytest.mark.usefixtures("cluster")
def test_infrastructure_failures_are_columns() -> None:
    """The column `infra_error` contains the error. Failed rows can be passed to `run_tasks` again."""
    with serving(FakeFaaS()) as faas:
        faas.handler = lambda body: Reply.crash() if body["code"] == "print(3)" else Reply.ok("x")
        settings = Settings(endpoints={"python": faas.url})
        rows = [{"id": str(n), "language": "py", "code": f"print({n})"} for n in range(6)]
        found = run(rows, settings, actors=1)
        failed = [row for row in found if row["infra_error"]]
        assert [row["id"] for row in failed] == ["3"]
        assert failed[0]["infra_error"].startswith("ServerError: ")
        faas.handler = None
        again = run(failed, settings, actors=1)
        assert [(row["id"], row["outcome"], row["infra_error"]) for row in again] == [("3", "OK", None)]


@pytest.mark.usefixtures("cluster")
def test_example_in_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(LocalFaaS(["python"])) as faas:
        monkeypatch.setenv("COZE_LOOP_FAAS_URL", faas.url)
        name = "faasrt.ray.run_tasks"
        asyncio.run(docstrings.run(name, dict(docstrings.docstrings())[name]))


def test_rows_of_other_languages() -> None:
    """A row may have any language that a service runs."""
    import faasrt.ray

    assert faasrt.ray._to_task({"code": "main = print 1", "language": "Haskell"}).language == "haskell"


def test_settings_can_be_pickled() -> None:
    """Ray sends the settings to its actors."""
    settings = Settings(endpoints={"python": "http://127.0.0.1:1"}, envelope="always")
    assert pickle.loads(pickle.dumps(settings)) == settings
