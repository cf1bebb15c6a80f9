"""The choices that flags and job keys offer. Knows nothing of any library."""

from enum import StrEnum

__all__ = ["Device", "Dtype", "Family", "ImageFormat", "Layout", "Memory", "Safety"]


class Layout(StrEnum):
    """How an output's images and metadata are arranged."""

    FILES = "files"
    PARQUET = "parquet"


class Device(StrEnum):
    """Where a worker computes; `auto` means CUDA where the cluster has GPUs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """Precision of the weights; `auto` means float32 on CPU and float16 on CUDA."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Memory(StrEnum):
    """How much of the device's memory a worker may take."""

    NORMAL = "normal"
    LOW = "low"  # slower: attention in slices, large images decoded in tiles, on a GPU one part of the model at a time


class Safety(StrEnum):
    """What becomes of images that the model's safety checker objects to, where it has one."""

    OFF = "off"  # nobody looks
    KEEP = "keep"  # they are flagged in the metadata
    BLANK = "blank"  # flagged, and black
    DROP = "drop"  # recorded as failed


class ImageFormat(StrEnum):
    """How finished images are stored; the value is the file's suffix."""

    PNG = "png"
    WEBP = "webp"
    JPEG = "jpeg"


class Family(StrEnum):
    """Which pipelines of diffusers a model's weights fit."""

    SD = "Stable Diffusion"  # 1.x and 2.x
    SDXL = "Stable Diffusion XL"
    REFINER = "Stable Diffusion XL refiner"
    UPSCALER = "Stable Diffusion x4 upscaler"
    LATENT_UPSCALER = "Stable Diffusion x2 latent upscaler"
    PIXELS = "diffusion of pixels"  # no text, no autoencoder: DDPM, ADM
