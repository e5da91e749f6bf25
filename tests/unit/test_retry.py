"""Which failures are retried, and when: the kinds of failures, the retry budget, and Retry-After."""

from __future__ import annotations

import itertools
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from faasrt import (
    ConnectError,
    ConnectionLostError,
    DeadlineExceededError,
    OverloadedError,
    ProtocolError,
    RejectedError,
    RetrySettings,
    ServerError,
    ServiceError,
)
from faasrt.transport.exchange import read_retry_after
from faasrt.transport.retry import (
    BUDGET,
    RETRY_COST,
    FailedAttempts,
    FailureKind,
    RetryBudget,
    classify,
    is_outage,
    outage_wait_s,
    throttled_delay_s,
)


def overloaded(status: int, retry_after_s: float | None = None, *, not_started: bool = False) -> OverloadedError:
    return OverloadedError("x", sent="yes", status=status, retry_after_s=retry_after_s, not_started=not_started)


# The error, its kind, whether it is retried by default, and whether it is retried if the call is idempotent.
TABLE: list[tuple[ServiceError, FailureKind, bool, bool]] = [
    (ConnectError("refused", sent="no"), FailureKind.NEVER_SENT, True, True),
    (overloaded(429), FailureKind.REFUSED, True, True),
    (overloaded(429, 1.0), FailureKind.REFUSED, True, True),
    (overloaded(503, 1.0), FailureKind.REFUSED, True, True),
    (overloaded(503, not_started=True), FailureKind.REFUSED, True, True),
    (overloaded(503), FailureKind.FAILED, False, True),
    (ServerError("x", sent="yes", status=500), FailureKind.FAILED, False, True),
    (ServerError("x", sent="yes", status=502), FailureKind.FAILED, False, True),
    (ServerError("x", sent="yes", status=504), FailureKind.LOST, False, True),
    (ConnectionLostError("x", sent="maybe"), FailureKind.LOST, False, True),
    (DeadlineExceededError("x", sent="maybe"), FailureKind.LOST, False, True),
    (ProtocolError("x", sent="yes"), FailureKind.LOST, False, True),
    (DeadlineExceededError("x", sent="no"), FailureKind.FINAL, False, False),
    (ServerError("x", sent="yes", status=200), FailureKind.FINAL, False, False),
    (ServerError("x", sent="yes", status=408), FailureKind.FINAL, False, False),
    *[
        (RejectedError("x", sent="yes", status=s), FailureKind.FINAL, False, False)
        for s in (400, 401, 403, 404, 413, 415)
    ],
]


def decide(
    error: ServiceError,
    *,
    attempt: int = 1,
    outage_s: float | None = None,
    settings: RetrySettings = RetrySettings(),  # noqa: B008 (it is immutable)
    idempotent: bool = False,
    **changes: Any,
) -> float | None:
    failed = FailedAttempts(settings, idempotent=idempotent)
    failed.error, failed.attempt, failed.outage_s = error, attempt, outage_s
    options = {"has_alternative": False, "remaining_s": 60.0, "budget": RetryBudget(), "random": lambda: 0.5}
    return failed.retry_delay_s(**(options | changes))


@pytest.mark.parametrize(("error", "kind", "by_default", "idempotent"), TABLE)
def test_ambiguous_failures_are_retried_only_if_idempotent(
    error: ServiceError, kind: FailureKind, by_default: bool, idempotent: bool
) -> None:
    """Refused requests are retried. If the code may have run, the request is retried only if it is idempotent."""
    assert classify(error) is kind
    assert (decide(error) is not None) is by_default
    assert (decide(error, idempotent=True) is not None) is idempotent


@pytest.mark.parametrize("error", [error for error, _, _, idempotent in TABLE if idempotent])
def test_no_retry_without_time_attempts_or_budget(error: ServiceError) -> None:
    """Each of the deadline, the number of attempts and the retry budget can prevent a retry."""
    empty = RetryBudget()
    empty.level = 4.9
    assert decide(error, idempotent=True, remaining_s=60.0) is not None
    assert decide(error, idempotent=True, remaining_s=0.0) is None
    assert decide(error, idempotent=True, attempt=3) is None
    assert decide(error, idempotent=True, budget=empty) is None
    assert empty.level == 4.9


def test_the_delay_doubles_up_to_its_maximum() -> None:
    """The maximum wait doubles from 50 ms to 2 s, or from 1 s to 20 s after a refusal. The wait is random below it."""
    many = RetrySettings(max_attempts=20)
    waits = [
        decide(ConnectError("x", sent="no"), attempt=n, settings=many, random=lambda: 0.999_999) for n in range(1, 9)
    ]
    assert [round(wait or 0, 2) for wait in waits] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    waits = [decide(overloaded(429), attempt=n, settings=many, random=lambda: 0.999_999) for n in range(1, 8)]
    assert [round(wait or 0, 2) for wait in waits] == [1, 2, 4, 8, 16, 20, 20]
    assert decide(ConnectError("x", sent="no"), random=lambda: 0.0) == 0.0


