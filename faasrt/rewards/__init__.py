r"""Rewards for reinforcement learning: the score of the program in a completion, by tests that the program cannot see.

`code_reward` is a reward function for TRL's `GRPOTrainer`, and `compute_score` one for verl. `CodeReward` makes such
functions with other options. `faasrt/docs/rewards.md` shows how to configure both frameworks, and what a model could
try.

**The program** is the last fenced block of the completion; see `last_code_block`. In a conversation, it is the last
block of the last message of the assistant. A completion without a program gets `no_code`, which is 0 by default.

**The tests** of a completion have one of these forms. Text is the JSON of one of the others, as in the columns of a
data set.

    tests                           an iterable of `TestCase`, or, with a function, of `FunctionTest` or `AssertTest`
    objects                         a list of `{"stdin": ..., "expected": ...}`, or, with a function, of
                                    `{"args": ..., "expected": ...}` or `{"program": ...}`; see the methods `from_dict`
    {"function": ..., "tests": ...} the same in one object; a "prelude" is code before the program, such as helpers in a
                                    prompt
    {"inputs": ..., "outputs": ...} the form of APPS, TACO and similar data sets: texts for stdin and stdout, or, with
                                    `"fn_name"`, the arguments and results of a function, or, with `"assert_case"`,
                                    asserts about it

`tests_of` makes such tests of a row of HumanEval, MBPP, APPS, LiveCodeBench and other sets.

**The form of APPS.** With "fn_name", each input is a list of arguments, or text with the JSON of one argument in each
line. Each output is a result: text is read as JSON if it is JSON. If every output is a list of one item, as in APPS,
that item is the result, even if it is text such as "12". Tuples, and NumPy's arrays as in the rows of pandas, count as
lists. As these data sets expect it, Python programs may use the usual modules of the standard library without importing
them, and the function may be a method of a class `Solution`.

**Failures** are not scores. A failure is an error of the infrastructure, or a test that cannot judge any program, such
as a malformed row of a data set. Failures are raised, or the completions that they concern get the value `on_failure`.
Programs run at most once, unless you pass `idempotent=True`, so a lost connection is a failure too.

Example:
    >>> from faasrt.rewards import CodeReward
    >>> reward = CodeReward(manager, timeout_ms=5_000)
    >>> completions = ["```python\nprint(int(input()) + 1)\n```", "I do not know."]
    >>> tests = [[TestCase("1", "2"), TestCase("5", "7")], '[{"stdin": "1", "expected": "2"}]']
    >>> await reward.code_reward_async(completions, tests)
    [0.5, 0.0]
"""

from __future__ import annotations

from faasrt.rewards.completions import last_code_block
from faasrt.rewards.datasets import tests_of
from faasrt.rewards.scoring import CodeReward, FailedSolution

__all__ = [
    "CodeReward",
    "FailedSolution",
    "code_reward",
    "code_reward_async",
    "compute_score",
    "compute_score_async",
    "last_code_block",
    "tests_of",
]

_default = CodeReward()
code_reward = _default.code_reward
code_reward_async = _default.code_reward_async
compute_score = _default.compute_score
compute_score_async = _default.compute_score_async
