r"""Run untrusted Python, JavaScript, TypeScript, C, C++, Go, Rust, Java and Bash from asyncio.

faasrt sends a program to a code-execution server over HTTP (a FaaS, "function as a service"), or runs it in a sandbox
on this machine (the embedded FaaS), and returns an `ExecutionResult`. It uses the protocol of coze-loop's evaluation
runtime. Failures of the user's code are data (`result.outcome`). Failures of the infrastructure are exceptions.

Example:
    >>> async with faasrt.RuntimeManager.local() as manager:
    ...     result = await manager.run_code("print('hi'); return_val('{\"score\": 1}')", "python", timeout_ms=5_000)
    >>> result.outcome, result.stdout, result.value
    (<Outcome.OK: 'OK'>, 'hi\n', {'score': 1})

The examples of docstrings run in `python -m asyncio`, after `import faasrt` and `from faasrt import *`, with the
environment variable COZE_LOOP_FAAS_URL set to the URL of a FaaS (`faasrt serve` starts one). In them, `manager` is an
open `RuntimeManager.from_env()`, and `runtime` is its Python runtime.

The guide is Markdown in the folder `docs` of this package, and starts with `faasrt/docs/README.md`. `faasrt.examples`
has complete programs.

The reference:

* `faasrt.RuntimeManager`: the client, one for each application: runtimes, batches (`map`), health, metrics
* `faasrt.Runtime`: running programs, streaming their output, calling functions, running many cases at once, validation
* `faasrt.Session`: a program whose variables, imports and files live on between runs
* `faasrt.results`: the results, and the meaning of each `Outcome`
* `faasrt.judging`: programs and functions judged by tests
* `faasrt.rewards`: the score of the program in a completion, for TRL, verl and Inspect AI
* `faasrt.errors`: the tree of errors
* `faasrt.config`: the settings with their defaults
* `faasrt.discovery`: one URL for all replicas behind a name
* `faasrt.transport`: deadlines, retries, replicas, limits
* `faasrt.protocol`: the wire protocol, and the envelope, which gets exact results from python-faas and js-faas
* `faasrt.agents`: sessions for the code of a model
* `faasrt.sync`: the same API without asyncio
* `faasrt.web`: calls that end when the client of a web application disconnects
* `faasrt.ray`: batches on several machines; `faasrt.ray.serve`: the embedded FaaS on Ray Serve, autoscaled
* `faasrt.local`: the embedded FaaS
* `faasrt.telemetry`: logs, metrics, traces
* `faasrt.testing`: servers that fail on demand, for your own tests

The public names are the names in `__all__` of `faasrt` and of these modules, and the pytest fixtures `faasrt_fake` and
`faasrt_local`. All others are internal and may change; `faasrt.protocol.interface` is provisional.
"""

import typing as _typing

from faasrt._version import __version__

if _typing.TYPE_CHECKING:
    from faasrt import (
        agents as agents,
        config as config,
        discovery as discovery,
        errors as errors,
        judging as judging,
        local as local,
        results as results,
        rewards as rewards,
        sync as sync,
        telemetry as telemetry,
        testing as testing,
        web as web,
    )
    from faasrt.client.cache import Cache
    from faasrt.client.disk_cache import DiskCache
    from faasrt.client.factory import RuntimeFactory
    from faasrt.client.manager import RuntimeManager
    from faasrt.client.runtime import Runtime
    from faasrt.client.session import Session
    from faasrt.client.streaming import StreamedRun
    from faasrt.config import BreakerSettings, LimiterSettings, RetrySettings, SandboxConfig, Settings, TimeoutSettings
    from faasrt.discovery import DiscoverySettings
    from faasrt.errors import (
        CompareError,
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
        SessionLostError,
        StreamError,
        UnsupportedLanguageError,
    )
    from faasrt.judging import AssertTest, FunctionTest, Judgement, TestCase, TestResult, Verdict, floats
    from faasrt.languages import Language, LanguageName, LanguageOption, OtherLanguage
    from faasrt.results import (
        Diagnostic,
        Display,
        EndpointHealth,
        ErrorInfo,
        ExecutionOutput,
        ExecutionResult,
        HealthStatus,
        Outcome,
        OutputChunk,
        Timings,
        ValidationResult,
    )
    from faasrt.tasks import CodeTask, CompletedTask, FailedTask, TaskResult
    from faasrt.telemetry.metrics import CallMetrics, EndpointState, Latency, Metrics

__all__ = [
    "AssertTest",
    "BreakerSettings",
    "Cache",
    "CallMetrics",
    "CodeTask",
    "CompareError",
    "CompletedTask",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "DeadlineExceededError",
    "Diagnostic",
    "DiscoverySettings",
    "DiskCache",
    "Display",
    "EndpointHealth",
    "EndpointState",
    "ErrorInfo",
    "ExecutionError",
    "ExecutionOutput",
    "ExecutionResult",
    "FaasrtError",
    "FailedTask",
    "FunctionTest",
    "HealthStatus",
    "InvalidRequestError",
    "Judgement",
    "Language",
    "LanguageName",
    "LanguageOption",
    "Latency",
    "LimiterSettings",
    "Metrics",
    "OtherLanguage",
    "Outcome",
    "OutputChunk",
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
    "Session",
    "SessionLostError",
    "Settings",
    "StreamError",
    "StreamedRun",
    "TaskResult",
    "TestCase",
    "TestResult",
    "TimeoutSettings",
    "Timings",
    "UnsupportedLanguageError",
    "ValidationResult",
    "Verdict",
    "__version__",
    "floats",
]

# Names are loaded on first use, because the worker processes of the embedded FaaS and `faasrt --help` need only a few.
# The modules that import aiohttp come last: importing it takes longer than everything else together.
_MODULES = (
    *("errors", "languages", "results", "discovery", "config", "judging", "tasks", "telemetry.metrics"),
    *("client.cache", "client.streaming", "client.session", "client.runtime", "client.factory", "client.manager"),
)

# Modules that are loaded on first use. Modules that need an extra are not listed here, because `help` loads all listed
# modules.
_SUBMODULES = (
    "agents",
    "config",
    "discovery",
    "errors",
    "judging",
    "local",
    "results",
    "rewards",
    "sync",
    "telemetry",
    "testing",
    "web",
)

if not _typing.TYPE_CHECKING:  # type checkers report unknown names of modules without `__getattr__`

    def __getattr__(name):
        from importlib import import_module

        if name in _SUBMODULES:
            return import_module(f"faasrt.{name}")
        if name in __all__:
            for module in _MODULES:
                names = vars(import_module(f"faasrt.{module}"))
                if name in names:
                    globals()[name] = names[name]
                    return names[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_SUBMODULES]