def test_the_delay_after_a_throttle_has_a_maximum() -> None:
    """The maximum delay is 20 times `base_delay_s`, and at most 10 times `max_delay_s`."""
    assert throttled_delay_s(RetrySettings(base_delay_s=0.05, max_delay_s=2)) == 1.0
    assert throttled_delay_s(RetrySettings(base_delay_s=1, max_delay_s=0.1)) == 1.0


def test_retry_after_is_honoured_within_bounds() -> None:
    """The wait is the time in `Retry-After` plus some jitter. There is no retry beyond 30 s or the deadline."""
    assert decide(overloaded(429, 3.0), random=lambda: 0.0) == 3.0
    assert 3.0 < (decide(overloaded(429, 3.0), random=lambda: 0.9) or 0) < 3.05
    assert decide(overloaded(429, 0.0), random=lambda: 0.0) == 0.0
    assert decide(overloaded(429, 30.0)) is not None
    assert decide(overloaded(429, 30.1)) is None
    assert decide(overloaded(429, 5.0), remaining_s=5.0) is None
    assert decide(overloaded(503, 1e12)) is None


def test_retry_on_another_endpoint_ignores_retry_after() -> None:
    """A refused call soon goes to another endpoint. If the endpoint is down, this does not need the retry budget."""
    assert decide(overloaded(429, 20.0), has_alternative=True) == 0.025
    assert decide(overloaded(503, 1e9), has_alternative=True) == 0.025
    empty = RetryBudget()
    empty.level = 0.0
    assert decide(ConnectError("x", sent="no"), has_alternative=True, budget=empty) is not None
    assert decide(overloaded(503, not_started=True), has_alternative=True, budget=empty) is not None
    assert decide(overloaded(429), has_alternative=True, budget=empty) is None


@pytest.mark.parametrize("error", [ConnectError("x", sent="no"), overloaded(503, not_started=True), overloaded(429)])
def test_more_attempts_find_an_endpoint_that_runs(error: ServiceError) -> None:
    """If nothing was started, and another endpoint is available, up to nine attempts are made instead of three."""
    assert decide(error, attempt=8, has_alternative=True) is not None
    assert decide(error, attempt=9, has_alternative=True) is None
    assert decide(error, attempt=3, has_alternative=False) is None
    assert decide(error, has_alternative=True, settings=RetrySettings(max_attempts=1)) is None
    few = RetrySettings(max_attempts=2)
    assert decide(error, attempt=7, has_alternative=True, settings=few) is not None
    assert decide(error, attempt=8, has_alternative=True, settings=few) is None
    lost = ConnectionLostError("x", sent="maybe")
    assert decide(lost, attempt=3, has_alternative=True, idempotent=True) is None


@pytest.mark.parametrize(
    "error", [ConnectError("x", sent="no"), overloaded(503, 0.0), overloaded(503, not_started=True)]
)
def test_retries_while_endpoints_are_down_are_limited_by_time_not_by_number(error: ServiceError) -> None:
    """Retries need no budget, but time until the deadline. Then the usual rules apply."""
    assert is_outage(error)
    empty = RetryBudget()
    empty.level = 0.0
    assert decide(error, attempt=4, outage_s=1.0, budget=empty) is not None
    assert decide(error, attempt=2_000, outage_s=1.0, random=lambda: 0.0) is not None
    assert decide(error, attempt=4, outage_s=30.1) is None
    assert decide(error, attempt=2, outage_s=30.1) is not None
    assert decide(error, attempt=2, outage_s=30.1, budget=empty) is None
    assert decide(error, attempt=4, outage_s=1.0, remaining_s=0.02) is None
    assert decide(error, attempt=4, outage_s=1.0, settings=RetrySettings(connect_retry_s=0.5)) is None


def test_which_failures_are_outages() -> None:
    """A server that is full, that may have run the code, or whose certificate is not accepted, is not down."""
    permanent = ConnectError("x", sent="no", permanent=True)
    lost = ConnectionLostError("x", sent="maybe")
    for error in (overloaded(429), overloaded(429, 1.0), overloaded(503), lost, permanent):
        assert not is_outage(error)
    assert outage_wait_s(RetrySettings()) == 30.0
    assert outage_wait_s(RetrySettings(max_attempts=1)) == 0.0


def test_no_retry_shortly_before_the_deadline() -> None:
    """The wait must end before the time at which another attempt must start."""
    assert decide(overloaded(429, 3.0), remaining_s=2.95, random=lambda: 0.0) is None
    assert decide(overloaded(429, 3.0), remaining_s=3.05, random=lambda: 0.0) == 3.0


