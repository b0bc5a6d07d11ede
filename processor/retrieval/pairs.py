"""The distance: squared Euclidean, of single pairs, in float32 and in one fixed order."""
from __future__ import annotations

import threading

import torch
from torch import Tensor

from processor.retrieval.features import FeatureRows
from utils.parallel import in_threads


class PairDistances:
    """Squared Euclidean distances of single pairs: the float32 sum of squared differences.

    Each is a function of its two features alone: it is the same from either side, 0 for equal features, as exact for
    near ones as for others, and has the same bits whatever other pairs are asked for beside it.
    """

    def __init__(self, features: FeatureRows, at_once: int, threads: int = 1):
        """at_once: pairs whose features are gathered at a time; a core's cache should hold them."""
        self.features, self.at_once, self.threads = features, at_once, threads
        self._buffers = threading.local()

    def __call__(self, left: Tensor, right: Tensor) -> Tensor:
        """[P] float32 for rows left [P] and right [P] (int64)."""
        count, places = self.at_once, self._places()
        chunks = -(-len(left) // count)
        # All chunks have one shape, for on a GPU a kernel's order of summation depends on it.
        rows = torch.zeros(2, chunks * count, dtype=torch.int64, device=left.device)
        rows[0, : len(left)], rows[1, : len(left)] = left, right
        rows = rows.view(2, chunks, count).transpose(0, 1).reshape(chunks, 2 * count)
        out = torch.empty(chunks, count, device=left.device)
        a, b = places.view(2, count, -1)
        for some, part in zip(rows.unbind(), out.unbind(), strict=True):
            self.features.take(some, places)
            torch.ops.aten.mse_loss.out(a, b, 0, out=a)  # (a - b)² in one pass
            torch.sum(a, 1, out=part)
        return out.flatten()[: len(left)]

    def in_threads(self, left: Tensor, right: Tensor) -> Tensor:
        """The same on all cores, and a pair that is there from both sides only once."""
        size = len(self.features)
        pairs, places = torch.unique(torch.minimum(left, right) * size + torch.maximum(left, right),
                                     return_inverse=True)
        pieces = pairs.split(64 * self.at_once)
        found = list(in_threads(lambda piece: self(piece // size, piece % size), pieces, self.threads))
        return torch.cat(found)[places] if found else torch.empty(0, device=left.device)

    def _places(self) -> Tensor:
        """This thread's places for the features of the pairs at once."""
        if not hasattr(self._buffers, "places"):
            self._buffers.places = torch.zeros(2 * self.at_once, self.features.dim, device=self.features.device)
        return self._buffers.places
