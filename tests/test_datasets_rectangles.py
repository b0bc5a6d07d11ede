"""Rectangles: erased, turned to grey, and pasted from another image."""
import numpy as np
import pytest
import torch

from datasets.augment.color import luma
from datasets.augment.rectangles import (
    ERASE_DRAWS,
    GRAY_DRAWS,
    PATCH_DRAWS,
    draw_erased,
    draw_grayed,
    draw_patches,
    erase_,
    grayscale_,
    paste_patches_,
)
from datasets.augment.tensors import to_planes

HEIGHT, WIDTH = 64, 32


def draws_of(n, length, seed=0):
    return np.random.default_rng(seed).random((n, length))


def areas(rectangles):
    return (rectangles[:, 2:] - rectangles[:, :2]).prod(1) / (HEIGHT * WIDTH)


def test_erasing_zeroes_one_rectangle_of_the_named_size():
    x = torch.full((400, 3, HEIGHT, WIDTH), 2.0)
    out = erase_(x.clone(), draw_erased(draws_of(400, ERASE_DRAWS), 0.5, HEIGHT, WIDTH))
    erased = out[:, 0] == 0
    hit = erased.flatten(1).any(1)
    assert 0.4 < hit.float().mean() < 0.6
    for mask in erased[hit]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
        assert mask.sum() == height * width
        assert 0.015 < height * width / (HEIGHT * WIDTH) < 0.42
        assert 0.25 < height / width < 3.8
    assert torch.equal(out == 0, erased[:, None].expand_as(out))
    assert (out[out != 0] == 2).all()


def test_the_first_try_that_fits_counts():
    draws = np.full((1, ERASE_DRAWS), 0.5)
    draws[0, 1:5] = 0.999, 0.001, 0.3, 0.3  # 40 % of the area at aspect 0.3: wider than the image
    draws[0, 5:9] = 0.0, 0.5, 0.999, 0.0
    height, width = round((0.02 * 2048 * 1.8167) ** 0.5), round((0.02 * 2048 / 1.8167) ** 0.5)
    assert draw_erased(draws, 1.0, HEIGHT, WIDTH).tolist() == [[HEIGHT - height, 0, HEIGHT, width]]
    draws[0, 1:5] = 0.13 / 0.38, 0.0, 0.3, 0.3  # 15 % at aspect 0.3: as wide as the image, which is no fit either
    assert draw_erased(draws, 1.0, HEIGHT, WIDTH)[0, 3] == width
    draws[0, 1:] = np.tile(draws[0, 1:5], ERASE_DRAWS // 4)
    assert areas(draw_erased(draws, 1.0, HEIGHT, WIDTH)) == 0  # no try fits


def test_grey_is_a_rectangle_or_the_whole_image_and_nothing_else_changes():
    x = torch.rand(300, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    rectangles = draw_grayed(draws_of(300, GRAY_DRAWS), 0.5, 0.2, HEIGHT, WIDTH)
    out = grayscale_(x.clone(), rectangles)
    for before, after, grey, (top, left, bottom, right) in zip(x, out, luma(x), rectangles, strict=True):
        expected = before.clone()
        expected[:, top:bottom, left:right] = grey[:, top:bottom, left:right]
        assert torch.equal(after, expected)
    share = areas(rectangles)
    assert 0.15 < (share == 1).mean() < 0.25
    assert 0.33 < ((share > 0) & (share < 0.42)).mean() < 0.47
    assert 0.33 < (share == 0).mean() < 0.47


def pasted(draws, prob=1.0):
    images = torch.randint(0, 256, (len(draws), HEIGHT, WIDTH, 3), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(3))
    patches = draw_patches(draws, prob, HEIGHT, WIDTH)
    before = to_planes(images)
    return before, paste_patches_(images, before.clone(), *patches), patches


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_patch_is_a_rectangle_of_its_donor(mirrored):
    draws = draws_of(40, PATCH_DRAWS)
    draws[:, 4], draws[:, 5] = 0.0 if mirrored else 0.99, 0.99  # none is turned
    before, out, patches = pasted(draws)
    assert (areas(patches.taken) > 0).mean() > 0.9
    for n in range(40):
        expected = before[n].clone()
        (top, left, bottom, right), (to_top, to_left, to_bottom, to_right) = patches.taken[n], patches.pasted[n]
        patch = before[patches.donors[n]][:, top:bottom, left:right]
        expected[:, to_top:to_bottom, to_left:to_right] = patch.flip(2) if mirrored else patch
        torch.testing.assert_close(out[n], expected, rtol=0, atol=1e-4)


def test_a_turned_patch_stays_in_its_rectangle_and_has_black_corners():
    draws = draws_of(40, PATCH_DRAWS)
    draws[:, 4], draws[:, 5], draws[:, 6] = 0.99, 0.0, 0.0  # by -10 degrees
    before, out, patches = pasted(draws)
    black = 0
    for n in range(40):
        top, left, bottom, right = patches.pasted[n]
        outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert torch.equal(out[n][:, outside], before[n][:, outside])
        if bottom - top > 20 and right - left > 10:
            assert out[n, :, top, left].max() < 1e-6
            assert out[n, :, bottom - 1, right - 1].max() < 1e-6
            black += 1
    assert black > 5


def test_a_patch_is_turned_about_its_centre_by_the_angle_drawn():
    draws = draws_of(2, PATCH_DRAWS)
    draws[:, 4], draws[:, 5], draws[:, 6] = 0.99, 0.0, 1.0 - 1e-12  # by 10 degrees
    _, _, patches = pasted(draws)
    for matrix, taken, to in zip(patches.matrices, patches.taken, patches.pasted, strict=True):
        centre, donors = (np.array([(box[1] + box[3] - WIDTH) / 2, (box[0] + box[2] - HEIGHT) / 2])
                          for box in (to, taken))
        np.testing.assert_allclose(matrix @ [*centre, 1], donors)
        to_the_right = matrix @ [centre[0] + 1, centre[1], 1] - donors
        np.testing.assert_allclose(to_the_right, [np.cos(np.radians(10)), np.sin(np.radians(10))])


def test_donors_are_other_images_and_patches_as_frequent_as_asked():
    patches = draw_patches(draws_of(2000, PATCH_DRAWS), 0.3, HEIGHT, WIDTH)
    assert 0.26 < (areas(patches.taken) > 0).mean() < 0.34
    assert (patches.donors != np.arange(2000)).all()
    assert set(draw_patches(draws_of(3, PATCH_DRAWS), 0.3, HEIGHT, WIDTH).donors) <= {0, 1, 2}
    assert draw_patches(draws_of(1, PATCH_DRAWS), 1.0, HEIGHT, WIDTH).donors == [0]
