"""The engine runs any kind of work: a toy kind on a real Ray pool, and errors by what they mean for a unit."""

import ast
import builtins
import inspect
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchgen import errors
from batchgen.engine.crew import crew
from batchgen.engine.loop import Control, Workers, drive
from batchgen.engine.queue import WorkQueue
from batchgen.errors import ClusterError, DeviceLost, ErrorClass, InputError, StoreError
from batchgen.job import WorkerResources
from batchgen.work import Failure, FailureKind, Unit, Work, Worker, failure_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """A unit of the toy kind: numbers to square."""

    values: tuple[int, ...]

    @property
    def id(self) -> str:
        return "-".join(map(str, self.values))

    @property
    def needs(self) -> str:
        return ""

    @property
    def key(self) -> str:
        return "squares"

    def split(self) -> Sequence["Numbers"]:
        if len(self.values) == 1:
            return ()
        middle = len(self.values) // 2
        return Numbers(values=self.values[:middle]), Numbers(values=self.values[middle:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Squares:
    """A receipt of the toy kind."""

    squares: tuple[tuple[int, int], ...]
    process: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Squaring:
    """The toy kind: 13 kills its process, 7 cannot be squared, 17 never ends, some fail once: 5 by a store, 3 by a
    device, 19 stops its process. A store takes 40, 41 and 42 only once 43 is done, and 9 without saying so.
    """

    folder: Path

    def make_worker(self) -> Worker:
        return _Squarer(self.folder)


class Panic(BaseException):
    """As Rust's libraries have it."""


class _Squarer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._in_work: dict[str, int] = {}
        self._stopped = False

    def ready(self, node: str, /) -> None:
        if (self._folder / "elsewhere").exists():
            raise InputError("what the work needs is elsewhere")

    def run(self, unit: Numbers, /) -> Squares:
        if 13 in unit.values:
            os._exit(1)
        if 7 in unit.values:
            raise InputError("7 has no square")
        self._in_work[unit.id] = len(unit.values)
        if 30 in unit.values:
            time.sleep(2.5)  # longer than the pool waits before it asks
        if 5 in unit.values and self._first("5"):
            raise StoreError("the store is busy")
        if 9 in unit.values:
            raise StoreError("the answer was lost") if self._first("9") else InputError("9 is there already")
        while 17 in unit.values and not self._stopped:
            time.sleep(0.01)
        if 23 in unit.values:
            raise Panic("of a library that is not Python")
        while unit.id in self.stored() and not (self._folder / "43").exists():
            time.sleep(0.01)
        if 43 in unit.values:
            (self._folder / "43").touch()
        if 19 in unit.values and self._first("19"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if 3 in unit.values and self._first("3"):
            raise DeviceLost("a kernel failed")
        return Squares(squares=tuple((value, value**2) for value in unit.values), process=os.getpid())

    def progress(self) -> dict[str, int]:
        return dict(self._in_work)

    def stop(self) -> None:
        self._stopped = True

    def stored(self) -> set[str]:
        return {id_ for id_ in self._in_work if id_ in ("40", "41", "42")}

    def _first(self, name: str) -> bool:
        try:
            (self._folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


STORED = (40,), (41,), (42,), (43,)


@pytest.mark.ray
def test_another_kind_of_work_runs_on_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permanent: once, whole. Transient: again. Lost: alone, cut, isolated. A lost device is a lost worker, as is a
    process that is stopped, or gets no further.
    """
    from batchgen.engine.cluster import cluster
    from batchgen.engine.pool import Pool

    monkeypatch.setattr("batchgen.engine.queue._FIRST_PAUSE", 0.01)
    # Ray's workers must find the class; a module of the tests is none of theirs
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    units = [
        Numbers(values=values)
        for values in ((1, 2, 3, 4), (5, 6), (7, 8), (11, 12, 13, 14), (20, 21), (30, 31), *STORED, (17,), (19,))
    ]
    done: dict[int, int] = {}
    failed: list[tuple[tuple[int, ...], ErrorClass]] = []
    retried: list[ErrorClass] = []
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))  # no socket's path may be so long
    placed: list[str] = []
    said: set[int] = set()
    notices: list[str] = []
    with cluster(None, 2, placed.append) as _capacity:
        pool = Pool(
            Work(make_worker=Squaring(folder=tmp_path).make_worker, spool=2),
            2,
            WorkerResources(hang_minutes=0.06),
            notices.append,
        )
        try:
            drive(
                WorkQueue(iter(units)),
                pool,
                Control(deadline=time.monotonic() + 240),
                recovered=lambda _unit: None,
                committed=lambda _unit, receipt: done.update(receipt.squares),
                failed=lambda unit, why, _attempts: failed.append((unit.values, why.error_class)),
                retried=lambda _unit, why: retried.append(why.error_class),
                progressed=lambda held: said.update(
                    n for units in held for unit, n in units if 30 in unit.values and n
                ),
            )
        finally:
            pool.close()
        (tmp_path / "elsewhere").touch()
        pool = Pool(Work(make_worker=Squaring(folder=tmp_path).make_worker), 1, WorkerResources(), notices.append)
        with pytest.raises(InputError, match=r"^node [\d.]+ \(\w+\): what the work needs is elsewhere$"):
            while True:
                pool.wait(1)
        pool.close()
    assert done == {n: n**2 for n in (1, 2, 3, 4, 5, 6, 11, 12, 14, 19, 20, 21, 30, 31, 40, 41, 42, 43)}
    assert said == {2}
    assert sorted(failed) == [((7, 8), ErrorClass.INPUT), ((13,), ErrorClass.WORKER), ((17,), ErrorClass.WORKER)]
    assert (tmp_path / "5").exists() and (tmp_path / "3").exists()  # both failed once
    assert retried
    hangs = [line for line in notices if "got no further in 0.06 minutes; it is ended and replaced" in line]
    assert len(hangs) >= 3  # 17 each time
    assert [line.endswith("Ray keeps them in /tmp/ray") for line in placed] == [True]


@pytest.mark.slow
def test_another_kind_of_work_runs_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permanent, transient and done as on the pool; a lost device ends the run, and what hangs is left at a stop."""
    monkeypatch.setattr("batchgen.engine.queue._FIRST_PAUSE", 0.01)
    arrived: list[str] = []
    done: dict[int, int] = {}
    failed: list[ErrorClass] = []
    said: set[tuple[str, int]] = set()

    def recovered(unit: Numbers) -> Squares | None:
        return Squares(squares=((9, 81),), process=0) if unit.values == (9,) and (tmp_path / "9").exists() else None

    def run(values: Sequence[tuple[int, ...]], control: Control) -> Workers:
        deadline = time.monotonic() + 10
        while True:
            try:
                hired = hands.hire(work, 1, WorkerResources(), arrived.append)
                break
            except InputError as error:  # what was stopped is at its end
                if "works for another run" not in str(error) or time.monotonic() > deadline:
                    raise
        try:
            drive(
                WorkQueue(iter([Numbers(values=each) for each in values])),
                hired,
                control,
                recovered=recovered,
                committed=lambda _unit, receipt: done.update(receipt.squares),
                failed=lambda _unit, why, _attempts: failed.append(why.error_class),
                retried=lambda _unit, _why: None,
                progressed=lambda held: said.update((unit.id, n) for units in held for unit, n in units if n),
            )
        finally:
            hired.close()
        return hired

    work = Work(make_worker=Squaring(folder=tmp_path).make_worker, spool=2)
    said_first: list[str] = []
    with crew("127.0.0.1:1", 0, WorkerResources(hang_minutes=5), said_first.append) as hands:
        assert ["is not used" in line for line in said_first] == [True, True]  # the cluster, what workers reserve
        assert (hands.capacity.nodes, hands.waits) == (1, False)
        run([(1, 2), (5, 6), (7, 8), (9,), (30, 31)], Control())
        assert done == {n: n**2 for n in (1, 2, 5, 6, 9, 30, 31)} and failed == [ErrorClass.INPUT]
        run(STORED, Control(deadline=time.monotonic() + 60))
        assert done.keys() >= {40, 41, 42, 43}
        assert ("30-31", 2) in said and set(arrived) == {"here"}
        assert run([(17,)], Control(deadline=time.monotonic() + 0.1, grace=0.1)).in_work == 0
        with pytest.raises(DeviceLost):
            run([(3,)], Control())
        with pytest.raises(ClusterError, match="thread ended: Panic: of a library"):
            run([(23,)], Control())
        at_work = hands.hire(work, 1, WorkerResources(), arrived.append)
        with pytest.raises(InputError, match="works for another run"):
            hands.hire(work, 1, WorkerResources(), arrived.append)
        at_work.close()
        (tmp_path / "elsewhere").touch()
        with pytest.raises(InputError, match="what the work needs is elsewhere"):
            run([(1,)], Control())
        broken = Work(make_worker=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        with pytest.raises(ClusterError, match="this process cannot be a worker: ZeroDivisionError"):
            hands.hire(broken, 1, WorkerResources(), arrived.append)


def test_the_toy_kind_is_one_as_the_engine_knows_it() -> None:
    unit: Unit = Numbers(values=(1, 2))
    assert [part.id for part in unit.split()] == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StoreError("gone"), (FailureKind.TRANSIENT, ErrorClass.STORE, "gone")),
        (errors.NotFound("gone"), (FailureKind.TRANSIENT, ErrorClass.STORE, "gone")),
        (errors.ModelLoadError("damaged"), (FailureKind.TRANSIENT, ErrorClass.MODEL, "damaged")),
        (errors.OutOfDeviceMemory("full"), (FailureKind.TRANSIENT, ErrorClass.MEMORY, "full")),
        (InputError("no such option"), (FailureKind.PERMANENT, ErrorClass.INPUT, "no such option")),
        (ValueError("odd\nlines"), (FailureKind.TRANSIENT, ErrorClass.GENERATION, "ValueError: odd lines")),
    ],
)
def test_what_an_exception_means(error: Exception, expected: tuple[FailureKind, ErrorClass, str]) -> None:
    kind, error_class, message = expected
    assert failure_of(error) == Failure(kind=kind, error_class=error_class, message=message)


PACKAGE = Path(errors.__file__).parent


def test_every_exception_of_the_package_is_in_one_tree() -> None:
    """httpx: the tree is drawn in a docstring, and nothing is raised that is not in it."""
    exceptions = {
        name for name, kind in vars(builtins).items() if inspect.isclass(kind) and issubclass(kind, BaseException)
    }
    exceptions |= {name for name in errors.__all__ if name != "ErrorClass"}
    elsewhere = [
        f"{file.relative_to(PACKAGE)}: {node.name}"
        for file in PACKAGE.rglob("*.py")
        if file.name != "errors.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).rpartition(".")[2] in exceptions for base in node.bases)
    ]
    assert elsewhere == []
    classes = {
        name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert set(classes) <= set(errors.__all__)
    assert all(issubclass(kind, errors.BatchgenError) for kind in classes.values())
    drawn = _drawn(errors.__doc__ or "")
    assert drawn == {name: kind.__bases__[0].__name__ for name, kind in classes.items() if name != "BatchgenError"}
    assert errors.__all__ == sorted(errors.__all__)


def _drawn(text: str) -> dict[str, str]:
    """Parents by child, read off the drawing."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        bare = line.lstrip("│├└─ ")
        if line.startswith("BatchgenError"):
            above = ["BatchgenError"]
        elif above and line[:1] in ("├", "└", "│", " ") and bare and "── " in line:
            depth = (len(line) - len(bare)) // 4
            above = [*above[:depth], bare.split()[0]]
            parents[above[-1]] = above[-2]
    return parents


def test_exit_codes_are_those_of_the_tree() -> None:
    """DESIGN: 2 for input, 3 for an interruption, 4 for infrastructure, 5 for a watched run that died; 6: busy."""
    known: dict[type[Any], int] = {
        errors.InputError: 2,
        errors.Interrupted: 3,
        errors.OutputBusy: 6,
        errors.InfrastructureError: 4,
        errors.RunDied: 5,
    }
    for kind in vars(errors).values():
        if inspect.isclass(kind) and issubclass(kind, errors.BatchgenError):
            assert kind.exit_code == next((code for base, code in known.items() if issubclass(kind, base)), 1)
