r"""Run untrusted Python, JavaScript and TypeScript on HTTP FaaS code-execution services, from asyncio.

It speaks the protocol of coze-loop's evaluation runtime, and brings a FaaS of its own along. What the user's code does
wrong is data (`result.outcome`); what the infrastructure does wrong is an exception.

Example:
    >>> async with faasrt.RuntimeManager.local() as manager:
    ...     result = await manager.run_code("print('hi'); return_val('{\"score\": 1}')", "python", timeout_ms=5_000)
    >>> result.outcome, result.stdout, result.value
    (<Outcome.OK: 'OK'>, 'hi\n', {'score': 1})

The examples of this package are for the prompt of `python -m asyncio`, after `import faasrt` and
`from faasrt import *`, with COZE_LOOP_FAAS_URL set to the URL of a FaaS (`faasrt serve` makes one). Where they use a
`manager` or `runtime` that they do not make, it is an open `RuntimeManager.from_env()`, and its runtime of Python.

Read on with `help(...)` or `python -m pydoc ...`:

    faasrt.RuntimeManager   one for the life of an application: runtimes, batches (`map`), health, metrics
    faasrt.Runtime          run programs, call functions, many cases at once, validate
    faasrt.results          the verdicts: what each `Outcome` means
    faasrt.errors           what else can go wrong: the tree of errors
    faasrt.config           every setting, its default, and the environment variables
    faasrt.transport        deadlines, retries, replicas, limits
    faasrt.protocol         exact results from servers that mangle them: the envelope
    faasrt.mapping          batches: `map`, its window and its end; faasrt.ray for several machines
    faasrt.local            the embedded FaaS: what it serves, refuses and defends
    faasrt.cli              the command `faasrt`
    faasrt.telemetry        logs, metrics, traces
    faasrt.testing          servers that fail on demand, for your own tests
    faasrt.examples         whole programs: web backends, a batch, a benchmark, a notebook

From coze-loop's Go runtime to faasrt:

    IRuntime                           Runtime
    RunCode(ctx, code, language,       await runtime.run_code(code, language, timeout_ms, ext)
        timeoutMS, ext)
    ValidateCode(ctx, code,            await runtime.validate_code(code, language): by the language's own parser,
        language) bool                 with line and column, where the Go one counts brackets
    GetReturnValFunction()             runtime.get_return_val_function()
    GetMetrics()                       get_metrics() of runtime and manager: outcomes, errors, latency, in flight,
                                       where the Go one tells whether a URL is set
    GetLanguageType()                  runtime.language
    GetSupportedLanguages()            get_supported_languages() of runtime, factory and manager
    GetHealthStatus(), a constant      await get_health_status(), which asks the servers
    IRuntimeFactory.CreateRuntime      RuntimeFactory.create_runtime(language)
    IRuntimeManager.GetRuntime         await RuntimeManager.get_runtime(language)
    IRuntimeManager.ClearCache,        await RuntimeManager.clear_cache(), which closes it when its calls have ended
        which leaks what it drops
    SandboxConfig{MemoryLimit,         SandboxConfig(memory_limit_mb, timeout_limit_s, max_output_bytes,
        TimeoutLimit, MaxOutputSize,   network_enabled): sent, and enforced by the embedded FaaS
        NetworkEnabled}, never sent
    ExecutionResult.Output.Stdout,     result.stdout, result.stderr, result.ret_val
        .Stderr, .RetVal
    four attempts on every failure,    three attempts, where the code cannot have run
        so code can run four times
    a context's cancellation           the task's cancellation
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from faasrt._version import __version__

if TYPE_CHECKING:
    from faasrt.batch import CodeTask, TaskResult
    from faasrt.config import (
        BreakerSettings,
        LimiterSettings,
        RetrySettings,
        SandboxConfig,
        Settings,
        TimeoutSettings,
    )
    from faasrt.errors import (
        ConfigurationError,
        ConnectError,
        ConnectionLostError,
        DeadlineExceededError,
        ExecutionError,
        FaasrtError,
        InvalidRequestError,
        OverloadedError,
        ProtocolError,
        QueueFullError,
        RejectedError,
        ReturnValueError,
        RuntimeClosedError,
        ServerError,
        ServiceError,
        UnsupportedLanguageError,
    )
    from faasrt.factory import RuntimeFactory
    from faasrt.languages import Language
    from faasrt.manager import RuntimeManager
    from faasrt.metrics import CallMetrics, EndpointState, Latency, Metrics
    from faasrt.results import (
        Diagnostic,
        EndpointHealth,
        ExecutionOutput,
        ExecutionResult,
        HealthStatus,
        Outcome,
        Timings,
        UserError,
        ValidationResult,
    )
    from faasrt.runtime import Runtime

__all__ = [
    "BreakerSettings",
    "CallMetrics",
    "CodeTask",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "Diagnostic",
    "EndpointHealth",
    "EndpointState",
    "ExecutionError",
    "ExecutionOutput",
    "ExecutionResult",
    "FaasrtError",
    "HealthStatus",
    "InvalidRequestError",
    "Language",
    "Latency",
    "LimiterSettings",
    "Metrics",
    "Outcome",
    "OverloadedError",
    "ProtocolError",
    "QueueFullError",
    "RejectedError",
    "RetrySettings",
    "ReturnValueError",
    "Runtime",
    "RuntimeClosedError",
    "RuntimeFactory",
    "RuntimeManager",
    "SandboxConfig",
    "ServerError",
    "ServiceError",
    "Settings",
    "TaskResult",
    "TimeoutSettings",
    "Timings",
    "UnsupportedLanguageError",
    "UserError",
    "ValidationResult",
    "__version__",
]

# Names are loaded when they are first used: the worker processes of the embedded FaaS and `faasrt --help` need few of
# them, and aiohttp alone costs more than all the rest.
_HOMES = {
    "batch": ("CodeTask", "TaskResult"),
    "config": (
        "BreakerSettings",
        "LimiterSettings",
        "RetrySettings",
        "SandboxConfig",
        "Settings",
        "TimeoutSettings",
    ),
    "factory": ("RuntimeFactory",),
    "languages": ("Language",),
    "manager": ("RuntimeManager",),
    "metrics": ("CallMetrics", "EndpointState", "Latency", "Metrics"),
    "results": (
        "Diagnostic",
        "EndpointHealth",
        "ExecutionOutput",
        "ExecutionResult",
        "HealthStatus",
        "Outcome",
        "Timings",
        "UserError",
        "ValidationResult",
    ),
    "runtime": ("Runtime",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"faasrt.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
