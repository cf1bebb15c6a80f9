"""How many requests are in flight while a service is busy, and how long they are tried again; no request is real."""

import random
import threading
import time

import pytest

from batchgen.storage import throttle
from batchgen.storage.throttle import Limiter, Throttle, Trouble


def test_concurrency_falls_and_recovers() -> None:
    """Halved once for all that were under way, one more for as many answers as fit in, and never under one."""
    limiter = Limiter(8)
    tickets = [limiter.begin() for _ in range(8)]
    for ticket in tickets:
        limiter.end(ticket, busy=True)
    assert limiter.limit == 4, "eight refusals of one moment are one"
    for _ in range(4):
        limiter.end(limiter.begin(), answered=True)
    assert 4.8 < limiter.limit <= 5
    limiter.end(limiter.begin())
    assert 4.8 < limiter.limit <= 5, "no answer at all says nothing of how many are too many"
    for _ in range(5):
        limiter.end(limiter.begin(), busy=True)
    assert limiter.limit == 1
    for _ in range(100):
        limiter.end(limiter.begin(), answered=True)
    assert limiter.limit == 8


def test_a_request_waits_for_room() -> None:
    limiter = Limiter(1)
    first = limiter.begin()
    entered = threading.Event()

    def enter() -> None:
        limiter.begin()
        entered.set()

    second = threading.Thread(target=enter)
    second.start()
    assert not entered.wait(0.05)
    limiter.end(first, answered=True)
    assert entered.wait(5)
    second.join()


def test_patience_is_for_an_outage_not_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses double up to a bound; once nothing was answered for long, a request fails after a few tries."""
    now, pauses = [0.0], list[float]()

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", wait)
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    asked = Throttle()

    def fail() -> int:
        raise TimeoutError("away")

    with pytest.raises(TimeoutError) as first:
        asked.call(fail, lambda _: Trouble.AWAY)
    assert throttle.PATIENCE < now[0] < throttle.PATIENCE + 21
    assert pauses[:8] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20])
    assert "for 1" in first.value.__notes__[0]
    pauses.clear()
    with pytest.raises(TimeoutError):
        asked.call(fail, lambda _: Trouble.AWAY)
    assert len(pauses) == throttle.LEAST_TRIES - 1
    assert asked.call(lambda: 1, lambda _: None) == 1
    pauses.clear()
    with pytest.raises(TimeoutError):
        asked.call(fail, lambda _: Trouble.AWAY)
    assert len(pauses) > throttle.LEAST_TRIES, "an answer in between ends the outage"
    with pytest.raises(TimeoutError):
        asked.call(fail, lambda _: None)
    assert asked.limiter.limit == throttle.AT_ONCE
