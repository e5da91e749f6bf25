"""The embedded FaaS of a manager, before it is started."""

from __future__ import annotations

import attrs
import pytest

from faasrt import ConfigurationError, Language, LimiterSettings, RuntimeManager, SandboxConfig, Settings
from faasrt.client.local_faas import ManagedLocalFaaS

SETTINGS = Settings(
    sandbox=SandboxConfig(timeout_limit_s=5), limiter=LimiterSettings(queue_timeout_s=3), token="secret"
)


@pytest.fixture
def faas() -> ManagedLocalFaaS:
    return ManagedLocalFaaS(["js"], SETTINGS, workers=1, telemetry=())


def test_it_has_languages_and_no_endpoints_before_the_start(faas: ManagedLocalFaaS) -> None:
    assert (faas.languages, faas.endpoints(), faas.is_started) == ((Language.JAVASCRIPT,), {}, False)


def test_calls_may_wait_as_long_as_programs_in_its_queue(faas: ManagedLocalFaaS) -> None:
    """A program waits before its time limit starts, so the wait is added to the grace time."""
    grace_s = SETTINGS.timeouts.grace_s
    assert faas.check(SETTINGS).timeouts.grace_s == grace_s + 3
    later = attrs.evolve(SETTINGS, limiter=LimiterSettings(queue_timeout_s=60))
    assert faas.check(later).timeouts.grace_s == grace_s + 3  # its queue stays as it is


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoints": {"python": "http://faas:8000"}}, "endpoints must be empty"),
        ({"token": "another"}, "token must be the one"),
        ({"sandbox": SandboxConfig(timeout_limit_s=6)}, "sandbox.timeout_limit_s must be at most 5"),
        ({"sandbox": SandboxConfig(timeout_limit_s=5, network_enabled=True)}, "sandbox.network_enabled must be False"),
    ],
    ids=["endpoints", "token", "limit", "network"],
)
def test_settings_that_it_cannot_follow_are_refused(
    faas: ManagedLocalFaaS, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        faas.check(attrs.evolve(SETTINGS, **changes))


def test_only_a_local_manager_has_one() -> None:
    assert RuntimeManager.from_url("http://faas:8000").local_faas is None
    local = RuntimeManager.local(["js"], settings=SETTINGS)
    assert local.local_faas is not None
    assert local.local_faas.languages == (Language.JAVASCRIPT,)
    assert (local.settings, local.get_supported_languages()) == (SETTINGS, (Language.JAVASCRIPT,))
