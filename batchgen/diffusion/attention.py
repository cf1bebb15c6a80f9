"""Where a UNet looks for each token of a prompt, summed up while it makes an image.

The method is DAAM's (Tang et al. 2022, "What the DAAM", arXiv 2210.04885): the weights of cross-attention, enlarged to
the latents' size and summed over heads, layers and steps. They are computed a second time beside the layers, so that
these give the same bits as without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["AttentionMaps"]

_PROMPT = {1: 0, 2: 1, 3: 0}  # place of the prompt's half, by passes: alone, after the negative one, before it (edits)


class AttentionMaps:
    """Sums of one row's cross-attention: (T, h, w) over the T states of its text, on the grid of its latents."""

    def __init__(self) -> None:
        self.sums: torch.Tensor | None = None
        self._grid = (0, 0)  # height and width of the latents

    @contextmanager
    def on(self, unet: Any) -> Iterator[None]:
        """While it lasts, the weights of a UNet are added up."""
        layers = [module for module in unet.modules() if getattr(module, "is_cross_attention", False)]
        handles = [layer.register_forward_pre_hook(self._look, with_kwargs=True) for layer in layers]
        handles.append(unet.register_forward_pre_hook(self._note_grid, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_grid(self, _unet: Any, args: Any, kwargs: Any) -> None:
        sample = args[0] if args else kwargs["sample"]
        self._grid = tuple(sample.shape[-2:])

    def _look(self, layer: Any, args: Any, kwargs: Any) -> None:
        states = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        if isinstance(states, tuple):  # the text's, and those of image prompts
            states = states[0]
        seen = args[0] if args else kwargs["hidden_states"]
        place = _PROMPT[len(seen)]
        query = layer.head_to_batch_dim(layer.to_q(seen[place : place + 1]))
        key = layer.head_to_batch_dim(layer.to_k(states[place : place + 1]))
        weights = layer.get_attention_scores(query, key).float().sum(dim=0)  # (h * w, T)
        map_ = weights.T.reshape(1, weights.shape[1], *self._shape(len(weights)))
        enlarged = torch.nn.functional.interpolate(map_, size=self._grid, mode="bicubic", align_corners=False)
        added = enlarged[0].clamp(min=0)
        self.sums = added if self.sums is None else self.sums + added

    def _shape(self, places: int) -> tuple[int, int]:
        """Height and width of a layer of so many places: the latents', halved some times."""
        height, width = self._grid
        while height * width > places:
            height, width = -(-height // 2), -(-width // 2)
        return height, width
