r'''How to get the output of a program while it runs.

`stream_code` takes the arguments of `run_code`. Its chunks arrive while the program runs, and the result follows.
Leaving the block ends a program that still runs:

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

## What to know

* **A slow reader slows the program down.** While no chunk is taken, the program waits when it prints. The time for
  which it waits counts for its time limit, but not for the deadline of the call. So any amount of output needs little
  memory.
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
