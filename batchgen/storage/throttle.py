"""Requests to a service that is busy, slow or away for a while: how many at once, and how long to try again.

Knows nothing of what a request is; who hands one over says what its errors mean.
"""

import random
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import TypeVar

__all__ = ["AT_ONCE", "Limiter", "Throttle", "Trouble"]

_Result = TypeVar("_Result")

AT_ONCE = 32  # requests in flight; a worker has four encoders and a few shards, readers of many small objects as many
PATIENCE = 120.0  # seconds without an answer until requests fail; a shard that fails is to be made anew
LEAST_TRIES = 4  # where the service is away for longer than that already
_FIRST_PAUSE = 0.2  # seconds, doubled for each further try; of it a random part is waited ("full jitter")
_LONGEST_PAUSE = 20.0  # seconds


class Trouble(Enum):
    """What an error says of the service, if trying again may help."""

    BUSY = auto()  # it wants fewer requests
    AWAY = auto()  # no answer, half of one, or one that may be another the next time


class Limiter:
    """How many requests may be in flight: one more for as many successes, half as many when the service is busy.

    Additive increase and multiplicative decrease share a service fairly without a word between its users (Chiu and
    Jain, 1989). Requests that were under way at a cut cause no second one.
    """

    def __init__(self, most: int = AT_ONCE) -> None:
        self.limit = float(most)
        self._most = most
        self._in_flight = 0
        self._cuts = 0
        self._changed = threading.Condition()

    def begin(self) -> int:
        """Enter a request, once there is room; returns its ticket for `end`."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1
            return self._cuts

    def end(self, ticket: int, *, busy: bool = False, answered: bool = False) -> None:
        """Take out a request, which the service was too busy for, or answered, or neither."""
        with self._changed:
            if busy and ticket == self._cuts:
                self.limit = max(1.0, min(self.limit, self._in_flight) / 2)
                self._cuts += 1
            elif answered:
                self.limit = min(self._most, self.limit + 1 / self.limit)
            self._in_flight -= 1
            self._changed.notify_all()


class Throttle:
    """Makes requests of one service for all threads of a process.

    Patience is counted from the first request that failed without one that was answered since, so that in a long outage
    not each of many requests takes as long.
    """

    def __init__(self) -> None:
        self.limiter = Limiter()
        self._away_since: float | None = None  # of time.monotonic(): the first failure after the last answer

    def call(self, request: Callable[[], _Result], trouble: Callable[[Exception], Trouble | None]) -> _Result:
        """What the request returns, which is made again for as long as its errors are `trouble` and patience lasts.

        Raises:
            Exception: of the last try; a note says how many there were.
        """
        started: float | None = None  # of its first try: waiting for room is not in vain
        tries = 0
        while True:
            ticket = self.limiter.begin()
            started = started or time.monotonic()
            busy = answered = False
            try:
                result = request()
                answered = True
                self._away_since = None
                return result
            except Exception as error:
                kind = trouble(error)
                if kind is None:
                    answered = True
                    self._away_since = None
                    raise
                busy, tries = kind is Trouble.BUSY, tries + 1
                away_since = self._away_since = self._away_since or time.monotonic()
                waited = time.monotonic() - min(started, away_since)
                if waited > PATIENCE and tries >= LEAST_TRIES:
                    error.add_note(f"tried {tries} times, for {waited:.0f} s in vain")
                    raise
            finally:
                self.limiter.end(ticket, busy=busy, answered=answered)
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1))))
