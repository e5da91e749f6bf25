"""Messages about invalid arguments contain a short form of the value, however large it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from faasrt import FaasrtError, Language, RetrySettings, RuntimeFactory, RuntimeManager, SandboxConfig, Settings
from faasrt._run_option_checks import check_ext, check_flag, check_priority, check_timeout_ms
from faasrt.client.cache import DiskCache
from faasrt.client.map import check_stop_on
from faasrt.client.syntax import check_where
from faasrt.errors import safe_repr
from faasrt.local import LocalFaaS
from faasrt.protocol.cases import check_function, check_keywords, encode_case

LONG = "x" * 2_000_000
REFUSED: dict[str, Callable[[Any], object]] = {
    "language": Language.parse,
    "number": lambda value: SandboxConfig(memory_limit_mb=value),
    "flag": lambda value: SandboxConfig(network_enabled=value),
    "url": lambda value: Settings(endpoints={"python": f"http://{value}@x"}),
    "endpoint": lambda value: Settings(endpoints={"python": value if isinstance(value, str) else [value]}),
    "choice": lambda value: Settings(envelope=value),
    "retry": lambda value: RetrySettings(max_attempts=value),
    "function": lambda value: (
        check_function(value, Language.JAVASCRIPT)
        if isinstance(value, list)
        else check_function(f"{value} ", Language.PYTHON)
    ),
    "key": lambda value: encode_case(({(str(value),): 1},), {}, Language.PYTHON, "case 0"),
    "kwargs": lambda value: check_keywords({str(value): 1}, Language.JAVASCRIPT),
    "timeout": lambda value: check_timeout_ms(value, SandboxConfig()),
    "ext": lambda value: check_ext({str(value): 1}),
    "option": lambda value: check_flag("idempotent", value),
    "priority": lambda value: check_priority([value]),
    "count": lambda value: RuntimeManager().map([], concurrency=value),
    "stop_on": lambda value: check_stop_on([value]),
    "where": lambda value: check_where(value, Language.PYTHON),
    "workers": lambda value: LocalFaaS(workers=value),
    "drain_s": lambda value: LocalFaaS(drain_s=value),
    "clock": lambda value: RuntimeFactory(clock=value),
    "now": lambda value: DiskCache("unused", now=value),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", [LONG, [LONG] * 20], ids=["text", "list"])
def test_messages_about_large_arguments_are_short(name: str, value: object) -> None:
    with pytest.raises(FaasrtError) as caught:
        REFUSED[name](value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ruby", "'ruby'"),
        (None, "None"),
        (float("nan"), "nan"),
        (-5, "-5"),
        (["a", {"b": 1}], "['a', {'b': 1}]"),
        (b"x", "b'x'"),
    ],
    ids=["text", "none", "nan", "int", "list", "bytes"],
)
def test_short_values_are_shown_in_full(value: object, text: str) -> None:
    """A short value is shown as its `repr`."""
    assert safe_repr(value) == text


@pytest.mark.parametrize("value", [10**5_000, [10**5_000]], ids=["large int", "large list"])
def test_values_without_a_repr_are_shown_by_their_type(value: object) -> None:
    """Since Python 3.14, `reprlib` describes an int that has too many digits for `repr`. Before, it raises."""
    assert safe_repr(
        value
    ) == f"a value of type {type(value).__name__}" or "<int instance with roughly 5001 digits" in safe_repr(value)


def test_long_values_are_shown_by_their_start_and_end() -> None:
    assert safe_repr("a" + LONG + "b") == f"'a{'x' * 46}...{'x' * 47}b'"
