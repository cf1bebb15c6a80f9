"""ComfyUI's graph: the sampler that starts from noise, and what leads to it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from batchgen.embedded.said import Said

__all__ = ["read_graph"]

_Node = Mapping[str, Any]

_COLUMNS = {"seed": "seed", "noise_seed": "seed", "steps": "num_inference_steps", "cfg": "guidance_scale"}
_TEXTS = ("text", "text_g", "string", "value", "prompt")
_NO_TEXTS = ("clip", "model", "vae", "image")
_UNTOLD = {  # nodes that are read, or that change nothing
    *("CLIPTextEncode", "VAEDecode", "VAEDecodeTiled", "SaveImage", "PreviewImage", "EmptyLatentImage", "VAELoader"),
    *("CheckpointLoaderSimple", "LoraLoader", "LoraLoaderModelOnly", "PrimitiveNode", "Note", "Reroute", "LoadImage"),
    *(
        "VAEEncode",
        "PrimitiveString",
        "PrimitiveStringMultiline",
        "PrimitiveInt",
        "PrimitiveFloat",
        "UNETLoader",
        "CLIPLoader",
    ),
}


def read_graph(text: str) -> Said | None:
    """What the graph says; None where it is no graph, or has no sampler that is known."""
    try:
        graph = json.loads(text)
    except ValueError:
        return None
    if not isinstance(graph, dict):
        return None
    nodes = {str(name): node for name, node in graph.items() if isinstance(node, dict) and _inputs(node)}
    samplers = {name: node for name, node in nodes.items() if {"sampler_name", "steps"} <= _inputs(node).keys()}
    first = next((name for name in samplers if not _earlier(name, nodes, samplers)), None)
    if first is None:
        return None
    return _read_sampler(first, nodes, samplers)


def _read_sampler(first: str, nodes: Mapping[str, _Node], samplers: Mapping[str, _Node]) -> Said:
    said = Said()
    inputs = {name: _value(value, nodes) for name, value in _inputs(nodes[first]).items()}
    read = {first}
    for column, link in (("prompt", "positive"), ("negative_prompt", "negative")):
        seen: set[str] = set()
        texts = list(_texts(_inputs(nodes[first]).get(link), nodes, seen))
        read |= seen
        said.take(column, ", ".join(dict.fromkeys(texts)), link)
        if len(set(texts)) > 1:
            said.lacks(f"how the {len(set(texts))} texts of {link} are combined")
    said.take_all(inputs, _COLUMNS)
    said.take_sampler(inputs.get("sampler_name"), inputs.get("scheduler"))
    loras = []
    for name, node in _chain(_inputs(nodes[first]).get("model"), "model", nodes):
        read.add(name)
        if "lora_name" in (own := _inputs(node)):
            loras.append({"path": own["lora_name"], "scale": _value(own.get("strength_model", 1.0), nodes)})
        if isinstance(model := own.get("ckpt_name", own.get("unet_name")), str):
            said.cells["source_model"] = model
    if loras:
        said.cells["loras"] = loras[::-1]
    for name, node in _chain(_inputs(nodes[first]).get("latent_image"), None, nodes):
        read.add(name)
        own = _inputs(node)
        said.take_all(
            {side: _value(own.get(side), nodes) for side in ("width", "height")}, {"width": "width", "height": "height"}
        )
        if isinstance(image := own.get("image"), str):
            said.take("strength", inputs.get("denoise"), "denoise")
            said.lacks(f"the image that it was made from, {image}")
    others = [name for name in nodes if name not in read]
    kinds = [str(nodes[name].get("class_type")) for name in others]
    said.unread += [f"node {kind}" for kind in dict.fromkeys(kinds) if kind not in _UNTOLD]
    return said


def _inputs(node: Any) -> Mapping[str, Any]:
    found = node.get("inputs") if isinstance(node, dict) else None
    return found if isinstance(found, dict) else {}


def _target(value: Any, nodes: Mapping[str, _Node]) -> str | None:
    """The node that an input is linked to: links are [node, output]."""
    if isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes:
        return str(value[0])
    return None


def _value(value: Any, nodes: Mapping[str, _Node]) -> Any:
    """An input's value; that of a node which holds nothing else, where it is linked to one."""
    if (name := _target(value, nodes)) is None:
        return None if isinstance(value, list) else value
    plain = [one for one in _inputs(nodes[name]).values() if not isinstance(one, (list, dict))]
    return plain[0] if len(plain) == 1 else _inputs(nodes[name]).get("seed")


def _texts(value: Any, nodes: Mapping[str, _Node], seen: set[str]) -> Iterator[str]:
    """The texts that an input leads to, each node once."""
    name = _target(value, nodes)
    if name is None:
        if isinstance(value, str):
            yield value
        return
    if name in seen:
        return
    seen.add(name)
    inputs = _inputs(nodes[name])
    own = [key for key in _TEXTS if key in inputs]
    others = [key for key, one in inputs.items() if isinstance(one, list) and key not in _NO_TEXTS]
    for key in own[:1] or others:
        yield from _texts(inputs[key], nodes, seen)


def _chain(value: Any, link: str | None, nodes: Mapping[str, _Node]) -> Iterator[tuple[str, _Node]]:
    """The nodes that an input leads to, one after the other, by links of a name, or by the first of each."""
    seen: set[str] = set()
    while (name := _target(value, nodes)) is not None and name not in seen:
        seen.add(name)
        yield name, nodes[name]
        inputs = _inputs(nodes[name])
        links = [one for key, one in inputs.items() if isinstance(one, list) and link in (None, key)]
        value = links[0] if links else None


def _earlier(name: str, nodes: Mapping[str, _Node], samplers: Mapping[str, _Node]) -> bool:
    """Whether a sampler goes on from what another one made."""
    start = _inputs(nodes[name]).get("latent_image", _inputs(nodes[name]).get("samples"))
    return any(other in samplers for other, _ in _chain(start, None, nodes))
