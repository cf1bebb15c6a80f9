"""What computes a metric: images and their rows in, cells of the metric's columns out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL.Image import Image

from batchgen.scoring.models import ScoringModel

__all__ = ["Loading", "Scorer", "quiet"]

Cells = Mapping[str, Any]
"""A row's cells by column: of its metadata, or of a metric."""


class Scorer(Protocol):
    """Computes one metric; an image's score does not depend on its mates but for last bits."""

    def score(self, images: Sequence[Image], rows: Sequence[Cells], /) -> Sequence[Cells]:
        """The metric's cells for each image (RGB); absent or null where the row has none, as without a prompt.

        Raises:
            DeviceLost: the process cannot go on.
            Exception: one of the images, or the call as a whole, cannot be scored.
        """


def quiet() -> None:
    """Silence the progress bars and warnings of transformers, which loads: stderr is for lines of the run."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How models are loaded: the parts by name, the device, the precision."""

    models: Mapping[str, ScoringModel]
    device: Literal["cpu", "cuda"]
    dtype: Literal["float16", "bfloat16", "float32"]
    allow_pickle: bool

    def revision(self, part: str) -> dict[str, str]:
        """The commit of a part's model as an argument of `from_pretrained`, where it lies on the hub."""
        revision = self.models[part].revision
        return {} if revision is None else {"revision": revision}

    def weights(self, part: str) -> dict[str, Any]:
        """How a part's weights are read, as arguments of `from_pretrained`."""
        return {"use_safetensors": None if self.allow_pickle else True, **self.revision(part)}
