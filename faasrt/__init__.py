r"""Run untrusted Python, JavaScript and TypeScript on HTTP FaaS code-execution services, from asyncio.

Example:
    >>> async with faasrt.RuntimeManager.local() as manager:
    ...     result = await manager.run_code("print(6 * 7)", "python")
    >>> result.stdout
    '42\n'
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
