"""Sinks for the records of `faasrt.events`, one small file each.

Each call tells its story in events, which hold ids, sizes, hashes and times: never code, input or output of a user.
The figures of `get_metrics()` are counted beside them, with or without a sink.

    faasrt.telemetry.logs          always there: structlog lines through the standard library's logger "faasrt", silent
                                   until the application configures it; `logger=...` takes a structlog logger instead
    faasrt.telemetry.prometheus    `PrometheusSink`, with the extra `prometheus`
    faasrt.telemetry.otel          `OpenTelemetrySink`, with the extra `otel`

Sinks are given to the manager, factory or embedded FaaS, `telemetry=[PrometheusSink()]`; there are no globals. Any
callable will do, and is called with every event unless it has a method `hears` that tells which it cares for. A sink
that fails is told of once in the log, and never fails a call.

Sinks, log and `get_metrics()` give the same figures at any moment. `faasrt health` asks the servers, which have other
clients too. Endpoints have the same names there; the embedded FaaS names its `capacity`, which is the most that an
endpoint's limit becomes, and the programs that are `active` or `queued`, which are in flight here or at another client.

Example:
    >>> from faasrt.events import CallFinished
    >>> def tell(event):
    ...     if isinstance(event, CallFinished):
    ...         print(event.language, event.outcome)
    >>> async with RuntimeManager.from_env(telemetry=[tell]) as manager:
    ...     result = await manager.run_code("1 / 0", "python")
    python USER_ERROR
"""
