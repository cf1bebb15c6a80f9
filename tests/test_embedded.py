"""Images of other programs read back into a manifest. The texts are as those programs write them."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import called
from PIL import ExifTags, Image, PngImagePlugin

from batchgen.embedded import Imported, import_images
from batchgen.errors import InputError

INFOTEXT = """a cat, (best:1.2), <lora:foo:0.8>
Steps: of a stair
Negative prompt: blurry, low
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768, Model hash: abc, \
Model: sd15, Denoising strength: 0.7, Clip skip: 2, Hires upscale: 2, Hires upscaler: Latent, \
Lora hashes: "foo: 123, bar: 33", Variation seed: 5, Version: v1.9.0"""

INVOKE = {
    "app_version": "4.2.0",
    "generation_mode": "txt2img",
    "positive_prompt": "landscape",
    "negative_prompt": "low quality",
    "width": 768,
    "height": 432,
    "seed": 356120443,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "steps": 50,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 0,
    "model": {"key": "k", "hash": "h", "name": "dreamer", "base": "sd-1", "type": "main"},
    "controlnets": [],
    "loras": [{"model": {"name": "foo"}, "weight": 0.5}],
    "vae": {"model_name": "sharp"},
}

SWARM = {
    "sui_image_params": {
        "prompt": "a face",
        "negativeprompt": "",
        "model": "sdxl",
        "seed": 7,
        "steps": 25,
        "cfgscale": 6.5,
        "aspectratio": "Custom",
        "width": 512,
        "height": 768,
        "sampler": "euler",
        "scheduler": "karras",
        "refinermethod": "PostApply",
    }
}


def graph(**changed: Any) -> dict[str, Any]:
    """ComfyUI's default workflow with a LoRA, its texts, size and sampler linked as its front end links them."""
    nodes = {
        "3": (
            "KSampler",
            {
                "seed": ["20", 0],
                "steps": 20,
                "cfg": 8,
                "sampler_name": "dpmpp_2m",
                "scheduler": "karras",
                "denoise": 1,
                "model": ["10", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        ),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": "sd.safetensors"}),
        "10": (
            "LoraLoader",
            {"lora_name": "x.safetensors", "strength_model": 0.7, "model": ["4", 0], "clip": ["4", 1]},
        ),
        "5": ("EmptyLatentImage", {"width": 512, "height": 640, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": ["21", 0], "clip": ["10", 1]}),
        "7": ("CLIPTextEncode", {"text": "bad", "clip": ["10", 1]}),
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "x"}),
        "20": ("PrimitiveInt", {"value": 99}),
        "21": ("PrimitiveString", {"value": "a cat"}),
    } | changed
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def png(path: Path, **texts: str) -> None:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text, zip=len(text) > 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def read(folder: Path) -> tuple[Imported, dict[str, Mapping[str, Any]]]:
    output = folder.parent / f"{folder.name}.parquet"
    found = import_images(str(folder), str(output))
    rows = pq.read_table(output).to_pylist()
    return found, {row["id"]: {name: cell for name, cell in row.items() if cell is not None} for row in rows}


def test_each_program_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    png(folder / "a1111.png", parameters=INFOTEXT)
    png(folder / "deep" / "comfy.png", prompt=json.dumps(graph()), workflow="x" * (3 << 20))
    png(folder / "invoke.png", invokeai_metadata=json.dumps(INVOKE))
    png(folder / "swarm.png", parameters=json.dumps(SWARM))
    png(folder / "plain.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    found, rows = read(folder)
    assert found.rows == 4
    assert {*found.silent} == {"plain.png", "broken.png"}
    assert rows["a1111"] == {
        "id": "a1111",
        "prompt": "a cat, (best:1.2), <lora:foo:0.8>\nSteps: of a stair",
        "negative_prompt": "blurry, low",
        "prompt_syntax": "a1111",
        "num_inference_steps": 20,
        "guidance_scale": 7.0,
        "seed": 123,
        "scheduler": "DPM++ 2M Karras",
        "width": 512,
        "height": 768,
        "clip_skip": 1,
        "hires_scale": 2.0,
        "hires_strength": 0.7,
        "source_model": "sd15",
        "source_tool": "A1111",
        "source_file": "a1111.png",
    }
    assert rows["deep/comfy"] == {
        "id": "deep/comfy",
        "prompt": "a cat",
        "negative_prompt": "bad",
        "seed": 99,
        "num_inference_steps": 20,
        "guidance_scale": 8.0,
        "scheduler": "dpmpp_2m Karras",
        "width": 512,
        "height": 640,
        "loras": '[{"path": "x.safetensors", "scale": 0.7}]',
        "source_model": "sd.safetensors",
        "source_tool": "ComfyUI",
        "source_file": "deep/comfy.png",
    }
    assert rows["invoke"]["scheduler"] == "dpmpp_2m Karras"
    assert rows["invoke"]["source_model"] == "dreamer"
    assert rows["invoke"]["loras"] == '[{"path": "foo", "scale": 0.5}]'
    assert rows["swarm"]["guidance_scale"] == 6.5
    assert rows["swarm"]["scheduler"] == "euler Karras"
    assert rows["swarm"]["source_tool"] == "SwarmUI"
    assert found.unread == {
        "a1111.png": ["Variation seed: 5"],
        "invoke.png": ["vae: sharp"],
        "swarm.png": ["refinermethod: PostApply"],
    }


@pytest.mark.parametrize(
    ("changed", "unread"),
    [
        (
            {
                "5": ("VAEEncode", {"pixels": ["30", 0], "vae": ["4", 2]}),
                "30": ("LoadImage", {"image": "start.png", "upload": "image"}),
            },
            "the image that it was made from, start.png",
        ),
        (
            {
                "6": ("ConditioningCombine", {"conditioning_1": ["7", 0], "conditioning_2": ["31", 0]}),
                "31": ("CLIPTextEncode", {"text": "a dog", "clip": ["10", 1]}),
            },
            "how the 2 texts of positive are combined",
        ),
        ({"40": ("ControlNetLoader", {"control_net_name": "c"})}, "node ControlNetLoader"),
    ],
)
def test_what_a_graph_needs_and_a_row_does_not_hold_is_told(
    changed: Mapping[str, Any], unread: str, tmp_path: Path
) -> None:
    png(tmp_path / "p" / "a.png", prompt=json.dumps(graph(**changed)))
    found, _ = read(tmp_path / "p")
    assert unread in found.unread["a.png"]


def test_of_two_samplers_the_one_that_starts_from_noise_is_read(tmp_path: Path) -> None:
    second = graph()["3"]["inputs"] | {"latent_image": ["3", 0], "seed": 1, "steps": 5, "denoise": 0.5}
    png(tmp_path / "p" / "a.png", prompt=json.dumps(graph(**{"2": ("KSampler", second)})))
    found, rows = read(tmp_path / "p")
    assert rows["a"]["seed"] == 99
    assert rows["a"]["num_inference_steps"] == 20
    assert "node KSampler" in found.unread["a.png"]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_a_comment_in_exif_is_read(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + INFOTEXT.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(folder / f"a.{suffix}", exif=exif)
    _, rows = read(folder)
    assert rows["a"]["seed"] == 123


def test_an_image_made_from_another_says_that_it_does_not_hold_it(tmp_path: Path) -> None:
    png(tmp_path / "p" / "a.png", parameters=INFOTEXT.replace("Hires upscale: 2, ", ""))
    found, rows = read(tmp_path / "p")
    assert rows["a"]["strength"] == 0.7
    assert "the image that it was made from" in found.unread["a.png"]


def test_a_sampler_of_no_name_here_is_told(tmp_path: Path) -> None:
    png(tmp_path / "p" / "a.png", parameters=INFOTEXT.replace("DPM++ 2M,", "Restart,"))
    found, rows = read(tmp_path / "p")
    assert "scheduler" not in rows["a"]
    assert "sampler Restart, schedule Karras" in found.unread["a.png"]


def test_the_command_tells_by_file_and_never_replaces_what_it_did_not_write(tmp_path: Path) -> None:
    folder, output = tmp_path / "p", tmp_path / "m.parquet"
    png(folder / "a.png", parameters=INFOTEXT)
    png(folder / "b.png")
    result = called("manifest", str(folder), "--output", str(output))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "a.png: not read: Variation seed: 5" in result.stdout + result.stderr
    assert "b.png: says nothing of how it was made" in result.stdout + result.stderr
    output.write_bytes(b"mine")
    result = called("manifest", str(folder), "--output", str(output))
    assert result.returncode == 2
    assert output.read_bytes() == b"mine"


def test_a_folder_without_images_that_say_anything_is_refused(tmp_path: Path) -> None:
    png(tmp_path / "p" / "a.png")
    with pytest.raises(InputError, match="none of its 1 images"):
        import_images(str(tmp_path / "p"), str(tmp_path / "m.parquet"))
    with pytest.raises(InputError, match="no such folder"):
        import_images(str(tmp_path / "q"), str(tmp_path / "m.parquet"))


def test_one_broken_image_does_not_stop_the_others(tmp_path: Path) -> None:
    """Nested JSON, a header of 60,000 x 60,000, a list that is none, half a surrogate pair: each ended the command."""
    png(tmp_path / "good.png", parameters=INFOTEXT)
    png(tmp_path / "deep.png", prompt="[" * 100_000)
    png(tmp_path / "list.png", invokeai_metadata=json.dumps({**INVOKE, "loras": True}))
    png(tmp_path / "half.png", invokeai_metadata='{"positive_prompt": "a \\ud800 b"}')
    data = (tmp_path / "good.png").read_bytes()
    header = b"IHDR" + (60_000).to_bytes(4) * 2 + data[24:29]
    bomb = data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    found, rows = read(tmp_path)
    assert set(found.silent) == {"bomb.png", "deep.png"}
    assert rows["half"]["prompt"] == "a ? b"
    assert rows["list"]["prompt"] == "landscape"


def test_images_of_one_name_and_two_formats_have_ids_of_their_own(tmp_path: Path) -> None:
    for folder, suffix in (("a", "png"), ("a", "PNG"), ("b", "png")):
        (tmp_path / folder).mkdir(exist_ok=True)
        png(tmp_path / folder / f"cat.{suffix}", parameters=INFOTEXT)
    assert set(read(tmp_path)[1]) == {"a/cat.png", "a/cat.PNG", "b/cat"}
