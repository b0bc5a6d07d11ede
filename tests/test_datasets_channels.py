"""Channel-shuffled identities: labels, names, permutations, and that batches and models know of them."""
import numpy as np
import torch
from conftest import tiny_options

from configs import load_cfg
from datasets.augment.channels import channel_permutations, permute_channels, with_shuffled_channels
from datasets.bases import ReIDData, Sample
from datasets.make_dataloader import make_dataloader
from model.identities import transfer_identities

NAMES = [f"train_2020_cs_{n}" for n in range(200)]


def test_no_permutation_is_the_identity_and_all_others_occur():
    orders = channel_permutations(NAMES, 1)
    assert {tuple(sorted(order)) for order in orders.tolist()} == {(0, 1, 2)}
    assert len({tuple(order) for order in orders.tolist()}) == 5
    assert [0, 1, 2] not in orders.tolist()


def test_a_permutation_depends_on_the_seed_and_the_name_alone():
    orders = channel_permutations(NAMES, 1)
    assert np.array_equal(channel_permutations(NAMES[::-1], 1), orders[::-1])
    assert np.array_equal(channel_permutations(NAMES[7:9], 1), orders[7:9])
    assert not np.array_equal(channel_permutations(NAMES, 2), orders)


def test_every_identity_lives_twice():
    data = ReIDData([Sample("a/1.png", 0, 0), Sample("b/2.png", 1, 0), Sample("a/3.png", 0, 0)], 2, ["x_1", "y_2"])
    doubled, channels = with_shuffled_channels(data, 3)
    assert doubled.num_classes == 4
    assert doubled.train[:3] == data.train
    assert [sample.key for sample in doubled.train[3:]] == [sample.key for sample in data.train]
    assert [sample.pid for sample in doubled.train[3:]] == [2, 3, 2]
    assert channels[:2].tolist() == [[0, 1, 2]] * 2
    orders = ["".join("rgb"[channel] for channel in order) for order in channels[2:]]
    assert doubled.pid_names == ["x_1", "y_2", f"x_1_{orders[0]}", f"y_2_{orders[1]}"]


def test_each_image_has_its_own_order_of_channels():
    images = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    channels = np.array([[0, 1, 2], [2, 0, 1], [1, 0, 2]])
    out = permute_channels(images, channels)
    for n, order in enumerate(channels):
        assert torch.equal(out[n], images[n][..., torch.from_numpy(order)])


def shuffled_loaders(tiny_data, tmp_path, *changes):
    return make_dataloader(load_cfg(None, [*tiny_options(tiny_data, tmp_path), "DATASETS.CHANNEL_SHUFFLE", "True",
                                           *changes]), test=False)


def test_a_batch_permutes_the_second_lives_before_all_else(tiny_data, tmp_path):
    loaders = shuffled_loaders(tiny_data, tmp_path)
    half = loaders.data.num_classes // 2
    assert loaders.data.num_classes == len(loaders.data.pid_names)
    loaders.sampler.set_epoch(1)
    seen = set()
    for batch in loaders.train:
        out = loaders.augment(batch.images, 1, batch.positions, batch.pids)
        by_hand = permute_channels(batch.images, loaders.augment.channels[batch.pids.numpy()])
        # As class 0, which keeps its channels, the permuted picture gives the same.
        assert torch.equal(out, loaders.augment(by_hand, 1, batch.positions, torch.zeros_like(batch.pids)))
        second = batch.pids >= half
        assert torch.equal(by_hand[~second], batch.images[~second])
        assert not torch.equal(by_hand[second], batch.images[second])
        seen.update(batch.pids.tolist())
    assert seen == set(range(loaders.data.num_classes))


def test_both_lives_show_the_same_pictures(tiny_data, tmp_path):
    data = shuffled_loaders(tiny_data, tmp_path).data
    half = data.num_classes // 2
    first, second = ([sample.key for sample in data.train if (sample.pid >= half) is late] for late in (False, True))
    assert first == second


def test_fine_tuning_finds_a_second_life_only_where_its_permutation_is_the_same():
    data = ReIDData([], 200, NAMES)
    (then, _), (now, _) = with_shuffled_channels(data, 1), with_shuffled_channels(data, 2)
    same = (channel_permutations(NAMES, 1) == channel_permutations(NAMES, 2)).all(1).sum()
    model = torch.nn.ModuleDict({"classifier": torch.nn.Linear(2, 400, bias=False)})
    checkpoint = {"model": {"classifier.weight": torch.arange(800.0).view(400, 2)}, "pid_names": then.pid_names}
    assert transfer_identities({"model": model}, checkpoint, now.pid_names, "old.pth") == 200 + same
    assert 0 < same < 200
    assert transfer_identities({"model": model}, checkpoint, NAMES + ["new"] * 200, "old.pth") == 200
