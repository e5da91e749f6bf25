"""Sends requests and receives answers: deadlines, retries, replicas, limits.

The guide explains what callers see. `faasrt/docs/retries.md` has the table of retries and the deadline of a call,
`faasrt/docs/concurrency.md` the queue and the limits, and `faasrt/docs/replicas.md` the choice between replicas and the
circuit breakers. The numbers are in `RetrySettings`, `TimeoutSettings`, `BreakerSettings` and `LimiterSettings`.
`get_metrics().states` has an `EndpointState` for each replica.

A call keeps the settings with which it began. `RuntimeManager.reconfigure` and discovery change the endpoints. Each
attempt goes to an endpoint that exists when the attempt starts.

Example:
    >>> from faasrt.testing import FakeFaaS
    >>> async with FakeFaaS() as one, FakeFaaS() as two:
    ...     one.down()
    ...     async with RuntimeManager(settings=Settings(endpoints={"python": [one.url, two.url]})) as manager:
    ...         results = [await manager.run_code("print(1)", "python") for _ in range(10)]
    >>> all(result.endpoint == two.url for result in results), two.executions
    (True, 10)
"""
