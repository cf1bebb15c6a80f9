"""Near duplicates: images whose perceptual hashes differ in few of their 64 bits, over a whole output."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["NEAR", "first_alike"]

NEAR = 4  # bits: an image saved again as JPEG, or at half its size, is nearer; other seeds of one prompt are further
_BLOCK = 256  # hashes compared with all representatives at once: 200 MB at 100,000 of them


def first_alike(hashes: Sequence[str], near: int = NEAR) -> list[int]:
    """For each hash the place of the first one that it is alike, its own where there is none.

    Hashes are taken in order. One that is at most `near` bits from an earlier one that stands for a group belongs to
    the nearest such group, the first where several are as near; any other stands for a group of its own. So no member
    is further than `near` from what stands for it, and chains of likenesses join nothing.

    Args:
        hashes: of 16 hexadecimal digits.
        near: bits.
    """
    bits = np.array([int(text, 16) for text in hashes], dtype=np.uint64)
    unique, first = np.unique(bits, return_index=True)
    order = np.argsort(first)
    groups = np.empty(len(unique), dtype=np.int64)  # by place in `order`: the place of what stands for it
    heads = np.empty(0, dtype=np.int64)
    ordered = unique[order]
    for start in range(0, len(ordered), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(ordered)))
        nearest, distance = _nearest(ordered[block], ordered[heads])
        fresh: list[int] = []
        for place, before, far in zip(block, nearest, distance, strict=True):
            mates, own = _nearest(ordered[[place]], ordered[fresh])
            if far <= near and far <= own[0]:
                groups[place] = heads[before]
            elif own[0] <= near:
                groups[place] = fresh[mates[0]]
            else:
                groups[place] = place
                fresh.append(int(place))
        heads = np.concatenate([heads, np.array(fresh, dtype=np.int64)])
    places = dict(zip(unique[order].tolist(), first[order[groups]].tolist(), strict=True))
    return [places[value] for value in bits.tolist()]


def _nearest(
    hashes: npt.NDArray[np.uint64], others: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Place and distance of the nearest of the others, the first of several; 65 where there are none."""
    if not len(others):
        return np.zeros(len(hashes), np.int64), np.full(len(hashes), 65)
    apart = np.bitwise_count(hashes[:, None] ^ others[None, :])
    nearest = apart.argmin(axis=1)
    return nearest, apart[np.arange(len(hashes)), nearest].astype(np.int64)
