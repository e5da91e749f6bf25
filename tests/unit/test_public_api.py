"""The public names of the package, and its errors."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import faasrt
from faasrt import errors


def test_every_exported_name_exists() -> None:
    """Each name in `__all__` can be imported. `dir` lists them, and modules that need no extra."""
    assert sorted(set(faasrt.__all__)) == sorted(faasrt.__all__)
    for name in faasrt.__all__:
        assert getattr(faasrt, name) is not None
    modules = [value.__name__ for name in dir(faasrt) if inspect.ismodule(value := getattr(faasrt, name))]
    assert dir(faasrt) == sorted([*faasrt.__all__, *(name.removeprefix("faasrt.") for name in modules)])
    with pytest.raises(AttributeError):
        faasrt.nope  # type: ignore[attr-defined]  # noqa: B018


ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.FaasrtError) and not value.__name__.startswith("_")
]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_survive_pickle_and_copy(kind: type[errors.FaasrtError]) -> None:
    """Errors keep their message and attributes, so they can be sent to other processes."""
    error = kind("what happened")
    if isinstance(error, errors.ServiceError):
        error.endpoint, error.attempts, error.elapsed_s, error.sent, error.status = "http://x", 2, 1.5, "yes", 500
    if isinstance(error, errors.OverloadedError):
        error.retry_after_s = 3.0
    if isinstance(error, errors.ExecutionError):
        error.result = faasrt.ExecutionResult(outcome=faasrt.Outcome.TIMEOUT)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_every_error_is_exported() -> None:
    """Each error class can be imported from `faasrt`."""
    assert {kind.__name__ for kind in ERRORS} <= set(faasrt.__all__)


def test_service_errors_name_endpoint_attempts_and_time() -> None:
    """The message of a `ServiceError` ends with the endpoint, the attempts, the time and `sent`."""
    error = faasrt.ConnectError("cannot connect", endpoint="http://x:1", attempts=1, elapsed_s=0.5, sent="no")
    assert str(error) == "cannot connect [http://x:1, 1 attempt, 0.50 s, sent: no]"


def test_every_public_name_is_documented() -> None:
    """Each public name, and each public method of a public class, has a docstring. Those of types are in the source."""
    for name in set(faasrt.__all__) - {"__version__", "LanguageName", "LanguageOption"}:
        value = getattr(faasrt, name)
        assert value.__doc__, name
        if not isinstance(value, type):
            continue  # an alias of several types
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and callable(getattr(value, attribute)) and not isinstance(member, type):
                assert getattr(value, attribute).__doc__, f"{name}.{attribute}"
