"""Sizes: of the image that is sampled, of those that it starts from, and room for a watermark in what comes out."""

from batchgen.generation.parameters import ImageRef
from batchgen.generation.rules.draft import Draft, Problems
from batchgen.generation.watermark import capacity
from batchgen.manifest.columns import MAX_SIDE, image_column
from batchgen.models.catalog import Family, Model

__all__ = ["image_rule", "size_rule", "watermark_rule"]

_LEAST_SIDE = 8  # pixels


def size_rule(draft: Draft) -> Problems:
    """Width and height in pixels: as asked, else the init image's (cut to what the model takes), else the model's."""
    values, model = draft.values, draft.model
    step, native = _side_step(model), (model.width, model.height)
    for name in ("width", "height"):
        if values[name] and values[name] % step:
            yield name, f"is {values[name]}; {model.name!r} takes multiples of {step}"
    if (image := draft.inputs.get("image")) is not None:
        if image.width < step or image.height < step:
            yield "image", f"is {_wh(image)}; at least {step}x{step}"
        for name, side in (("width", image.width), ("height", image.height)):
            if values[name] is None and side // step * step > MAX_SIDE:
                yield name, f"is null, and the image is {_wh(image)}; give a {name} of at most {MAX_SIDE}"
        native = (max(step, image.width // step * step), max(step, image.height // step * step))
    values["width"], values["height"] = values["width"] or native[0], values["height"] or native[1]


def _side_step(model: Model) -> int:
    """What a side must be a multiple of: two kinds of nets halve what they see at each level but the last, evenly.

    The latent upscaler sees latents of twice the image's size: 4 pixels a latent.
    """
    halved = 1 << max(0, len(model.unet_widths) - 1)
    steps = {Family.LATENT_UPSCALER: 4 * halved, Family.PIXELS: halved}
    return max(_LEAST_SIDE, steps.get(model.family, _LEAST_SIDE))


def image_rule(draft: Draft) -> Problems:
    """Images that are missing, or of other sizes than those that they go with."""
    inputs, model = draft.inputs, draft.model
    if inputs.keys() >= {"image", "mask_image"} and _wh(inputs["mask_image"]) != _wh(inputs["image"]):
        mask, image = _wh(inputs["mask_image"]), _wh(inputs["image"])
        yield "mask_image", f"is {mask}, but the image is {image}; make them the same size"
    if draft.task.name == "depth-to-image" and "depth_map" not in inputs and not model.estimates_depth:
        yield "depth_map", f"is null, and {model.name!r} has no depth estimator; give a depth map"
    controls = {_wh(image) for name, image in inputs.items() if image_column(name) == "control_image"}
    if len(controls) > 1:
        yield "control_image", f"holds images of {' and '.join(sorted(controls))}; make them the same size"


def _wh(image: ImageRef) -> str:
    return f"{image.width}x{image.height}"


def watermark_rule(draft: Draft) -> Problems:
    """That the finished image has room for it."""
    values = draft.values
    if (text := values["watermark"]) is None:
        return
    scale = draft.model.enlarges * (values.get("hires_scale") or 1)
    width, height = (round(values[name] * scale) for name in ("width", "height"))
    most, length = capacity(width, height), len(text.encode())
    if most == 0:
        yield "watermark", f"has no room in an image of {width}x{height}; leave it null"
    elif not 0 < length <= most:
        yield "watermark", f"takes {length} bytes; an image of {width}x{height} carries 1 to {most}"
