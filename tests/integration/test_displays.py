"""Displays: the value of the last expression, `display`, and figures, in the engine `native`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from faasrt import Language, Outcome
from faasrt.local.engines.engine import Engine, EngineJob, EngineResult
from faasrt.protocol.execution_limits import ExecutionLimits
from support.engines import native_engine
from support.levels import NATIVE
from support.tables import block

pytestmark = [pytest.mark.asyncio(loop_scope="module"), NATIVE]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    async with native_engine(Path(tmp_path_factory.mktemp("displays"))) as engine:
        yield engine


async def run(engine: Engine, code: str, max_output_bytes: int = 1_000_000) -> EngineResult:
    limits = ExecutionLimits(timeout_ms=60_000, memory_limit_mb=512, max_output_bytes=max_output_bytes)
    return await engine.execute(EngineJob(language=Language.PYTHON, code=code, limits=limits, displays=True))


TEXTS = {
    "an expression": ("1 + 1", ["2"]),
    "a text": ("'a'", ["'a'"]),
    "None": ("None", []),
    "a statement": ("x = 1", []),
    "a semicolon": ("1;", []),
    "a semicolon and a comment": ("(\n1\n) \\\n ; # x", []),
    "a comment with a semicolon": ("'é'  # ;", ["'é'"]),
    "top-level await": ("import asyncio\nx = await asyncio.sleep(0, 3)\nx", ["3"]),
    "display": ("display(1, 'b')\ndisplay(2)\n", ["1", "'b'", "2"]),
    "a repr that raises an exception": (
        block("""
            class A:
                def __repr__(self): 1 / 0
            A()
        """),
        ["<repr() of A raised ZeroDivisionError>"],
    ),
    "an error after a display": ("display(1)\n1 / 0\n5", ["1"]),
    "a mock": ("from unittest.mock import Mock\nrepr(Mock()) != ''\nMock(name='m') is None", ["False"]),
    "one expression in another": ("if True:\n    5", []),
    "several expressions": ("1\n2\n3", ["3"]),
}


@pytest.mark.parametrize(("code", "texts"), TEXTS.values(), ids=TEXTS)
async def test_the_last_expression_and_display(engine: Engine, code: str, texts: list[str]) -> None:
    """The value of the last expression and the arguments of `display` are displays, and do not go to stdout."""
    result = await run(engine, code)
    assert [display.text for display in result.displays] == texts
    assert (result.stdout, result.ret_val) == ("", "")
    assert (result.outcome is Outcome.OK) is ("1 / 0\n5" not in code)


RICH = """
class Rich:
    def __repr__(self): return 'rich'
    def _repr_html_(self): return '<b>', {'metadata': 1}
    def _repr_png_(self): return b'png'
    def _repr_json_(self): return {'a': [1]}
    def _repr_svg_(self): raise ValueError
    def _repr_markdown_(self): raise SystemExit
    def _repr_latex_(self): return None
