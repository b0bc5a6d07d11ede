"""Pooling of a feature map [B, C, h, w] and, if there is one, a class token [B, C] to a feature [B, C], in float32
also under autocast.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.precision import in_float32


class AvgPool(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        # Over both axes at once: of a mean over flattened ones with a batch norm behind OpenVINO makes other numbers.
        return x.float().mean((2, 3))

    def by_position(self, x: Tensor) -> Tensor:
        """What each position adds: [B, C, h, w] whose sum over positions is `forward(x)`."""
        return x.float() / (x.shape[2] * x.shape[3])


class GeM(nn.Module):
    """Generalised mean of each channel: (mean x^p)^(1/p), negative values counted as eps.

    Args:
        p: the exponent, > 0; 1 is the mean, and large values come near the maximum.
        learn: True makes p a parameter (state_dict key `p`, shape [1]); False keeps it a plain number.
        eps: the least value of x, so that the root has a gradient everywhere.
    Source: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019, eq. 3.
    """

    def __init__(self, p: float = 3.0, learn: bool = False, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), float(p))) if learn else float(p)
        self.eps = eps

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        # float32: eps^3 is below what float16 can hold, and so is the cube of a small activation.
        with in_float32(x.device):
            x = x.float().clamp(min=self.eps).pow(self.p)
            return x.mean((2, 3)).pow(1.0 / self.p)

    def by_position(self, x: Tensor) -> Tensor:
        """What each position adds: [B, C, h, w] whose sum over positions is `forward(x)`.

        The mean m of the powers is a sum over the L positions, and m^(1/p) = m · m^(1/p - 1): position l adds
        x_l^p / L · m^(1/p - 1).
        """
        with in_float32(x.device):
            powers = x.float().clamp(min=self.eps).pow(self.p)
            mean = powers.mean((2, 3), keepdim=True)
            return powers / (x.shape[2] * x.shape[3]) * mean.pow(1.0 / self.p - 1)


class ClassToken(nn.Module):
    """A transformer's class token, which has looked at all positions itself."""

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return token.float()


class GeMToken(GeM):
    """The generalised mean of the map plus the class token, as TransReID-SSL and PersonViT pool."""

    by_position = None  # the token is of none

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return super().forward(x) + token.float()


class MaxPool(nn.Module):
    """The maximum of each channel."""

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        return x.float().flatten(2).amax(2)


class AvgMax(nn.Module):
    """The mean of the maxima of each four consecutive positions, row by row, as PersonViT pools."""

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        x = x.float().flatten(2)
        return x[:, :, :x.shape[2] // 4 * 4].unflatten(2, (-1, 4)).amax(3).mean(2)


# Of these a backbone must have a class token.
WITH_TOKEN = ("token", "GeM_token")
# MODEL.POOLING_METHOD -> constructor(p, learn).
POOLINGS = {
    "avg": lambda p, learn: AvgPool(),
    "GeM": GeM,
    "token": lambda p, learn: ClassToken(),
    "GeM_token": GeMToken,
    "max": lambda p, learn: MaxPool(),
    "avg_max": lambda p, learn: AvgMax(),
}
