"""The canary: a call whose images are remembered, and made again to see that they still come out the same.

Rows must not change each other, and a model that something stayed behind in would do that without an error. So each
worker makes its first call again before it commits a shard in which a call failed, and otherwise before the first
commit after `EVERY` calls. Knows nothing of outputs.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from PIL.Image import Image

from batchgen.diffusion.host import Images, PipelineHost
from batchgen.errors import CanaryDied, InputError
from batchgen.models.catalog import Model
from batchgen.rows import MicroBatch

__all__ = ["EVERY", "Canary"]

EVERY = 50  # calls: one more is 2 % of them


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """A call of a model that can be made again, and the sha256 of its images."""

    model: Model
    again: Callable[[], Images]
    sha256: str


class Canary:
    """Makes images by a host, and watches it meanwhile. For one thread at a time."""

    def __init__(self, host: PipelineHost) -> None:
        self._host = host
        self._first: _Call | None = None  # of the model that is loaded
        self._calls = 0  # since the last check
        self._failed = False
        self._shards: list[str] = []  # made since the last check, the one in work not counted
        self._repeats = True  # the device gives the same bits for the same call

    def generate(
        self,
        model: Model,
        batch: MicroBatch,
        inputs: Sequence[Mapping[str, Image]],
        *,
        refiner: Model | None,
        save_steps: Collection[int],
        save_controls: bool = False,
    ) -> Images:
        """`PipelineHost.generate`."""
        self._calls += 1
        try:
            made = self._host.generate(
                model, batch, inputs, refiner=refiner, save_steps=save_steps, save_controls=save_controls
            )
        except Exception:
            self._failed = True
            raise
        if self._first is None or self._first.model != model:
            again = partial(self._host.generate, model, batch, inputs, refiner=refiner)
            self._first = _Call(model=model, again=again, sha256=_hash(made))
        return made

    def check(self, shard: str) -> None:
        """Make the first call again if it is time for that; to be called before a shard is committed.

        A host whose images differ is emptied. Where a model that was just read makes others too, the device is one
        that never repeats itself, and nothing can be learnt from it.

        Raises:
            CanaryDied: the images differ, and are right again once the model is read anew.
        """
        if self._first is None or not self._repeats:
            return
        if not (self._failed or self._calls >= EVERY):
            self._shards.append(shard)
            return
        doubtful, self._shards = self._shards, []
        self._calls, self._failed = 0, False
        try:
            if _hash(self._first.again()) == self._first.sha256:
                return
            self._host.forget()
            self._repeats = _hash(self._first.again()) == self._first.sha256
        except InputError:  # an adapter of that call changed since: it says nothing of the rows of this shard
            self._first = None
            return
        if self._repeats:
            others = f"; so may those of the shards {', '.join(doubtful)}, which are committed" if doubtful else ""
            raise CanaryDied(
                "a call that was made again gave other images: what was made before it in this worker may be wrong, "
                f"and is made once more{others}"
            )


def _hash(made: Images) -> str:
    return hashlib.sha256(made.pixels.tobytes()).hexdigest()
