"""The ID loss: cross entropy over the identities."""
from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from utils.precision import in_float32


class IDLoss(nn.Module):
    """Mean cross entropy of the logits, with label smoothing, in float32.

    Args:
        epsilon: share of the target that is spread evenly over all K classes; 0 = none.
    Source: Szegedy et al., Rethinking the Inception Architecture for Computer Vision, CVPR 2016, sec. 7.
    """

    def __init__(self, epsilon: float = 0.0):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits: Tensor, pids: Tensor) -> Tensor:
        """[B, K], [B] int64 -> scalar."""
        with in_float32(logits.device):
            return F.cross_entropy(logits.float(), pids, label_smoothing=self.epsilon)
