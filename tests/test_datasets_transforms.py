"""Augmentation of a batch: each image its own draw, and what each step does."""
import colorsys

import numpy as np
import pytest
import torch

from datasets.transforms import Normalize, TrainAugment, _shift_hue, color_jitter, erase, flip_and_crop, scale, to_float

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def images():
    return torch.randint(0, 256, (16, 24, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augment(**changes):
    options = {"flip_prob": 0.5, "padding": 4, "erase_prob": 0.5, "hard": True, "seed": 5, **changes}
    return TrainAugment(MEAN, STD, **options)


def test_an_image_is_augmented_alike_in_any_batch(images):
    transform = augment()
    whole = transform(images, 2, np.arange(16))
    part = transform(images[[9, 3]], 2, np.array([9, 3]))
    torch.testing.assert_close(whole[[9, 3]], part, rtol=0, atol=1e-6)


def test_epochs_and_positions_change_the_draws(images):
    same = images[:1].expand(16, -1, -1, -1)
    out = augment()(same, 1, np.arange(16))
    assert len({tuple(x.flatten().tolist()) for x in out}) == 16
    assert not torch.equal(out, augment()(same, 2, np.arange(16)))


def test_flip_leaves_the_batch_unchanged(images):
    before = images.clone()
    augment()(images, 1, np.arange(16))
    assert torch.equal(images, before)


def test_without_augmentation_it_is_normalisation(images):
    plain = augment(flip_prob=0.0, padding=0, erase_prob=0.0, hard=False)(images, 1, np.arange(16))
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(plain, expected)
    torch.testing.assert_close(Normalize(MEAN, STD)(images), expected)


def test_flip_and_crop_equal_pad_flip_crop_one_by_one(images):
    draws = np.random.default_rng(0).random((16, 3))
    out = flip_and_crop(images, draws, 0.5, 4)
    for n, image in enumerate(images.numpy()):
        image = image[:, ::-1] if draws[n, 0] < 0.5 else image
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        # A flip before the crop: a shift to the right in the padded picture is one to the left in the plain one.
        dy, dx = (int(d * 9) for d in draws[n, 1:])
        assert np.array_equal(out[n].numpy(), padded[dy:dy + 24, dx:dx + 12])


def test_hue_shift_agrees_with_colorsys():
    colours = torch.rand(50, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    out = _shift_hue(colours, torch.full((50, 1, 1, 1), 0.13))
    for before, after in zip(colours[:, :, 0, 0].tolist(), out[:, :, 0, 0].tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((h + 0.13) % 1, s, v), abs=1e-5)


def test_grey_keeps_its_hue():
    grey = torch.full((1, 3, 2, 2), 0.3)
    torch.testing.assert_close(_shift_hue(grey, torch.full((1, 1, 1, 1), 0.2)), grey)


def test_jitter_agrees_with_torchvision_in_the_same_order(images):
    functional = pytest.importorskip("torchvision.transforms.functional")
    x = to_float(images)
    draws = np.random.default_rng(3).random((16, 8))
    names = [("brightness", 0.5), ("contrast", 0.5), ("saturation", 0.5), ("hue", 0.2)]
    out = color_jitter(x, draws)
    for n in range(16):
        one = x[n:n + 1]
        factors = 2 * draws[n, :4] - 1
        for operation in np.argsort(draws[n, 4:]):
            name, strength = names[operation]
            factor = strength * factors[operation]
            one = getattr(functional, f"adjust_{name}")(one, factor if name == "hue" else 1 + factor)
        torch.testing.assert_close(out[n:n + 1], one, rtol=0, atol=2e-3)


def test_scale_keeps_the_centre_and_fills_with_grey():
    x = torch.zeros(2, 3, 21, 21)
    out = scale(x, np.array([0.0, 1.0]))  # 0.9 and 1.1
    assert out[0, 0, 10, 10] == pytest.approx(0, abs=1e-6)
    assert out[0, 0, 0, 0] == pytest.approx(128 / 255, abs=0.02)
    assert out[1].abs().max() < 1e-6


def test_erasing_zeroes_one_rectangle_of_the_named_size():
    x = torch.ones(400, 3, 64, 32)
    out = erase(x, np.random.default_rng(0).random((400, 401)), 0.5)
    erased = out[:, 0] == 0
    hit = erased.flatten(1).any(1)
    assert 0.4 < hit.float().mean() < 0.6
    for mask in erased[hit]:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        height, width = len(rows), len(columns)
        assert mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
        assert mask.sum() == height * width
        assert 0.015 < height * width / (64 * 32) < 0.42
        assert 0.25 < height / width < 3.8
    assert (x == 1).all()
