"""Rewards in the code of TRL and verl, the tool and the scorer in Inspect AI, and the recipes of the guide for
lm-evaluation-harness and EvalPlus.

`.ci/run frameworks` installs these packages, TRL and verl without torch and their other dependencies. So their modules
cannot be imported. The tests take the functions that call rewards out of the modules' files, and run them unchanged,
with stand-ins for tensors, tokenizers and the objects around them.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import math
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal

from faasrt import SandboxConfig, sync
from faasrt.rewards import CodeReward
from faasrt.testing import FakeFaaS, Reply
from support.documents import indented_blocks, text_of

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # of Inspect AI
]

RIGHT = "```python\ndef inc(n):\n    return n + 1\n```"
HALF = "```python\ndef inc(n):\n    return 2\n```"
TESTS: list[dict[str, Any]] = [{"args": [1], "expected": 2}, {"args": [2], "expected": 3}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of an embedded FaaS, to which the environment points."""
    with sync.RuntimeManager.local(["python"], workers=2) as manager, pytest.MonkeyPatch.context() as patch:
        assert manager.local_faas is not None
        patch.setenv("COZE_LOOP_FAAS_URL", manager.local_faas.url)
        yield manager.local_faas.url


def file_of(package: str, path: str) -> Path:
    return Path(str(importlib.metadata.distribution(package).locate_file(f"{package}/{path}")))


def take(package: str, path: str, name: str, **names: Any) -> Any:
    """Return a function or class of a module that cannot be imported, unchanged, with these names as its globals."""
    file = file_of(package, path)
    [node] = [node for node in ast.walk(ast.parse(file.read_text())) if getattr(node, "name", "") == name]
    module = ast.parse("from __future__ import annotations")
    assert isinstance(node, ast.stmt)
    module.body.append(node)
    namespace = {"__name__": f"{package}.{name}", **names}
    exec(compile(module, str(file), "exec"), namespace)
    return namespace[name]


