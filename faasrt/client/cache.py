"""Stored results; see `faasrt/docs/caching.md`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import attrs

from faasrt import _strict_json
from faasrt._version import RESULTS_VERSION
from faasrt.client.disk_cache import DiskCache
from faasrt.errors import ConfigurationError, safe_repr
from faasrt.inputs import files_from_wire, files_to_wire
from faasrt.protocol.displays import displays_from_wire, displays_to_wire
from faasrt.protocol.execution import Execution
from faasrt.results import ErrorInfo, ExecutionOutput, ExecutionResult, Outcome
from faasrt.telemetry.logs import log_warning

__all__ = ["Cache", "DiskCache"]

_STORED = (Outcome.OK, Outcome.USER_ERROR, Outcome.SYNTAX_ERROR)
_DIGEST_BYTES = 32
# Hashing and encoding more characters than this takes more than a millisecond.
_LARGE = 131_072
# Hashing a short case takes as long as this number of characters.
_CASE_CHARACTERS = 100
# Decoding so many small values takes about two milliseconds.
_FOUND_AT_ONCE = 100
STORE_S = 2.0
"""The seconds that failures of the store may take in one call."""
T = TypeVar("T")
Fingerprints: TypeAlias = Mapping[str, str | None]


@runtime_checkable
class Cache(Protocol):
    """A store of values by key. Its methods are called in the event loop of the manager, and may run concurrently.

    Values contain the outputs of programs, and a checksum: a value that was changed counts as missing. An error that a
    method raises is logged, and the program runs. A method that takes longer than 2 s is cancelled, which counts as an
    error.

    Example:
        >>> class MemoryCache:
        ...     def __init__(self):
        ...         self.values = {}
        ...     async def get(self, key):
        ...         return self.values.get(key)
        ...     async def put(self, key, value):
        ...         self.values[key] = value
        >>> async with RuntimeManager.from_env(cache=MemoryCache()) as manager:
        ...     [(await manager.run_code("print(1)", "python")).cached for _ in range(2)]
        [False, True]
    """

    async def get(self, key: str, /) -> bytes | None:
        """Return the value that was stored last with a key of 64 hex digits; None if there is none."""
        ...

    async def put(self, key: str, value: bytes, /) -> None:
        """Store a value. It may be deleted at any time."""
        ...


CacheOption: TypeAlias = str | os.PathLike[str] | Cache | None
"""The argument `cache`: the path of a folder, a cache, or None."""


def digest(determinants: Mapping[str, Any]) -> str:
    text = json.dumps(determinants, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    if attrs.has(type(value)):
        return {type(value).__name__: attrs.asdict(value, recurse=False)}  # type: ignore[arg-type]
    return dict(value) if isinstance(value, Mapping) else list(value)  # type: ignore[call-overload]


def determinants_of(execution: Execution) -> dict[str, Any]:
    """Return everything about an execution that determines its result, except cases and fingerprint."""
    program = attrs.asdict(
        execution.program, recurse=False, filter=lambda field, value: not field.metadata.get("keeps_result")
    )
    limits = attrs.asdict(execution.program.sandbox)
    del limits["timeout_limit_s"]  # `timeout_ms` replaces it
    job = {name: getattr(execution.job, name) for name in ("function", "single", "isolate", "exact", "imported")}
    return {**program, **job, "sandbox": limits, "envelope": execution.mode, "faasrt": RESULTS_VERSION}


def encode_result(key: str, result: ExecutionResult) -> bytes | None:
    """Return None if the result cannot be restored exactly."""
    fields = attrs.asdict(result, filter=attrs.filters.exclude("timings", "attempts", "cached"))
    fields["truncated"], fields["files"] = sorted(result.truncated), files_to_wire(result.files)
    fields["displays"] = displays_to_wire(result.displays)
    try:
        payload = _strict_json.dump_bytes(fields)
        value = _checksum(key, payload) + payload
        restored = decode_result(key, value)
        same = restored is not None and attrs.evolve(
            restored, timings=result.timings, attempts=result.attempts, cached=result.cached
        )
        return value if same == result else None
    except (TypeError, ValueError, RecursionError):
        return None


def decode_result(key: str, value: bytes) -> ExecutionResult | None:
    """Return None if the value is damaged or belongs to another key."""
    if not isinstance(value, bytes) or value[:_DIGEST_BYTES] != _checksum(key, value[_DIGEST_BYTES:]):
        return None
    fields = json.loads(value[_DIGEST_BYTES:])
    fields["outcome"] = Outcome(fields["outcome"])
    fields["output"] = ExecutionOutput(**fields["output"])
    fields["error"] = fields["error"] and ErrorInfo(**fields["error"])
    fields["truncated"], fields["files"] = frozenset(fields["truncated"]), files_from_wire(fields["files"])
    fields["displays"] = displays_from_wire(fields["displays"])
    return ExecutionResult(**fields, attempts=0, cached=True)


def hash_case(case: str) -> str:
    return hashlib.sha256(case.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()


async def in_thread_if_large(size: int, function: Callable[[], T]) -> T:
    return await asyncio.to_thread(function) if size > _LARGE else function()


def is_stored(result: ExecutionResult) -> bool:
    """Return whether a result does not depend on the load of the server."""
    may_vary = result.metadata.get("may_vary") or result.metadata.get("may_lack_output")
    if result.outcome not in _STORED or "files" in result.truncated or may_vary:
        return False
    error = result.error
    if error is None:
        return True
    lacks_memory = error.name.endswith("MemoryError") or "allocation failed" in error.message
    return not lacks_memory and error.name != "UnknownCase"


@attrs.define
class TimeBudget:
    """The seconds that failures of the store may still take in one call."""

    left_s: float = attrs.field(factory=lambda: STORE_S)


@attrs.define(eq=False)
class ResultCache:
    """Finds and keeps results in a store, which `aclose` closes if `owned`. A failing store never fails a call."""

    _store: Cache
    _owned: bool = False
    _has_failed: bool = attrs.field(default=False, init=False)

    @classmethod
    def checked(cls, cache: CacheOption) -> Self | None:
        if cache is None:
            return None
        if isinstance(cache, (str, os.PathLike)):
            return cls(DiskCache(cache), owned=True)
        if isinstance(cache, type) or not isinstance(cache, Cache):
            raise ConfigurationError(
                f"cache must be the path of a folder, or an object with the methods get and put, got {safe_repr(cache)}"
            )
        return cls(cache)

    async def open(self) -> None:
        """Open a store on the disk, so that a wrong path is reported at the start, as a ConfigurationError."""
        if isinstance(self._store, DiskCache):
            await self._try(self._store.open, TimeBudget(), is_first=True)

    async def aclose(self) -> None:
        if self._owned and isinstance(self._store, DiskCache):
            await self._store.aclose()

    async def find(self, keys: Sequence[str], budget: TimeBudget) -> list[ExecutionResult | None]:
        store = self._store
        values: list[bytes | None] | None
        if type(store) is DiskCache:
            values = await self._try(lambda: store._get_all(keys), budget, is_first=True)
        else:
            values = [await self._try(functools.partial(store.get, key), budget, is_first=True) for key in keys]
        return [await self._decode(key, value) for key, value in zip(keys, values or [None] * len(keys), strict=True)]

    async def _decode(self, key: str, value: bytes | None) -> ExecutionResult | None:
        if value is None:
            return None
        result = None
        with contextlib.suppress(Exception):  # the store may return anything
            result = await in_thread_if_large(len(value), lambda: decode_result(key, value))
        if result is None:
            self._log_failure("a value is damaged")
        return result

    async def keep(self, key: str, result: ExecutionResult, budget: TimeBudget) -> None:
        if budget.left_s <= 0 or not is_stored(result):
            return
        shown = [content for display in result.displays for content in display.data.values()]
        size = sum(map(len, (result.stdout, result.stderr, result.ret_val, *result.files.values(), *shown)))
        value = await in_thread_if_large(size, lambda: encode_result(key, result))
        if value is not None:
            await self._try(lambda: self._store.put(key, value), budget)

    async def _try(self, method: Callable[[], Awaitable[T]], budget: TimeBudget, *, is_first: bool = False) -> T | None:
        """Return None if the method fails, or if no time is left. Before the first program has run, raise the error for
        a wrong path.
        """
        if budget.left_s <= 0:
            return None
        clock = asyncio.get_running_loop().time
        began = clock()
        timeout = asyncio.timeout(budget.left_s)
        try:
            async with timeout:
                return await method()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the caller was cancelled, and not only something in the store
            if is_first and isinstance(error, ConfigurationError) and isinstance(self._store, DiskCache):
                raise
            budget.left_s = 0 if timeout.expired() else budget.left_s - (clock() - began)
            self._log_failure("it takes too long" if timeout.expired() else _describe(error))
            return None

    def _log_failure(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            log_warning("the cache of results failed, so programs run: %s", reason[:500])


def _describe(error: BaseException) -> str:
    with contextlib.suppress(Exception):  # `str` may raise for a class of the caller
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


class StoredResults:
    """The stored results of one program, or of one function of a program. A program without cases is one case."""

    def __init__(
        self, cache: ResultCache | None, execution: Execution, fingerprints: Callable[[], Awaitable[Fingerprints]]
    ) -> None:
        self._cache = None if execution.program.sandbox.network_enabled else cache
        self._execution = execution
        self._fingerprints = fingerprints
        self._engines: Fingerprints | None = None
        self._budget = TimeBudget()
        self._program = ""
        self._cases: list[str] = []

    async def find(self, numbers: Sequence[int] = (0,)) -> dict[int, ExecutionResult]:
        found: dict[int, ExecutionResult] = {}
        if self._cache is None:
            return found
        if self._engines is None:
            fingerprints = await self._fingerprints()
            await in_thread_if_large(self._size(), self._hash)
            self._engines = fingerprints
        for fingerprint in dict.fromkeys(filter(None, self._engines.values())):
            left = [number for number in numbers if number not in found]
            for start in range(0, len(left), _FOUND_AT_ONCE):
                part = left[start : start + _FOUND_AT_ONCE]
                results = await self._cache.find([self._key(fingerprint, number) for number in part], self._budget)
                found |= {number: result for number, result in zip(part, results, strict=True) if result is not None}
        return found

    async def keep(self, result: ExecutionResult, number: int = 0) -> ExecutionResult:
        if self._cache is not None and self._engines is not None:
            # The fingerprint in the answer of the embedded FaaS may be newer than the last health report.
            fingerprint = result.metadata.get("fingerprint") or self._engines.get(result.endpoint)
            if isinstance(fingerprint, str):
                await self._cache.keep(self._key(fingerprint, number), result, self._budget)
        return result

    def _size(self) -> int:
        program, cases = self._execution.program, self._execution.job.cases
        data = program.input
        texts = (*data.argv, *data.collect, *data.files, *program.ext, *program.ext.values(), *cases)
        sizes = map(len, (program.code, data.stdin, *data.files.values(), *texts))
        return sum(sizes) + _CASE_CHARACTERS * len(cases)

    def _hash(self) -> None:
        self._program = digest(determinants_of(self._execution))
        self._cases = [hash_case(case) for case in self._execution.job.cases or [""]]

    def _key(self, fingerprint: str, number: int) -> str:
        return digest({"program": self._program, "engine": fingerprint, "case": self._cases[number]})
