"""Logs, metrics and traces of calls.

Each call emits the events of `faasrt.telemetry.events`. They hold ids, sizes, hashes and times, and never the code,
input or output of a user. Sinks are called with the events:

    faasrt.telemetry.logs          log lines, always on; silent until the application configures structlog or logging
    faasrt.telemetry.prometheus    `PrometheusSink`, with the extra `prometheus`
    faasrt.telemetry.otel          `OpenTelemetrySink`, with the extra `otel`

Pass sinks to the manager, the factory or the embedded FaaS: `telemetry=[PrometheusSink()]`. Any callable is a sink. It
is called with every event, unless its method `is_enabled_for` excludes some. A failing sink is logged once, and never
fails a call.

Sinks, log and `get_metrics()`, which needs no sink, agree at any moment. `faasrt health` asks the servers, and servers
have other clients too. It uses the same names for endpoints. The `capacity` of the embedded FaaS caps the limit of its
endpoint; its `active` and `queued` programs are in flight at this client or another one.

Example:
    >>> from faasrt.telemetry.events import CallFinished
    >>> def show(event):
    ...     if isinstance(event, CallFinished):
    ...         print(event.language, event.outcome)
    >>> async with RuntimeManager.from_env(telemetry=[show]) as manager:
    ...     result = await manager.run_code("1 / 0", "python")
    python USER_ERROR
"""
