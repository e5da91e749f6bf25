"""Which failures concern one completion only, and how they are logged."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from faasrt.errors import FaasrtError, InvalidRequestError, QueueFullError, RejectedError, ServiceError
from faasrt.telemetry.counted_lines import INTERVAL_S
from faasrt.telemetry.logs import log_warning

# Of the infrastructure, or of the tests of one completion. Others hold for all completions.
_FAILURES = (ServiceError, QueueFullError, InvalidRequestError)
_CONFIGURATION_STATUSES = (401, 403, 404)  # of a wrong token or URL, whatever the program is


class SingleFailures:
    """Logs failures of calls with one completion. verl makes thousands of such calls, so there is one line for each
    kind in ten seconds.

    The first failure of a kind is logged at once, and later ones as a number. There is no lock, because a fork could
    leave it locked: failures in several threads at the same time may be miscounted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at: dict[str, float] = {}
        self._counts: Counter[str] = Counter()

    def log(self, kind: str) -> None:
        self._counts[kind] += 1
        now = self._clock()
        if now - self._logged_at.get(kind, -math.inf) < INTERVAL_S:
            return
        self._logged_at[kind] = now
        log_warning(
            "%d completion(s) cannot be judged, so their rewards are those of on_failure: %s. Further ones are logged "
            "together, at most every %d s. A function as on_failure gets the reasons, and CodeReward.check returns "
            "those of wrong tests",
            self._counts.pop(kind, 0),  # 0 if another thread has just logged it
            kind,
            INTERVAL_S,
        )


single_failures = SingleFailures()


def is_failure(error: FaasrtError) -> bool:
    """Return whether an error may concern one completion only. Errors of the configuration concern all."""
    is_refused = isinstance(error, RejectedError) and error.status in _CONFIGURATION_STATUSES
    return isinstance(error, _FAILURES) and not is_refused