class Bundle(Rich):
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {'text/plain': 'bundle', 'image/jpeg': 'anBlZw==', 'no type': 'x', 'text/html': '<i>'}
"""
RICH_DATA: dict[str, str | bytes] = {
    "text/plain": "rich",
    "text/html": "<b>",
    "image/png": b"png",
    "application/json": '{"a": [1]}',
}


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("Rich()", RICH_DATA),
        ("Bundle()", {**RICH_DATA, "text/plain": "bundle", "image/jpeg": b"jpeg", "text/html": "<i>"}),
        (
            "display({'text/html': '<p>', 'image/png': 'cG5n', 'x/y': 5}, raw=True)",
            {"text/html": "<p>", "image/png": b"png"},
        ),
    ],
)
async def test_an_object_has_several_formats(engine: Engine, code: str, data: Mapping[str, str | bytes]) -> None:
    """The methods of Jupyter give further formats. One that raises an exception, or returns None, is skipped."""
    (display,) = (await run(engine, RICH + code)).displays
    assert (dict(display.data), display.omitted) == (data, ())


async def test_a_class_is_displayed_as_text_only(engine: Engine) -> None:
    """The methods of its instances are not called."""
    (display,) = (await run(engine, RICH + "Rich")).displays
    assert dict(display.data) == {"text/plain": "<class '__main__.Rich'>"}


async def test_a_table_of_pandas_is_html(engine: Engine) -> None:
    """It is text, too."""
    (display,) = (await run(engine, "import pandas\npandas.DataFrame({'column': [1]})")).displays
    assert "column" in display.text
    assert display.html is not None
    assert "<table" in display.html


async def test_figures_are_images(engine: Engine) -> None:
    """Open figures are displayed at `plt.show()` and at the end, each once. Empty figures are not."""
    code = """
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
print(plt.get_fignums())
plt.figure()
figure, axes = plt.subplots()
display(figure)
plt.figure(figsize=(2, 1)).text(0, 0, 'text')
None
"""
    result = await run(engine, code)
    assert (result.outcome, result.stdout) == (Outcome.OK, "[]\n")
    assert [display.text for display in result.displays] == [
        *["<Figure size 640x480 with 1 Axes>"] * 2,
        "<Figure size 200x100 with 0 Axes>",
    ]
    assert all(display.png is not None and display.png.startswith(b"\x89PNG") for display in result.displays)


async def test_figures_are_images_with_another_backend(engine: Engine) -> None:
    """A program that chooses the backend Agg still gets its open figures at its end, even if it fails."""
    code = "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt\nplt.plot([1])\n1 / 0"
    (display,) = (await run(engine, code)).displays
    assert display.png is not None


async def test_data_beyond_the_output_limit_is_named(engine: Engine) -> None:
    """The limit holds for all displays together, in order; smaller ones that come later still fit."""
    code = "display('a' * 50)\ndisplay({'text/plain': 'b', 'image/png': b'c' * 90}, raw=True)\ndisplay('d' * 80)\n'e'"
    result = await run(engine, code, max_output_bytes=150)
    assert [(dict(display.data), display.omitted) for display in result.displays] == [
        ({"text/plain": f"'{'a' * 50}'"}, ()),
        ({"text/plain": "b"}, ("image/png",)),
        ({}, ("text/plain",)),
        ({"text/plain": "'e'"}, ()),
    ]
    assert result.truncated == ("displays",)


@pytest.mark.parametrize(
    "code", ["for i in range(2000): display(i)", "display({f'x/{i}': 'y' for i in range(99)}, raw=True)"]
)
async def test_too_many_displays_are_cut(engine: Engine, code: str) -> None:
    """At most 1,000 displays with 16 formats each are returned."""
    result = await run(engine, code)
    assert len(result.displays) <= 1000
    assert all(len(display.data) <= 16 for display in result.displays)
    assert result.truncated == ("displays",)


FORGED = """
import os
def forge(*texts):
    for text in texts: os.write(255, text + b'\\n')
"""


@pytest.mark.parametrize(
    "messages",
    [
        r"""b'{"kind":"display","number":1,"type":"' + b'x' * 1000 + b'/y","content":"z"}'""",
        r"""b'{"kind":"display","number":1,"type":"image/png","content":5}'""",
        r"""b'{"kind":"display","number":"1","type":"x/y","content":"z"}', b'{"kind":"display"'""",
        r"""b'{"kind":"display","number":1,"type":"x/y\\n","content":"z"}'""",
        r"""b'{"kind":"display","number":1,"type":"x/y","content":[[[[[[[[]]]]]]]]}'""",
    ],
)
async def test_forged_displays_are_ignored(engine: Engine, messages: str) -> None:
    """Malformed messages of a program do not affect the others."""
    result = await run(engine, f"{FORGED}\nforge({messages})\n'mine'")
    assert (result.outcome, [display.text for display in result.displays]) == (Outcome.OK, ["'mine'"])


async def test_forged_displays_are_bounded(engine: Engine) -> None:
    """The server enforces the limits, too."""
    code = f"""{FORGED}
for i in range(3000): forge(b'{{"kind":"display","number":%d,"type":"x/y","content":"%s"}}' % (i, b'z' * 500))
forge(b'{{"kind":"display","number":0,"type":"image/png","content":"A"}}')
"""
    result = await run(engine, code, max_output_bytes=10_000)
    assert len(result.displays) == 1000
    assert sum(len(display.data.get("x/y", "")) for display in result.displays) <= 10_000
    assert result.displays[0].omitted == ("image/png",)
    assert result.truncated == ("displays",)


async def test_programs_without_displays_have_no_display(engine: Engine) -> None:
    """Programs have neither the builtin nor the backend unless the caller asks for displays."""
    code = "import os, sys\nprint('display' in dir(__builtins__), 'MPLBACKEND' in os.environ)\n5"
    limits = ExecutionLimits(timeout_ms=60_000, memory_limit_mb=512, max_output_bytes=1000)
    result = await engine.execute(EngineJob(language=Language.PYTHON, code=code, limits=limits))
    assert (result.stdout, result.displays) == ("False False\n", ())
