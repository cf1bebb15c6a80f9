"""One worker within this process, for what needs no cluster: a few rows, a notebook, a debugger. Knows nothing of Ray.

Its units run in threads, as those of a worker's process do. Nothing can end a thread: after a stop the call in hand
goes on to its end, and nothing comes of it. What kills a worker kills the run, which the next one resumes.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from batchgen.engine.queue import Finished, Try, has_room
from batchgen.errors import ClusterError, DeviceLost, InfrastructureError, InputError, one_line
from batchgen.work import Work, Worker, failure_of

__all__ = ["Here"]

_NODE = "here"
_at_work = threading.Lock()  # libraries patch torch for the whole process while they read a model


class Here:
    """What `drive` needs of a pool, by the one worker that this process is."""

    def __init__(self, work: Work, arrived: Callable[[str], None]) -> None:
        """Load the worker's libraries.

        Args:
            work: what it does.
            arrived: called when the worker is up, before it is given work; raises InputError where it must have none.

        Raises:
            InputError: this machine does not reach what the work needs, or this process is a worker already.
            ClusterError: what the worker computes with cannot be used here.
        """
        self._work = work
        self._running: dict[Any, Try[Any]] = {}  # by the unit's id
        self._threads: dict[Any, threading.Thread] = {}
        self._ended: SimpleQueue[tuple[Try[Any], Any]] = SimpleQueue()
        if not _at_work.acquire(blocking=False):
            raise InputError(
                "this process works for another run, or one that was stopped; wait for it, or give workers"
            )
        try:
            self._worker = self._load()
            arrived(_NODE)
        except BaseException:
            _at_work.release()
            raise

    def _load(self) -> Worker:
        try:
            worker = self._work.make_worker()
            worker.ready(_NODE)
        except (InputError, InfrastructureError):
            raise
        except (Exception, SystemExit) as error:  # of a library or a driver, while it is loaded
            raise ClusterError(f"this process cannot be a worker: {type(error).__name__}: {one_line(error)}") from error
        return worker

    @property
    def uses(self) -> str:
        """What the worker takes, for people."""
        return "this process is the worker"

    @property
    def in_work(self) -> int:
        """Units that were given out and have not come back."""
        return len(self._running)

    def has_room(self, tried: Try[Any]) -> bool:
        """Whether the worker could take a unit."""
        return has_room(tried, self._running.values(), self._worker.stored(), self._work)

    def submit(self, tried: Try[Any]) -> None:
        """Begin with a unit; only when `has_room`."""
        self._running[tried.unit.id] = tried
        # no daemon: Python aborts where it ends while one is in torch's code
        thread = threading.Thread(target=self._run, args=(tried,), name=f"unit {tried.unit.id}")
        self._threads[tried.unit.id] = thread
        thread.start()

    def in_progress(self) -> list[list[tuple[Any, Any]]]:
        """The worker's units in work, and what it says of each; None until it does."""
        said = self._worker.progress()
        return [[(tried.unit, said.get(id_)) for id_, tried in self._running.items()]]

    def wait(self, seconds: float) -> list[Finished[Any]]:
        """Attempts that ended within `seconds`; returns earlier when there are some.

        Raises:
            InfrastructureError: this process cannot be a worker any more.
        """
        finished = []
        with suppress(Empty):
            tried, result = self._ended.get(timeout=seconds)
            while True:
                del self._running[tried.unit.id]
                self._threads.pop(tried.unit.id).join()
                if isinstance(result, InfrastructureError):
                    raise result
                finished.append(Finished(tried=tried, result=result))
                tried, result = self._ended.get_nowait()
        return finished

    def close(self) -> None:
        """Give up what is in work; the process is a worker until the calls in hand have ended."""
        self._worker.stop()
        self._running.clear()
        if self._threads:
            threading.Thread(target=self._leave, name="the calls in hand").start()
        else:
            _at_work.release()

    def _leave(self) -> None:
        for thread in self._threads.values():
            thread.join()
        _at_work.release()

    def _run(self, tried: Try[Any]) -> None:
        try:
            result = self._worker.run(tried.unit)
        except DeviceLost as error:
            result = error
        except Exception as error:  # it belongs to the unit, and must not end the run
            result = failure_of(error)
        except BaseException as error:  # a panic of Rust, or a library that exits
            result = ClusterError(f"a worker's thread ended: {type(error).__name__}: {one_line(error)}")
        self._ended.put((tried, result))