class Trainer:
    """What `GRPOTrainer._calculate_rewards` uses of its trainer."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None, *reward_funcs: Callable[..., Any]) -> None:
        name_of = take("trl", "trainer/utils.py", "get_callable_name", functools=functools)
        self.accelerator = types.SimpleNamespace(device="cpu")
        self.async_loop = loop
        self.environments = None
        self.state = object()
        self.reward_funcs = list(reward_funcs)
        self.reward_func_names = [name_of(reward_func) for reward_func in reward_funcs]
        self.reward_processing_classes = [None for _ in reward_funcs]
        self._log_metric = self._log_completion_extra = lambda name, value: None

    def calculate_rewards(self, completions: list[Any], **columns: list[Any]) -> list[list[float]]:
        """Return the rewards of each completion, one for each function."""
        import numpy as np

        class Tensor(np.ndarray):  # type: ignore[type-arg]
            def all(self, dim: int) -> Tensor:  # type: ignore[override]
                found: Any = np.asarray(self).all(axis=dim)
                return found.view(Tensor)  # type: ignore[no-any-return]

            def nonzero(self, as_tuple: bool) -> tuple[Any, ...]:  # type: ignore[override]
                return super().nonzero()

        torch = types.SimpleNamespace(
            nan=math.nan,
            float32=np.float32,
            zeros=lambda *shape, device: np.zeros(shape).view(Tensor),
            tensor=lambda values, dtype, device: np.array(values, dtype),
            isnan=lambda tensor: np.isnan(tensor).view(Tensor),
        )
        is_async = take("trl", "trainer/utils.py", "is_async_callable", functools=functools, inspect=inspect)
        calculate = take(
            "trl",
            "trainer/grpo_trainer.py",
            "_calculate_rewards",
            asyncio=asyncio,
            torch=torch,
            nn=types.SimpleNamespace(Module=type("Module", (), {})),
            is_async_callable=is_async,
            profiling_decorator=lambda function: function,
            profiling_context=lambda *_: contextlib.nullcontext(),
            gather=lambda rewards: rewards,
            logger=logging.getLogger("trl"),
        )
        prompts = ["Write inc."] * len(completions)
        inputs = [
            {"prompt": prompts[0]} | {name: column[i] for name, column in columns.items()} for i in range(len(prompts))
        ]
        found: list[list[float]] = calculate(self, inputs, prompts, completions, [[1]] * len(prompts)).tolist()
        return found


def test_trl(url: str, portal: BlockingPortal, fake: FakeFaaS, caplog: pytest.LogCaptureFixture) -> None:
    """`GRPOTrainer` gets the rewards of functions of both kinds, and leaves rows without tests out."""
    from faasrt.rewards import code_reward, code_reward_async

    completions = [RIGHT, [{"role": "assistant", "content": HALF}], "no program", RIGHT]
    columns: dict[str, list[Any]] = {"tests": [json.dumps(TESTS), TESTS, TESTS, None], "function": ["inc"] * 4}
    strict = CodeReward(url, partial_credit=False)
    loop = portal.call(asyncio.get_running_loop)
    trainer = Trainer(loop, code_reward, code_reward_async, functools.partial(strict.code_reward, level="easy"))
    assert trainer.reward_func_names == ["code_reward", "code_reward_async", "code_reward"]
    rewards = trainer.calculate_rewards(completions, **columns)
    assert rewards[:3] == [[1, 1, 1], [0.5, 0.5, 0], [0, 0, 0]]
    assert all(map(math.isnan, rewards[3]))
    assert "All reward functions returned None" in caplog.text
    fake.default = Reply.crash()
    failing = CodeReward(fake.url, on_failure=None)
    rewards = Trainer(loop, code_reward, failing.code_reward_async).calculate_rewards(
        completions[:3], tests=columns["tests"][:3], function=["inc"] * 3
    )
    assert [row[0] for row in rewards] == [1, 0.5, 0]
    assert [str(row[1]) for row in rewards] == ["nan", "nan", "0.0"]


class VerlItem:
    """A sample with one character for each token."""

    def __init__(self, response: str, ground_truth: Any) -> None:
        import numpy as np

        ids = np.array([ord(character) for character in response] + [0] * 5)
        mask = np.array([1] * (3 + len(response)) + [0] * 5)  # the prompt has three tokens
        self.batch = {"responses": ids, "attention_mask": mask}
        self.non_tensor_batch = {
            "data_source": "apps",
            "reward_model": {"ground_truth": ground_truth},
            "extra_info": {},
        }


def verl_manager(monkeypatch: pytest.MonkeyPatch, path: str, name: str) -> Any:
    """Return a `NaiveRewardManager` with a custom reward function, loaded as verl loads it."""
    spec = importlib.util.spec_from_file_location("verl.utils.import_utils", file_of("verl", "utils/import_utils.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for parent in ("verl", "verl.utils"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, "verl.utils.import_utils", module)
    names = {
        each: take("verl", "trainer/ppo/reward.py", each) for each in ("_call_with_kwargs", "_call_with_kwargs_async")
    }
    load = take(
        "verl", "trainer/ppo/reward.py", "get_custom_reward_fn", inspect=inspect, partial=functools.partial, **names
    )
    custom = {"path": path, "name": name, "reward_kwargs": {}}
    compute_score = load(types.SimpleNamespace(reward={"custom_reward_function": custom}))

    class Base:
        def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
            self.tokenizer, self.loop = tokenizer, asyncio.get_running_loop()

    manager = take(
        "verl",
        "experimental/reward_loop/reward_manager/naive.py",
        "NaiveRewardManager",
        inspect=inspect,
        register=lambda name: lambda kind: kind,
        RewardManagerBase=Base,
        default_compute_score=None,
    )
    tokenizer = types.SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)))
    return manager(None, tokenizer, compute_score, "http://127.0.0.1:1")


def settings_of_verl(text: str) -> list[str]:
    """Return the names of settings in a page of the guide: those of a part of the configuration, before "="."""
    return re.findall(r"\+?\b(?:reward|reward_model|ray_kwargs)\.[\w.]+(?==)", text)


def test_names_of_the_settings_of_verl() -> None:
    """verl's own configuration has each setting that the guide names; "+" adds one to a part that exists."""
    import yaml

    config = yaml.safe_load(file_of("verl", "trainer/config/_generated_ppo_trainer.yaml").read_text())
    pages = [text_of(f"faasrt/docs/{page}.md") for page in ("rewards", "service-clients")]
    names = {name for page in pages for name in settings_of_verl(page)}
    assert names >= {
        "reward.sandbox_fusion.url",
        "reward.custom_reward_function.path",
        "reward.custom_reward_function.name",
    }
    for name in names:
        parts = name.lstrip("+").split(".")
        part = config
        for key in parts[:2] if name.startswith("+") else parts:
            assert key in part, f"verl {importlib.metadata.version('verl')} has no setting {name}"
            part = part[key]
    for page in pages:
        assert f"{'.'.join(importlib.metadata.version('verl').split('.')[:2])}." in page


