"""The worker that generates: a shard becomes a committed shard and its receipt. Knows nothing of Ray.

Two shards may be in work at once: while one is on the device, the conditioning images of the next are fetched and
those before are encoded and stored. One lock around the device makes that overlap, and its bound, plain to see. Where
the store takes its time, the device goes on with further shards, as many as there is memory for.

Where a call fails, its rows are tried alone: those that fail again are recorded, their mates are unharmed. Where what
they ask for cannot be done (an adapter that does not load, an option that a scheduler refuses), and rows in a row and a
sample of the whole shard say so alike, it is the batch key's error, and the rest of the shard is recorded with it. A
call that does not fit on the device is made again with half as many images.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from batchgen.dataset.begun import RECORD
from batchgen.dataset.commit import Attempt
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.nodes import require_files
from batchgen.dataset.schema import applied_cells
from batchgen.dataset.tracebacks import Tracebacks
from batchgen.diffusion.canary import Canary
from batchgen.diffusion.conditioning import conditioning_images
from batchgen.diffusion.device import device_errors
from batchgen.diffusion.host import Environment, PipelineHost
from batchgen.diffusion.loading import Loading
from batchgen.diffusion.settings import WorkerSettings
from batchgen.diffusion.shard_work import Made, ShardWork
from batchgen.errors import (
    ErrorClass,
    ImageError,
    InfrastructureError,
    InputError,
    NotFound,
    OutOfDeviceMemory,
    Stopped,
    StoreError,
    StoreRefused,
    WebError,
)
from batchgen.generation.watermark import capacity, embed
from batchgen.images import encode
from batchgen.manifest.columns import input_name
from batchgen.manifest.files import embedded_bytes
from batchgen.models.catalog import Model, Source
from batchgen.options import Memory, Safety
from batchgen.rows import MicroBatch, Receipt, Row, Shard, ShardProgress, Status
from batchgen.sharding import key_model
from batchgen.storage import open_store
from batchgen.work import Failure, Stoppable, failure_of

__all__ = ["GenerationWorker"]

ENCODERS = 4  # threads; zlib and HTTP release the GIL. A 512x512 PNG takes 21 ms and a PUT up to 100: 30 a second
FETCHERS = 8  # threads that read conditioning images
ALIKE = 4  # rows that fail alone, one after the other, with the same error: it may be the key's
SLOW_STORE = 5.0  # seconds in which a store that is well has taken a shard; after that the device goes on without it
SPOOL = 1 << 30  # bytes of images that wait for a store, beyond which it does not
PROBES = 8  # more rows, spread over the rest of the shard, that must fail so too: neighbours often share what is wrong


class GenerationWorker(Stoppable):
    """Holds one loaded pipeline; `run` may be called from several threads at once, as `Worker` says."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        store = open_store(settings.store, settings.storage_options, anchor=RECORD)
        self._dataset = Dataset(store=store, format=settings.output, id=settings.output_id)
        self._host = PipelineHost(
            device=settings.device,
            dtype=settings.dtype,
            loading=Loading(
                with_safety=settings.safety is not Safety.OFF,
                allow_pickle=settings.allow_pickle,
                low_memory=settings.memory is Memory.LOW,
                dtypes=settings.dtypes,
            ),
        )
        # an output that is older than the column has no place to name them in
        self._saves_controls = settings.save_control_images and "control_images" in settings.output.schema.names
        self._canary = Canary(self._host)
        self._tracebacks = Tracebacks(store, settings.run)
        self._device = threading.Lock()
        self._fits: dict[tuple[object, ...], int] = {}  # images of a call, where as many as were planned did not fit
        self._in_work: dict[str, ShardWork] = {}
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")

    def ready(self, node: str, /) -> None:
        """Make sure that this node reaches output, models and inputs; see `Worker`."""
        models = [str(model.folder) for model in self._settings.models.values() if model.source is not Source.HUB]
        if self._settings.meeting is not None:
            self._settings.meeting.answer(self._dataset.store, node)
        require_files([*((model, None) for model in models), *self._settings.inputs])

    def run(self, shard: Shard, /) -> Receipt:
        """Make and commit a shard; rows that cannot be made are recorded, their mates are unharmed.

        Raises:
            StoreError: the output cannot be written, after the store's own retries.
            ModelLoadError: the model cannot be loaded.
            Stopped: nothing of it is committed.
            CanaryDied: what this worker makes cannot be trusted; it read its model anew for the next attempt.
            DeviceLost: the process cannot use the device any more.
        """
        work = self._in_work[shard.id] = ShardWork(rows=shard.rows)
        try:
            return self._run(shard, work)
        except Stopped:
            raise
        except Exception as error:
            self._tracebacks.keep(error, f"shard {shard.id}")
            raise
        finally:
            for future in work.pending.values():
                future.cancel()
            del self._in_work[shard.id]

    def progress(self) -> Mapping[str, ShardProgress]:
        """How far the shards in work are, by id."""
        return {shard: work.progress() for shard, work in list(self._in_work.items())}

    def stored(self) -> Collection[str]:
        """Shards that wait for the store alone, and longer than usual; none beyond `SPOOL` bytes of images."""
        held, now = 0, time.monotonic()
        waiting = []
        for shard, work in list(self._in_work.items()):
            held += work.held
            if work.made_at is not None and now - work.made_at > SLOW_STORE and held < SPOOL:
                waiting.append(shard)
        return waiting

    def _run(self, shard: Shard, work: ShardWork) -> Receipt:
        attempt = Attempt(self._dataset, shard, self._settings.run)
        inputs = self._fetch(shard.rows, work)
        good = Shard(
            id=shard.id,
            key=shard.key,
            batch_size=shard.batch_size,
            rows=[row for row in shard.rows if row.id not in work.failed],
        )
        model = self._settings.models[key_model(shard.key)]
        with self._device:
            for batch in good.micro_batches():
                self._generate_or_isolate(model, batch, inputs, attempt, work)
            with device_errors(shard.batch_size):
                self._canary.check(shard.id)
        work.made_at = time.monotonic()
        inputs.clear()  # while the store takes its time
        made = self._collect(shard, work)
        self.require_run()
        return attempt.commit(
            [made[row.id].cells for row in shard.rows if row.id in made],
            [work.failed[row.id] for row in shard.rows if row.id in work.failed],
            size=sum(one.size for one in made.values()),
            seconds=work.seconds,
            device=self._host.environment.device,
        )

    def _fetch(self, rows: Sequence[Row], work: ShardWork) -> dict[str, Mapping[str, Image]]:
        """The rows' conditioning images, in their columns' modes and the rows' sizes."""
        embedded = self._fetch_embedded(rows)
        futures = {row.id: self._fetchers.submit(conditioning_images, row, embedded) for row in rows}
        inputs: dict[str, Mapping[str, Image]] = {}
        for row in rows:
            try:
                inputs[row.id] = futures[row.id].result()
            except (ImageError, InputError, NotFound, StoreRefused, WebError) as error:  # others may pass
                self._tracebacks.keep(error, f"row {row.id}")
                work.fail(row, ErrorClass.CONDITIONING, str(error))
        return inputs

    def _fetch_embedded(self, rows: Sequence[Row]) -> dict[tuple[str, str, int], bytes]:
        """Bytes of images that lie in the manifest itself, by file, column and row."""
        wanted: dict[tuple[str, str], list[int]] = {}
        for row in rows:
            for image in row.inputs.values():
                if image.column is not None and image.row is not None:
                    wanted.setdefault((image.uri, image.column), []).append(image.row)
        return {
            (file, column, number): data
            for (file, column), numbers in wanted.items()
            for number, data in embedded_bytes(file, column, numbers).items()
        }

    def _generate_or_isolate(
        self,
        model: Model,
        batch: MicroBatch,
        inputs: Mapping[str, Mapping[str, Image]],
        attempt: Attempt,
        work: ShardWork,
    ) -> None:
        """Make the rows of a micro-batch that are left; where that fails, each in a call padded to the same size.

        Where a call does not fit on the device, calls of half as many images take its place, and that of all further
        ones of its model and size.
        """
        self.require_run()
        rows = work.left(batch.rows)
        fits = self._fits.get(_footprint(model, batch), batch.size)
        if fits < batch.size:
            for first in range(0, len(rows), fits):
                part = MicroBatch(rows=rows[first : first + fits], size=fits)
                self._generate_or_isolate(model, part, inputs, attempt, work)
            return
        if work.key_failure is not None:
            for row in rows:
                work.fail(row, work.key_failure.error_class, work.key_failure.message)
        if not work.left(rows):
            return
        failure: Failure | None = None
        try:
            self._generate(model, replace(batch, rows=rows), [inputs[row.id] for row in rows], attempt, work)
        except OutOfDeviceMemory as error:
            failure = failure_of(error)
        except InfrastructureError:
            raise
        except Exception as error:  # whatever a pipeline raises
            failure = failure_of(error)
            self._tracebacks.keep(error, f"rows {', '.join(row.id for row in rows)}")
        # the error ends above: its traceback holds the model that failed, and the next call reads another
        if failure is None:
            work.last_failure, work.alike = None, 0
        elif failure.error_class is ErrorClass.MEMORY and batch.size > 1:
            self._fits[_footprint(model, batch)] = batch.size // 2
            self._generate_or_isolate(model, replace(batch, rows=rows), inputs, attempt, work)
        elif len(rows) > 1:
            for row in rows:
                self._generate_or_isolate(model, replace(batch, rows=[row]), inputs, attempt, work)
        else:
            work.fail_alone(rows[0], failure)
            if work.alike == ALIKE:
                self._probe(model, batch.size, inputs, attempt, work)

    def _probe(
        self, model: Model, size: int, inputs: Mapping[str, Mapping[str, Image]], attempt: Attempt, work: ShardWork
    ) -> None:
        """Find out by some rows whether all that are left would fail as the last ones did."""
        for row in work.sample(PROBES):
            self._generate_or_isolate(model, MicroBatch(rows=[row], size=size), inputs, attempt, work)
            if work.alike <= ALIKE:  # it was made, or failed in another way
                return
        work.key_failure = work.last_failure

    def _generate(
        self,
        model: Model,
        batch: MicroBatch,
        inputs: Sequence[Mapping[str, Image]],
        attempt: Attempt,
        work: ShardWork,
    ) -> None:
        started, loading = time.perf_counter(), self._host.loading_seconds
        refiner = batch.rows[0].parameters.refining.refiner
        with device_errors(batch.size):
            images = self._canary.generate(
                model,
                batch,
                inputs,
                refiner=None if refiner is None else self._settings.models[refiner],
                save_steps=self._settings.save_steps,
                save_controls=self._saves_controls,
            )
        seconds = time.perf_counter() - started - (self._host.loading_seconds - loading)
        work.seconds += seconds
        work.computed += len(batch.rows)
        environment = self._host.environment
        about = _made_by(environment, model, batch.size) | {"seconds": seconds / len(batch.rows)}
        for number, row in enumerate(batch.rows):
            pixels = images.pixels[number]
            if not images.finite[number]:
                work.fail(row, ErrorClass.NAN, "the image holds NaN or infinity; float32 or another VAE may help")
            elif pixels.min() == pixels.max():
                work.fail(row, ErrorClass.BLANK, f"every pixel has the value {pixels.flat[0]}")
            elif images.flagged[number] and self._settings.safety is Safety.DROP:
                work.fail(row, ErrorClass.SAFETY, "the model's safety checker objects; another seed or prompt may pass")
            else:
                kept = _Pixels(
                    image=pixels,
                    steps={step: after[number] for step, after in images.steps.items()},
                    controls=[given[number] for given in images.controls],
                    mark=row.parameters.watermark,
                )
                work.held += kept.size
                if images.flagged[number] and self._settings.safety is Safety.BLANK:
                    kept = kept.blank()
                cells = about | {
                    "prompt_tokens": images.prompt_tokens[number],
                    "flagged": images.flagged[number],
                }
                work.pending[row.id] = self._encoders.submit(self._finish, row, kept, cells, attempt)

    def _collect(self, shard: Shard, work: ShardWork) -> dict[str, Made]:
        """The rows that were encoded and stored, by id; one whose encoding fails is recorded."""
        made = {}
        for row in shard.rows:
            if row.id in work.pending:
                try:
                    made[row.id] = work.pending[row.id].result()
                except StoreError:
                    raise
                except Exception as error:  # of an image library, for this row's pixels
                    self._tracebacks.keep(error, f"row {row.id}")
                    work.fail(row, ErrorClass.GENERATION, failure_of(error).message)
        return made

    def _finish(self, row: Row, kept: "_Pixels", cells: Mapping[str, Any], attempt: Attempt) -> Made:
        if kept.mark is not None:  # here and not beside the device: it takes as long as several encodings
            kept = kept.marked(kept.mark)
        form = self._settings.output.image_format
        data = encode(kept.image, form)
        image = attempt.add_image(row, data)
        steps = {step: encode(after, form) for step, after in kept.steps.items()}
        controls = {input_name("control_image", net): encode(one, form) for net, one in enumerate(kept.controls)}
        step_images = [
            {"step": step, **attempt.add_side_image(row, part, f"step-{step:03d}")} for step, part in steps.items()
        ]
        control_images = [{"name": name, **attempt.add_side_image(row, part, name)} for name, part in controls.items()]
        made = {
            "id": row.id,
            "fingerprint": row.fingerprint,
            "status": Status.DONE.value,
            "sha256": sha256(data).hexdigest(),
            "step_images": step_images or None,
            "control_images": control_images or None,
            "height": kept.image.shape[0],
            "width": kept.image.shape[1],
        }
        return Made(
            cells={**row.carried, **applied_cells(row), **cells, **made, **image},
            size=sum(map(len, (data, *steps.values(), *controls.values()))),
        )


