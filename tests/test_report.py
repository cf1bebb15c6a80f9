"""The report: its numbers against computations by hand, its files, and the page in a real browser."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import called, go_without
from PIL import Image
from test_commit import attempt
from test_plan import key_of, make_row

from batchgen.dataset import layouts
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.dataset.layouts.files import FilesLayout
from batchgen.errors import InputError
from batchgen.options import ImageFormat, Layout
from batchgen.report.page import write_report
from batchgen.report.page.collect import Axis, Shown, find_axes
from batchgen.report.page.effects import effects
from batchgen.report.page.sprites import PER_SHEET
from batchgen.rows import Shard
from batchgen.storage import open_store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '<script>document.title="owned"</script> "quoted" \'single\' </script> \u202eright to left\u2028 &amp;'


def make_output(folder: Path, rows: Sequence[dict[str, Any]], layout: str = Layout.FILES, a_shard: int = 64) -> Path:
    """An output whose rows have these cells of `axis_...` columns, and prompts."""
    types = {name: pa.float64() if isinstance(cell, float) else pa.string() for name, cell in rows[0].items()}
    carried = {name: kind for name, kind in types.items() if name.startswith("axis_")}
    dataset = Dataset.begin(open_store(str(folder)), new_format(layout, ImageFormat.PNG, carried), create=True)
    for start in range(0, len(rows), a_shard):
        made = []
        for number, cells in enumerate(rows[start : start + a_shard], start):
            own = {name: cell for name, cell in cells.items() if name.startswith("axis_")}
            row = make_row(number % 250, prompt=cells.get("prompt", "a cube"), seed=number)
            made.append(replace(row, id=f"row-{number}", fingerprint=f"{number:064x}", carried=own))
        attempt(dataset, Shard(id=f"{start:016x}", key=key_of(made[0]), batch_size=4, rows=tuple(made)))
    return folder


GRID = [
    {"axis_color": color, "axis_guidance_scale": guidance, "axis_seed": float(seed), "prompt": f"a {color} cube"}
    for color, guidance, seed in product(["red", "green", HOSTILE], [1.0, 3.0, 7.5], range(4))
]


def read_script(path: Path) -> Any:
    """What a data script hands to the page."""
    match = re.fullmatch(r"report\.\w+\((.*)\);\n", path.read_text(), re.DOTALL)
    assert match is not None
    return json.loads(match[1])


# Numbers


def axis(name: str, *values: str) -> Axis:
    return Axis(name=name, values=values, is_number=False)


def test_the_interval_of_a_mean() -> None:
    """Five values: the mean, and t(4) = 2.776 times the standard error; blocks that are not whole are not paired."""
    values = [1.0, 2.0, 4.0, 7.0, 11.0]
    points = [({"a": "x", "seed": str(seed)}, {"s": value}) for seed, value in enumerate(values)]
    points += [({"a": "y", "seed": "9"}, {"s": 3.0})]
    x, y = effects(points, [axis("a", "x", "y")], ["s"])
    assert x.mean == 5.0
    assert x.high - x.mean == pytest.approx(2.776 * stdev(values) / math.sqrt(5))
    assert not x.paired
    assert (y.rows, y.low, y.high) == (1, 3.0, 3.0)
    assert x.above == pytest.approx(5.0 - fmean([*values, 3.0]))


def test_shared_seeds_make_the_interval_paired() -> None:
    """What seeds add to both values alike is no doubt about either: here it is all there is, but for 0.1."""
    noise = [0.0, 10.0, 20.0, 35.0]
    points = [
        ({"a": name, "seed": str(seed)}, {"s": value + add + wiggle})
        for name, add, wiggles in (("x", 0.0, (0.1, -0.1, 0.1, -0.1)), ("y", 2.0, (-0.1, 0.1, -0.1, 0.1)))
        for seed, (value, wiggle) in enumerate(zip(noise, wiggles, strict=True))
    ]
    x, y = effects(points, [axis("a", "x", "y")], ["s"])
    assert x.paired and y.paired
    centred = [-1 + wiggle for wiggle in (0.1, -0.1, 0.1, -0.1)]
    assert x.high - x.mean == pytest.approx(3.182 * stdev(centred) / 2 * math.sqrt(2))
    assert y.mean - x.mean == pytest.approx(2.0)


def test_samplers_of_one_class_are_told_apart() -> None:
    """By their names; an output that is older than the column has its classes."""
    samplers = ["DPM++ 2M", "DPM++ 2M Karras", None]
    applied = [{"scheduler": "DPMSolverMultistepScheduler", "id": str(number)} for number in range(3)]
    shown = [
        Shown(cells=cells | ({} if name is None else {"sampler": name}), output="o", link=None, scores={})
        for cells, name in zip(applied, samplers, strict=True)
    ]
    [found] = find_axes(shown)
    assert (found.name, found.values) == ("scheduler", [*samplers[:2], "DPMSolverMultistepScheduler"])


# Files


def test_every_part_of_the_page_has_an_id_of_its_own() -> None:
    """Incident: what a ControlNet was given was shown among the filters, whose id it had."""
    page = resources.files("batchgen.report.page") / "static" / "index.html"
    ids = re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(ids) > 20 and len(ids) == len(set(ids))


def test_a_report_lies_in_its_output_and_links_to_the_images(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", GRID)
    found = write_report([str(output)], str(output / "report"))
    assert (found.images, found.axes, found.unreadable) == (36, ["color", "guidance_scale", "seed"], 0)
    index = read_script(output / "report" / "data" / "index.js")
    for link in index["links"]:
        assert (output / "report" / link).resolve().is_file()
    assert not (output / "report" / "images").exists()
    at = [(index["at"]["color"][number], index["at"]["guidance_scale"][number]) for number in range(36)]
    assert len(set(at)) == 9
    pivot = pq.read_table(output / "report" / "pivot.parquet").to_pylist()
    assert len(pivot) == 36
    assert {row["guidance_scale"] for row in pivot} == {1.0, 3.0, 7.5}
    detail = read_script(output / "report" / "data" / "rows-000.js")["rows"][0]
    assert json.loads(detail["row"])["prompt"] == detail["cells"]["prompt"]


def test_the_row_that_makes_an_image_again_names_its_init_image(tmp_path: Path) -> None:
    """Incident: a report named the columns of the metadata, where images and adapters stand in other ways."""
    kept = Path(__file__).parent / "fixtures" / "outputs" / "files"
    write_report([str(kept)], str(tmp_path / "report"))
    details = read_script(tmp_path / "report" / "data" / "rows-000.js")["rows"]
    begun = [
        (detail["cells"]["image_uri"], json.loads(detail["row"]))
        for detail in details
        if "image_uri" in detail["cells"]
    ]
    assert begun
    assert all(row["image"] == uri and row["strength"] is not None for uri, row in begun)


class OtherFiles(FilesLayout):
    """A third layout: images are objects, and their column has a name of its own."""

    name = "other"  # type: ignore[assignment]
    image = pa.field("picture", pa.string())


def test_a_report_links_to_images_of_any_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: links were made for the layout `files` by its name, and images of a third one copied."""
    monkeypatch.setitem(layouts.LAYOUTS, OtherFiles.name, OtherFiles())
    output = make_output(tmp_path / "out", GRID[:4], OtherFiles.name)
    write_report([str(output)], str(output / "report"))
    for link in read_script(output / "report" / "data" / "index.js")["links"]:
        assert Image.open(output / "report" / link).size == (8, 8)
    assert not (output / "report" / "images").exists()
    cells = read_script(output / "report" / "data" / "rows-000.js")["rows"][0]["cells"]
    assert "prompt" in cells and "picture" not in cells


