"""AutoAugment and AugMix: each operation against torchvision's, each image on its own."""
import numpy as np
import pytest
import torch

from datasets.augment.auto_augment import (
    _MIX_NAMES,
    _MIX_RANGES,
    _POLICY,
    _RANGES,
    AFFINE,
    AUGMIX_DRAWS,
    AUTO_AUGMENT_DRAWS,
    TONAL,
    _strengths,
    apply_,
    augmix_,
    auto_augment,
)
from datasets.augment.geometry import GRAY
from datasets.augment.tensors import to_pixels, to_planes

functional = None  # torchvision's
HEIGHT, WIDTH = 40, 20


@pytest.fixture(scope="module", autouse=True)
def _import_torchvision():
    """Its import takes as long as torch's: not for those who only collect tests."""
    global functional
    functional = pytest.importorskip("torchvision.transforms.functional")


@pytest.fixture
def images():
    """[20, H, W, 3] uint8 of few levels and many, one of them all of one colour, one of two levels."""
    random = np.random.default_rng(0)
    smooth = random.normal(120, 40, (20, 5, 3, 3)).repeat(8, 1).repeat(8, 2)[:, :HEIGHT, :WIDTH]
    images = np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    images[3] = 77
    images[4] = np.where(random.random((HEIGHT, WIDTH, 3)) < 0.1, 200, 50)
    return torch.from_numpy(images)


# Strengths to try, torchvision's operation on uint8 [3, H, W], and the levels by which it differs: it cuts off what we
# round, grey and result both.
TORCHVISION = {
    "posterize": ([8, 6, 4], lambda x, bits: functional.posterize(x, int(bits)), 0),
    "solarize": ([255, 128, 0], lambda x, bound: functional.solarize(x, bound), 0),
    "invert": ([0], lambda x, _: functional.invert(x), 0),
    "auto_contrast": ([0], lambda x, _: functional.autocontrast(x), 1),
    "equalize": ([0], lambda x, _: functional.equalize(x), 0),
    "brightness": ([-0.9, 0.3], lambda x, change: functional.adjust_brightness(x, 1 + change), 1),
    "color": ([-0.9, 0.9], lambda x, change: functional.adjust_saturation(x, 1 + change), 2),
    "contrast": ([-0.9, 0.9], lambda x, change: functional.adjust_contrast(x, 1 + change), 2),
    "sharpness": ([-0.9, 0.9], lambda x, change: functional.adjust_sharpness(x, 1 + change), 2),
}


@pytest.mark.parametrize("name", TONAL)
def test_a_tonal_operation_is_torchvisions(name, images):
    strengths, expected, levels = TORCHVISION[name]
    for strength in strengths:
        out = apply_(to_planes(images), np.array([name] * 20), np.full(20, float(strength)))
        for before, after in zip(images, to_pixels(out), strict=True):
            reference = expected(before.permute(2, 0, 1), strength).permute(1, 2, 0)
            assert (after.int() - reference.int()).abs().max() <= levels, strength


def affine(x, angle=0.0, translate=(0, 0), shear=(0.0, 0.0), center=None):
    return functional.affine(x, angle, list(translate), 1.0, list(shear), functional.InterpolationMode.BILINEAR,
                             [GRAY] * 3, center)


