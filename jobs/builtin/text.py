"""The text stage: a contrastive pair of CLIP towers, whose text tower conditions the UNet.

Beside the contrastive loss (Radford et al. 2021) both towers learn to name the scene's attributes; on so few images
that is what makes the text tower tell "red cube left of blue ring" from "blue cube left of red ring".
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from jobs.builtin.autoencoder import to_tensor
from jobs.builtin.captions import draw_caption
from jobs.builtin.naming import CLASSES, caption_labels, naming_loss, scene_labels
from jobs.builtin.recipe import RecipeError
from jobs.builtin.renderer import IMAGE_SIZE
from jobs.builtin.renders import open_renders
from jobs.builtin.tokenizer import CONTEXT
from jobs.builtin.training import Draw

WIDTH = 128
TEXT_LAYERS = 4
VISION_LAYERS = 4
PATCH = 16
HEADS = 4


class Towers(nn.Module):
    """Both CLIP towers and a naming head on each."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=VISION_LAYERS,
            num_attention_heads=HEADS,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
        )
        self.clip = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
        )
        self.text_names = nn.Linear(WIDTH, CLASSES)
        self.vision_names = nn.Linear(WIDTH, CLASSES)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (n, WIDTH) and naming logits (n, CLASSES) of int64 tokens (n, length)."""
        pooled = self.clip.text_model(input_ids=tokens).pooler_output
        return functional.normalize(self.clip.text_projection(pooled).float(), dim=-1), self.text_names(pooled)

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (n, WIDTH) and naming logits (n, CLASSES) of images (n, 3, 128, 128) in [-1, 1]."""
        pooled = self.clip.vision_model(pixel_values=images).pooler_output
        return functional.normalize(self.clip.visual_projection(pooled).float(), dim=-1), self.vision_names(pooled)


def build_image_processor() -> CLIPImageProcessorPil:
    """Images of any size to what the image tower sees: (3, 128, 128) in [-1, 1]; works without torchvision."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(
        size=size, do_center_crop=False, resample=Resampling.BICUBIC, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def open_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that the text stage has left in `folder`; raises RecipeError when it has not."""
    if not (folder / "tokenizer.json").exists():
        raise RecipeError(f"no tokenizer in {folder}: run the text stage first")
    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str], *, full: bool) -> Tensor:
    """Int64 tokens (n, length), padded to the longest text or, when `full`, to the whole context of 77."""
    padding = "max_length" if full else "longest"
    batch = tokenizer(texts, padding=padding, truncation=True, max_length=CONTEXT, return_tensors="pt")
    tokens: Tensor = batch["input_ids"]
    return tokens


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """Trains both towers on images and freshly drawn captions."""

    renders: Path
    scenes: int
    tokenizer: Path
    name: str = "text"
    inputs: str = "renders"

    def build(self) -> nn.Module:
        return Towers(open_tokenizer(self.tokenizer))

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        renders = open_renders(self.renders, scenes=self.scenes)
        tokenizer = open_tokenizer(self.tokenizer)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            assert isinstance(model, Towers)
            indices = draw.rng.integers(renders.count, size=draw.batch)
            scenes = [renders.scene(int(index)) for index in indices]
            captions = [draw_caption(draw.rng, scene) for scene in scenes]
            tokens = tokenize(tokenizer, [caption.text for caption in captions], full=False).to(device)
            said = torch.tensor([caption_labels(caption) for caption in captions], device=device)
            shown = torch.tensor([scene_labels(scene) for scene in scenes], device=device)
            texts, text_names = model.read(tokens)
            images, vision_names = model.see(to_tensor(renders.batch(indices)).to(device))
            similarity = model.clip.logit_scale.exp().clamp(max=100) * texts @ images.T
            target = torch.arange(draw.batch, device=device)
            contrast = 0.5 * (
                functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)
            )
            return 0.5 * contrast + naming_loss(text_names, said) + naming_loss(vision_names, shown)

        return loss


@torch.no_grad()
def judge_towers(model: Towers, tokenizer: CLIPTokenizer, images: Tensor, texts: list[str]) -> float:
    """The share of images whose own caption is the likeliest of all `texts` (chance: 1 / n)."""
    embedded = torch.cat([model.see(part)[0] for part in torch.split(images, 64)])
    read = torch.cat(
        [model.read(tokenize(tokenizer, texts[i : i + 64], full=False))[0] for i in range(0, len(texts), 64)]
    )
    best = (embedded @ read.T).argmax(dim=1).numpy()
    return float(np.mean(best == np.arange(len(texts))))
