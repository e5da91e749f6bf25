"""The circuit breaker of an endpoint: whether it gets calls at all."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal

import attrs

from faasrt.config import BreakerSettings

BreakerState = Literal["closed", "open", "half-open"]


@attrs.define
class _Second:
    time: int
    successes: int = 0
    failures: int = 0


class Breaker:
    """The circuit breaker of one endpoint.

    It opens after consecutive failures, or if too few recent calls succeeded, for a time with jitter that doubles each
    time. Then it is half-open: a single call, the probe, closes it or opens it again. Failures of the user's code count
    as successes.

    Attributes:
        open_until: The time from which a probe may be sent.
        early_probe_at: The same, if calls wait because no other endpoint works. It stays while the probe is in flight.
        failing_since: When it last changed from closed to open.
    """

    def __init__(
        self, settings: BreakerSettings, random: Callable[[], float], on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._random = random
        self._on_change = on_change
        self.state: BreakerState = "closed"
        self.open_until = self.early_probe_at = self.failing_since = 0.0
        self._consecutive_failures = 0
        self._openings = 0
        self._closed_at = self._opened_at = float("-inf")
        self._probes = 0
        self._window: deque[_Second] = deque()

    def reconfigure(self, settings: BreakerSettings) -> None:
        self._settings = settings

    def open_s(self, now: float) -> float:
        return max(0.0, self.open_until - now) if self.state == "open" else 0.0

    def may_probe(self, now: float, *, is_needed: bool = False) -> bool:
        """Return whether the next call may be the probe. `is_needed`: no other endpoint works."""
        return self.state == "open" and now >= (self.early_probe_at if is_needed else self.open_until)

    def start_probe(self) -> int:
        """Become half-open, and return the number of the probe, the only one until it ends."""
        self.state = "half-open"
        self._probes += 1
        return self._probes

    def succeed(self, now: float, started: float) -> None:
        if self.state != "closed":
            if started < self._opened_at:
                return  # it was sent before the endpoint failed
            self.state, self._closed_at = "closed", now
            self._window.clear()
            self._on_change()
        self._consecutive_failures = 0
        self._second(now).successes += 1

    def fail(self, now: float, started: float, *, probe: int | None = None, early_probe_s: float = math.inf) -> None:
        """Record a call that failed because of the endpoint or the network.

        Args:
            probe: The number of the probe if the call is one.
            early_probe_s: The seconds until a probe may be sent if no other endpoint works; at most `base_open_s`.
        """
        if self.state != "closed":
            # Only the probe counts. Other calls were sent before the breaker opened, or because all breakers are open.
            if self._is_current(probe):
                if now < self.open_until:  # a failed early probe does not extend the time
                    self.state, self._opened_at = "open", now
                    self.early_probe_at = min(self.open_until, self._early_probe_at(now, early_probe_s))
                else:
                    self._open(now, early_probe_s)
            return
        if started < self._closed_at:
            return  # it was sent before the endpoint recovered
        self._consecutive_failures += 1
        self._second(now).failures += 1
        good = sum(second.successes for second in self._window)
        bad = sum(second.failures for second in self._window)
        too_few = good + bad >= self._settings.min_calls and good < self._settings.min_success_rate * (good + bad)
        if too_few or self._consecutive_failures >= self._settings.consecutive_failures:
            if now - self._closed_at > self._settings.window_s:
                self._openings = 0
            self._open(now, early_probe_s)

    def release_probe(self, now: float, probe: int) -> None:
        """Let another probe be sent at once, because this one ended without a result."""
        if self._is_current(probe):
            self.state, self.open_until, self.early_probe_at = "open", now, now

    def _is_current(self, probe: int | None) -> bool:
        return self.state == "half-open" and probe == self._probes

    def _open(self, now: float, early_probe_s: float) -> None:
        settings = self._settings
        # The exponent is limited, because larger powers of two overflow a float.
        longest = settings.base_open_s * 2.0 ** min(self._openings, 60)
        self.open_until = now + min(settings.max_open_s, longest * self._jitter())
        self.early_probe_at = min(self.open_until, self._early_probe_at(now, early_probe_s))
        if self.state == "closed":
            self.failing_since = now
        self._openings += 1
        self._consecutive_failures = 0
        self.state, self._opened_at = "open", now
        self._on_change()

    def _early_probe_at(self, now: float, early_probe_s: float) -> float:
        return now + min(self._settings.base_open_s, early_probe_s) * self._jitter()

    def _jitter(self) -> float:
        return 0.8 + 0.4 * self._random()

    def _second(self, now: float) -> _Second:
        time = int(now)
        if not self._window or self._window[-1].time != time:
            while self._window and self._window[0].time <= time - self._settings.window_s:
                self._window.popleft()
            self._window.append(_Second(time))
        return self._window[-1]