@pytest.mark.parametrize("layout", list(Layout))
def test_a_report_elsewhere_holds_the_images(layout: Layout, tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", GRID[:4], layout)
    write_report([str(output)], str(tmp_path / "report"))
    index = read_script(tmp_path / "report" / "data" / "index.js")
    for link in index["links"]:
        assert Image.open(tmp_path / "report" / link).size == (8, 8)


def test_a_report_of_one_image(tmp_path: Path) -> None:
    """Incident: without anything that images differ in there was no axis, and no report."""
    output = make_output(tmp_path / "out", [{"prompt": "a cube"}])
    found = write_report([str(output)], str(tmp_path / "report"))
    assert (found.images, found.axes) == (1, ["model"])
    assert Image.open(tmp_path / "report" / "sheet.png").width > 128


def test_a_report_is_written_over_a_report_alone(tmp_path: Path) -> None:
    """Nothing of another page's folder changes, nor of an output's, whose data/ would be the report's as well."""
    output, site = make_output(tmp_path / "out", GRID[:4]), tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("<title>My page</title>")
    for folder, words in ((site, "is no report of batchgen"), (output, "is an output itself")):
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match=words):
            write_report([str(output)], str(folder))
        assert sorted(folder.rglob("*")) == before
    (site / "index.html").unlink()
    for _ in range(2):
        assert write_report([str(output)], str(site)).images == 4


