"""What ControlNets were given is kept on request: in both layouts, verified like the rows' own images, and reported."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_adapters
from conftest import HERE, RunCli
from PIL import Image

from batchgen.diffusion.control import canny_edges
from batchgen.driver import resolved_rows
from batchgen.job import load_job
from batchgen.report.page import write_report
from batchgen.scoring.selection import select

pytestmark = pytest.mark.slow

SIDE = 64


@pytest.mark.parametrize("layout", ["files", "parquet"])
def test_control_images_are_part_of_the_dataset(
    batchgen: RunCli, tiny_model: Path, tmp_path: Path, layout: str
) -> None:
    """The edges that one row's ControlNet was given, and the image itself that another's was; none of a third row."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[16:48, 16:40] = 200
    Image.fromarray(pixels).save(tmp_path / "start.png")
    net = str(tiny_adapters.build_controlnet(tmp_path / "control", tiny_model))
    control = {"controlnet": net, "control_image": "start.png"}
    rows = [{"id": "edges", "control_preprocess": "canny", **control}, {"id": "plain", **control}, {"id": "none"}]
    shared = {"prompt": "a", "seed": 1, "num_inference_steps": 2, "scheduler": "Euler a"}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(shared | row) + "\n" for row in rows))
    (tmp_path / "job.toml").write_text(
        f'manifest = "m.jsonl"\noutput = "out"\nmodel = "{tiny_model}"\nlayout = "{layout}"\n'
        "save_control_images = true\n"
    )
    done = batchgen("run", tmp_path / "job.toml", *HERE)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out"
    pattern = "*/metadata.parquet" if layout == "files" else "*.parquet"
    made = [(file, row) for file in (output / "data").glob(pattern) for row in pq.read_table(file).to_pylist()]
    kept = {row["id"]: (file, row["control_images"]) for file, row in made}
    assert {row["sampler"] for _, row in made} == {"Euler a"}
    assert kept["none"][1] is None
    for id_, wanted in (("edges", canny_edges(pixels)), ("plain", pixels)):
        file, [one] = kept[id_]
        data = (file.parent / one["path"]).read_bytes() if layout == "files" else one["image"]["bytes"]
        assert one["name"] == "control_image"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), wanted)
    verified = batchgen("verify", output, "--deep", "--clean", "--json")
    found = json.loads(verified.stdout)
    assert (verified.returncode, found["faults"], found["strays"]) == (0, [], 0)

    for folder in (output / "report", tmp_path / "elsewhere"):
        write_report([str(output)], str(folder))
        text = (folder / "data" / "rows-000.js").read_text()
        details = json.loads(re.fullmatch(r"report\.rows\((.*)\);\n", text, re.DOTALL)[1])["rows"]  # type: ignore[index]
        controls = {detail["cells"]["id"]: detail["controls"] for detail in details}
        assert controls["none"] == []
        [[label, link]] = controls["edges"]
        assert label == "control_image, canny"
        assert np.array_equal(np.asarray(Image.open(folder / link)), canny_edges(pixels))

    if layout == "files":  # what is selected is a manifest: the sampler's name means its scheduler there
        view = tmp_path / "view.parquet"
        select(str(output), "seed >= 0", str(view))
        with resolved_rows(load_job(str(view))) as (index, _):
            again = {row.id: (row.fingerprint, row.sampler) for _, row in index.pending(None)}
        assert again == {row["id"]: (row["fingerprint"], "Euler a") for _, row in made}
