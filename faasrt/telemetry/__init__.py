"""Logs, metrics and traces of calls.

Each call emits the events of `faasrt.telemetry.events`. They contain ids, sizes, hashes and times, and never the code,
input or output of a user. These sinks are available:

    faasrt.telemetry.logs          log lines, always on; silent until the application configures structlog or logging
    faasrt.telemetry.prometheus    `PrometheusSink`, with the extra `prometheus`
    faasrt.telemetry.otel          `OpenTelemetrySink`, with the extra `otel`

Pass sinks to the manager, the factory or the embedded FaaS: `telemetry=[PrometheusSink()]`. Any callable is a sink. It
is called with every event, unless its method `is_enabled_for` excludes some. A failing sink is logged once, and never
fails a call.

`get_metrics()` needs no sink. It counts the calls of this client, as the sinks and the log do. A sink may forget
endpoints that have left; `get_metrics()` still counts their calls. `faasrt health` reports what servers count, which
may have other clients too: the `active` and `queued` programs of an embedded FaaS are calls in flight of any client.
Its `capacity` is the maximum of the endpoint's limit in `get_metrics()`.

Example:
    >>> from faasrt.telemetry.events import CallFinished
    >>> def show(event):
    ...     if isinstance(event, CallFinished):
    ...         print(event.language, event.outcome)
    >>> async with RuntimeManager.from_env(telemetry=[show]) as manager:
    ...     result = await manager.run_code("1 / 0", "python")
    python USER_ERROR
"""