def _footprint(model: Model, batch: MicroBatch) -> tuple[object, ...]:
    """What the memory of a call depends on besides the number of its images."""
    parameters = batch.rows[0].parameters
    return model.name, parameters.canvas, parameters.hires


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pixels:
    """A row's image and those that are kept beside it, each uint8 (H, W, 3), and the watermark that it is to get."""

    image: npt.NDArray[np.uint8]
    steps: Mapping[int, npt.NDArray[np.uint8]]
    controls: Sequence[npt.NDArray[np.uint8]]
    mark: str | None

    @property
    def size(self) -> int:
        """Bytes; encoded they are fewer."""
        return self.image.nbytes + sum(other.nbytes for other in (*self.steps.values(), *self.controls))

    def blank(self) -> "_Pixels":
        """Black, as the safety policy may ask for; what ControlNets were given shows nothing of the image."""
        steps = {step: np.zeros_like(after) for step, after in self.steps.items()}
        return replace(self, image=np.zeros_like(self.image), steps=steps, mark=None)

    def marked(self, text: str) -> "_Pixels":
        """With a watermark in the image and in those after steps that have room for it."""
        steps = {step: _marked_if_it_fits(after, text) for step, after in self.steps.items()}
        return replace(self, image=embed(self.image, text), steps=steps)


def _made_by(environment: Environment, model: Model, batch_size: int) -> dict[str, Any]:
    return {
        "model_fingerprint": model.fingerprint,
        "batch_size": batch_size,
        "device": environment.device,
        "dtype": environment.dtype,
        "torch_version": environment.torch_version,
        "diffusers_version": environment.diffusers_version,
    }


def _marked_if_it_fits(pixels: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    """A step's image with the row's watermark; smaller than the row's it may have no room for it."""
    fits = len(text.encode()) <= capacity(pixels.shape[1], pixels.shape[0])
    return embed(pixels, text) if fits else pixels