def test_several_outputs_have_an_axis_more(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        make_output(tmp_path / name, GRID[:8])
    found = write_report([str(tmp_path / "monday"), str(tmp_path / "tuesday")], str(tmp_path / "report"))
    assert found.images == 16
    assert "output" in found.axes


def test_axes_of_any_name_and_any_number_are_shown(tmp_path: Path) -> None:
    """Infinity ended the report, an axis `output` the comparison; one named `images` lost its values in the pivot."""
    rows = [{"axis_output": "a", "axis_images": math.inf}, {"axis_output": "b", "axis_images": 2.0}]
    first = make_output(tmp_path / "first", rows)
    second = make_output(tmp_path / "second", [{"axis_n": 3.0}, {"axis_n": 1.0}])
    report = tmp_path / "report"
    found = write_report([str(first), str(second)], str(report))
    assert found.axes == ["images", "output", "n", "output folder"]
    axes = {one["name"]: one["values"] for one in read_script(report / "data" / "index.js")["axes"]}
    assert axes["images"] == ["Infinity", 2.0, None]
    assert axes["n"] == [1.0, 3.0, None]
    assert pq.read_table(report / "pivot.parquet")["images"].to_pylist()[:2] == ["Infinity", "2"]


def test_an_image_that_is_gone_is_a_gap(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", GRID[:4])
    next((output / "data").glob("*/*/row-2.png")).unlink()
    found = write_report([str(output)], str(output / "report"))
    assert (found.images, found.unreadable) == (4, 1)
    assert read_script(output / "report" / "data" / "index.js")["links"].count(None) == 1


def test_thumbnails_are_few_objects(tmp_path: Path) -> None:
    rows = [{"axis_n": float(number % 3)} for number in range(PER_SHEET + 3)]
    output = make_output(tmp_path / "out", rows, a_shard=200)
    write_report([str(output)], str(output / "report"))
    sheets = sorted((output / "report" / "thumbs").iterdir())
    assert [Image.open(sheet).size for sheet in sheets] == [(2048, 2048), (2048, 128)]


def test_an_output_without_images_is_refused(tmp_path: Path) -> None:
    Dataset.begin(open_store(str(tmp_path / "out")), new_format(Layout.FILES, ImageFormat.PNG, {}), create=True)
    with pytest.raises(InputError, match="no image is done yet"):
        write_report([str(tmp_path / "out")], str(tmp_path / "report"))


def test_the_command(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", GRID[:4])
    result = called("report", str(output))
    assert result.returncode == 0, result.stdout + result.stderr
    assert (output / "report" / "index.html").is_file()
    result = called("report", str(output), str(output))
    assert result.returncode == 2
    assert "--output is missing" in result.stdout + result.stderr


# The page


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        go_without("Chromium is not there; .ci/install-system-packages installs it")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "Browser", tmp_path: Path) -> "Iterator[Page]":
    """A report over three axes, opened from its file; nothing is asked for beyond the output, nothing goes wrong."""
    output = make_output(tmp_path / "out", GRID)
    write_report([str(output)], str(output / "report"))
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: wrong.append(request.url) if str(output) not in request.url else None)
    opened.goto(f"file://{output}/report/index.html")
    yield opened
    assert wrong == []
    opened.close()


@pytest.mark.slow
def test_a_grid_is_filtered_and_its_state_is_in_the_address(page: "Page") -> None:
    assert page.locator(".row").count() == 3
    assert page.locator(".thumb").count() == 36
    page.locator("#filters summary").click()
    page.locator('[data-axis="guidance_scale"][data-place="0"]').uncheck()
    assert page.locator("#count").inner_text() == "24 of 36 images"
    page.select_option("#tabs", "seed")
    assert page.locator("[data-tab]").count() == 4
    page.locator("[data-tab='2']").click()
    assert page.locator(".thumb").count() == 6
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert page.locator(".thumb").count() == 6
    assert page.locator("#tabs").input_value() == "seed"


@pytest.mark.slow
def test_a_hostile_prompt_is_text(page: "Page") -> None:
    assert page.title() == "out · report"
    names = page.locator(".row .name").all_inner_texts()
    assert HOSTILE.split("\u202e")[0].strip() in names[2]
    page.locator(".thumb").last.click()
    page.locator("#parameters td").first.wait_for()
    assert HOSTILE.split("\u202e")[0] in page.locator("#parameters").inner_text()
    assert page.title() == "out · report"


@pytest.mark.slow
def test_the_keyboard_goes_through_images(page: "Page") -> None:
    page.locator(".thumb").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#place").inner_text() == "2 of 36"
    page.keyboard.press("ArrowRight")
    assert page.locator("#place").inner_text() == "3 of 36"
    assert page.locator("#full").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
    assert "batchgen run row.jsonl" in page.locator("#again").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


@pytest.mark.slow
def test_images_are_compared(page: "Page") -> None:
    for number in (0, 5):
        page.locator(".thumb").nth(number).click(modifiers=["Control"])
    page.locator("#compare").click()
    assert page.locator("#side-by-side figure").count() == 2
    assert "guidance_scale" in page.locator("#side-by-side figcaption").first.inner_text()
    page.locator("#blink").click()
    assert page.locator("#side-by-side figure:visible").count() == 1


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(browser: "Browser", scheme: Any, tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", GRID)
    write_report([str(output)], str(output / "report"))
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.goto(f"file://{output}/report/index.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    page.close()
