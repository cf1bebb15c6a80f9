"""What rows add to a loaded model: LoRAs, embeddings, hypernetworks, IP-Adapters, ControlNets, other autoencoders.

Everything is kept once it is read, up to a bound each, and takes part only while the rows that named it are made: a
row without adapters gives the same bits before, between and after rows with them.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, ControlNetModel
from PIL.Image import Image

from batchgen.diffusion.hypernetworks import Hypernetwork
from batchgen.diffusion.loading import Components, translate
from batchgen.diffusion.lora import plain_lora
from batchgen.diffusion.pipelines import make_pipeline
from batchgen.diffusion.pose import PoseReader
from batchgen.diffusion.prompts import PromptEncoder
from batchgen.diffusion.weights import read_bundled, read_weights, token_vectors
from batchgen.errors import InputError, one_line
from batchgen.generation.parameters import Adapter, Control, ImagePrompt, Parameters, RowAdapters
from batchgen.models.adapters import adapter_fingerprint, image_encoder
from batchgen.models.catalog import Family, Model
from batchgen.models.lora import peft_scale

__all__ = ["Adapters", "as_checked"]

_KEPT_LORAS = 16
_KEPT_MODULES = 4  # ControlNets (0.7 GB in float16 for SD 1.5), autoencoders, hypernetworks: of each so many
_LOADERS: Mapping[Family, str] = {
    Family.SD: "StableDiffusionPipeline",
    Family.SDXL: "StableDiffusionXLPipeline",
    Family.REFINER: "StableDiffusionXLImg2ImgPipeline",
    Family.UPSCALER: "StableDiffusionUpscalePipeline",
    Family.LATENT_UPSCALER: "StableDiffusionLatentUpscalePipeline",
}

_Made = TypeVar("_Made")


def as_checked(chosen: Adapter) -> Path:
    """Where an adapter lies, once its bytes are seen to be those that the manifest was checked with.

    Raises:
        InputError: they changed since.
    """
    path = Path(chosen["path"])
    if adapter_fingerprint(path) != chosen["sha256"]:
        raise InputError(f"{path} changed since the manifest was checked; run again to take it as it is now")
    return path


class Adapters:
    """The adapters of one loaded model."""

    def __init__(self, model: Model, components: Components, prompts: PromptEncoder, dtype: torch.dtype) -> None:
        self._components = components
        self._is_xl = model.family in (Family.SDXL, Family.REFINER)
        self._prompts = prompts
        self._unet = components.parts["unet"]
        self._vae = components.parts["vae"]
        self._device, self._dtype = self._unet.device, dtype
        self._loader = make_pipeline(_LOADERS[model.family], components.parts, components.options)
        self._loras: OrderedDict[str, None] = OrderedDict()  # names of those that are loaded, least recently used first
        self._bundles: dict[str, tuple[tuple[str, str], ...]] = {}  # words of LoRAs' embeddings, by sha256
        self._kept: dict[type, OrderedDict[str, Any]] = {}
        self._ip_adapter: str | None = None
        self._slices = any(
            "Sliced" in type(one).__name__ for one in getattr(self._unet, "attn_processors", {}).values()
        )

    @contextmanager
    def on(self, shared: Parameters) -> Iterator[None]:
        """Put on what the parameters name; while it lasts, the model makes rows with those.

        Raises:
            InputError: a file that cannot be loaded, or does not fit the model.
        """
        with ExitStack() as stack:
            self._put_on_ip_adapter(shared.image_prompt)
            if shared.adapters.loras:
                stack.enter_context(self._loras_on(shared.adapters.loras))
            if (chosen := shared.adapters.hypernetwork) is not None:
                hypernetwork = self._keep(
                    Hypernetwork, chosen["sha256"], lambda: self._read_hypernetwork(as_checked(chosen))
                )
                stack.enter_context(hypernetwork.on(self._unet, chosen["scale"]))
            yield

    def tokens(self, chosen: RowAdapters) -> tuple[tuple[str, str], ...]:
        """The words of a row's embeddings, and of those in its LoRAs' files, and what its prompts know them as.

        Raises:
            InputError: a file that is no embedding, or of another model.
        """
        pairs = []
        for embedding in chosen.embeddings or ():
            word = embedding["token"]
            internal = f"embedding-{embedding['sha256'][:16]}-{word}"
            if not self._prompts.knows_embedding(internal):
                self._prompts.add_embedding(internal, token_vectors(read_weights(as_checked(embedding)), word))
            pairs.append((word, internal))
        for lora in chosen.loras or ():
            own = {word for word, _ in pairs}
            pairs += [(word, internal) for word, internal in self._bundled(lora) if word not in own]
        return tuple(pairs)

    def _bundled(self, lora: Adapter) -> tuple[tuple[str, str], ...]:
        """The words of the embeddings that lie in a LoRA's file, and what prompts know them as."""
        if lora["sha256"] not in self._bundles:
            pairs = []
            for word, content in read_bundled(as_checked(lora)).items():
                internal = f"bundled-{lora['sha256'][:16]}-{word}"
                self._prompts.add_embedding(internal, token_vectors(content, word))
                pairs.append((word, internal))
            self._bundles[lora["sha256"]] = tuple(pairs)
        return self._bundles[lora["sha256"]]

    def vae(self, chosen: Adapter | None) -> Any:
        """The autoencoder that the rows name, or the model's own."""
        if chosen is None:
            return self._vae
        return self._keep(AutoencoderKL, chosen["sha256"], lambda: self._read_vae(as_checked(chosen)))

    def controlnets(self, chosen: Sequence[Adapter] | None) -> list[Any]:
        """The ControlNets that the rows name, in their order."""
        return [self._keep(ControlNetModel, one["sha256"], partial(self._read_controlnet, one)) for one in chosen or ()]

    def pose_reader(self, control: Control) -> PoseReader:
        """What finds poses by the estimator and the detector that the rows name."""
        estimator, detector = control.pose_estimator, control.person_detector
        assert estimator is not None, "the manifest's check asks for one with poses"

        def read() -> PoseReader:
            people = None if detector is None else as_checked(detector)
            return PoseReader(as_checked(estimator), people, self._device)

        return self._keep(PoseReader, estimator["sha256"] + (detector["sha256"] if detector else ""), read)

    def embed_images(self, images: Sequence[Image], *, guided: bool) -> list[torch.Tensor]:
        """The rows' image prompts as the IP-Adapter reads them: one tensor (B, 1, ...), or (2B, 1, ...) if guided."""
        projection = self._unet.encoder_hid_proj.image_projection_layers[0]
        hidden = type(projection).__name__ != "ImageProjection"  # the "plus" adapters read the encoder's hidden states
        pairs = [self._loader.encode_image(image, self._device, 1, hidden) for image in images]
        positive = torch.stack([pair[0] for pair in pairs])
        negative = torch.stack([pair[1] for pair in pairs])
        return [torch.cat([negative, positive]) if guided else positive]

    @contextmanager
    def _loras_on(self, chosen: Sequence[Adapter]) -> Iterator[None]:
        names = [f"lora-{one['sha256'][:16]}" for one in chosen]
        for name, one in zip(names, chosen, strict=True):
            if name not in self._loras:
                self._load_lora(name, as_checked(one))
            self._loras[name] = None
            self._loras.move_to_end(name)
        while len(self._loras) > max(_KEPT_LORAS, len(names)):
            self._loader.delete_adapters(self._loras.popitem(last=False)[0])
        self._loader.enable_lora()
        self._loader.set_adapters(names, [one["scale"] for one in chosen])
        try:
            yield
        finally:
            self._loader.disable_lora()

    def _load_lora(self, name: str, path: Path) -> None:
        parts = {part: self._components.parts.get(part) for part in ("unet", "text_encoder", "text_encoder_2")}
        tensors = plain_lora(read_weights(path), parts, xl=self._is_xl, scale=peft_scale(path), path=path)
        try:
            self._loader.load_lora_weights(
                {key: tensor.to(self._dtype) for key, tensor in tensors.items()}, adapter_name=name
            )
        except Exception as error:  # diffusers, peft and torch raise kinds of their own
            raise InputError(f"LoRA {path} could not be loaded: {one_line(error)}") from error
        if name not in {one for names in self._loader.get_list_adapters().values() for one in names}:
            raise InputError(f"LoRA {path} holds nothing that fits the model")
        for module in parts.values():
            if module is not None:
                module.to(self._device).eval().requires_grad_(False)

    def _put_on_ip_adapter(self, prompt: ImagePrompt | None) -> None:
        wanted = None if prompt is None else prompt.ip_adapter["path"]
        if wanted != self._ip_adapter:
            if self._ip_adapter is not None:
                self._loader.unload_ip_adapter()
                self._ip_adapter = None
                if self._slices:
                    self._loader.enable_attention_slicing()
            if prompt is not None:
                self._load_ip_adapter(as_checked(prompt.ip_adapter))
                self._ip_adapter = wanted
        if prompt is not None:
            self._loader.set_ip_adapter_scale(prompt.ip_adapter_scale)

    def _load_ip_adapter(self, weights: Path) -> None:
        if self._slices:  # an IP-Adapter's processors are built from those it finds, and cannot be from these
            self._loader.disable_attention_slicing()
            self._unet.set_default_attn_processor()
        encoder = image_encoder(weights)
        assert encoder is not None, "the manifest's check has found it"
        try:
            self._loader.load_ip_adapter(
                str(weights.parent),
                subfolder="",
                weight_name=weights.name,
                image_encoder_folder=str(encoder),
                local_files_only=True,
            )
        except Exception as error:  # as above
            raise InputError(f"IP-Adapter {weights} could not be loaded: {one_line(error)}") from error
        self._loader.image_encoder.to(self._device, self._dtype).eval().requires_grad_(False)
        self._unet.to(self._device, self._dtype).eval().requires_grad_(False)

    def _keep(self, kind: type[_Made], name: str, make: Callable[[], _Made]) -> _Made:
        """What was made under a name that stands for its bytes, or is made now."""
        kept: OrderedDict[str, _Made] = self._kept.setdefault(kind, OrderedDict())
        made = kept.pop(name, None)
        if made is None:
            made = make()
        kept[name] = made
        while len(kept) > _KEPT_MODULES:
            kept.popitem(last=False)
        return made

    def _read_hypernetwork(self, path: Path) -> Hypernetwork:
        return Hypernetwork(read_weights(path), self._device, self._dtype)

    def _read_controlnet(self, chosen: Adapter) -> Any:
        return self._read_module(ControlNetModel, as_checked(chosen), self._dtype)

    def _read_vae(self, path: Path) -> Any:
        is_folder = path.is_dir()
        made = self._read_module(AutoencoderKL, path, self._vae.dtype) if is_folder else self._read_single_vae(path)
        return made if made.dtype == self._dtype else translate(made)

    def _read_single_vae(self, path: Path) -> Any:
        """From a file that says nothing of its layout: the model's it must be."""
        with tempfile.TemporaryDirectory() as config:
            self._vae.save_config(config)
            try:
                made = AutoencoderKL.from_single_file(str(path), config=config, dtype=self._vae.dtype)
            except Exception as error:  # as above
                raise InputError(f"autoencoder {path} could not be loaded: {one_line(error)}") from error
        return made.to(self._device, self._vae.dtype).eval().requires_grad_(False)

    def _read_module(self, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
        has_plain = (folder / "diffusion_pytorch_model.safetensors").is_file()
        variant = None if has_plain else "fp16"
        try:
            made = kind.from_pretrained(
                folder, dtype=dtype, variant=variant, use_safetensors=True, local_files_only=True
            )
        except Exception as error:  # as above
            raise InputError(f"{kind.__name__} {folder} could not be loaded: {one_line(error)}") from error
        return made.to(self._device).eval().requires_grad_(False)
