"""The nearest gallery images of a query by re-ranked distance, from the candidates of the search, with a proof.

An image that is not a candidate has an original distance beyond the candidates' limit, and what its code shares with
the query's is known. So it is known, without its distance, whether it can be among the k nearest.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from processor.retrieval.distance import row_block, squared_euclidean
from processor.retrieval.encoding import JaccardIndex, jaccard_distance
from processor.retrieval.features import FeatureRows
from processor.retrieval.precision import PRECISIONS
from processor.retrieval.ranks import kth_smallest, rank_keys, smallest_keys, worst_distance
from processor.retrieval.search import Bounds, Candidates, PairDistances

ROUNDING = 4e-7  # of the mix of two distances in [0, 1]


class CertifiedNearest:
    """For blocks of queries the k nearest; all distances among them are computed pair by pair (`PairDistances`).

    Args:
        farthest: [N] of the search.  k: at most G.  The rest as in `ReRanker`.
    """

    def __init__(self, features: FeatureRows, pairs: PairDistances, index: JaccardIndex, farthest: Tensor,
                 candidates: Candidates, lambda_value: float, k: int):
        self.features, self.pairs, self.index, self.candidates = features, pairs, index, candidates
        self.factors = (lambda_value / farthest)[:, None]
        self.jaccard_share = 1 - lambda_value
        self.k = k
        self.full_rows = 0

    def keys(self, rows: slice) -> Tensor:
        """[len(rows), k] sorted rank_keys of the nearest."""
        shared = self.index.shared(rows)
        queries = torch.arange(rows.start, rows.stop, device=shared.device)
        gallery = self.candidates.indices[rows].long() - self.features.num_query
        known = gallery >= 0  # neither a query nor an empty place
        keys = self._among_candidates(queries, gallery.clamp(min=0), known, shared)
        # The others: no nearer than the limit, and what their codes share is here.
        limit = self.candidates.bounds.of(queries).lower(self.candidates.limits[rows, None])
        taken = torch.where(known, gallery, self.features.num_gallery)
        rest = F.pad(shared, (0, 1)).scatter_(1, taken, 0)[:, :-1]
        worst = worst_distance(keys[:, -1])[:, None] + ROUNDING
        unproven = (self._mixed(queries, limit, torch.ones_like(limit)) <= worst)[:, 0]
        sharing = (self._mixed(queries, limit, jaccard_distance(rest.amax(1, keepdim=True))) <= worst)[:, 0]
        some = (sharing & ~unproven).nonzero().flatten()
        if len(some):
            jaccard = jaccard_distance(rest[some])
            wanted = (rest[some] > 0) & (self._mixed(queries[some], limit[some], jaccard) <= worst[some])
            keys[some] = self._joined(keys[some], self._exact(queries[some], None, wanted, jaccard))
        some = unproven.nonzero().flatten()
        if len(some):
            self.full_rows += len(some)
            keys[some] = self._among_all(queries[some], jaccard_distance(shared[some]))
        return keys

    def _among_candidates(self, queries: Tensor, gallery: Tensor, known: Tensor, shared: Tensor) -> Tensor:
        bounds = self.candidates.bounds.of(queries)
        jaccard = jaccard_distance(shared.gather(1, gallery))
        searched = self.candidates.searched[queries].masked_fill(~known, 0)
        upper = self._mixed(queries, bounds.upper(searched), jaccard).masked_fill(~known, torch.inf)
        # The k that look nearest first: the last of them bounds what else is worth an exact distance.
        looks_nearest = upper.topk(min(self.k, upper.shape[1]), largest=False).indices
        first = torch.zeros_like(known).scatter_(1, looks_nearest, True) & known
        keys = self._exact(queries, gallery, first, jaccard)
        worst = worst_distance(keys[:, -1])[:, None] + ROUNDING
        more = known & ~first & (self._mixed(queries, bounds.lower(searched), jaccard) <= worst)
        return self._joined(keys, self._exact(queries, gallery, more, jaccard))

    def _among_all(self, queries: Tensor, jaccard: Tensor) -> Tensor:
        """The same for queries [R] (QUERY_ROWS at most) with every image as a candidate, searched in float32."""
        bounds = Bounds(self.features, PRECISIONS["float32"]).of(queries)
        searched = row_block(self.features, queries, squared_euclidean)
        worst = kth_smallest(self._mixed(queries, bounds.upper(searched), jaccard), self.k)[:, None] + ROUNDING
        return self._exact(queries, None, self._mixed(queries, bounds.lower(searched), jaccard) <= worst, jaccard)

    def _exact(self, queries: Tensor, gallery: Tensor | None, wanted: Tensor, jaccard: Tensor) -> Tensor:
        """[R, k] sorted keys of the wanted [R, C] of gallery [R, C] (None: column c is image c)."""
        row, place = wanted.nonzero(as_tuple=True)
        images = place if gallery is None else gallery[row, place]
        squared = self.pairs(queries[row], images + self.features.num_query)
        values = self._mixed(queries[row], squared[:, None], jaccard[row, place][:, None])[:, 0]
        return smallest_keys(row, rank_keys(values, images), len(queries), self.k)

    def _joined(self, keys: Tensor, others: Tensor) -> Tensor:
        return torch.cat([keys, others], 1).sort(1).values[:, : self.k]

    def _mixed(self, queries: Tensor, squared: Tensor, jaccard: Tensor) -> Tensor:
        """The final distances [R, C] of squared ones and Jaccard's."""
        return (squared * self.factors[queries]).add(jaccard, alpha=self.jaccard_share)
