r"""Rewards that cannot be forged: faasrt in TRL, verl and Inspect AI.

A model that is rewarded for passing tests learns to pass them, also by other means than a right program. If asserts are
appended to its program, `sys.exit(0)` or a class whose `__eq__` is always true earns the full reward. `faasrt.rewards`
gives such a program nothing:

* The program gets the input or the arguments of a test. The expected output or value never enters the sandbox.
* What the program prints or returns is compared outside of the sandbox.
* A program that ends early, exits, or forges output has not returned the expected value, so the test fails.
* A failure of the infrastructure is an exception, or a value of your choice, never a score of 0 by accident.

## A reward function

A reward function takes lists: completions, and a column with the tests of each. A completion is a text, or a list of
chat messages. Its program is the last fenced block. `faasrt.rewards` lists the forms of tests; JSON is best in a column
of a data set. With `function`, tests call a function of the program. Otherwise the program reads stdin.

```python
from faasrt.rewards import code_reward

TESTS = '[{"args": [[3, 1, 2]], "expected": [1, 2, 3]}, {"args": [[]], "expected": []}]'

completions = [
    "Use `sorted`:\n```python\ndef order(items):\n    return sorted(items)\n```",
    "```python\ndef order(items):\n    return items\n```",
    "```python\nclass Right:\n    __eq__ = lambda self, other: True\ndef order(items):\n    return Right()\n```",
    "```python\nimport sys\nsys.exit(0)\n```",
    "It cannot be done.",
]
print(code_reward(completions, tests=[TESTS] * 5, function="order"))
```

```text
[1.0, 0.5, 0.0, 0.0, 0.0]
```

The reward is the share of the tests that passed. `code_reward` uses the endpoints in the environment, such as
COZE_LOOP_FAAS_URL, or else the embedded FaaS. For other options, make a reward function of your own:

```python
from faasrt.rewards import CodeReward

reward = CodeReward(partial_credit=False, timeout_ms=5_000, idempotent=True, on_failure=None)
print(reward.code_reward(["```python\nprint(input()[::-1])\n```"], tests=[[{"stdin": "abc", "expected": "cba"}]]))
```

```text
[1.0]
```

## TRL

Give the function to `GRPOTrainer`. The columns `tests` and `function` of the data set are its arguments:

    from faasrt.rewards import code_reward
    from trl import GRPOTrainer

    dataset = dataset.rename_columns({"test_cases": "tests", "entry_point": "function"})
    trainer = GRPOTrainer(model=..., reward_funcs=[code_reward], train_dataset=dataset, args=...)

* TRL runs asynchronous reward functions at the same time. `code_reward_async` and `CodeReward(...).code_reward_async`
  are such functions.
* A row whose `tests` are None gets no reward (None), and so does a failure of the infrastructure with
  `on_failure=None`. TRL leaves both out of the means, and warns if a row has no reward at all.
* A function with a fixed argument: `functools.partial(code_reward, function="solve")`.

## verl

Name the module in the configuration. The field `ground_truth` of the data set has the tests, in verl's own form,
`{"inputs": [...], "outputs": [...], "fn_name": ...}`, or in another one, such as
`{"function": "f", "tests": [{"args": [1], "expected": 2}]}`.

    reward.custom_reward_function.path=pkg://faasrt.rewards
    reward.custom_reward_function.name=compute_score_async
    +ray_kwargs.ray_init.runtime_env.env_vars.COZE_LOOP_FAAS_URL=http://faas:8000

verl awaits `compute_score_async`, and calls `compute_score` in a few threads. For other options, write a file, and name
that as the path:

    from faasrt.rewards import CodeReward

    compute_score_async = CodeReward("http://faas:8000", timeout_ms=5_000, on_failure=-1.0).compute_score_async

verl needs a number for each completion, so `on_failure=None` is an error there. With the default, "raise", a failure
ends the training step. The reward managers of older versions in `verl.workers.reward_manager` may turn exceptions into
0 ("prime", and "naive" for timeouts); those in `verl.experimental.reward_loop` do not.

`faasrt serve` also answers verl's own client of SandboxFusion, but its comparisons are verl's: each failure is a 0.

## Inspect AI

`faasrt.inspect_ai` (extra `inspect`) has a scorer, and a tool that runs programs of the model:

    from faasrt.inspect_ai import code_tests, run_code
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import generate, use_tools

    tests = [{"args": [2], "expected": 3}]
    sample = Sample("Write a function inc.", metadata={"tests": tests, "function": "inc"})
    task = Task(dataset=[sample], solver=[use_tools(run_code("python")), generate()], scorer=code_tests())
    eval(task, model=...)

There is no sandbox provider yet: the module says why, and what that means.

## In production

* **One server for all processes.** Without an endpoint, every process of a training starts an embedded FaaS. Start one
  `faasrt serve` on each machine, or a few for all, and set COZE_LOOP_FAAS_URL. A list of URLs shares the load.
* **Time limits.** The default is 30 s for each test. Programs of a model that is being trained often loop for ever, so
  set `timeout_ms`.
* **Retries.** A program runs at most once, so a connection that is lost while it runs is an exception.
  `idempotent=True` allows faasrt to run it again.
* **Checks of a data set.** Tests in a wrong form are an `InvalidRequestError` before anything runs. To find them before
  the training, score an empty completion for each row: `code_reward([""] * len(rows), tests=rows)`.
* **Concurrency.** Completions are judged at the same time, up to `LimiterSettings.max_concurrency`, and wait for the
  server in order.

## What remains possible

A program can still do well by solving only the tests that there are: with few or easy tests, a table of answers that it
has learned, or a guess between two values, earns a reward. Use many tests, and inputs that the prompt does not show.
Tests of one function share a process, so a program can count the calls, and see the arguments of earlier ones.
"""

__docformat__ = "markdown"
