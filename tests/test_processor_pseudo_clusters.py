"""Labels from features, against slow definitions."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import people, slow_re_ranking, squared_distances
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_matrix
from scipy.spatial.distance import squareform

from processor.pseudo.clusters import (
    NOBODY,
    Labels,
    Rules,
    keep_numbers,
    label,
    merge_queries,
    nearest_rows,
    renumber,
)
from processor.pseudo.linkage import average_linkage
from processor.pseudo.report import label_quality, measure_labels
from processor.retrieval.jaccard_graph import jaccard_graph


def labelled(feats, num_query=9, normalize=True, **rules):
    rules = {"method": "nearest_query", "distance": "angle", "threshold": 0.5, "re_ranking": (6, 3, 0.4),
             "merge_queries": False, **rules}
    return label(feats, num_query, Rules(**rules), normalize)


def table(**options):
    return np.concatenate(people(9, 38, **options))


# ------------------------------------------------------------------ the nearest query
def slow_distances(query, gallery, distance):
    if distance == "re_ranked":
        return slow_re_ranking(squared_distances(query, gallery), len(query), 6, 3, 0.4)
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    if distance == "euclidean":
        return np.linalg.norm(query[:, None] - gallery[None], axis=2)
    cosines = query @ gallery.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
    return {"angle": np.arccos(np.clip(cosines, -1, 1)), "cosine": 1 - cosines}[distance]


@pytest.mark.parametrize("norms", [1.0, 5.0])
@pytest.mark.parametrize("distance", ["angle", "cosine", "euclidean", "re_ranked"])
def test_an_image_nearer_than_the_threshold_joins_its_nearest_query(distance, norms):
    feats = table(norms=norms)
    expected = slow_distances(feats[:9], feats[9:], distance)
    threshold = float(np.median(expected.min(0)))
    actual = labelled(feats, distance=distance, threshold=threshold, normalize=False)
    np.testing.assert_allclose(actual.distances, [*[0] * 9, *expected.min(0)], atol=3e-6)
    slow = np.array([*range(9), *(query if near < threshold else NOBODY
                                  for query, near in zip(expected.argmin(0), expected.min(0), strict=True))])
    sizes = np.array([(slow == query).sum() for query in range(9)])
    for image, query in enumerate(slow):  # identities of a query alone are dropped, the others keep their order
        kept = query != NOBODY and sizes[query] > 1
        assert actual.identities[image] == ((sizes[:query] > 1).sum() if kept else NOBODY)
    assert 0 < (actual.identities[9:] == NOBODY).sum() < 38


def test_the_angle_is_exact_where_images_nearly_coincide():
    """arccos of a float32 cosine knows nothing below 3e-4."""
    angles = np.array([1e-5, 1e-4, 1e-3, 0.3, 3.0])
    gallery = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    actual = labelled(np.concatenate([[[1, 0]], gallery]).astype(np.float32), 1, threshold=3.1)
    np.testing.assert_allclose(actual.distances[1:], angles, rtol=1e-3)


def test_of_equally_near_queries_the_first_counts_also_across_blocks():
    blocks = [(slice(0, 2), np.float32([[3, 1], [2, 1]])), (slice(2, 4), np.float32([[2, 0.5], [1, 0.5]]))]
    nearest, distances = nearest_rows(iter(blocks), 2)
    assert nearest.tolist() == [3, 2]
    assert distances.tolist() == [1, 0.5]


@pytest.mark.parametrize("num_query", [0, 47])
def test_the_nearest_query_needs_queries_and_others(num_query):
    with pytest.raises(ValueError, match="needs query and gallery images"):
        labelled(table(), num_query)


def on_a_circle(*degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1).astype(np.float32)


def test_queries_of_one_person_are_merged_or_not_as_told():
    feats = on_a_circle(0, 5, 90, 2, 4, 91)  # queries 0 and 1 are one person
    assert labelled(feats, 3, threshold=0.2).identities.tolist() == [0, 1, 2, 0, 1, 2]
    assert labelled(feats, 3, threshold=0.2, merge_queries=True).identities.tolist() == [0, 0, 1, 0, 0, 1]


def test_a_chain_of_near_queries_is_not_one_person():
    feats = on_a_circle(*range(0, 90, 10), *range(0, 90, 10))  # each 10 degrees from the next
    actual = labelled(feats, 9, threshold=np.radians(15), merge_queries=True)
    assert actual.identities.max() + 1 in range(3, 6)


@pytest.mark.parametrize("seed", range(4))
def test_merged_queries_are_the_groups_of_average_linkage(seed):
    """Distances are counted up to twice the threshold, and of a pair's two the larger."""
    query, _ = people(20, 1, identities=4, noise=0.3, seed=seed)
    between = slow_distances(query, query, "angle")
    between *= np.random.default_rng(seed).uniform(0.9, 1.1, between.shape)
    np.fill_diagonal(between, 0)
    blocks = [(slice(0, 13), np.float32(between[:13])), (slice(13, 20), np.float32(between[13:]))]
    clipped = np.minimum(np.maximum(between, between.T), 2 * 0.4)
    slow = fcluster(linkage(squareform(clipped), "average"), 0.4, "distance")
    assert same_groups(merge_queries(iter(blocks), 20, 0.4), slow)
    assert 1 < len(np.unique(slow)) < 20


