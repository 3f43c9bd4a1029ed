"""Augmentation: what moves, how far, and in which plane."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlib.data.augment import random_affine


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blob(*shape):
    """A batch with a box off the centre, as image (-1 outside, 1 inside) and as label."""
    label = torch.zeros(2, 1, *shape, dtype=torch.int64)
    label[(..., *[slice(3, n // 2 + 2) for n in shape])] = 2
    return label.float() - 1, label


@pytest.mark.parametrize("shape", [(16, 16), (12, 16, 16)])
def test_augmentation_moves_image_and_label_together(shape):
    picture, label = blob(*shape)
    moved, moved_label = random_affine(picture, label, generator(), degrees=20, scale=0.2, shift=0.1)
    assert not torch.equal(label, moved_label)
    assert set(moved_label.unique().tolist()) <= {0, 2}, "labels are not blended"
    agree = ((moved > 0) == (moved_label == 2)).float().mean()
    assert agree > 0.99
    assert not torch.equal(moved_label[0], moved_label[1]), "every case is moved on its own"


def test_augmentation_comes_from_the_generator_and_can_be_nothing():
    picture, label = blob(16, 16)
    torch.manual_seed(1)
    one, _ = random_affine(picture, label, generator(5), 20, 0.2, 0.1)
    torch.manual_seed(2)
    two, _ = random_affine(picture, label, generator(5), 20, 0.2, 0.1)
    assert torch.equal(one, two)
    same, same_label = random_affine(picture, label, generator(), 0, 0, 0)
    assert torch.allclose(same, picture, atol=1e-5)
    assert torch.equal(same_label, label)
    assert random_affine(picture, None, generator(), 5, 0, 0)[1] is None


def rod(shape, spacing, axis):
    """A soft rod through the centre along one axis, (1, 1, ...), as an image in [-1, 1]: 12 mm wide, 60 mm long."""
    middle = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    at = torch.stack(torch.meshgrid(*middle, indexing="ij"))
    along = (at[axis] / 30) ** 2
    across = sum((at[other] / 6) ** 2 for other in range(len(shape)) if other != axis)
    return (2 * torch.exp(-along - across) - 1)[None, None]


def principal(picture, spacing):
    """Direction (unit vector) of the longest axis of a picture's bright mass, and its length (standard deviation), in mm."""
    mass = (picture[0, 0] + 1).double()
    middle = [(torch.arange(n) - (n - 1) / 2).double() * mm for n, mm in zip(mass.shape, spacing, strict=True)]
    at = torch.stack(torch.meshgrid(*middle, indexing="ij")).flatten(1)
    weight = mass.flatten() / mass.sum()
    at = at - (at * weight).sum(1, keepdim=True)
    values, vectors = torch.linalg.eigh((at * weight) @ at.T)
    return vectors[:, -1], values[-1].sqrt().item()


GEOMETRIES = [
    ((64, 64), (2.0, 2.0)),
    ((64, 96), (2.0, 2.0)),  # not square
    ((96, 64), (2.0, 1.5)),
    ((56, 56, 16), (3.0, 3.0, 6.0)),  # thick slices
    ((40, 64, 20), (3.0, 2.0, 8.0)),
    ((40, 40, 40), (4.0, 4.0, 4.0)),
]


@pytest.mark.parametrize(("shape", "spacing"), GEOMETRIES)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_rotated_rod_is_as_long_and_lies_in_the_plane_of_the_slices(shape, spacing, axis):
    """Whatever the shape of image and voxel, the rod turns rigidly in mm by the drawn angle, and not out of its slice."""
    before = rod(shape, spacing, axis)
    drawn = 40 * (2 * torch.rand(1, generator=generator(7)).item() - 1)
    after, _ = random_affine(before, None, generator(7), degrees=40, scale=0, shift=0, spacing=spacing)
    (start, length), (end, turned) = principal(before, spacing), principal(after, spacing)
    angle = torch.rad2deg(torch.arccos((start @ end).abs())).item()
    assert angle == pytest.approx(abs(drawn), abs=0.5)
    assert turned == pytest.approx(length, rel=0.02)
    if len(shape) == 3:
        assert abs(end[2].item()) < 0.01, "it stays in its slices"


def test_a_rotation_leaves_a_rod_across_the_slices_where_it_is():
    before = rod((40, 40, 20), (3.0, 3.0, 6.0), 2)
    after, _ = random_affine(before, None, generator(7), degrees=40, scale=0, shift=0, spacing=(3.0, 3.0, 6.0))
    assert torch.allclose(before, after, atol=0.15)
    assert principal(after, (3.0, 3.0, 6.0))[0][2].abs() > 0.999


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(12, 14), (10, 12, 8)]))
def test_a_volume_is_moved_as_by_one_warp_in_3d(seed, shape):
    """Slices as channels, then a matrix along Z: the same as torch's own 3D resampling of the same affine map."""
    picture = torch.rand(1, 1, *shape, generator=generator(seed)) * 2 - 1
    moved, _ = random_affine(picture, None, generator(seed + 1), degrees=30, scale=0.2, shift=0.1)
    draws, axes = generator(seed + 1), len(shape)
    angle = torch.deg2rad(30 * (torch.rand(1, generator=draws) * 2 - 1))
    factor, offset = (
        1 + 0.2 * (torch.rand(1, axes, generator=draws) * 2 - 1),
        0.2 * (torch.rand(1, axes, generator=draws) * 2 - 1),
    )
    half = torch.tensor(shape[1::-1]) / 2  # of the second axis, of the first
    turn = torch.stack([torch.cat([angle.cos(), -angle.sin()]), torch.cat([angle.sin(), angle.cos()])])
    plane = half.reciprocal().diag() @ turn @ half.diag() * factor[0, :2]
    theta = torch.cat([plane, offset[0, :2, None]], 1)[None]
    if axes == 3:  # grid_sample's first coordinate is the last axis
        row = torch.tensor([[[factor[0, 2], 0.0, 0.0, offset[0, 2]]]])
        theta = torch.cat([row, torch.cat([torch.zeros(1, 2, 1), theta], 2)], 1)
    grid = torch.nn.functional.affine_grid(theta, [1, 1, *shape], align_corners=False)
    expected = torch.nn.functional.grid_sample(picture + 1, grid, align_corners=False) - 1
    assert torch.allclose(moved, expected, atol=2e-4)
