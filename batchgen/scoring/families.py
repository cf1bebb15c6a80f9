"""Which class computes which family of metrics. Each family's libraries are imported only where it is asked for."""

from batchgen.errors import BatchgenError, ModelLoadError, one_line
from batchgen.scoring.metrics import Family, Metric
from batchgen.scoring.scorers import Loading, Scorer

__all__ = ["make_scorer"]


def make_scorer(metric: Metric, loading: Loading) -> Scorer:
    """The scorer of a metric, its models loaded.

    Raises:
        ModelLoadError: they cannot be.
    """
    try:
        return _make(metric, loading)
    except BatchgenError:
        raise
    except Exception as error:  # transformers raises whatever it meets: OSError, KeyError, RuntimeError
        named = ", ".join(f"{part}={model.name}" for part, model in loading.models.items())
        why = f"{type(error).__name__}: {one_line(error)}"
        raise ModelLoadError(f"{metric.name}: {named} does not load: {why}") from error


def _make(metric: Metric, loading: Loading) -> Scorer:
    match metric.family:
        case Family.PIXELS:
            from batchgen.scoring.pixels import PixelScorer

            return PixelScorer(metric)
        case Family.CLIP:
            from batchgen.scoring.clip import ClipScorer

            return ClipScorer(metric, loading)
        case Family.AESTHETIC:
            from batchgen.scoring.aesthetic import AestheticScorer

            return AestheticScorer(loading)
        case Family.SAFETY:
            from batchgen.scoring.safety import SafetyScorer

            return SafetyScorer(loading)
        case Family.VQA:
            from batchgen.scoring.vqa import VqaScorer

            return VqaScorer(loading)
        case Family.FEATURES:
            from batchgen.scoring.features import FeatureScorer

            return FeatureScorer(loading)
        case Family.LPIPS:
            from batchgen.scoring.lpips import LpipsScorer

            return LpipsScorer(loading)
        case Family.DUPLICATES | Family.SETS | Family.ELSEWHERE:
            raise AssertionError(f"{metric.name} is of several images at once")