# ------------------------------------------------------------------ clusters
def same_groups(a, b):
    return np.array_equal(a[:, None] == a[None], b[:, None] == b[None])


def sparse_distances(dense):
    row, column = np.nonzero((dense < 1) & ~np.eye(len(dense), dtype=bool))
    return csr_matrix((dense[row, column], (row, column)), shape=dense.shape)


def dense_distances(graph):
    dense, entries = np.ones(graph.shape), graph.tocoo()
    dense[entries.row, entries.col] = entries.data
    np.fill_diagonal(dense, 0)
    return dense


def random_distances(size, seed, share=0.7):
    """Symmetric, in (0, 1]; a share of them is 1."""
    rng = np.random.default_rng(seed)
    upper = np.where(rng.random((size, size)) < share, 1, rng.random((size, size)).astype(np.float32))
    upper = np.triu(upper, 1)
    return upper + upper.T


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6), st.floats(0.05, 0.95), st.sampled_from([0.0, 0.5, 0.9]))
def test_sparse_average_linkage_is_the_dense_one(size, seed, threshold, share):
    dense = random_distances(size, seed, share)
    slow = fcluster(linkage(squareform(dense), "average"), threshold, "distance")
    assert same_groups(average_linkage(sparse_distances(dense), threshold), slow)


def test_average_linkage_of_jaccard_distances_is_scikit_learns():
    feats = table()
    graph = jaccard_graph(feats, 6, 3)
    dense = dense_distances(graph)
    from sklearn.cluster import AgglomerativeClustering  # slow to import, for one test

    slow = AgglomerativeClustering(None, metric="precomputed", linkage="average", distance_threshold=0.6)
    actual = labelled(feats, 0, method="agglomerative", threshold=0.6)
    assert np.array_equal(actual.identities, renumber(slow.fit_predict(dense)))
    assert 1 < actual.identities.max() < 20


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 0.75]))
def test_clusters_are_apart_also_where_distances_tie(size, seed, threshold):
    """No definition says which of equal pairs is merged first, but what is left is above the threshold."""
    dense = np.ceil(random_distances(size, seed, 0.3) * 4) / 4
    actual = average_linkage(sparse_distances(dense), threshold)
    groups = [np.flatnonzero(actual == name) for name in np.unique(actual)]
    for a in range(len(groups)):
        for b in range(a):
            assert dense[np.ix_(groups[a], groups[b])].mean() > threshold


def test_equal_images_are_one_cluster():
    actual = average_linkage(csr_matrix((np.zeros(6), ([0, 1, 0, 2, 1, 2], [1, 0, 2, 0, 2, 1])), shape=(4, 4)), 0.1)
    assert actual.tolist() == [actual[0]] * 3 + [3]


def slow_dbscan(dense, radius, min_samples):
    """Groups of core images within reach of each other; and every image's core neighbours."""
    near = dense <= radius
    core = near.sum(1) >= min_samples
    group = np.arange(len(dense))
    for _ in range(len(dense)):
        for i in np.flatnonzero(core):
            group[i] = group[near[i] & core].min()
    return core, group, near


