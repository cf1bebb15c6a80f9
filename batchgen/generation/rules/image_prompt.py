"""IP-Adapters and their images."""

from dataclasses import fields

from batchgen.generation.parameters import ImagePrompt
from batchgen.generation.rules.draft import Draft, Problems

__all__ = ["image_prompt_rule"]


def image_prompt_rule(draft: Draft) -> Problems:
    """An IP-Adapter has an image, and an image an IP-Adapter."""
    if "ip_adapter" not in draft.values:
        return
    if draft.values["ip_adapter"] is None:
        if "ip_adapter_image" in draft.inputs:
            yield "ip_adapter_image", "is given without an ip_adapter; name one, or leave it null"
        if "ip_adapter" not in draft.parsed.spoiled:
            yield from draft.drop([one.name for one in fields(ImagePrompt)], "means nothing without an ip_adapter")
    elif "ip_adapter_image" not in draft.inputs and "ip_adapter_image" not in draft.parsed.spoiled:
        yield "ip_adapter_image", "is null, but the ip_adapter needs it"
