"""How long a worker may be at its work without getting further before it is taken to hang. Pure."""

from collections.abc import Iterable

__all__ = ["Patience"]

_FIRST = 60.0  # minutes until units of a key have been measured: a model is read, perhaps from afar, and compiled
_LEAST = 10.0  # minutes; stores have their own retries, and they may take some
_TIMES = 20.0  # as long as the longest step so far of the same key


class Patience:
    """Learns from each step of a unit how long steps of its key take."""

    def __init__(self, minutes: float | None) -> None:
        """Begin with nothing measured.

        Args:
            minutes: the patience itself, for all units; None has it follow from what is measured.
        """
        self._minutes = minutes
        self._longest: dict[str, float] = {}  # seconds by key

    def learn(self, key: str, seconds: float) -> None:
        """A unit of this key got further, so many seconds after the worker's step before."""
        self._longest[key] = max(seconds, self._longest.get(key, 0.0))

    def seconds(self, keys: Iterable[str]) -> float:
        """How long a worker may be at units of these keys without a step of any."""
        if self._minutes is not None:
            return 60 * self._minutes
        return max((self._of(key) for key in keys), default=60 * _FIRST)

    def _of(self, key: str) -> float:
        longest = self._longest.get(key)
        return 60 * _FIRST if longest is None else max(60 * _LEAST, _TIMES * longest)
