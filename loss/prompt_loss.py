"""CLIP-ReID's losses between images and the texts of identities.

Source: Li et al., CLIP-ReID, AAAI 2023: eq. 3 and 4 (contrastive), eq. 7 (cross entropy over all texts).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn


def contrastive(feats: Tensor, others: Tensor, pids: Tensor, other_pids: Tensor) -> Tensor:
    """-log of the share that others of the same identity have in the softmax over all others, on the mean.

    Args:
        feats, others: [B, D] and [C, D], not normalised.
        pids, other_pids: [B] and [C]; each of pids is among other_pids.
    """
    log_shares = (feats @ others.T).log_softmax(1)
    same = (pids[:, None] == other_pids).float()
    return -((same * log_shares).sum(1) / same.sum(1)).mean()


class TextLoss(nn.Module):
    """Cross entropy of an image over the texts of all identities; a text's logit is its product with the image.

    Args:
        text_feats: [K, D] by class index; they do not learn.
        smoothing: of labels.
    """

    def __init__(self, text_feats: Tensor, smoothing: float = 0.0):
        super().__init__()
        self.register_buffer("text_feats", text_feats, persistent=False)
        self.loss = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def forward(self, feat: Tensor, pids: Tensor) -> Tensor:
        """feat [B, C >= D], of which the last D numbers are the image's place among texts; pids [B]."""
        with torch.autocast(feat.device.type, enabled=False):
            return self.loss(feat[:, -self.text_feats.shape[1]:].float() @ self.text_feats.T, pids)