def test_names_of_the_arguments_of_trl() -> None:
    """`GRPOTrainer` has the arguments that the guide passes."""
    tree = ast.parse(file_of("trl", "trainer/grpo_trainer.py").read_text())
    [trainer] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "GRPOTrainer"]
    [init] = [node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    names = {argument.arg for argument in [*init.args.args, *init.args.kwonlyargs]}
    [call] = re.findall(r"GRPOTrainer\((.*)\)", text_of("faasrt/docs/rewards.md"))
    assert set(re.findall(r"(\w+)=", call)) <= names


async def test_asserts_in_verl(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the two lines of the guide, right programs earn 1 and cheats nothing."""
    manager = verl_manager(monkeypatch, "pkg://faasrt.rewards", "compute_score_async")
    tests = json.dumps({"fn_name": "inc", "assert_case": ["assert inc(1) == 2", "assert inc(2) == 3"]})
    equal = "```python\nclass Any:\n    __eq__ = lambda *_: True\ndef inc(n):\n    return Any()\n```"
    texts = [RIGHT, HALF, "```python\nimport os\nos._exit(0)\n```", equal]
    found = await asyncio.gather(*(manager.run_single([VerlItem(text, tests)]) for text in texts))
    assert [each["reward_score"] for each in found] == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
@pytest.mark.parametrize("kind", ["package", "file"])
async def test_verl(name: str, kind: str, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """verl loads the function from the package, or from a file with other options, and gets a float."""
    file = tmp_path / "reward.py"
    file.write_text(f"from faasrt.rewards import CodeReward\n{name} = CodeReward({url!r}, timeout_ms=9_000).{name}\n")
    manager = verl_manager(monkeypatch, "pkg://faasrt.rewards" if kind == "package" else str(file), name)
    assert manager.is_async_reward_score == name.endswith("async")
    tests = json.dumps({"inputs": ["1", "2"], "outputs": ["2", "3"], "fn_name": "inc"})
    found = await asyncio.gather(*(manager.run_single([VerlItem(text, tests)]) for text in (RIGHT, HALF, "nothing")))
    assert [each["reward_score"] for each in found] == [1.0, 0.5, 0.0]
    assert found[1]["reward_extra_info"] == {"acc": 0.5}


def evaluate(tmp_path: Path, samples: list[Any], outputs: list[Any], solver: Any, scorer: Any) -> Any:
    """Run a task of Inspect AI with a model that gives these outputs. Return the log."""
    from inspect_ai import Task, eval as evaluate_task
    from inspect_ai.model import ModelOutput, get_model

    async def estimate(text: str) -> int:
        return len(text) // 4

    given = [ModelOutput.from_content("mockllm", each) if isinstance(each, str) else each for each in outputs]
    model = get_model("mockllm/model", custom_outputs=given)
    model.api.count_text_tokens = estimate  # its own method downloads a table
    task = Task(dataset=samples, solver=solver, scorer=scorer)
    [log] = evaluate_task(task, model=model, log_dir=str(tmp_path), display="none", max_samples=1, fail_on_error=False)
    return log


def tool_call(name: str, code: str) -> Any:
    from inspect_ai.model import ModelOutput

    return ModelOutput.for_tool_call("mockllm", name, {"code": code})


@pytest.mark.usefixtures("url")
def test_inspect_tool(tmp_path: Path) -> None:
    """The model gets the output and errors of its programs, and a tool error for those that were ended."""
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import generate, use_tools

    from faasrt.inspect_ai import run_code

    programs = ["print(6 * 7)", "print(1)\n1 / 0", "def f(:", "while True: pass", " ", "x = 1", "print(x)"]
    log = evaluate(
        tmp_path,
        [Sample("?")],
        [*(tool_call("python", program) for program in programs), "done"],
        [use_tools(run_code(timeout_ms=1_000, sandbox=SandboxConfig(memory_limit_mb=256))), generate()],
        None,
    )
    [sample] = log.samples
    assert sample.error is None
    found = [(message.text, message.error) for message in sample.messages if message.role == "tool"]
    assert [error.message if error else None for _, error in found] == [
        None,
        None,
        None,
        "TIMEOUT: timeout after 1000 ms (timeout_ms)",
        "The program is empty.",
        None,
        None,
    ]
    assert found[0][0] == "42\n"
    assert "ZeroDivisionError" in found[1][0]
    assert found[1][0].endswith("\n1\n")
    assert "SyntaxError" in found[2][0]
    assert "NameError" in found[6][0]


@pytest.mark.usefixtures("url")
def test_inspect_scorer(tmp_path: Path) -> None:
    """Tests are in the metadata or the target. A completion without a program has no answer."""
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import CORRECT, INCORRECT, NOANSWER
    from inspect_ai.solver import generate

    from faasrt.inspect_ai import code_tests

    hidden = {"tests": TESTS, "function": "inc"}
    in_target = Sample("?", target=json.dumps({"inputs": ["1"], "outputs": ["2"], "fn_name": "inc"}))
    samples = [*(Sample("?", metadata=hidden) for _ in range(3)), in_target]
    outputs = [RIGHT, HALF, "I do not know.", RIGHT]
    log = evaluate(tmp_path, samples, outputs, generate(), code_tests())
    scores = [sample.scores["code_tests"] for sample in log.samples]
    assert [score.value for score in scores] == [CORRECT, INCORRECT, NOANSWER, CORRECT]
    assert [score.answer for score in scores[1:3]] == ["def inc(n):\n    return 2\n", None]
    assert scores[0].explanation == "2 of 2 tests passed."
    assert scores[1].explanation == "1 of 2 tests passed. WRONG_ANSWER: value: expected 3, got 2"
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    log = evaluate(tmp_path, samples, outputs, generate(), code_tests(partial_credit=True))
    assert [sample.scores["code_tests"].value for sample in log.samples] == [1.0, 0.5, NOANSWER, 1.0]


def test_failures_in_inspect(tmp_path: Path, fake: FakeFaaS) -> None:
    """They are errors of the sample, not answers."""
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import generate, use_tools

    from faasrt.inspect_ai import code_tests, run_code

    fake.default = Reply.crash()
    samples = [Sample("?", metadata={"tests": TESTS, "function": "inc"})]
    tools = [use_tools(run_code("js", fake.url)), generate()]
    for log in (
        evaluate(tmp_path, samples, [RIGHT], generate(), code_tests(fake.url)),
        evaluate(tmp_path, samples, [tool_call("javascript", "1"), "done"], tools, None),
    ):
        assert "ServerError" in log.samples[0].error.message + log.samples[0].error.traceback
        assert not log.samples[0].scores


@pytest.mark.usefixtures("url")
def test_inspect_sandbox(tmp_path: Path) -> None:
    """Inspect's own tools run the commands of the model in it. Each sample has its own files."""
    from inspect_ai import Task, eval as evaluate_task
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput, get_model
    from inspect_ai.solver import generate, use_tools
    from inspect_ai.tool import bash, python

    def calls() -> list[Any]:
        return [
            ModelOutput.for_tool_call("mockllm", "bash", {"command": "ls n *.txt; echo 6 > n; cat given.txt"}),
            ModelOutput.for_tool_call("mockllm", "python", {"code": "print(int(open('n').read()) * 7)"}),
            ModelOutput.from_content("mockllm", "done"),
        ]

    async def estimate(text: str) -> int:
        return len(text) // 4

    model = get_model("mockllm/model", custom_outputs=[*calls(), *calls()])
    model.api.count_text_tokens = estimate
    samples = [Sample("?", files={"given.txt": "given"}) for _ in range(2)]
    task = Task(dataset=samples, solver=[use_tools(bash(timeout=30), python()), generate()], sandbox="faasrt")
    [log] = evaluate_task(task, model=model, log_dir=str(tmp_path), display="none", max_samples=1)
    assert log.status == "success", log.error
    for sample in log.samples:
        shown = [message.text for message in sample.messages if message.role == "tool"]
        assert shown[0].endswith("No such file or directory\n\ngiven.txt\ngiven")
        assert shown[1] == "42\n"


async def test_inspect_checks_of_sandboxes(url: str) -> None:
    """The sandbox passes the checks that Inspect has for sandboxes, except for other users, an input of 50 MiB, and an
    output of 1 MiB.
    """
    from inspect_ai.util._sandbox import self_check

    from faasrt.inspect_ai import FaasrtSandbox

    failed = {}
    environments = await FaasrtSandbox.sample_init("task", None, {})
    for name in self_check.__all__:
        try:
            await getattr(self_check, name)(environments["default"])
        except Exception as error:
            failed[name] = repr(error)
    await FaasrtSandbox.sample_cleanup("task", None, environments, False)
    assert sorted(failed) == ["test_exec_as_user", "test_exec_input_large", "test_exec_large_command"], failed


FIND = """
from inspect_ai._util.registry import registry_create, registry_info

for kind, name in (("scorer", "faasrt/code_tests"), ("tool", "faasrt/run_code")):
    print(registry_info(registry_create(kind, name, timeout_ms=1_000)).name)
"""


def test_inspect_finds_tool_and_scorer_by_name(tmp_path: Path) -> None:
    """Through the entry point of the package, as in `inspect score --scorer faasrt/code_tests`."""
    done = subprocess.run([sys.executable, "-c", FIND], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "faasrt/code_tests\nfaasrt/run_code\n", done.stderr


def recipe(title: str) -> list[str]:
    return indented_blocks("faasrt/docs/rewards.md", title)


# Rows of openai/openai_humaneval and evalplus/humanevalplus. The comparison is shorter than that of EvalPlus.
HALF_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'def half(n):\n    return n / 2\n\ndef quarter(n):\n    """ Return a quarter. """\n',
    "canonical_solution": "    return half(half(n))\n",
    "test": "def check(candidate):\n    assert candidate(8) == half(4)\n",
    "entry_point": "quarter",
}
PLUS_ROW = {
    "task_id": "HumanEval/1",
    "prompt": 'def inc(n):\n    """ Return n + 1. """\n',
    "canonical_solution": "    return n + 1\n",
    "test": "import numpy as np\n\ndef is_floats(x) -> bool:\n    return isinstance(x, float)\n\n"
    "def assertion(out, exp, atol):\n    exact_match = out == exp\n    assert exact_match\n\n"
    f"def check(candidate):\n    inputs = {[[n] for n in range(50)]}\n    results = {list(range(1, 51))}\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
    "entry_point": "inc",
}


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in (HALF_ROW, PLUS_ROW)))
    return file


