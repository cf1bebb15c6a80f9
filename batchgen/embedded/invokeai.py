"""InvokeAI's JSON, since its version 3."""

import json
from typing import Any

from batchgen.embedded.said import Said

__all__ = ["read_metadata"]

_COLUMNS = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "positive_style_prompt": "prompt_2",
    "negative_style_prompt": "negative_prompt_2",
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfg_rescale_multiplier": "guidance_rescale",
    "width": "width",
    "height": "height",
}
_READ = {*_COLUMNS, "scheduler", "model", "loras", "clip_skip", "strength", "init_image"}
_UNSEEN = {"app_version", "generation_mode", "rand_device", "ref_images", "canvas_v2_metadata"}


def read_metadata(text: str) -> Said | None:
    """What the JSON says; None where it is none of InvokeAI's."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict) or "positive_prompt" not in found:
        return None
    said = Said()
    said.take_all(found, _COLUMNS)
    said.cells.setdefault("prompt", "")
    scheduler = found.get("scheduler")
    if isinstance(scheduler, str):
        said.take_sampler(scheduler.removesuffix("_k"), "Karras" if scheduler.endswith("_k") else None)
    if found.get("clip_skip"):
        said.take("clip_skip", found["clip_skip"], "clip_skip")
    if (model := _named(found.get("model"))) is not None:
        said.cells["source_model"] = model
    entries = found.get("loras")
    entries = entries if isinstance(entries, list) else []
    loras = [{"path": name, "scale": one.get("weight", 1.0)} for one in entries if (name := _lora(one))]
    if loras:
        said.cells["loras"] = loras
    if found.get("init_image") or found.get("strength"):
        said.take("strength", found.get("strength"), "strength")
        said.lacks("the image that it was made from")
    for name, value in found.items():
        if name not in _READ | _UNSEEN and value not in (None, [], {}, "", 0, False):
            said.unread.append(f"{name}: {_named(value) or json.dumps(value, ensure_ascii=False)}")
    return said


def _named(model: Any) -> str | None:
    """A model's name, which was called otherwise before InvokeAI's version 4."""
    if not isinstance(model, dict):
        return None
    return next((str(model[key]) for key in ("name", "model_name") if model.get(key)), None)


def _lora(entry: Any) -> str | None:
    return None if not isinstance(entry, dict) else _named(entry.get("model") or entry.get("lora"))
