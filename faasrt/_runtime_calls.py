"""The methods of `RuntimeManager` that get a runtime and call it."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from faasrt.config import SandboxConfig
from faasrt.languages import Language
from faasrt.results import ExecutionResult, ValidationResult
from faasrt.runtime import Runtime
from faasrt.syntax import Where, check_where
from faasrt.tasks import CallOptions


class RuntimeCalls(abc.ABC):
    """Calls the runtime of a language."""

    @abc.abstractmethod
    async def get_runtime(self, language: str | Language) -> Runtime:
        """Return the runtime of a language."""

    @abc.abstractmethod
    async def _runtime_for_check(self, language: Language, *, local: bool) -> Runtime:
        """Return the runtime of a language; a local check needs no FaaS that can run the language."""

    async def run_code(
        self,
        code: str,
        language: str | Language,
        timeout_ms: float | None = None,
        ext: Mapping[str, str] | None = None,
        *,
        sandbox: SandboxConfig | None = None,
        priority: str = "normal",
        idempotent: bool | None = None,
    ) -> ExecutionResult:
        r"""Run a program: `get_runtime(language)` and `Runtime.run_code` in one call.

        Example:
            >>> (await manager.run_code("console.log({ a: 1 })", "js")).stdout
            '{ a: 1 }\n'
        """
        runtime = await self.get_runtime(language)
        return await runtime.run_code(
            code, None, timeout_ms, ext, sandbox=sandbox, priority=priority, idempotent=idempotent
        )

    async def call_function(
        self,
        code: str,
        function: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        language: str | Language,
        **options: Unpack[CallOptions],
    ) -> ExecutionResult:
        """Call a function of a program: `get_runtime(language)` and `Runtime.call_function` in one call.

        Example:
            >>> (await manager.call_function("const add = (a, b) => a + b;", "add", [1, 2], language="js")).value
            3
        """
        runtime = await self.get_runtime(language)
        return await runtime.call_function(code, function, args, kwargs, **options)

    async def run_cases(
        self,
        code: str,
        function: str,
        cases: Iterable[Sequence[Any]],
        *,
        language: str | Language,
        isolate: bool = False,
        **options: Unpack[CallOptions],
    ) -> list[ExecutionResult]:
        """Call a function once for each case: `get_runtime(language)` and `Runtime.run_cases` in one call.

        Example:
            >>> results = await manager.run_cases("def f(n): return -n", "f", [(1,), (2,)], language="python")
            >>> [result.value for result in results]
            [-1, -2]
        """
        runtime = await self.get_runtime(language)
        return await runtime.run_cases(code, function, cases, isolate=isolate, **options)

    async def validate_code(self, code: str, language: str | Language, *, where: Where = "auto") -> ValidationResult:
        """Check a program's syntax: `get_runtime(language)` and `Runtime.validate_code` in one call.

        A local check does not wait until the embedded FaaS can run the language.

        Example:
            >>> (await manager.validate_code("print('(')", "python")).valid
            True
        """
        parsed = Language.parse(language)
        runtime = await self._runtime_for_check(parsed, local=check_where(where, parsed))
        return await runtime.validate_code(code, where=where)
