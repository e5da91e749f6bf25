r"""How many calls run at once, where the others wait, and which settings to change.

## The path of a call

A call is sent when it gets a permit, which is the permission to send. A permit needs room in two places:

1. **The manager.** It has at most `max_concurrency` calls in flight (256), or fewer if `Settings(session=...)`
   allows fewer connections.
2. **An endpoint.** Each has a limit of its own. It starts at the capacity in its `/health`, which is also its maximum;
   if `/health` states none, it starts at 16 and can grow up to `max_concurrency`. It grows with successes, and shrinks
   when the server refuses or does not answer. `RuntimeManager.local` knows the capacity before the first call.

Calls without a permit wait in order, by default without a time limit. The deadline of a call starts when it gets its
first permit, so this wait costs the program no time.

While all endpoints are down, calls wait for up to `RetrySettings.connect_retry_s` (10 s), and then raise the error of
an endpoint. One call at a time probes each endpoint, so a server that is down gets about one attempt per second. When a
probe succeeds, the other calls are sent. A probe may be a long program; the other calls wait for its end.

After the call is sent, the server may queue it, too. The embedded FaaS runs `workers` Python programs at once (by
default the number of CPUs) and four times as many JavaScript programs, and refuses with 429 a program that waits too
long. `RuntimeManager.local` extends the deadline by the longest such wait.

So `asyncio.gather` over ten thousand calls works:

```python
import asyncio

from faasrt import RuntimeManager


async def main():
    async with RuntimeManager.local(["python"]) as manager:
        calls = (manager.run_code(f"print({number})", "python", timeout_ms=5_000) for number in range(200))
        results = await asyncio.gather(*calls)
        print(sum(result.ok for result in results), "of", len(results))
        print("some waited:", any(result.timings.queued_s > 0 for result in results))


asyncio.run(main())
```

```text
200 of 200
some waited: True
```

## Which replica gets a call

With several replicas, the client compares two that it has chosen at random, and sends the call to the less loaded one.
Load is the part of the limit that is in use. Slow replicas get fewer calls. If the latest 20 or so programs on a
replica took at least twice as long as usual, and the difference is too large for chance, its load is multiplied by that
ratio. The averages are geometric, so a few long programs among many short ones do not make a replica look slow.
Programs that end with an error do not count. A replica that cannot be reached, stops, or fails twice in a row gets no
calls while another one works, even if that one is full. After 5 s without an answer, one call finds out whether a slow
or failing replica has recovered.

From 16 replicas on, a third one is compared: one that has just answered quickly. It gets the call if it is idle. So a
client with few calls uses a few replicas that work, and does not send a call to each slow or dead one of a large fleet.
The choice takes as long with a thousand replicas as with ten, unless nearly all of them are full.
`benchmarks/README.md` compares this choice with others, in a simulated fleet of a thousand replicas.

## Which setting to change

| you want | set |
|---|---|
| to refuse instead of waiting (web backends) | `LimiterSettings(max_queue=100, queue_timeout_s=2)` |
| calls that fail at once while servers are down (web backends) | `RetrySettings(connect_retry_s=0)` |
| to stop a program whose client has gone (web backends) | `faasrt.web.run_until_disconnect` (Starlette, FastAPI) |
| a batch that survives longer restarts | `RetrySettings(connect_retry_s=120)`, and a `grace_s` of as many seconds |
| to leave room for other clients of a server | a small `LimiterSettings(max_concurrency=...)` |
| one server for the workers of uvicorn | `faasrt serve`, see `faasrt.docs.many_processes` |
| more programs at once on the embedded FaaS | `RuntimeManager.local(workers=...)`, at most one for each free CPU |
| more throughput than one machine has | several replicas in `COZE_LOOP_PYTHON_FAAS_URL`, separated by commas |
| replicas that come and go | `dns+http://faas:8000`, see "Replicas behind a name" |
| to change any of these while calls are made | `await manager.reconfigure(settings)` |
| a batch on the machines of a Ray cluster | `faasrt.ray.run_tasks`: each node runs an embedded FaaS |
| a service that grows with the load | `faasrt.ray.serve`: autoscaled replicas behind one URL, on Ray Serve |
| more tasks per second for many small calls | `run_cases`, or `map(..., coalesce=50)`: many calls share an execution |
| not to run the same programs again | `cache="DIR"`, see `faasrt.docs.caching` |
| less memory in a batch | `map` instead of `gather`: it holds a window of tasks, not all |

A bounded queue refuses at once when it is full:

```python
import asyncio

import faasrt

SETTINGS = faasrt.Settings(limiter=faasrt.LimiterSettings(max_concurrency=1, max_queue=2))


async def main():
    async with faasrt.RuntimeManager.local(["python"], settings=SETTINGS) as manager:
        calls = [manager.run_code("import time; time.sleep(0.2)", "python") for _ in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    print([type(result).__name__ for result in results])


asyncio.run(main())
```

```text
['ExecutionResult', 'ExecutionResult', 'ExecutionResult', 'QueueFullError', 'QueueFullError']
```

## Replicas behind a name

`dns+http://faas:8000` stands for all addresses of the name `faas`. The client looks them up, treats each as a replica
of its own, and follows changes. `faasrt.discovery` has the details.

Without `dns+`, an HTTP client is unfair to replicas behind a virtual IP, such as an ordinary Service in Kubernetes has:
it keeps its connections open, and each connection stays with the pod that first got it. So one pooled set of
connections sends all calls to a few pods, while others are idle. The client sees them as one endpoint, so one full pod
lowers the limit of all, and one broken pod opens the breaker of all. New pods get no calls until connections end.

In Kubernetes, make a headless Service, whose name has the addresses of all ready pods:

    apiVersion: v1
    kind: Service
    metadata:
      name: faas
    spec:
      clusterIP: None
      selector:
        app: faas
      ports:
        - port: 8000

and set `COZE_LOOP_FAAS_URL=dns+http://faas.NAMESPACE.svc.cluster.local:8000`. `dns+` comes first, also before another
protocol: `dns+piston+http://piston:2000/api/v2`. Such URLs may stand beside others, separated by commas.

```python
import asyncio

from faasrt import DiscoverySettings, RuntimeManager
from faasrt.testing import FakeFaaS


async def resolve(host, port):  # without it, the system resolves the name
    return ["127.0.0.1"]


async def main():
    async with FakeFaaS() as faas:
        url = faas.url.replace("127.0.0.1", "faas")
        discovery = DiscoverySettings(period_s=5, jitter=0.2, resolve=resolve)
        async with RuntimeManager.from_url(f"dns+{url}", discovery=discovery) as manager:
            result = await manager.run_code("print(1)", "python")
            print(result.endpoint == f"{url}#127.0.0.1")


asyncio.run(main())
```

```text
True
```

* The names are looked up every 8 to 12 s while calls are made: `DiscoverySettings`. A pod that has gone gets calls
  until then; they are refused, and retried on another pod. Let pods go on for longer than this after SIGTERM, so that
  they refuse calls with 503 instead of breaking connections.
* The log has one line when the addresses change (INFO), and one when look-ups begin to fail (WARNING). The last known
  addresses stay in use. `faasrt.telemetry.prometheus` has `faasrt_replicas` and `faasrt_lookup_failing`.
* Many replicas need more connections: one for each call in flight, at most `max_concurrency`, and those that were idle
  for less than 4 s.
* `proxy` and `session` of the settings are not possible together with `dns+`, because they choose the address.

## Change settings at run time

`await manager.reconfigure(settings)` replaces endpoints, limits, timeouts, the token and all other settings, without
closing anything. Calls in flight finish as they were. Calls that wait, and further attempts, go to the new endpoints.
Endpoints that stay keep their connections, breaker and limit. Wrong settings are refused, and nothing changes.
`logger`, `telemetry` and `cache` of a manager cannot change, nor can the embedded FaaS.

```python
import asyncio

from faasrt import LimiterSettings, RuntimeManager, Settings
from faasrt.testing import FakeFaaS


async def main():
    async with FakeFaaS() as old, FakeFaaS() as new:
        async with RuntimeManager(settings=Settings(endpoints={"python": old.url})) as manager:
            await manager.run_code("print(1)", "python")
            limiter = LimiterSettings(max_concurrency=64)
            await manager.reconfigure(Settings(endpoints={"python": new.url}, limiter=limiter))
            await manager.run_code("print(2)", "python")
            print(old.executions, new.executions)


asyncio.run(main())
```

```text
1 1
```

## What to look at

`manager.get_metrics()` is a snapshot. `queued` and `in_flight` count the calls of this process. `states` has one entry
for each endpoint: its `limit`, the calls `in_flight`, the state of its circuit breaker, and the `abandoned` calls.
Those are calls that the client gave up and that may still run there; they count against the limit.

* `queued` grows, and `in_flight` stays at `max_concurrency`: raise `max_concurrency`, if the servers have room.
* `in_flight` stays at the sum of the endpoints' limits: the servers are the bottleneck. Add workers or replicas.
* A limit stays low, and `OverloadedError`s appear: the server has other clients, or less capacity than it states.
* `abandoned` is high: deadlines are too short, or callers disconnect often.
* `result.timings.queued_s` is small but `duration_ms` is large: the programs themselves are slow.

## Sizing a machine

Native Python and JavaScript programs use a CPU while they run. Plan one worker for each CPU, and memory for
`workers * memory_limit_mb` (JavaScript programs have four times the workers), plus what the server itself takes, about
100 MB. Measure with `python -m faasrt.examples.benchmark`, which prints the time of each phase.

The client needs about 0.1 ms of CPU for a call (`benchmarks/overhead.py`). One process and one event loop handle
thousands of calls per second; beyond that use several processes, each with a manager of its own, and one server for
all of them: `faasrt.docs.many_processes`.
"""

__docformat__ = "markdown"
