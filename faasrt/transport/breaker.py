"""Whether an endpoint is well: it is left out after failures, and let in again by one call that succeeds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from faasrt.config import BreakerSettings

BreakerState = Literal["closed", "ejected", "canary"]


class Breaker:
    """The health of one endpoint, as its calls show it.

    It is ejected after so many failures in a row, or when too few calls of the last seconds succeeded; longer each
    time, with jitter. When that time is over, a single call, the canary, is let through: it re-admits the endpoint, or
    has it ejected again. The user's own failures are successes here.

    Args:
        settings: When, and for how long.
        random: Gives a number in [0, 1).
        on_change: Called when the endpoint was ejected, or is back.
    """

    def __init__(
        self, settings: BreakerSettings, random: Callable[[], float], on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._random = random
        self._on_change = on_change
        self.state: BreakerState = "closed"
        self.until = 0.0
        self._in_a_row = 0
        self._ejections = 0
        self._closed_at = self._ejected_at = float("-inf")
        self._canaries = 0
        # Of each second in the window: the second, the successes, and the failures.
        self._window: deque[list[int]] = deque()

    def ejected_s(self, now: float) -> float:
        """Seconds until a canary may be sent; 0 unless it is ejected."""
        return max(0.0, self.until - now) if self.state == "ejected" else 0.0

    def due(self, now: float) -> bool:
        """Whether a canary may be sent."""
        return self.state == "ejected" and now >= self.until

    def send_canary(self) -> int:
        """Note that a call is the canary, and give its number; no other one is let through until it has ended."""
        self.state = "canary"
        self._canaries += 1
        return self._canaries

    def succeed(self, now: float, started: float) -> None:
        """Note a call that the endpoint answered, and that began then."""
        if self.state != "closed":
            if started < self._ejected_at:
                return  # that was before it went wrong
            self.state, self._closed_at = "closed", now
            self._window.clear()
            self._on_change()
        self._in_a_row = 0
        self._count(now, 1)

    def fail(self, now: float, started: float, *, canary: int | None = None) -> None:
        """Note a call that failed by the endpoint's fault, or that of the way to it, and that began then."""
        if self.state != "closed":
            # What else comes in was sent before, or because every endpoint is as bad.
            if self._is_out(canary):
                self._eject(now)
            return
        if started < self._closed_at:
            return  # that was before it was well again
        self._in_a_row += 1
        self._count(now, 2)
        good, bad = (sum(second[place] for second in self._window) for place in (1, 2))
        too_few = good + bad >= self._settings.min_calls and good < self._settings.min_success_rate * (good + bad)
        if too_few or self._in_a_row >= self._settings.consecutive_failures:
            if now - self._closed_at > self._settings.window_s:
                self._ejections = 0
            self._eject(now)

    def forgo_canary(self, now: float, canary: int) -> None:
        """Note that a canary ended without showing anything: another call may be one at once."""
        if self._is_out(canary):
            self.state, self.until = "ejected", now

    def _is_out(self, canary: int | None) -> bool:
        """Whether it is this canary that the endpoint is tried by."""
        return self.state == "canary" and canary == self._canaries

    def _eject(self, now: float) -> None:
        settings = self._settings
        # The exponent is bounded, or it would not fit a float some day.
        longest = settings.base_ejection_s * 2.0 ** min(self._ejections, 60)
        self.until = now + min(settings.max_ejection_s, longest * (0.8 + 0.4 * self._random()))
        self._ejections += 1
        self._in_a_row = 0
        self.state, self._ejected_at = "ejected", now
        self._on_change()

    def _count(self, now: float, place: int) -> None:
        second = int(now)
        if self._window and self._window[-1][0] == second:
            self._window[-1][place] += 1
            return
        while self._window and self._window[0][0] <= second - self._settings.window_s:
            self._window.popleft()
        self._window.append([second, place == 1, place == 2])
