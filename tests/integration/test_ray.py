"""`faasrt.ray` on a real local Ray cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import pytest
import pytest_asyncio
from anyio.from_thread import start_blocking_portal

from faasrt import CodeTask, FunctionTest, SandboxConfig, Settings, TestCase
from faasrt.local import LocalFaaS
from faasrt.testing import FakeFaaS, Reply
from support.documents import docstrings, run_examples

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faas() -> AsyncIterator[LocalFaaS]:
    async with LocalFaaS(["python"]) as faas:
        await faas.wait_ready("python")
        yield faas


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


@pytest.mark.ray
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


async def run_directly(rows: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """Run rows as an actor of `run_tasks` does, without Ray."""
    import pyarrow

    from faasrt.ray import TaskRunner

    runner = TaskRunner(settings)
    names = dict.fromkeys(name for row in rows for name in row)
    batch = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    tables = [table async for table in runner(batch)]
    await runner.aclose()
    found: list[dict[str, Any]] = [row for table in tables for row in table.to_pylist()]
    return found


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_have_input_and_tests(faas: LocalFaaS) -> None:
    """Arrow gives every row the columns and fields of the others, with null for the missing ones."""
    rows: list[dict[str, Any]] = [
        {"name": "input", "code": "print(input(), open('a').read())", "stdin": "in", "files": {"a": "A"}},
        {"name": "judged", "code": "import sys; print(0 if sys.argv[1:] else int(input()) * 2)", "tests": TESTS},
        {"name": "wrong", "code": "print(2)", "tests": TESTS, "compare": "exact"},
        {"name": "bytes", "code": "print(open('b', 'rb').read())", "files": {"b": {"base64": "AP8="}}},
        {"name": "arguments", "code": "def f(a, b): return [a, b]", "function": "f", "kwargs": '{"a": [1], "b": null}'},
    ]
    rows = [{"language": "py", **row} for row in rows]
    found = {row["name"]: row for row in await run_directly(rows, Settings(endpoints={"python": faas.url}))}
    assert found["input"]["stdout"] == "in A\n"
    assert (found["judged"]["outcome"], found["judged"]["tests_passed"], found["judged"]["tests_total"]) == ("OK", 2, 2)
    assert (found["wrong"]["outcome"], found["wrong"]["tests_passed"]) == ("WRONG_ANSWER", 0)
    assert found["bytes"]["stdout"] == "b'\\x00\\xff'\n"
    assert json.loads(found["arguments"]["value"]) == [[1], None]


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_have_tests_of_functions(faas: LocalFaaS) -> None:
    """As JSON text, their values may have different types, and nulls."""
    tests = [
        {"args": [None], "expected": None},
        {"kwargs": {"n": {"a": None}}, "expected": {"a": None}},
        {"args": [[1, "a"]], "expected": [1, "a"], "compare": "alike"},
        {"args": [1], "expected": 2},
    ]
    row = {"language": "py", "code": "def f(n): return n", "function": "f", "tests": json.dumps(tests)}
    settings = Settings(endpoints={"python": faas.url})
    [found] = await run_directly([row], settings)
    assert (found["outcome"], found["tests_passed"], found["tests_total"]) == ("WRONG_ANSWER", 3, 4)
    [found] = await run_directly(
        [{**row, "tests": [{"args": [n], "expected": n, "id": None} for n in range(3)]}], settings
    )
    assert (found["outcome"], found["tests_passed"], found["tests_total"]) == ("OK", 3, 3)


async def test_an_error_that_is_not_unicode_is_escaped() -> None:
    """Arrow cannot hold lone surrogates. The other rows keep their results."""
    rows = [{"language": "py", "code": code, "idempotent": False} for code in ("1", "2")]
    async with FakeFaaS() as faas:
        faas.script(Reply(status=500, body=b'{"error": "\\ud800"}'))
        found = await run_directly(rows, Settings(endpoints={"python": faas.url}))
    [error] = [row["infra_error"] for row in found if row["infra_error"] is not None]
    assert r"(HTTP 500): \ud800" in error
    assert sorted(str(row["outcome"]) for row in found) == ["None", "OK"]


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_get_their_files(faas: LocalFaaS) -> None:
    """The collected files have the form of the column `files`, which is kept, so other rows can use them."""
    write = "open('text', 'w').write('a'); open('bytes', 'wb').write(bytes([0, 255]))"
    settings = Settings(endpoints={"python": faas.url})
    rows = [
        {"language": "py", "code": write, "collect": ["*s"], "files": {"in": "x"}},
        {"language": "py", "code": write, "collect": None, "files": {"in": "x"}},
    ]
    first, second = await run_directly(rows, settings)
    assert first["collected_files"] == '{"bytes": {"base64": "AP8="}}'
    assert (first["files"], second["collected_files"]) == ({"in": "x"}, None)
    read = {"language": "py", "code": "print(open('bytes', 'rb').read())", "files": first["collected_files"]}
    [third] = await run_directly([read], settings)
    assert third["stdout"] == "b'\\x00\\xff'\n"
    [fourth] = await run_directly([{"language": "py", "code": "6 * 7", "displays": True}], settings)
    assert json.loads(fourth["displayed"]) == [{"data": {"text/plain": "42"}, "omitted": []}]
    assert third["displayed"] is None


async def test_rows_have_every_field_of_a_task() -> None:
    """Each field of `CodeTask` is a column, which the documentation of `run_tasks` lists."""
    import pyarrow

    import faasrt.ray

    values: dict[str, Any] = {
        "code": "f",
        "language": "js",
        "id": 7,
        "timeout_ms": 1_500,
        "ext": [("a", "b")],
        "function": "f",
        "args": "[null]",
        "kwargs": '{"k": {"l": null}}',
        "sandbox": {"memory_limit_mb": 64},
        "priority": "high",
        "idempotent": True,
        "stdin": b"\xff",
        "files": {"a": b"\xfe", "b": "B"},
        "compare": "tokens",
        "stop_on_failure": True,
    }
    table = pyarrow.table(
        {name: pyarrow.array([value]) for name, value in values.items() if name not in ("ext", "files")}
        | {"ext": pyarrow.array([values["ext"]], pyarrow.map_(pyarrow.string(), pyarrow.string()))}
        | {"files": pyarrow.array([{"a": b"\xfe", "b": "B", "c": None}])}
    )
    sandbox = SandboxConfig(timeout_limit_s=2)
    task = faasrt.ray.to_task(table.to_pylist()[0], sandbox)
    assert task == CodeTask(
        "f",
        "js",
        id="7",
        timeout_ms=1_500,
        ext={"a": "b"},
        function="f",
        args=[None],
        kwargs={"k": {"l": None}},
        sandbox=SandboxConfig(timeout_limit_s=2, memory_limit_mb=64),
        priority="high",
        idempotent=True,
        stdin=b"\xff",
        files={"a": b"\xfe", "b": b"B"},
        compare="tokens",
        stop_on_failure=True,
    )
    row = {"code": "f", "language": "js", "argv": ["a"], "collect": '["*"]', "ext": [], "tests": [], "displays": True}
    assert faasrt.ray.to_task(row, sandbox) == CodeTask(
        "f", "js", stdin=b"", files={}, argv=["a"], collect=["*"], displays=True
    )
    tested = faasrt.ray.to_task({"code": "f", "language": "js", "tests": [{"stdin": b"\xff"}]}, sandbox)
    assert tested.tests == (TestCase(stdin=b"\xff", files={}),)
    row = {"code": "f", "language": "js", "function": "f", "tests": [{"args": [None], "expected": None, "id": None}]}
    assert faasrt.ray.to_task(row, sandbox).tests == (FunctionTest([None], None),)
    fields = {field.name for field in attrs.fields(CodeTask)}
    assert fields == {*values, "argv", "collect", "tests", "displays"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"code": None}, "code must be a str"),
        ({"tests": "5"}, "tests must be a list of objects"),
        ({"tests": [5]}, "a test must be an object"),
        ({"sandbox": {"memory": 1}}, "sandbox must be an object with fields of memory_limit_mb"),
        ({"sandbox": "[1]"}, "sandbox must be an object"),
        ({"sandbox": {"memory_limit_mb": 0}}, "memory_limit_mb must be a whole number from 1"),
        ({"collect": ["/"]}, "a pattern in collect"),
        ({"ext": '{"a": 1}'}, "ext must"),
        ({"idempotent": "yes"}, "idempotent must be"),
        ({"files": '["a"]'}, "files must map paths to contents"),
        ({"args": "{}"}, "args must be a sequence"),
        ({"args": '{"a": 1'}, "Expecting"),
    ],
)
async def test_wrong_rows_are_invalid(fields: dict[str, Any], words: str) -> None:
    """The column `invalid_task` describes the wrong value. Nothing is sent, and the other rows are not affected."""
    async with FakeFaaS() as fake:
        settings = Settings(endpoints={"python": fake.url})
        rows = [{"language": "py", "code": "print(1)", "function": "f" if "args" in fields else None, **fields}]
        rows.append({"language": "py", "code": "print(2)"})
        found = await run_directly(rows, settings)
        assert words in found[0]["invalid_task"]
        assert [row["outcome"] for row in found] == [None, "OK"]
        assert [request["code"] for request in fake.requests] == ["print(2)"]


async def test_infrastructure_failures_are_columns() -> None:
    """The column `infra_error` contains the error. Failed rows can be passed to `run_tasks` again. The programs of
    idempotent rows may run again.
    """
    async with FakeFaaS() as faas:
        faas.handler = lambda body: Reply.crash() if body["code"] == "print(3)" else Reply.ok("x")
        settings = Settings(endpoints={"python": faas.url})
        rows = [{"id": str(n), "language": "py", "code": f"print({n})"} for n in range(6)]
        found = await run_directly(rows, settings)
        failed = [row for row in found if row["infra_error"]]
        assert [row["id"] for row in failed] == ["3"]
        assert failed[0]["infra_error"].startswith("ServerError: ")
        faas.handler = None
        again = await run_directly(failed, settings)
        assert [(row["id"], row["outcome"], row["infra_error"]) for row in again] == [("3", "OK", None)]
        faas.script(Reply.crash())
        [row] = await run_directly([{**rows[3], "idempotent": True}], settings)
        assert (row["outcome"], row["attempts"]) == ("OK", 2)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_example_in_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(LocalFaaS(["python"])) as faas:
        monkeypatch.setenv("COZE_LOOP_FAAS_URL", faas.url)
        name = "faasrt.ray.run_tasks"
        asyncio.run(run_examples(name, dict(docstrings())[name]))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_headers_for_a_gateway_are_not_sent_to_the_servers_of_the_nodes() -> None:
    """`Authorization` would be refused beside the token of these servers."""
    settings = Settings(headers={"Authorization": "Basic eA=="})
    [row] = run([{"language": "js", "code": "console.log(1)"}], settings, actors=1)
    assert (row["stdout"], row["outcome"]) == ("1\n", "OK")


def test_rows_of_other_languages() -> None:
    """A row may have any language that a service runs."""
    import faasrt.ray

    row = {"code": "main = print 1", "language": "Haskell"}
    assert faasrt.ray.to_task(row, SandboxConfig()).language == "haskell"


def test_settings_can_be_pickled() -> None:
    """Ray sends the settings to its actors."""
    settings = Settings(endpoints={"python": "http://127.0.0.1:1"}, envelope="always")
    assert pickle.loads(pickle.dumps(settings)) == settings
