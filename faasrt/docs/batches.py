r"""Files of tasks: `faasrt batch`, its results, what `--resume` runs, and pass@k.

## The file of tasks

The tasks are JSON Lines (.gz and .zst too, - for stdin). Each line is an object with `code` and `language`, and
optionally the other attributes of a `faasrt.CodeTask`, in the forms of `CodeTask.from_dict`. The default `id` is made
of the number and the text of the line. Options of the command are the defaults of other fields: `--language`,
`--timeout-ms`, `--memory-mb`, `--function`, `--stop-on-failure`. One field is not an attribute of `CodeTask`:
`task_id`, the name of the problem of which the task is a sample.

This program makes three samples of one problem. Save it as `tasks.py`:

```python
import json

TESTS = [{"stdin": "2", "expected": "4"}, {"stdin": "3", "expected": "6"}, {"stdin": "4", "expected": "8"}]
SAMPLES = ["print(2 * int(input()))", "print(4)", "print(input() * 2)"]

for number, code in enumerate(SAMPLES):
    print(json.dumps({"id": f"double-{number}", "task_id": "double", "code": code, "tests": TESTS}))
```

```console
$ python tasks.py | faasrt batch - -o out -l python --stop-on-failure --quiet; grep -o '"tests": {[^}]*}' out | sort
"tests": {"passed": 0, "skipped": 2, "total": 3, "verdicts": ["WRONG_ANSWER", "SKIPPED", "SKIPPED"]}
"tests": {"passed": 1, "skipped": 1, "total": 3, "verdicts": ["PASSED", "WRONG_ANSWER", "SKIPPED"]}
"tests": {"passed": 3, "skipped": 0, "total": 3, "verdicts": ["PASSED", "PASSED", "PASSED"]}
```

## The file of results

Each line is a JSON object with `id`, `line` (the number of the task's line), `task_id` if the task has one, and one of:

* `outcome`: the task has a result. The other fields are those of `ExecutionResult.to_dict()`. If a test did not pass,
  they are those of the first such test, and the outcome is its verdict.
* `infra_error`: the infrastructure failed, which says nothing about the program: `type`, `message`, `sent`, `attempts`.
* `invalid_task`: the reason why the line is not a task. Empty code is no task either.

`tests` has the numbers `passed`, `skipped` and `total`, and `verdicts`, in the order of the tests. `hash` identifies
the task as it was run. `total_ms` is its time, and `finished_at` the time of the line in seconds since 1970.
The lines have the order in which the tasks ended.

## Continue

A result is written to the file and synced (`fdatasync`) before it is counted, so a `kill -9` or a power failure loses
no counted result. Tasks that were in flight may run a second time. With `--resume`, a task runs if

* it has no outcome in the file: it is new, failed with an `infra_error`, or was an `invalid_task`;
* or it has changed since. The command then says so: "3 tasks changed since the last run; running them again".

A task has changed if its `hash` differs. The hash covers everything that can change the result: the program, its
language, input, arguments, tests with their expected values, comparison and limits, also if they are options of the
command; and `task_id`, which is part of the result. It does not cover `id`, `priority`, `idempotent`, and the place of
the task in the file. The server is not part of it either: use another file of results for another server.

* A result without a hash counts as that of the task with its id.
* A result whose task was removed or renamed stays in the file. The command says how many there are. A renamed task
  runs, because its id is new.
* An id that occurs twice in the tasks is an error, before anything runs (or when it is read, from a pipe).
* The earlier result of a changed task stays until the end of the run that replaces it. If that run is killed, the
  file has two results of the task. The later one counts, in `faasrt report` too, and `--resume` removes the other.

## pass@k

Give all samples of a problem the same `task_id`, as in HumanEval's files of samples, and each an `id` of its own or
none. `faasrt report` then shows the problems, and pass@1, pass@10 and pass@100, if there are enough samples. With
`--json` it prints the numbers:

```console
$ python tasks.py | faasrt batch - -o out -l python --quiet; faasrt report out --json | grep -o '"pass_at_k": [^}]*}}'
"pass_at_k": {"1": {"value": 0.3333333333333333, "problems": 1}}
```

A sample passes if its outcome is OK: it passes all its tests, or, if it has none, ends without an error. If c of n
samples of a problem pass, its pass@k is 1 - C(n - c, k) / C(n, k), the unbiased estimate of the probability that at
least one of k samples passes. `value` is the mean over the problems that have at least k samples, and `problems` the
number of these.

A sample without a verdict is neither right nor wrong. So an `infra_error` and an `invalid_task` are left out of n; the
report says how many there are. Run the batch with `--resume` until there are none. An empty answer of a model is an
`invalid_task`, too: give it the code `pass`, so that it fails its tests.
"""

__docformat__ = "markdown"