@pytest.mark.usefixtures("url")
def test_lm_evaluation_harness(tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of the guide is loaded by the package, and gives right programs 1, and wrong ones and cheats 0."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    assert importlib.metadata.version("lm_eval").startswith("0.4.")
    task, functions, command = recipe("Use it in lm-evaluation-harness")
    assert "--include_path . --tasks humaneval_faasrt" in command
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows_file}}}}}\nrepeats: 2\n"
    (tmp_path / "humaneval_faasrt.yaml").write_text(task.replace("dataset_path: openai/openai_humaneval\n", data))
    (tmp_path / "humaneval_faasrt.py").write_text(functions)
    responses = {
        HALF_ROW["prompt"]: ["    return half(half(n))", "    import os; os._exit(0)"],
        PLUS_ROW["prompt"]: ["    return n + 1\n```\nIt adds 1:\n```python\ninc = 0\n```", "    return 1 + n"],
    }

    class Scripted(LM):  # type: ignore[misc]
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [responses[request.args[0]].pop(0) for request in requests]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    found = lm_eval.simple_evaluate(
        Scripted(),
        tasks=["humaneval_faasrt"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert found["results"]["humaneval_faasrt"]["pass@1,faasrt"] == 0.75
    assert [sample["pass@1"] for sample in found["samples"]["humaneval_faasrt"]] == [0.5, 1.0]


@pytest.mark.usefixtures("url")
def test_evalplus(
    tmp_path: Path, rows_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program of the guide reads samples as `evalplus.codegen` writes them, with the package's own function."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    import datasets
    from evalplus.data import write_jsonl

    [program] = recipe("Use it for samples of EvalPlus")
    assert importlib.metadata.version("evalplus").startswith("0.3.")
    solutions = [
        ("HumanEval/0", HALF_ROW["prompt"] + HALF_ROW["canonical_solution"]),
        ("HumanEval/1", "def inc(n):\n    return n + 1\n"),
        ("HumanEval/1", "def inc(n):\n    return n + 1 if n < 49 else 0\n"),
        ("HumanEval/1", "class Any:\n    __eq__ = lambda *_: True\ndef inc(n):\n    return Any()\n"),
    ]
    write_jsonl(str(tmp_path / "samples.jsonl"), [{"task_id": task, "solution": text} for task, text in solutions])
    load = datasets.load_dataset

    def load_rows(path: str, split: str) -> Any:
        assert path == "evalplus/humanevalplus"
        return load("json", data_files={split: str(rows_file)}, split=split)

    monkeypatch.setattr(datasets, "load_dataset", load_rows)
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert capsys.readouterr().out.splitlines()[-1] == "pass@1: 0.5"
