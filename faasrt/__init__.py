r"""Run untrusted Python, JavaScript, TypeScript, C, C++, Go, Rust, Java and Bash from asyncio.

faasrt sends a program to a code-execution server over HTTP (a FaaS, "function as a service"), or runs it in a sandbox
on this machine (the embedded FaaS), and returns an `ExecutionResult`. It uses the protocol of coze-loop's evaluation
runtime. Failures of the user's code are data (`result.outcome`). Failures of the infrastructure are exceptions.

Example:
    >>> async with faasrt.RuntimeManager.local() as manager:
    ...     result = await manager.run_code("print('hi'); return_val('{\"score\": 1}')", "python", timeout_ms=5_000)
    >>> result.outcome, result.stdout, result.value
    (<Outcome.OK: 'OK'>, 'hi\n', {'score': 1})

The examples of this package run in `python -m asyncio`, after `import faasrt` and `from faasrt import *`, with
COZE_LOOP_FAAS_URL set to the URL of a FaaS (`faasrt serve` starts one). In the examples, `manager` is an open
`RuntimeManager.from_env()`, and `runtime` is its Python runtime.

The guide is Markdown in the folder `docs` of this package; it starts with `faasrt/docs/README.md`, which lists its
pages. `faasrt.examples` has complete programs: web backends, a batch, a benchmark, a notebook.

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
* `faasrt.sync`: the same API without asyncio
* `faasrt.web`: calls that end when the client of a web application disconnects
* `faasrt.ray`: batches on several machines; `faasrt.ray.serve`: the embedded FaaS on Ray Serve, autoscaled
* `faasrt.local`: the embedded FaaS
* `faasrt.telemetry`: logs, metrics, traces
* `faasrt.testing`: servers that fail on demand, for your own tests

The public names are those in `faasrt.__all__` and these: `faasrt.local.LocalFaaS`, `faasrt.ray.run_tasks`,
`faasrt.ray.COLUMNS`, `faasrt.ray.serve.app`, `faasrt.rewards.CodeReward`, `faasrt.rewards.FailedSolution`,
`faasrt.rewards.code_reward`, `faasrt.rewards.code_reward_async`, `faasrt.rewards.compute_score`,
`faasrt.rewards.compute_score_async`, `faasrt.rewards.last_code_block`, `faasrt.sync.RuntimeManager`,
`faasrt.sync.Runtime`, `faasrt.sync.Session`, `faasrt.sync.StreamedRun`, `faasrt.sync.TaskResults`,
`faasrt.telemetry.events`, `faasrt.telemetry.metrics.LATENCY_BOUNDS_S`, `faasrt.telemetry.prometheus.PrometheusSink`,
`faasrt.telemetry.otel.OpenTelemetrySink`, `faasrt.testing.FakeFaaS`, `faasrt.testing.Reply`,
`faasrt.testing.FaultProxy`, `faasrt.testing.Toxics`, `faasrt.web.run_until_disconnect`, `run_code` and `code_tests` of
`faasrt.inspect_ai`, and the fixtures `faasrt_fake` and `faasrt_local` of pytest. All other names are internal and may
change. This includes the interface of protocols that other packages add (`faasrt.protocol.interface`), which is
provisional.

From coze-loop's Go runtime to faasrt:

    IRuntime                           Runtime
    RunCode(ctx, code, language,       await runtime.run_code(code, language, timeout_ms, ext)
        timeoutMS, ext)
    ValidateCode(ctx, code,            await runtime.validate_code(code, language): uses the language's parser, and
        language) bool                 returns lines and columns; the Go method counts brackets
    GetReturnValFunction()             runtime.get_return_val_function()
    GetMetrics()                       get_metrics() of runtime and manager: outcomes, errors, latency, in flight;
                                       the Go method returns whether a URL is set
    GetLanguageType()                  runtime.language
    GetSupportedLanguages()            get_supported_languages() of runtime, factory and manager
    GetHealthStatus(), a constant      await get_health_status(), which probes the servers
    IRuntimeFactory.CreateRuntime      RuntimeFactory.create_runtime(language)
    IRuntimeManager.GetRuntime         await RuntimeManager.get_runtime(language)
    IRuntimeManager.ClearCache,        await RuntimeManager.close_runtimes(), which closes the runtimes when their
        which leaks its runtimes       calls have ended
    SandboxConfig{MemoryLimit,         SandboxConfig(memory_limit_mb, timeout_limit_s, max_output_bytes,
        TimeoutLimit, MaxOutputSize,   network_enabled): sent, and enforced by the embedded FaaS
        NetworkEnabled}, never sent
    ExecutionResult.Output.Stdout,     result.stdout, result.stderr, result.ret_val
        .Stderr, .RetVal
    four attempts on every failure,    three attempts, and only if the code cannot have run
        so code can run four times
    cancellation of a context          cancellation of a task
"""

import typing as _typing

from faasrt._version import __version__

if _typing.TYPE_CHECKING:
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

if not _typing.TYPE_CHECKING:  # type checkers report unknown names of modules without `__getattr__`

    def __getattr__(name):
        from importlib import import_module

        if name in __all__:
            for module in _MODULES:
                names = vars(import_module(f"faasrt.{module}"))
                if name in names:
                    globals()[name] = names[name]
                    return names[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
