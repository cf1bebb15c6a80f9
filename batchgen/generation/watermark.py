"""An invisible watermark: a short text in an image's pixels, by wavelets and singular values (dwtDctSvd).

The method takes the cosine transform of a block before its singular values, which are the same with and without.
Readers of the method find it, such as invisible-watermark's `WatermarkDecoder("bytes", 8 * LENGTH)` with "dwtDctSvd".
That library itself is not used: it brings an OpenCV that needs a window system, over the one that is installed here.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["capacity", "embed", "extract"]

_STEP = 36  # of the largest singular value: its place within a step is the bit
_BLOCK = 4  # wavelet coefficients a side of what carries one bit; 8 pixels
_WAYS = (0.0, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5)  # where white or black leaves no room in one direction, the other one
_REPEATS = 8  # at least so many blocks for each bit: JPEG spoils some (with 4, smooth images lost their text)
# Analogue YUV in whole numbers, to the last bit as OpenCV rounds it for readers: 2^14 stands for 1.
_BITS, _HALF = 14, 1 << 13
_RED_TO_Y, _GREEN_TO_Y, _BLUE_TO_Y, _BLUE_TO_U = 4899, 9617, 1868, 8061
_BLUE_FROM_U, _GREEN_FROM_U = 2.032, -0.395

Pixels = npt.NDArray[np.uint8]
"""An image, uint8 (H, W, 3), RGB."""


def capacity(width: int, height: int) -> int:
    """The longest text, in bytes of UTF-8, that an image of so many pixels carries."""
    side = 2 * _BLOCK
    return (width // side) * (height // side) // (8 * _REPEATS)


def embed(pixels: Pixels, text: str) -> Pixels:
    """The image with the text in it, over and over; a colour changes by a few levels of 255.

    Raises:
        ValueError: the text is empty or longer than `capacity`.
    """
    message = text.encode()
    height, width = pixels.shape[:2]
    if not 0 < len(message) <= capacity(width, height):
        raise ValueError(f"an image of {width}x{height} carries 1 to {capacity(width, height)} bytes")
    bits = np.unpackbits(np.frombuffer(message, np.uint8))
    for way in _WAYS:
        pixels = _push(pixels, bits, way)
    return pixels


def extract(pixels: Pixels, length: int) -> bytes:
    """The `length` bytes that an image carries; without a watermark, meaningless ones."""
    votes = _votes(_blocks(_coefficients(pixels)))
    bits = [votes[place :: 8 * length].mean() > 0.5 for place in range(8 * length)]
    return np.packbits(bits).tobytes()


def _push(pixels: Pixels, bits: npt.NDArray[np.uint8], way: float) -> Pixels:
    """Bring the blocks that do not say their bit to the nearest value that does, less or more by `way` steps."""
    coefficients = _coefficients(pixels)
    blocks = _blocks(coefficients)
    wanted = np.resize(bits, len(blocks))
    wrong = _votes(blocks) != wanted
    if not wrong.any():
        return pixels
    left, values, right = np.linalg.svd(blocks[wrong])
    place = 0.25 + 0.5 * wanted[wrong]
    nearest = (np.round(values[:, 0] / _STEP - place + way) + place) * _STEP
    values[:, 0] = np.maximum(nearest, values[:, 1])
    change = np.zeros_like(blocks)
    change[wrong] = (left * values[:, None]) @ right - blocks[wrong]
    rows, columns = (side // _BLOCK for side in coefficients.shape)
    tiled = change.reshape(rows, columns, _BLOCK, _BLOCK).swapaxes(1, 2).reshape(rows * _BLOCK, columns * _BLOCK)
    wide = np.repeat(np.repeat(tiled / 2, 2, axis=0), 2, axis=1)  # half of it to each of the four it is half the sum of
    result = pixels.astype(np.float64)
    height, width = wide.shape
    result[:height, :width, 2] += _BLUE_FROM_U * wide
    result[:height, :width, 1] += _GREEN_FROM_U * wide
    return result.round().clip(0, 255).astype(np.uint8)


def _votes(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """The bit that each block says, in its largest singular value."""
    largest = np.linalg.norm(blocks, ord=2, axis=(1, 2))
    votes: npt.NDArray[np.bool_] = largest % _STEP > _STEP / 2
    return votes


def _coefficients(pixels: Pixels) -> npt.NDArray[np.float64]:
    """Haar's approximation of the colour difference U: half the sum over each 2 by 2 pixels."""
    height, width = (side // 4 * 4 for side in pixels.shape[:2])
    red, green, blue = np.moveaxis(pixels[:height, :width].astype(np.int64), 2, 0)
    luma = (_RED_TO_Y * red + _GREEN_TO_Y * green + _BLUE_TO_Y * blue + _HALF) >> _BITS
    u = ((_BLUE_TO_U * (blue - luma) + _HALF) >> _BITS) + 128
    summed: npt.NDArray[np.float64] = u.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3)) / 2
    return summed


def _blocks(coefficients: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whole blocks (N, 4, 4), row by row."""
    rows, columns = (side // _BLOCK for side in coefficients.shape)
    whole = coefficients[: rows * _BLOCK, : columns * _BLOCK]
    return whole.reshape(rows, _BLOCK, columns, _BLOCK).swapaxes(1, 2).reshape(-1, _BLOCK, _BLOCK)
