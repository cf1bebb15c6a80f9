"""Pose maps: found by tiny models of the real kinds, drawn as OpenPose draws them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_adapters import build_person_detector, build_pose_estimator

from batchgen.diffusion.pose import PoseReader, draw_poses
from batchgen.errors import InputError

CPU = torch.device("cpu")
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pose")
    return build_pose_estimator(root / "vitpose"), build_person_detector(root / "detector")


def test_without_a_detector_the_image_is_one_person(folders: tuple[Path, Path]) -> None:
    (pose,) = PoseReader(folders[0], None, CPU).poses(IMAGE)
    assert "neck" in pose or not {"left_shoulder", "right_shoulder"} <= pose.keys()
    assert len(pose) > 5
    for x, y in pose.values():  # ViTPose looks a quarter beyond the box
        assert -40 <= x <= 104
        assert -40 <= y <= 136


def test_the_detector_says_how_many(folders: tuple[Path, Path]) -> None:
    poses = PoseReader(folders[0], folders[1], CPU).poses(IMAGE)
    assert len(poses) == 2
    assert draw_poses(poses, *IMAGE.size).shape == (96, 64, 3)


def test_the_colours_are_openposes() -> None:
    """Limbs are darker than the points over them; the nose is red, the neck orange, the first limb a dark red."""
    pose = {"nose": (256.0, 100.0), "neck": (256.0, 200.0), "right_shoulder": (156.0, 200.0)}
    drawn = draw_poses([pose], 512, 512)
    assert tuple(drawn[100, 256]) == (255, 0, 0)
    assert tuple(drawn[200, 256]) == (255, 85, 0)
    assert tuple(drawn[200, 156]) == (255, 170, 0)
    assert tuple(drawn[200, 206]) == (153, 0, 0), "from the neck to the right shoulder"
    assert tuple(drawn[150, 256]) == (0, 0, 153), "from the neck to the nose, the thirteenth"
    assert not drawn[300:].any()


def test_nobody_is_black() -> None:
    assert not draw_poses([], 64, 96).any()


def test_another_model_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be loaded"):
        PoseReader(tmp_path, None, CPU)
