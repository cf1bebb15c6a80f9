"""Invisible watermarks: found again, in other formats too, and hardly there."""

import io

import numpy as np
import pytest
from PIL import Image

from batchgen.generation.watermark import capacity, embed, extract
from jobs.builtin.renderer import render
from jobs.builtin.scenes import draw_scene

TEXT = "Grüße 1"  # 9 bytes


def images(count: int = 8) -> list[np.ndarray]:
    """Renders of 128 pixels, four to an image, so that there is room for the text."""
    renders = [render(draw_scene(0, number)).rgb for number in range(4 * count)]
    return [np.block([[[a], [b]], [[c], [d]]]) for a, b, c, d in zip(*[iter(renders)] * 4, strict=True)]


def test_text_is_found_again() -> None:
    for image in images():
        marked = embed(image, TEXT)
        assert extract(marked, 9) == TEXT.encode()
        assert extract(image, 9) != TEXT.encode()
        change = np.abs(marked.astype(int) - image)
        assert change.max() <= 12
        assert change.mean() < 1.5


@pytest.mark.slow
def test_text_mostly_survives_jpeg() -> None:
    """In 61 of these 64 images, and in 60 of 64 of another camera height; smooth ones may lose a bit."""
    found = 0
    for image in images(64):
        stream = io.BytesIO()
        Image.fromarray(embed(image, TEXT)).save(stream, format="JPEG", quality=95, subsampling=0)
        found += extract(np.asarray(Image.open(stream)), 9) == TEXT.encode()
    assert found >= 58


def test_sizes_that_are_no_multiples() -> None:
    """What does not fill a block at the right and the bottom stays as it is."""
    rng = np.random.default_rng(0)
    image = rng.integers(40, 200, (131, 158, 3)).astype(np.uint8)
    marked = embed(image, "x")
    assert extract(marked, 1) == b"x"
    assert marked.shape == image.shape
    assert np.array_equal(marked[128:], image[128:])
    assert np.array_equal(marked[:, 152:], image[:, 152:])


def test_white_and_black_leave_room() -> None:
    """Half of an image without room in one direction carries the text all the same."""
    image = np.full((256, 256, 3), 255, np.uint8)
    image[128:] = 0
    assert extract(embed(image, "mark"), 4) == b"mark"


def test_too_long_a_text_is_refused() -> None:
    assert capacity(128, 128) == 4
    with pytest.raises(ValueError, match="carries 1 to 4 bytes"):
        embed(np.zeros((128, 128, 3), np.uint8), "12345")
