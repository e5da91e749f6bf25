r'''Programs with input and files, live output, and solutions and functions judged by tests.

Each program on this page can be saved and run with `python`. Its output is shown below it.

## Give a program input, and take its files

The program reads `stdin` from its standard input, `argv` from its command line, and `files` from its working folder.
`collect` names the files to return, whatever the outcome.

```python
import asyncio

from faasrt import RuntimeManager

CODE = """
import csv, sys
rows = [row for row in csv.reader(open("data/in.csv")) if row[0] == sys.argv[1]]
name = input()
with open("out.csv", "w") as file:
    csv.writer(file, lineterminator="\\n").writerows([name, value] for _, value in rows)
"""


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        result = await manager.run_code(
            CODE, "python", stdin="x\n", argv=["a"], files={"data/in.csv": "a,1\nb,2\na,3\n"}, collect=["*.csv"]
        )
        print(result.files)


asyncio.run(main())
```

```text
{'out.csv': b'x,1\nx,3\n'}
```

## Judge a solution by test cases

Each test has its own input and verdict. `python -m pydoc faasrt.judging` lists the comparisons.

```python
import asyncio

from faasrt import RuntimeManager, TestCase

TESTS = [TestCase("1 2", "3"), TestCase("-1 1", "0"), TestCase("1000000 1", "1000001", timeout_ms=5_000)]
SOLUTIONS = ["print(sum(map(int, input().split())))", "a, b = input().split(); print(int(a) + abs(int(b)) % 9)"]


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        for code in SOLUTIONS:
            judgement = await manager.judge(code, [*TESTS, TestCase("0 9", "9")], language="python")
            failure = judgement.first_failure
            print(judgement.score, failure.difference if failure else "all tests passed")


asyncio.run(main())
```

```text
1.0 all tests passed
0.75 line 1: expected '9', got '0'
```

## Judge a function by tests

Each `FunctionTest` has the arguments of a call, and the expected value. `python -m pydoc faasrt.FunctionTest` lists the
values that a function may return. A test program with asserts, as in HumanEval and MBPP, is an `AssertTest`: see "Test
programs with asserts" in `faasrt.docs.rewards`.

```python
import asyncio

from faasrt import FunctionTest, RuntimeManager

TESTS = [FunctionTest([[2, 4]], 3), FunctionTest([[1, 2]], 1.5), FunctionTest([[0.1, 0.2, 0.3]], 0.2, compare="floats")]
SOLUTIONS = [
    "def mean(values): return sum(values) / len(values)",
    "def mean(values): return sum(values) // len(values)",
    """
class Anything:
    def __eq__(self, other):
        return True

def mean(values):
    return Anything()
""",
]


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        for code in SOLUTIONS:
            judgement = await manager.judge(code, TESTS, function="mean", language="python")
            failure = judgement.first_failure
            if failure is None:
                print(judgement.score)
            else:
                print(f"{judgement.score:.2f} {failure.verdict} {failure.difference or failure.result.error.message}")


asyncio.run(main())
```

```text
1.0
0.33 WRONG_ANSWER value: expected 1.5, got 1
0.00 USER_ERROR the return value cannot be encoded as JSON: value is of type Anything
```

In a file of `faasrt batch`, a task has `"function": "mean"` and `"tests": [{"args": [[2, 4]], "expected": 3}]`. In the
file of `faasrt judge mean.py --function mean --tests tests.jsonl`, each line is such a test.

### What to know about tests of functions

* **Expected values stay in the client**, which compares them with the JSON of the return values. A program that exits,
  crashes, or changes Python's own functions can make its tests fail, but not pass.
* **A program can read the arguments of the other tests** in its execution. If the arguments of a test are the expected
  value of another one, a program could use this.
* **Each test has a fresh namespace**: the program runs once for each test, in the same process, and then the function
  is called. Imported modules keep their state. The time limit is that of both together.
* **A Python program runs as if it was imported**: its block `if __name__ == "__main__":`, which may wait for input or
  exit, is left out. This is the same for `AssertTest`, but not for `call_function`.
* **A test that exits, crashes or hangs** ends its execution, and the tests after it run in another one. After a
  TIMEOUT they are divided between two executions, so ten tests that all hang take four times as long as one.
* **Tuples stay tuples**, and equal lists only if the comparison is "alike", "floats" or your own function. In a JSON
  file, a tuple is `{"py/tuple": [1, 2]}`; use "alike" if the file has lists in place of tuples. `call_function` and
  `run_cases` make a tuple a list.

## Time limits of cases

`run_cases` calls a function for many cases in one execution, and `timeout_ms` is the limit of each case. A case that
took longer is always a TIMEOUT. When it is stopped depends on the server:

* python-faas and js-faas do not stop programs, so the envelope stops each case at its own limit.
* The embedded FaaS, and other servers that enforce time limits, stop executions, not cases. There a case may run on
  for up to 2.5 times its limit before it is stopped. With limits below 500 ms, this is up to twice the limit and
  250 ms. Its output is then lost.
* If the largest time limit of such a server is close to `timeout_ms`, the time of the definitions and the limit of the
  case do not both fit into it. Then a case may be stopped after 90 % of its limit, less the time of the definitions.

## Show output while a program runs

`stream_code` takes the arguments of `run_code`. Its chunks arrive while the program runs, and the result follows.
Leaving the block ends the program.

```python
import asyncio

from faasrt import RuntimeManager

COUNT = """
import time
for number in range(1_000):
    print("step", number, flush=True)
    time.sleep(0.05)
"""


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        async with manager.stream_code("print('hi'); return_val('1')", "python") as run:
            async for chunk in run:
                print(chunk.stream, repr(chunk.text))
        print(run.result.outcome, run.result.value, run.live)

        lines = []
        async with manager.stream_code(COUNT, "python") as run:
            async for chunk in run:
                lines += chunk.text.splitlines()
                if len(lines) >= 3:
                    break
        print(lines[:3])


asyncio.run(main())
```

```text
stdout 'hi\n'
OK 1 True
['step 0', 'step 1', 'step 2']
```

### What to know about live output

* **A slow reader slows the program down.** While no chunk is taken, the program waits when it prints. The time for
  which it waits counts for its time limit, but not for the deadline of the call. The memory that is needed does not
  grow with the output.
* **Limits.** The program is stopped at twice `max_output_bytes`, up to which the chunks have all output.
  `result.stdout` and `result.stderr` are cut to `max_output_bytes`, and to 1 MiB at most. If they were not cut, they
  are the chunks of the stream, joined.
* **Other servers.** python-faas and js-faas, and every server with `envelope="always"`, return all output at the end.
  Then there is one chunk for each stream, and `run.live` is False.
* **Errors** are raised by the iteration, and again by `run.result`. A call that has delivered output is never retried.
* **Python buffers its output** in `print(..., end="")`: without a newline, `flush=True` makes it arrive at once.
* **Programs that define `return_val` themselves** print their return value to stdout. The embedded FaaS removes it, so
  their stdout arrives at the end.

`faasrt run` prints output in the same way. Other clients of the embedded FaaS send `Accept: application/x-ndjson`; see
`faasrt.protocol.json_lines`.
'''

__docformat__ = "markdown"