def test_dbscan_groups_what_is_within_reach_of_cores():
    feats = table(noise=0.8)
    graph = jaccard_graph(feats, 6, 3)
    dense = dense_distances(graph)
    core, group, near = slow_dbscan(dense, 0.5, 4)
    actual = labelled(feats, 0, method="dbscan", threshold=0.5, min_samples=4).identities
    assert same_groups(actual[core], group[core])
    for i in np.flatnonzero(~core):
        around = group[near[i] & core]
        allowed = {actual[core][group[core] == number][0] for number in around} if len(around) else {NOBODY}
        assert actual[i] in allowed
    assert core.any()
    assert (actual == NOBODY).any()


def test_a_clustered_images_distance_is_that_to_the_nearest_of_its_own():
    feats = table()
    graph = jaccard_graph(feats, 6, 3, 0.5)
    actual = labelled(feats, 0, method="dbscan", threshold=0.5, min_samples=3)
    dense = dense_distances(graph)
    for i, identity in enumerate(actual.identities):
        others = (actual.identities == identity) if identity != NOBODY else np.ones(len(feats), bool)
        others[i] = False
        assert actual.distances[i] == np.float32(dense[i][others].min())


# ------------------------------------------------------------------ numbers
def test_identities_of_one_image_are_dropped_and_the_others_numbered_by_first_image():
    assert renumber(np.array([7, NOBODY, 3, 3, 9, 7, NOBODY])).tolist() == [0, -1, 1, 1, -1, 0, -1]
    assert renumber(np.array([NOBODY, 4])).tolist() == [-1, -1]


def test_an_identity_keeps_the_number_of_which_it_has_most_images():
    before = np.array([5, 5, 5, 8, 8, -1, 2, 2, -1])
    actual = keep_numbers(np.array([0, 0, 1, 1, 1, 2, 3, 3, -1]), before)
    # 0 has two images of 5, 1 has two of 8 and one of 5, 2 has nothing from before, 3 is 2
    assert actual.tolist() == [5, 5, 8, 8, 8, 9, 2, 2, -1]


def test_two_identities_from_one_do_not_both_keep_its_number():
    assert keep_numbers(np.array([0, 0, 1, 1, 1]), np.array([4, 4, 4, 4, 4])).tolist() == [5, 5, 4, 4, 4]


def test_without_an_earlier_labelling_the_numbers_stay():
    identities = np.array([0, 1, -1, 1, 0])
    assert np.array_equal(keep_numbers(identities, np.full(5, NOBODY)), identities)


# ------------------------------------------------------------------ figures
@pytest.mark.parametrize("seed", range(5))
def test_label_quality_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    identities, truth = rng.integers(-1, 5, 40), rng.integers(-1, 6, 40)
    actual = label_quality(identities, truth)
    known = [i for i in range(40) if truth[i] >= 0]
    pairs = [(i, j) for i in known for j in known if i < j]
    together = {(i, j) for i, j in pairs if identities[i] == identities[j] != NOBODY}
    same = {(i, j) for i, j in pairs if truth[i] == truth[j]}
    precision, recall = len(together & same) / len(together), len(together & same) / len(same)
    assert actual["pair_precision"] == pytest.approx(precision, abs=1e-4)
    assert actual["pair_recall"] == pytest.approx(recall, abs=1e-4)
    assert actual["pair_f1"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-4)
    assert actual["images"] == sum(identities[i] >= 0 for i in known)
    assert actual["persons"] == len({truth[i] for i in known})


def test_perfect_labels_have_perfect_figures():
    truth = np.array([3, 3, 1, 1, 1])
    actual = label_quality(np.array([0, 0, 1, 1, 1]), truth)
    assert [actual[key] for key in ("pair_precision", "pair_recall", "pair_f1", "nmi")] == [1, 1, 1, 1]


def test_the_report_says_what_another_threshold_would_have_taken():
    labels = Labels(np.array([0, 1, 0, 0, -1, -1]), np.float32([0, 0, 0.1, 0.19, 0.24, 0.9]))
    figures = measure_labels(labels, 2, Rules("nearest_query", "angle", 0.2, (6, 3, 0.4)), np.full(6, -1))
    assert figures["gallery_images_nearer_than"] == {
        "0.1": 0, "0.15": 1, "0.18": 1, "0.2": 2, "0.22": 2, "0.25": 3, "0.3": 3}
    assert figures["distances_of_labelled"]["100%"] == 0.19
    assert figures["distances_of_others"]["0%"] == 0.24
    assert "quality" not in figures
