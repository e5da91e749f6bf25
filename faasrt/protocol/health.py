"""Reads health reports: which properties of a server change its requests, and which change results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from faasrt._run_option_checks import is_number
from faasrt.errors import ConnectError
from faasrt.inputs import INPUT_FIELDS
from faasrt.languages import Language, has_return_val
from faasrt.protocol.execution_limits import MAX_WALL_FACTOR, wall_limit_s

_MAX_COMPILE_S, _MAX_WALL_FACTOR = 300.0, 100.0
_CPYTHON = re.compile(r"CPython (\d{1,3}\.\d{1,3})")
OWN_WALL_FACTORS: Mapping[str, float] = dict.fromkeys(Language, MAX_WALL_FACTOR)
"""The factors of a `faasrt serve` that serves the clients of another service."""
NO_HEALTH = (404, 405, 501)
"""The statuses of a server without a health report. Others come from a gateway, or from a server that fails now."""
SESSION_FEATURES = ("run", "fork", "files")
"""What sessions may be able to do."""


@attrs.frozen(kw_only=True)
class EndpointProfile:
    """The properties of an endpoint on which its requests depend. The defaults are for an unknown server.

    Attributes:
        lossless: Whether the server returns results undamaged, so that programs need no envelope.
        reference: Whether the envelope is known to work there, as on python-faas, js-faas, SandboxFusion and Piston. An
            answer without a frame then means that the program was killed, or that the interpreter did not start.
        cold_start: Whether the server starts an interpreter for each request, which takes one or two seconds.
        capacities: The number of programs that the server runs at once, by language. TypeScript uses the number of
            JavaScript.
        sessions: What sessions can do, by language: "run", "fork", "files".
        languages: The languages that the server lists; empty if it lists none.
        compile_limits_s: The time for compilation by language, which is not part of the time limit of the program.
        low_levels: The level of the jail by language, and how to get a higher one, in words; without the highest level.
        max_wall_factors: For `wall_limit_s`, by language, if the time limit does not count the wait for a CPU. If the
            protocol has no profile, the answer to its health path confirms this while a program runs.
        kills_at_limit: Whether output in the guest program is lost when the server stops a program at its time limit.
            The guest program then stops the program itself, a little earlier.
        on_cpython_and_node: Whether programs run in CPython and Node.js as on a command line, and other languages are
            sent without an envelope.
        max_cases_bytes: The size of the arguments of all cases in a request; None if the client's own limit applies.
        validates: Whether the server says that it validates programs.
        python: The version of Python in which its programs run, such as "3.12"; "" if the report does not say it.
        plain_input: The fields of `faasrt.inputs` that the server itself handles for programs without an envelope.
        answered: Whether the server has sent a health report, or has none.
        failure: Why it could not be asked, if this does not pass by itself.
    """

    lossless: bool = False
    enforces_timeouts: bool = False
    cancels_on_disconnect: bool = False
    reference: bool = False
    cold_start: bool = False
    timeout_limit_ms: int | None = None
    max_output_bytes: int | None = None
    capacities: Mapping[str, int] = attrs.field(factory=dict)
    input_fields: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    displays: frozenset[str] = frozenset()
    sessions: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    languages: frozenset[str] = frozenset()
    compile_limits_s: Mapping[str, float] = attrs.field(factory=dict)
    low_levels: Mapping[str, str] = attrs.field(factory=dict)
    max_wall_factors: Mapping[str, float] = attrs.field(factory=dict)
    missing: Mapping[str, str] = attrs.field(factory=dict)
    version: str = ""
    validates: bool = False
    python: str = ""
    answered: bool = False
    failure: ConnectError | None = None
    kills_at_limit: bool = False
    on_cpython_and_node: bool = False
    max_frame_bytes: int | None = None
    max_cases_bytes: int | None = None
    plain_input: frozenset[str] = frozenset()

    def has_guest(self, language: Language | str) -> bool:
        if self.on_cpython_and_node:
            return language in (Language.PYTHON, Language.JAVASCRIPT)
        return has_return_val(language)

    def wait_limit_s(self, language: Language | str, limit_s: float) -> float:
        """Return how long a program may wait for a CPU of the server in addition to its time limit."""
        factor = self.max_wall_factors.get(language)
        return 0.0 if factor is None else wall_limit_s(limit_s, factor) - limit_s


def read_profile(health: Mapping[str, Any]) -> EndpointProfile:
    """Return the profile in a health report. Fields that are missing or have a wrong type are ignored.

    Source: python-faas and the js-faas of docker-compose report their name in `version`. The js-faas of the Helm chart
    is identified by `runtime` and `language`. Only the embedded FaaS has `capabilities` and `limits`.
    """
    capabilities, limits = (_mapping(health.get(key)) for key in ("capabilities", "limits"))
    version = health.get("version")
    name = version if isinstance(version, str) else ""
    languages = {name: _mapping(language) for name, language in _mapping(health.get("languages")).items()}
    on_pyodide = name.startswith("pyodide-faas")
    runs_js = health.get("runtime") == "deno" and health.get("language") == "javascript"
    return EndpointProfile(
        lossless=capabilities.get("lossless") is True,
        enforces_timeouts=capabilities.get("enforces_timeouts") is True,
        cancels_on_disconnect=capabilities.get("cancels_on_disconnect") is True,
        reference=on_pyodide or name.startswith("js-faas") or runs_js,
        cold_start=on_pyodide,
        timeout_limit_ms=_positive(limits.get("timeout_limit_s"), 1000),
        max_output_bytes=_positive(limits.get("max_output_bytes")),
        capacities=_capacities(health),
        input_fields=_lists(languages, "input", INPUT_FIELDS),
        displays=frozenset(name for name, language in languages.items() if language.get("displays") is True),
        sessions={name: can for name, can in _lists(languages, "sessions", SESSION_FEATURES).items() if "run" in can},
        languages=frozenset(languages),
        compile_limits_s=_numbers(languages, "compile_limit_s", _MAX_COMPILE_S),
        low_levels={name: text for name, language in languages.items() if (text := _low_level(language))},
        max_wall_factors=_numbers(languages, "max_wall_factor", _MAX_WALL_FACTOR),
        missing={name: text[:500] for name, text in _mapping(health.get("missing")).items() if isinstance(text, str)},
        version=name[:100],
        validates=capabilities.get("validates") is True,
        python=_python_version(languages.get(Language.PYTHON.value, {}).get("runtime")),
        answered=True,
    )


@attrs.frozen
class HealthReport:
    """The result of one request for the health of an endpoint.

    Attributes:
        profile: None if the server did not answer, or does not work now.
        fingerprints: Identify what runs the programs of each language. They are part of the keys of stored results. One
            that is missing or None is unknown.
        unreached: The error, if the endpoint was not reached.
    """

    profile: EndpointProfile | None
    fingerprints: Mapping[Language, str | None] = attrs.field(factory=dict)
    unreached: ConnectError | None = None


def read_fingerprints(health: Mapping[str, Any], url: str) -> dict[Language, str | None]:
    """Return a fingerprint for each language. It differs between servers whose programs may have different results. It
    is `url` if the report has no version, and None for an engine of the embedded FaaS that is not ready.
    """
    languages = _mapping(health.get("languages"))
    version = health.get("version")
    common = {name: health[name] for name in ("version", "runtime", "limits") if name in health}
    general = json.dumps(common, sort_keys=True) if isinstance(version, str) and version else url
    fingerprints: dict[Language, str | None] = {}
    for language in Language:
        state = _mapping(languages.get(language.value))
        fingerprint = state.get("fingerprint", general)
        fingerprints[language] = fingerprint if isinstance(fingerprint, str) and fingerprint else None
    return fingerprints


def is_reference_answer(metadata: Mapping[str, Any]) -> bool:
    """Return whether a reference server has sent this. Some gateways offer no `/health`."""
    return is_pyodide(metadata) or (
        metadata.get("language") == "javascript" and metadata.get("status") in ("success", "completed")
    )


def is_pyodide(metadata: Mapping[str, Any]) -> bool:
    runtime = metadata.get("runtime")
    return isinstance(runtime, str) and runtime.startswith("pyodide")


def _capacities(health: Mapping[str, Any]) -> dict[str, int]:
    # python-faas reports the size of its pool, and runs one language.
    pool = _mapping(_mapping(health.get("pool_status")).get("config"))
    found = {Language.PYTHON.value: pool.get("maxSize")}
    stated = {name: _mapping(language) for name, language in _mapping(health.get("languages")).items()}
    found |= {name: language["capacity"] for name, language in stated.items() if "capacity" in language}
    capacities = {name: _positive(value) for name, value in found.items()}
    return {name: capacity for name, capacity in capacities.items() if capacity is not None}


def _lists(languages: Mapping[str, Mapping[str, Any]], name: str, known: Sequence[str]) -> dict[str, frozenset[str]]:
    listed = {language: fields.get(name) for language, fields in languages.items()}
    return {
        language: frozenset(item for item in known if item in items)
        for language, items in listed.items()
        if isinstance(items, list)
    }


def _low_level(language: Mapping[str, Any]) -> str:
    level, remedy = language.get("level"), language.get("level_remedy")
    if not isinstance(level, str) or level in ("", "namespaces"):
        return ""
    how = f"To get a higher one: {remedy[:500]}" if isinstance(remedy, str) and remedy else "The highest is namespaces"
    return f"the level of its jail is {level[:100]}. {how}"


def _numbers(languages: Mapping[str, Mapping[str, Any]], field: str, highest: float) -> dict[str, float]:
    numbers = {name: _positive(language.get(field)) for name, language in languages.items()}
    return {name: min(number, highest) for name, number in numbers.items() if number is not None}


def _python_version(runtime: Any) -> str:
    found = _CPYTHON.match(runtime) if isinstance(runtime, str) else None
    return "" if found is None else found[1]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _positive(value: Any, factor: int = 1) -> int | None:
    return math.ceil(value * factor) if is_number(value) and 0 < value < 1e15 else None
