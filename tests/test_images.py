"""Images in: what of a file decides pixels is read, what does not is left alone."""

import io
import os
import zlib
from collections.abc import Callable

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchgen.errors import ImageError
from batchgen.images import decode

MIB = 1 << 20
PIXELS = Image.effect_noise((24, 16), 80).convert("RGB")
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
HUGE = b"w\0\0" + zlib.compress(bytes(200 * MIB))


def png(write: Callable[[PngInfo], None], **options: bytes) -> bytes:
    info, stream = PngInfo(), io.BytesIO()
    write(info)
    PIXELS.save(stream, "PNG", pnginfo=info, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "write",
    [
        lambda info: info.add_text("workflow", "x" * 2 * MIB, zip=True),
        lambda info: info.add_itxt("workflow", "x" * 2 * MIB, zip=True),
        lambda info: info.add_text("workflow", "x" * 65 * MIB),
        lambda info: info.add(b"zTXt", HUGE),
        lambda info: info.add(b"zTXt", HUGE, after_idat=True),
        lambda info: info.add(b"iCCP", HUGE),
    ],
)
def test_texts_and_profiles_of_any_size(write: Callable[[PngInfo], None]) -> None:
    """ComfyUI's workflows in PNGs were told as truncation; they are not unpacked either."""
    data = png(write)
    assert decode(data).tobytes() == PIXELS.tobytes()
    cut = data[: data.index(b"IDAT") + 20]
    with pytest.raises(ImageError, match="truncated"):
        decode(cut)


def test_a_large_profile() -> None:
    """A profile that does not pack, as a camera's or a press's is."""
    assert decode(png(lambda _: None, icc_profile=os.urandom(2 * MIB))).tobytes() == PIXELS.tobytes()


@pytest.mark.parametrize(
    "turned",
    [
        png(lambda info: info.add_text("workflow", "x" * 2 * MIB, zip=True), exif=TURNED),
        png(lambda info: info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')),
        png(lambda info: info.add_text("Raw profile type exif", f"\nexif\n{len(TURNED):8}\n{TURNED.hex()}", zip=True)),
    ],
)
def test_what_turns_an_image_is_read(turned: bytes) -> None:
    """A camera's orientation, wherever programs write it."""
    assert decode(turned).size == (16, 24)