def test_send_state_covers_all_attempts() -> None:
    """If an attempt may have run the code, the errors of later attempts say so, even if they were not sent."""
    failed = FailedAttempts(RetrySettings())
    first, last = overloaded(429), ConnectError("x", sent="no")
    failed.add(first, 0.0)
    failed.add(last, 0.0)
    assert last.sent == "no"
    lost, refused, gone = (
        ConnectionLostError("x", sent="maybe"),
        overloaded(503, not_started=True),
        ConnectError("x", sent="no"),
    )
    for error in (lost, refused, gone):
        failed.add(error, 0.0)
    assert (gone.sent, refused.not_started) == ("maybe", False)


def test_each_outage_begins_anew() -> None:
    """If the server was there between two outages, the second one has its own begin, delays and attempts."""
    failed = FailedAttempts(RetrySettings(), idempotent=True)
    down, lost = ConnectError("x", sent="no"), ConnectionLostError("x", sent="maybe")
    seen = []
    for now, error in enumerate([lost, down, down, lost, down, overloaded(503, 0.0), overloaded(429), down]):
        failed.add(error, now)
        seen.append((failed.attempt, failed.outage_s, failed.down_since))
    assert seen == [
        (1, None, None),
        (1, 0, 1),
        (2, 1, 1),
        (2, None, None),
        (1, 0, 4),
        (2, 1, 4),
        (3, None, None),
        (1, 0, 7),
    ]


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("0", 0.0),
        ("2", 2.0),
        (" 2.5 ", 2.5),
        ("1e3", 1000.0),
        (formatdate(NOW + 7, usegmt=True), 7.0),
        (formatdate(NOW - 7, usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799.0 - NOW),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("", None),
        ("soon", None),
        ("Fri, 99 Foo 2020 00:00:00 GMT", None),
        ("9" * 5000, None),
    ],
)
def test_read_retry_after(text: str | None, expected: float | None) -> None:
    """The header holds seconds or an HTTP date. Invalid values are ignored."""
    assert read_retry_after(text, lambda: NOW) == expected


@given(text=st.text(max_size=40) | st.from_regex(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d \w{3}", fullmatch=True))
def test_read_retry_after_accepts_any_text(text: str) -> None:
    """The result is a finite number of at least 0, or None."""
    seconds = read_retry_after(text, time.time)
    assert seconds is None or 0 <= seconds < float("inf")


class Budgets(RuleBasedStateMachine):
    """For any order of events, the level of the retry budget stays within its bounds, and retries need enough of it."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = RetryBudget()
        self.successes = self.retries = 0

    @rule()
    def succeed(self) -> None:
        self.budget.deposit()
        self.successes += 1

    @rule()
    def retry(self) -> None:
        before = self.budget.level
        paid = self.budget.spend()
        assert paid is (before >= RETRY_COST)
        self.retries += paid

    @invariant()
    def within(self) -> None:
        assert 0 <= self.budget.level <= BUDGET
        assert self.retries * RETRY_COST <= BUDGET + self.successes


TestBudgets = Budgets.TestCase


def test_retry_budget_limits_retries_when_all_endpoints_are_down() -> None:
    """A thousand failing calls share ten retries. Successes allow more retries."""
    budget = RetryBudget()
    error = ConnectError("x", sent="no")
    retries = 0
    for _ in range(1_000):
        for attempt in itertools.count(1):
            if decide(error, attempt=attempt, budget=budget) is None:
                break
            retries += 1
    assert retries == 10
    for _ in range(5):
        budget.deposit()
    assert decide(error, budget=budget) is not None


def test_the_attempts_that_one_crash_loses_are_one_retry() -> None:
    """A hundred lost at the same time, or on another endpoint, cost one retry for each endpoint. Those that were sent
    after the crash, or are lost later, cost one each.
    """
    budget = RetryBudget()

    def lose(url: str, started: float, now: float) -> bool:
        failed = FailedAttempts(RetrySettings(), idempotent=True)
        failed.add(ConnectionLostError("x", sent="maybe"), now, url, started=started)
        options: dict[str, Any] = {"has_alternative": False, "remaining_s": 60.0, "random": lambda: 0.5}
        return failed.retry_delay_s(budget=budget, **options) is not None

    assert all(lose("a", number / 10, 100 + number / 100) for number in range(100))
    assert budget.level == BUDGET - RETRY_COST
    assert all(lose("b", number / 10, 100 + number / 100) for number in range(100))
    assert budget.level == BUDGET - 2 * RETRY_COST
    assert lose("a", 50, 200)
    assert [lose("a", 200.5 + number, 201 + number) for number in range(10)] == [True] * 7 + [False] * 3
