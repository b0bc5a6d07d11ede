"""Hue, blends and their order, one image at a time."""
import colorsys

import numpy as np
import pytest
import torch

from datasets.augment.color import blend_, color_jitter_, draw_jitter, luma, shift_hue_


@pytest.fixture
def x():
    return torch.rand(12, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def expected_hue(colour, shift):
    h, s, v = colorsys.rgb_to_hsv(*colour)
    return colorsys.hsv_to_rgb((h + shift) % 1, s, v)


@pytest.mark.parametrize("shift", [-1 / 3, -0.2, -0.13, 0.0, 0.05, 0.2, 1 / 3])
def test_hue_shift_agrees_with_colorsys(shift):
    colours = torch.rand(300, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    corners = torch.tensor([[r, g, b] for r in (0, 0.5, 1) for g in (0, 0.5, 1) for b in (0, 0.5, 1)])
    colours = torch.cat([colours, corners.view(-1, 3, 1, 1).double()])
    out = shift_hue_(colours.clone(), np.full(len(colours), shift))
    for before, after in zip(colours[:, :, 0, 0].tolist(), out[:, :, 0, 0].tolist(), strict=True):
        assert after == pytest.approx(expected_hue(before, shift), abs=1e-6)


def test_grey_keeps_its_hue():
    grey = torch.full((1, 3, 2, 2), 0.3)
    torch.testing.assert_close(shift_hue_(grey.clone(), np.array([0.2])), grey)


def test_an_image_is_jittered_alone_as_beside_others(x):
    draws = np.random.default_rng(2).random((12, 8))
    together = color_jitter_(x.clone(), *draw_jitter(draws))
    for n in range(12):
        alone = color_jitter_(x[n:n + 1].clone(), *draw_jitter(draws[n:n + 1]))
        torch.testing.assert_close(alone, together[n:n + 1], rtol=0, atol=1e-6)


def test_every_order_is_drawn():
    turns = draw_jitter(np.random.default_rng(0).random((4000, 8))).turns
    assert np.bincount(turns) / 4000 == pytest.approx([0.25] * 4, abs=0.03)


def test_a_blend_keeps_what_its_weights_keep(x):
    assert torch.equal(blend_(x.clone(), np.tile([1.0, 0, 0], (12, 1))), x)
    grey = blend_(x.clone(), np.tile([0.0, 1, 0], (12, 1)))
    torch.testing.assert_close(grey, luma(x).expand_as(x))
    flat = blend_(x.clone(), np.tile([0.0, 0, 1], (12, 1)))
    torch.testing.assert_close(flat, luma(x).mean((2, 3), keepdim=True).expand_as(x))
