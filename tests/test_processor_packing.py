"""tools/pack.py's work: a packed set gives the batches and the features of its files."""
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_options

from configs import load_cfg
from datasets.files.pack_reader import PackedSource
from datasets.make_dataloader import make_dataloader
from processor.evaluation.feature_bank import read_bank
from processor.inference import do_inference
from processor.prepare import pack_set, verify_pack
from processor.trainer import do_train
from tools.campaigns.tool_server import run_tool

KINDS = {"as files": False, "decoded": True}


@pytest.fixture(scope="module")
def packs(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """A pack of each kind."""
    folder = tmp_path_factory.mktemp("packs")
    cfg = load_cfg(None, tiny_options(tiny_data, folder / "model"))
    return {kind: pack_set(cfg, folder / kind, decoded).folder for kind, decoded in KINDS.items()}


def batches(tiny_opts: list[str], *keys: str) -> list:
    """An epoch of training batches and every test batch."""
    loaders = make_dataloader(load_cfg(None, [*tiny_opts, *keys]))
    loaders.sampler.set_epoch(2)
    return [*loaders.train, *(batch for test in loaders.test.values() for batch in test.loader)]


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_set_gives_equal_batches(packs, tiny_opts, kind, workers):
    """For training and for testing, to the byte."""
    expected = batches(tiny_opts)
    actual = batches(tiny_opts, "DATASETS.PACKED", str(packs[kind]), "DATALOADER.NUM_WORKERS", workers)
    assert len(actual) == len(expected) > 4
    for one, other in zip(actual, expected, strict=True):
        assert one.images.dtype == torch.uint8
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.pids, other.pids)
        assert one.keys == other.keys
        assert np.array_equal(one.positions, other.positions)


def test_stored_files_serve_every_size(packs, tiny_opts):
    size = ["INPUT.SIZE_TRAIN", "[40, 24]", "INPUT.SIZE_TEST", "[24, 12]"]
    expected, actual = batches(tiny_opts, *size), batches(tiny_opts, *size, "DATASETS.PACKED", str(packs["as files"]))
    assert all(torch.equal(one.images, other.images) for one, other in zip(actual, expected, strict=True))
    with pytest.raises(ValueError, match=r"holds images decoded at 32x16, but INPUT\.SIZE_TRAIN=\[40, 24\]"):
        batches(tiny_opts, *size, "DATASETS.PACKED", str(packs["decoded"]))


def test_a_training_goes_on_from_files_to_a_pack_and_ends_the_same(packs, tiny_data, tmp_path):
    def options(name: str, epochs: int, *keys: str) -> list[str]:
        return [*tiny_options(tiny_data, tmp_path / name), "SOLVER.MAX_EPOCHS", "2", "SOLVER.STEPS", "[1]",
                "SOLVER.CHECKPOINT_PERIOD", "1", *keys]

    whole = do_train(load_cfg(None, options("whole", 2)))
    first = whole.with_name(whole.name.replace("_2.", "_1."))
    packed = ["DATASETS.PACKED", str(packs["decoded"]), "DATALOADER.ON_BAD_IMAGE", "skip"]
    resumed = do_train(load_cfg(None, options("resumed", 2, *packed)), str(first))
    weights = [torch.load(path, weights_only=True)["model"] for path in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    banks = []
    for name, keys in (("a", []), ("b", packed)):
        cfg = load_cfg(None, options(name, 2, *keys, "TEST.WEIGHT", str(whole), "OUTPUT_DIR", str(tmp_path / name)))
        do_inference(cfg)
        banks.append(read_bank(tmp_path / name / "features")[0])
    for domain, bank in banks[0].items():
        for branch in bank.feats:
            assert np.array_equal(bank.feats[branch], banks[1][domain].feats[branch])


def test_a_part_can_be_packed_alone(tiny_opts, tmp_path):
    cfg = load_cfg(None, [*tiny_opts, "INPUT.SIZE_TEST", "[24, 12]"])
    with pytest.raises(ValueError, match=r"\[32, 16\] and INPUT\.SIZE_TEST=\[24, 12\] differ"):
        pack_set(cfg, tmp_path / "both", decoded=True)
    train = pack_set(cfg, tmp_path / "train", decoded=True, parts=["train"])
    test = pack_set(cfg, tmp_path / "test", decoded=True, parts=["test"])
    assert (train.size, test.size) == ((32, 16), (24, 12))
    assert not set(train.all_keys()) & set(test.all_keys())
    cfg = load_cfg(None, [*tiny_opts, "DATASETS.PACKED", str(train.folder)])
    assert len(make_dataloader(cfg, test=False).train) > 1
    with pytest.raises(ValueError, match=r"lacks \d+ of \d+ images \(image_B_v1_1/gallery/"):
        make_dataloader(cfg)


def test_nothing_is_written_among_the_data(tiny_opts, tiny_data):
    with pytest.raises(ValueError, match="lies in the data folder"):
        pack_set(load_cfg(None, tiny_opts), tiny_data / "MyDataSet" / "packed", decoded=False)
    assert not (tiny_data / "MyDataSet" / "packed").exists()


def test_the_files_are_not_read_once_they_are_packed_and_compared(packs, tiny_opts, monkeypatch):
    cfg = load_cfg(None, [*tiny_opts, "DATASETS.PACKED", str(packs["as files"])])
    loaders = make_dataloader(cfg, test=False)
    monkeypatch.setattr("datasets.files.images.FolderSource.read", None)
    loaders.sampler.set_epoch(1)
    assert len(list(loaders.train)) == len(loaders.train)


def test_the_tool_packs_verifies_and_tells_what_is_wrong(tiny_opts, tmp_path):
    folder = tmp_path / "pack"
    for words in ([], ["--verify"], ["--compare"]):
        done = run_tool("pack", "--output", folder, "--decoded", *words, *tiny_opts)
        assert done.returncode == 0, done.stderr
        assert "images, decoded at 32x16, in 1 shard" in done.stdout
    assert len(verify_pack(folder)) == len(PackedSource(folder))
    shard = folder / "00000.shard"
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    done = run_tool("pack", "--output", folder, "--verify")
    assert done.returncode == 2
    assert "1 problem" in done.stderr
    assert "damaged in" in done.stderr
    assert "Traceback" not in done.stderr
