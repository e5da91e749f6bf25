"""Chooses the engine of each language, and makes their queues. Only this module knows all engines."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from faasrt.config import EngineName
from faasrt.errors import ConfigurationError, safe_repr
from faasrt.languages import Language, LanguageOption
from faasrt.local.engines.deno.engine import DenoEngine
from faasrt.local.engines.engine import Engine, EngineOptions
from faasrt.local.engines.native.engine import NativeEngine
from faasrt.local.engines.toolchain.engine import engine_for
from faasrt.local.engines.toolchain.languages import TOOLCHAINS
from faasrt.local.engines.wasm.engine import WasmEngine
from faasrt.local.http.admission import AdmissionQueue
from faasrt.local.http.program_permits import MemoryBudget
from faasrt.local.jail.level import LEVELS

# By family of languages. The first engine is the default at levels whose Python is native, the last one otherwise.
ENGINES: dict[Language, tuple[type[Engine], ...]] = {
    Language.PYTHON: (NativeEngine, WasmEngine),
    Language.JAVASCRIPT: (DenoEngine,),
    **{language: (engine_for(toolchain),) for language, toolchain in TOOLCHAINS.items()},
}
MAX_WORKERS, MAX_PROGRAMS = 256, 1_000
Queues = dict[Language, AdmissionQueue]


def engine_names(language: Language) -> tuple[str, ...]:
    return tuple(engine.name for engine in ENGINES[language.family])


def parse_languages(names: Iterable[LanguageOption] | None) -> tuple[Language, ...]:
    if names is None:
        return tuple(Language)
    if isinstance(names, (bytes, bytearray, Mapping)) or not isinstance(names, Iterable):
        raise ConfigurationError(f"languages must be a list of languages, such as ['python'], got {safe_repr(names)}")
    parsed = [Language.parse(name) for name in ([names] if isinstance(names, str) else names)]
    if not parsed:
        raise ConfigurationError("languages must not be empty")
    return tuple(dict.fromkeys(parsed))


def parse_engines(names: Mapping[Any, EngineName] | None) -> dict[Language, EngineName]:
    if not isinstance(names, Mapping | None):
        raise ConfigurationError(
            f'engines must map languages to engines, such as {{"python": "wasm"}}, got {safe_repr(names)}'
        )
    parsed = {Language.parse(language).family: name for language, name in (names or {}).items()}
    for family, name in parsed.items():
        known = engine_names(family)
        if name not in known:
            raise ConfigurationError(f"the engine of {family} must be one of {', '.join(known)}, got {safe_repr(name)}")
    return parsed


def engine_types(languages: Iterable[Language], engines: Mapping[Language, str], level: str) -> list[type[Engine]]:
    types = []
    for family in dict.fromkeys(language.family for language in languages):
        by_name = {engine.name: engine for engine in ENGINES[family]}
        is_native = level in LEVELS and LEVELS[level].python == NativeEngine.name
        default = ENGINES[family][0 if is_native else -1]
        types.append(by_name.get(engines.get(family, ""), default))
    return types


def check_engines(languages: Iterable[Language], engines: Mapping[Language, str], memory_limit_mb: int) -> None:
    for engine in engine_types(languages, engines, ""):
        if importlib.util.find_spec(engine.package) is None:
            raise ConfigurationError(
                f"the embedded FaaS needs {engine.package} for {engine.languages[0]}: pip install 'faasrt[local]'"
            )
        if memory_limit_mb < engine.min_memory_mb:
            raise ConfigurationError(
                f"memory_limit_mb must be at least {engine.min_memory_mb} for {engine.languages[0]}, "
                f"got {memory_limit_mb}"
            )


def needs_level(languages: Iterable[Language], engines: Mapping[Language, str]) -> bool:
    """Return whether an engine runs programs in a jail. Only Python as WebAssembly does not."""
    return engines.get(Language.PYTHON) != WasmEngine.name or tuple(languages) != (Language.PYTHON,)


def missing_toolchains(languages: tuple[Language, ...]) -> dict[Language, str]:
    """Return why languages cannot run here, if `languages` are all that exist: then those are left out."""
    if languages != tuple(Language):
        return {}
    return {language: tool.missing for language, tool in TOOLCHAINS.items() if tool.missing}


def make_queues(
    languages: tuple[Language, ...],
    engines: Mapping[Language, str],
    options: EngineOptions,
    budget: MemoryBudget,
    running: Iterable[AdmissionQueue] = (),
) -> tuple[Queues, dict[Language, str]]:
    """Return the queue of each language, and the reasons why other languages cannot run here. This looks for the
    toolchains of languages, so call it in a thread.

    Args:
        languages: If this names all languages, the languages that cannot run here are left out.
        budget: The memory for the programs of all queues.
        running: Queues whose engines run. A queue with the same kind of engine and the same options is used again.
    """
    missing = missing_toolchains(languages)
    if languages == tuple(Language):
        if options.level != "namespaces":
            reason = f"it needs the level namespaces: {options.level_reason or 'another level was chosen'}"
            missing |= dict.fromkeys(TOOLCHAINS, reason)
        languages = tuple(language for language in languages if language not in missing)
    queues: Queues = {}
    for make_engine in engine_types(languages, engines, "" if options.python_problem else options.level):
        old = next((queue for queue in running if type(queue.engine) is make_engine), None)
        if old is not None and old.engine.options == options:
            queue = old
        else:
            counts = None if old is None else old.counts
            queue = AdmissionQueue(make_engine(options), counts=counts, budget=budget)
        queues |= {language: queue for language in make_engine.languages if language in languages}
    return queues, missing
