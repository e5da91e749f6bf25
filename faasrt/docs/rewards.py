r"""Rewards that cannot be forged: faasrt in TRL, verl and Inspect AI.

A model that is rewarded for passing tests learns to pass them, also by other means than a right program. If asserts are
appended to its program, `sys.exit(0)` or a class whose `__eq__` is always true earns the full reward. With
`faasrt.rewards`, it does not:

* The program gets the input or the arguments of a test, and never the expected output or value.
* What the program prints or returns is compared outside of its sandbox.
* A program that ends early, exits, or forges output has not returned the expected value, so the test fails.
* A failure of the infrastructure is an exception or a value of your choice, never a score of 0.

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

## Test programs with asserts

Data sets such as HumanEval and MBPP have programs with `assert` statements in place of arguments and results. Such a
program is an `AssertTest`; in JSON, `{"program": ...}`. The function is the entry point. It can be left out if the test
program uses no other name that it does not define, as in MBPP:

```python
from faasrt.rewards import code_reward

HUMANEVAL = {"program": "def check(candidate):\n    assert candidate([3, 1, 2]) == [1, 2, 3]\n"}
MBPP = [{"program": "assert set(order((3, 1))) == {1, 3}"}, {"program": "assert order(()) == []"}]

completions = [
    "```python\ndef order(items):\n    return sorted(items)\n```",
    "```python\nimport os\ndef order(items):\n    os._exit(0)\n```",
]
print(code_reward(completions, tests=[[HUMANEVAL, *MBPP]] * 2, function="order"))
```

```text
[1.0, 0.0]
```

The asserts do run in a sandbox, and the expected values with them, but never in a process of the judged program:

1. The test program runs alone. The calls of the function are recorded, and every assert that needs a result is skipped.
2. The judged program runs alone, and its function is called with the recorded arguments.
3. The test program runs again, with the results, and counts the asserts that it reaches. It passes if it reaches its
   end and at least one assert, and no assert fails.

To cheat, the judged program would have to break out of its sandbox; on the embedded FaaS, each execution has a fresh
one. The test program has these limits:

* It must define everything that it uses except the function, such as the helper functions in prompts of HumanEval. An
  undefined name is an `InvalidRequestError` before anything is sent, and so is a program that does not parse.
* Arguments and results are copies. They can be None, bools, numbers, strings, bytes, dates, times, lists, tuples,
  dicts, sets, ranges and iterators of these. Values of subclasses arrive as values of these types, and NumPy's arrays
  as lists. Functions, enums and modules cannot be passed.
* Objects can be passed if both programs define their class, such as a dataclass or a `ListNode`. They have the methods
  of the program that gets them. In the test program, the class must have no special methods such as `__eq__` of its
  own, apart from those of dataclasses: for attributes that the judged program chooses, they could equal anything. A
  dataclass that only the judged program defines arrives as a record of its attributes, which equals nothing.
* A list, dict, set or object that the function changes in place is changed in the test program if the function returns
  None. Otherwise the change has no effect, because a program could change an argument that the expected value is
  computed from.
* It must make the same calls each time, at most 1,000. The modules `random` and `numpy.random` have a fixed seed.
* If it fails without the judged program, for example because of an import, `judge` raises `InvalidRequestError`.
* Each `AssertTest` has one verdict. For partial credit, make one of each assert, as above for MBPP.

Prefer `FunctionTest` where you can: one execution serves all tests of a function, and JavaScript and TypeScript work
too. `AssertTest` is for Python, and needs at least three executions, or two if the same runtime has run the test
program before, and two more whenever the arguments of a call depend on earlier results. Both are equally hard to cheat.

## TRL

Give the function to `GRPOTrainer`. The columns `tests` and `function` of the data set are its arguments:

    from faasrt.rewards import code_reward
    from trl import GRPOTrainer

    dataset = dataset.rename_columns({"test_cases": "tests", "entry_point": "function"})
    trainer = GRPOTrainer(model=..., reward_funcs=[code_reward], train_dataset=dataset, args=...)

* A data set such as HumanEval needs a column in one of the forms of `faasrt.rewards`; here its `test` becomes one:
  `dataset.map(lambda row: {"tests": json.dumps([{"program": row["test"]}])})`.
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

verl awaits `compute_score_async`, and calls `compute_score` in a few threads, or, with its reward manager "remote", in
processes, which take no asynchronous function. For other options, write a file, and name that as the path:

    from faasrt.rewards import CodeReward

    compute_score_async = CodeReward("http://faas:8000", timeout_ms=5_000, on_failure=-1.0).compute_score_async

verl needs a number for each completion, so `on_failure=None` is an error there. With the default, "raise", a failure
ends the training step. The reward managers of older versions in `verl.workers.reward_manager` may turn exceptions into
0 ("prime", and "naive" for timeouts); those in `verl.experimental.reward_loop` do not.

`faasrt serve` also answers verl's own client of SandboxFusion, but its comparisons are verl's: each failure is a 0.

## Inspect AI

`faasrt.inspect_ai` (extra `inspect`) has a scorer, a tool that runs programs of the model, and with
`sandbox="faasrt"` a sandbox for Inspect's own tools:

    from faasrt.inspect_ai import code_tests, run_code
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.solver import generate, use_tools

    tests = [{"args": [2], "expected": 3}]
    sample = Sample("Write a function inc.", metadata={"tests": tests, "function": "inc"})
    task = Task(dataset=[sample], solver=[use_tools(run_code("python")), generate()], scorer=code_tests())
    eval(task, model=...)

## In production

* **One server for all processes.** Without an endpoint, every process of a training starts an embedded FaaS. Start one
  `faasrt serve` on each machine, or a few for all, and set COZE_LOOP_FAAS_URL. A list of URLs shares the load.
* **Time limits.** The default is 30 s for each test. Programs of a model that is being trained often loop for ever, so
  set `timeout_ms`.
* **Retries.** A program runs at most once, so a connection that is lost while it runs is an exception.
  `idempotent=True` allows faasrt to run it again.
* **Logs.** Each failure of the infrastructure is a warning of the logger `faasrt`, also with a value for `on_failure`.
* **Concurrency.** Completions are judged at the same time, up to `LimiterSettings.max_concurrency`, and wait for the
  server in order.

## Check a data set

A test that no program passes teaches a model nothing. `CodeReward.check` runs the reference solutions of a data set,
and returns those that do not pass, and the rows whose tests are wrong:

```python
from faasrt.rewards import CodeReward

solutions = ["def order(items): return sorted(items)", "def order(items): return set(items)", "order = sorted"]
tests = [[{"args": [[2, 1]], "expected": [1, 2]}], [{"args": [[2, 1]], "expected": [1, 2]}], []]
for failed in CodeReward().check(solutions, tests, "order"):
    print(failed.index, failed.reason)
```

```text
1 1 of 1 tests: test 0: USER_ERROR: TypeError: the return value cannot be encoded as JSON: value is of type set
2 tests must not be empty
```

During a training, a wrong test raises `InvalidRequestError`. A note of the error has the index of the completion.

## My right program got 0: why

`await CodeReward(...).judge_async(completion, tests)` returns the verdicts, and `first_failure.difference` the reason.

| what you see | reason, and what to do |
|---|---|
| no judgement | The completion has no fenced block; see `last_code_block`. |
| *expected [1, 2], got (1, 2)* | `judge` tells lists and tuples apart. Pass `compare="alike"`, as `CodeReward` does. |
| *expected 0.3, got 0.30000000000000004* | Pass `compare="floats"`, or `floats(rel=...)` for other tolerances. |
| *expected '5', got 'n: 5'* | The program prints a prompt, as in `input("n: ")`. Its prompt must forbid this. |
| only the order of lines or items differs | Several answers are right, so pass a function as `compare`. |
| *cannot be encoded as JSON: value is of type set* | A `FunctionTest` compares JSON. Use an `AssertTest`. |
| *is not plain data*, or *cannot be passed on* | See the limits of test programs above. |
| *the program defines no function* | The name differs. Only the form of APPS finds methods of a class `Solution`. |
| a function in `if __name__ == "__main__":` is missing | Programs are imported for tests of functions. |
| an argument that was changed in place is as before | The function must return None; see above. |
| TIMEOUT | All calls of an `AssertTest` share its limit, so raise `timeout_ms`. |
| MEMORY_LIMIT | The memory limit of `sandbox` is 128 MiB by default. |
| OUTPUT_LIMIT | The output or value is longer than `max_output_bytes` of `sandbox`, 1 MiB by default. |
| SYNTAX_ERROR in a text that is no program | The last block with the name of the language is not the program. |
| ModuleNotFoundError | The server lacks the package; see `faasrt.docs.sandboxes`. |

## Cheats

faasrt is tested with 131 programs in Python and 38 in JavaScript that cheat. No `FunctionTest` and no `AssertTest`
rewards any of them, on the engines `native`, `wasm` and `deno`, and with the protocols of python-faas, js-faas,
SandboxFusion and Piston. If asserts are appended to the program and the exit code decides, more than 40 of those in
Python are rewarded. The cheats

* end the program or the process early: by exits, exceptions, signals, threads, timers, finalizers, forks and crashes;
* use up the time, the memory or the output;
* return values that equal everything, have hostile methods, or cannot be encoded;
* change the interpreter: builtins, modules, streams, trace functions, import hooks, even small integers;
* forge results: return values, frames, and messages on every descriptor;
* look for the expected values: in frames, the heap, memory, source, files, the environment, and other processes;
* use the arguments: change them, return them, or remember those of other cases.

A server that does not end programs at their time limit, such as python-faas, relies on a loop guard inside the
interpreter. A program that breaks the guard gets no reward, but the call may end with a `DeadlineExceededError`, which
is a failure of the infrastructure: `on_failure` decides on its value. So is, on Piston, a program that breaks the
interpreter so that it prints without end.

## What remains possible

No kind of test helps if the test itself can be passed without a solution:

* A test that only compares results with each other, such as `assert decode(encode(x)) == x`.
* A test whose arguments contain the expected value.
* A test that looks only at types or lengths.
* A test that only expects an exception.
* A test that fails only if a comparison is true, such as `assert not abs(f(x) - 6) > 1e-6`: no comparison with NaN is.
* A loop over the result, such as `for got, right in zip(f(x), expected): assert got == right`, if it may be empty.
* Expected values that the program knows: a table of answers that the model has learned, or a guess between two values.

Use many tests, and inputs that the prompt does not show. Tests of one function share a process, so a program can count
the calls, and see the arguments of others.
"""

__docformat__ = "markdown"
