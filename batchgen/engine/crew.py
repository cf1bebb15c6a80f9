"""Who does the work: workers of a Ray cluster, or this process by itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from batchgen.engine.capacity import Capacity
from batchgen.engine.here import Here
from batchgen.engine.loop import Workers
from batchgen.job import WorkerResources
from batchgen.work import Work

__all__ = ["Crew", "Hired", "crew"]

_Arrived = Callable[[str], None]


class Hired(Workers, Protocol):
    """Workers that were started, to be stopped in the end."""

    @property
    def uses(self) -> str:
        """What they take of what there is, for people."""

    def close(self) -> None:
        """Stop them at once; what they have in work is not committed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """The workers that a run could have.

    `hire` starts them: it takes the work, how many are wanted, what each reserves, and whom to tell the id of a node
    on which one is up, before it is given work.
    """

    capacity: Capacity
    waits: bool  # for nodes that can hold a worker, where there is none now
    hire: Callable[[Work, int, WorkerResources, _Arrived], Hired]


@contextmanager
def crew(
    address: str | None, workers: int | None, resources: WorkerResources, notice: Callable[[str], None]
) -> Iterator[Crew]:
    """Connect to a cluster, or start a local Ray and stop it afterwards; neither for a run without workers.

    Args:
        address: of a running cluster, as `cluster` takes it.
        workers: how many will be asked for; 0 for this process in their place.
        resources: what each wants, and how long to wait for it.
        notice: takes a line that is worth reading.

    Raises:
        ClusterError: Ray does not start, nothing answers at the address, or the cluster wants another token.
    """
    if workers == 0:
        if address not in (None, "local"):
            notice(f"without workers the cluster at {address} is not used: this process does the work")
        if resources != WorkerResources():
            notice("without workers nothing is reserved, and nothing that hangs is replaced: [worker] is not used")
        yield Crew(
            capacity=Capacity.of_this_machine(),
            waits=False,
            hire=lambda work, _workers, _resources, arrived: Here(work, arrived),
        )
        return
    # Ray takes half a second to import: only where it is used
    from batchgen.engine.cluster import cluster, waits_for_room
    from batchgen.engine.pool import Pool

    with cluster(address, workers, notice) as capacity:

        def hire(work: Work, count: int, each: WorkerResources, arrived: _Arrived) -> Hired:
            return Pool(work, count, each, notice, arrived)

        yield Crew(capacity=capacity, waits=waits_for_room(resources), hire=hire)