# Strength, and what torchvision is asked for, whose matrices map the other way.
AFFINE_CASES = {
    "rotate": (20.0, {"angle": -20.0}),
    "shear_x": (0.2, {"shear": (np.degrees(np.arctan(0.2)), 0.0), "center": [0, 0]}),
    "shear_y": (0.2, {"shear": (0.0, np.degrees(np.arctan(0.2))), "center": [0, 0]}),
    "translate_x": (0.25, {"translate": (-WIDTH // 4, 0)}),
    "translate_y": (0.25, {"translate": (0, -HEIGHT // 4)}),
}


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_operation_is_torchvisions(name, images):
    strength, arguments = AFFINE_CASES[name]
    x = to_planes(images)
    out = apply_(x.clone(), np.array([name] * 20), np.full(20, strength))
    expected = affine(x, **arguments)
    # At the border torchvision mixes a pixel with the fill in another way.
    border = (affine(torch.ones_like(x[:1]), **arguments) - 1).abs().amax(1, keepdim=True) > 1e-6
    border = torch.nn.functional.max_pool2d(border.float(), 3, 1, 1) > 0
    assert (border.float().mean() < 0.6)
    torch.testing.assert_close(out * ~border, expected * ~border, rtol=0, atol=1e-4)
    assert (out - x).abs().mean() > 0.01


def test_each_image_gets_its_own_operation(images):
    names = np.array([*AFFINE, *TONAL, "", "rotate", "equalize", "posterize", "", "color"])
    strengths = np.linspace(0.1, 5, 20)
    out = apply_(to_planes(images), names, strengths)
    for n in range(20):
        alone = apply_(to_planes(images[n:n + 1]), names[n:n + 1], strengths[n:n + 1])
        torch.testing.assert_close(out[n:n + 1], alone, rtol=0, atol=1e-6)
    assert torch.equal(out[names == ""], to_planes(images)[names == ""])


def test_the_policy_is_the_one_torchvision_has():
    auto = pytest.importorskip("torchvision.transforms.autoaugment")
    policies = auto.AutoAugment()._get_policies(auto.AutoAugmentPolicy.IMAGENET)
    ours = {"AutoContrast": "auto_contrast", "ShearX": "shear_x"}
    expected = [(ours.get(a, a.lower()), p, m or 0, ours.get(b, b.lower()), q, o or 0)
                for (a, p, m), (b, q, o) in policies]
    assert expected == list(_POLICY)


def test_magnitudes_are_those_of_torchvision():
    auto = pytest.importorskip("torchvision.transforms.autoaugment")
    ours = {"AutoContrast": "auto_contrast", "ShearX": "shear_x"}
    space = auto.AutoAugment()._augmentation_space(10, (HEIGHT, WIDTH))
    used = {name for first, _, _, second, _, _ in _POLICY for name in (first, second)}
    for theirs, (magnitudes, signed) in space.items():
        name = ours.get(theirs, theirs.lower())
        if name in used and magnitudes.dim():
            for sign in (0.0, 0.9):
                out = _strengths(np.full(10, name), np.arange(10) / 9, np.full(10, sign), _RANGES)
                expected = magnitudes.double() * (-1 if signed and sign < 0.5 else 1)
                np.testing.assert_allclose(out, expected.numpy(), atol=1e-4)


def test_auto_augment_leaves_the_others_as_they_are(images):
    draws = np.random.default_rng(1).random((20, AUTO_AUGMENT_DRAWS))
    out = auto_augment(images, draws, 0.5)
    chosen = draws[:, 0] < 0.5
    assert torch.equal(out[~chosen], images[~chosen])
    changed = [n for n in np.flatnonzero(chosen) if not torch.equal(out[n], images[n])]
    assert len(changed) >= 0.5 * chosen.sum() > 2
    for n in range(20):
        assert (auto_augment(images[n:n + 1], draws[n:n + 1], 0.5)[0].int() - out[n].int()).abs().max() <= 1
    assert torch.equal(auto_augment(images, draws, 0.0), images)


def slow_augmix(image, draws):
    """One image through the definition."""
    share, chains = draws[1], draws[2:].reshape(3, -1)
    weights = -np.log(1 - chains[:, 0])
    weights /= weights.sum()
    mix = torch.zeros_like(image)
    for weight, chain in zip(weights, chains, strict=True):
        copy = image.clone()
        for which, strong, sign in chain[2:].reshape(3, 3)[:1 + int(3 * chain[1])]:
            name = _MIX_NAMES[int(which * len(_MIX_NAMES))]
            strength = _strengths(np.array([name]), np.array([0.1 + 0.9 * strong]), np.array([sign]), _MIX_RANGES)
            copy = apply_(copy, np.array([name]), strength)
        mix += weight * copy
    return share * image + (1 - share) * mix


def test_augmix_mixes_chains_as_its_definition_says(images):
    x, draws = to_planes(images), np.random.default_rng(2).random((20, AUGMIX_DRAWS))
    out = augmix_(0.7, x.clone(), draws)
    for n in range(20):
        expected = slow_augmix(x[n:n + 1], draws[n]) if draws[n, 0] < 0.7 else x[n:n + 1]
        torch.testing.assert_close(out[n:n + 1], expected, rtol=0, atol=1e-5)
    assert torch.equal(out[draws[:, 0] >= 0.7], x[draws[:, 0] >= 0.7])
