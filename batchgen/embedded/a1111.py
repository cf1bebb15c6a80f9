"""The text of A1111's web UI, Forge and SD.Next, and SwarmUI's JSON, which stands in the same place."""

import json
import re
from collections.abc import Mapping
from typing import Any

from batchgen.embedded.said import Said
from batchgen.manifest.names import fold

__all__ = ["read_parameters"]

_PARAMETER = re.compile(r'(?<![\w \-/])[\s\-/]{0,20}+(\w[\w \-/]*+):\s*+("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LEAST = 3  # parameters of the last line; a line with fewer belongs to the prompt
_NEGATIVE = "Negative prompt:"
_COLUMNS = {
    "Steps": "num_inference_steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Hires upscale": "hires_scale",
    "Eta": "eta",
}
_READ = {*_COLUMNS, "Sampler", "Schedule type", "Size", "Clip skip", "Denoising strength", "Model"}
_UNSEEN = {  # decide nothing that is seen, or repeat what the prompt says
    *("Model hash", "VAE hash", "Lora hashes", "TI hashes", "Hashes", "Version", "RNG", "User", "Parser", "Backend"),
    *("App", "Created by", "Operations", "Hires upscaler"),
}
_OF_SWARM = {
    "prompt": "prompt",
    "negativeprompt": "negative_prompt",
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfgscale": "guidance_scale",
    "width": "width",
    "height": "height",
}
_UNSEEN_OF_SWARM = {
    *("aspectratio", "swarmversion", "date", "generationtime", "imageformat", "nopreviews", "wildcardseed"),
    *("usedwildcards", "originalprompt", "personalnote", "images", "donotsave", "automaticvae"),
}


def read_parameters(text: str) -> Said | None:
    """What the text says; None where it says no parameters."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text).get("sui_image_params")
        except (ValueError, AttributeError):
            return None
        return _read_swarm(found) if isinstance(found, dict) else None
    return _read_infotext(text)


def _read_infotext(text: str) -> Said | None:
    *lines, last = text.strip().split("\n")
    parameters = {name: _unquoted(value) for name, value in _PARAMETER.findall(last)}
    if len(parameters) < _LEAST:
        return None
    prompt, _, negative = "\n".join(lines).partition(_NEGATIVE)
    said = Said()
    said.cells["prompt"] = prompt.strip()
    said.take("negative_prompt", negative.strip(), "negative prompt")
    said.cells["prompt_syntax"] = "a1111"
    said.take_all(parameters, _COLUMNS)
    said.take_sampler(parameters.get("Sampler"), parameters.get("Schedule type"))
    said.take_size(parameters.get("Size"))
    _take_clip_skip(said, parameters.get("Clip skip"))
    if "Model" in parameters:
        said.cells["source_model"] = parameters["Model"]
    if (strength := parameters.get("Denoising strength")) is not None:
        if "Hires upscale" in parameters:
            said.take("hires_strength", strength, "Denoising strength")
        else:
            said.take("strength", strength, "Denoising strength")
            said.lacks("the image that it was made from")
    said.unread += [f"{name}: {value}" for name, value in parameters.items() if name not in _READ | _UNSEEN]
    return said


def _take_clip_skip(said: Said, skip: str | None) -> None:
    """A1111 counts the last layer in: its 1 leaves out none, which diffusers calls null."""
    if skip is not None and skip.strip().isdigit() and int(skip) > 1:
        said.take("clip_skip", int(skip) - 1, "Clip skip")


def _read_swarm(parameters: Mapping[str, Any]) -> Said:
    values = {fold(name): value for name, value in parameters.items()}
    said = Said()
    said.take_all(values, _OF_SWARM)
    said.take_sampler(values.get("sampler"), values.get("scheduler"))
    if values.get("model"):
        said.cells["source_model"] = str(values["model"])
    read = {*_OF_SWARM, "sampler", "scheduler", "model"} | _UNSEEN_OF_SWARM
    said.unread += [f"{name}: {value}" for name, value in values.items() if name not in read]
    return said


def _unquoted(value: str) -> str:
    value = value.strip()
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value.strip('"')
    return value
