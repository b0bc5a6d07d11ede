"""Training on although images are bad: who stands in for them, what is logged, and when it stops."""
import os
import re
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_options

from configs import load_cfg
from datasets.bad_images import Replaced, StandIns
from datasets.bases import Sample
from datasets.batches import DecodedImages, SequentialBatches, open_loader
from datasets.files.images import BadImage
from datasets.make_dataloader import make_dataloader
from processor.trainer import do_train
from utils.process import LostWorker

HEIC = b"\0\0\0 ftypheic" + bytes(99)


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy of the demo set that may be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def loaders_of(data: Path, *keys: str, test: bool = False):
    options = [*tiny_options(data, data.parent / "model"), "DATALOADER.ON_BAD_IMAGE", "skip", *keys]
    return make_dataloader(load_cfg(None, options), test=test)


def epoch_of(loaders, epoch: int = 1, start_batch: int = 0) -> list:
    loaders.sampler.set_epoch(epoch, start_batch)
    return list(loaders.train)


def damage(data: Path, keys: list[str]) -> None:
    """Each file in another way; the bytes of a PNG stay for what is left of it."""
    ways = [lambda file: file[: len(file) // 2], lambda file: b"", lambda file: HEIC,
            lambda file: file[:40] + file[41:]]
    for number, key in enumerate(keys):
        path = data / "MyDataSet" / key
        path.write_bytes(ways[number % len(ways)](path.read_bytes()))


def assert_equal_batches(found: list, expected: list) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.pids, other.pids)
        assert one.keys == other.keys
        assert np.array_equal(one.positions, other.positions)


# ----------------------------------------------------------------------------------------------------------- stand-ins
def test_the_others_of_an_identity_come_first_then_the_next_identities():
    pids = np.array([4, 0, 4, 0, 0, 4, 2])
    stand_ins, first = StandIns(pids, seed=3), set()
    for position in range(60):
        order = list(stand_ins(1, position, 1))
        assert sorted(order[:2]) == [3, 4]  # of identity 0
        assert order[2] == 6                # identity 2 is the next
        assert sorted(order[3:]) == [0, 2, 5]
        assert order == list(StandIns(pids, seed=3)(1, position, 1))
        first.add(order[0])
    assert first == {3, 4}
    after_the_last = list(stand_ins(1, 0, 5))
    assert [sorted(after_the_last[:2]), sorted(after_the_last[2:5]), after_the_last[5]] == [[0, 2], [1, 3, 4], 6]


def test_stand_ins_depend_on_seed_epoch_and_position():
    pids = np.zeros(1000, int)
    def chosen(seed: int, epoch: int, position: int) -> int:
        return next(StandIns(pids, seed)(epoch, position, 7))
    assert chosen(1, 2, 3) == chosen(1, 2, 3)
    assert len({chosen(1, 2, 3), chosen(2, 2, 3), chosen(1, 3, 3), chosen(1, 2, 4)}) == 4


# ------------------------------------------------------------------------------------------------------------- batches
def test_a_bad_image_is_replaced_by_one_of_its_identity(data, caplog):
    whole = [epoch_of(loaders_of(data), epoch) for epoch in (1, 2)]
    keys = whole[0][0].keys
    bad = {keys[0], keys[3], keys[6]}
    damage(data, sorted(bad))
    loaders = loaders_of(data)
    pid_of = {sample.key: sample.pid for sample in loaders.data.train}
    stand_ins: dict[str, set[str]] = {}
    for epoch in (1, 2):
        times = 0
        for one, before in zip(epoch_of(loaders, epoch), whole[epoch - 1], strict=True):
            assert torch.equal(one.pids, before.pids)
            assert np.array_equal(one.positions, before.positions)
            for row, (key, old) in enumerate(zip(one.keys, before.keys, strict=True)):
                assert (key == old) == (old not in bad)
                assert pid_of[key] == pid_of[old]
                if old not in bad:
                    assert torch.equal(one.images[row], before.images[row])
                else:
                    stand_ins.setdefault(old, set()).add(key)
                    times += 1
        assert f"epoch {epoch}: {times} times an image could not be read" in caplog.text
    assert set(stand_ins) == bad
    for key in bad:
        assert len(re.findall(rf"bad image, replaced: {key}: ", caplog.text)) == 1


def test_workers_and_restarts_do_not_change_who_stands_in(data):
    keys = [sample.key for sample in loaders_of(data).data.train]
    damage(data, keys[::5])
    expected = epoch_of(loaders_of(data), 2)
    assert_equal_batches(epoch_of(loaders_of(data, "DATALOADER.NUM_WORKERS", "2"), 2), expected)
    assert_equal_batches(epoch_of(loaders_of(data), 2, start_batch=1), expected[1:])


def test_without_bad_images_nothing_changes(data, caplog):
    with_skip = epoch_of(loaders_of(data))
    assert_equal_batches(with_skip, epoch_of(loaders_of(data, "DATALOADER.ON_BAD_IMAGE", "error")))
    assert "could not be read" not in caplog.text


def test_where_an_identity_has_no_image_left_the_next_one_stands_in(data):
    loaders = loaders_of(data)
    by_pid: dict[int, list[str]] = {}
    for sample in loaders.data.train:
        by_pid.setdefault(sample.pid, []).append(sample.key)
    damage(data, by_pid[3])
    before = {position: pid for batch in epoch_of(loaders_of(data, "DATALOADER.ON_BAD_IMAGE", "skip"), 1)
              for position, pid in zip(batch.positions.tolist(), batch.pids.tolist(), strict=True)}
    assert 3 not in before.values()
    assert loaders.data.num_classes > 4
    # The identities of a sampler's places are as they were but for this one.
    places = [int(loaders.data.train[index].pid) for batch in _items(loaders) for _, index in batch]
    assert [4 if pid == 3 else pid for pid in places] == [before[i] for i in range(len(places))]


def _items(loaders) -> list:
    loaders.sampler.set_epoch(1)
    return list(loaders.sampler)


def test_where_nothing_can_be_read_training_stops(data):
    damage(data, [sample.key for sample in loaders_of(data).data.train])
    with pytest.raises(BadImage, match=r"no image that can be read, nor have the next 10 \(\d+ tried\); the first: "):
        epoch_of(loaders_of(data))


def test_error_stops_at_the_first_bad_image(data):
    keys = loaders_of(data).data.train
    damage(data, [keys[0].key])
    with pytest.raises(BadImage, match=rf"{keys[0].key}: the PNG file is cut off"):
        epoch_of(loaders_of(data, "DATALOADER.ON_BAD_IMAGE", "error"))


def test_a_mistake_that_is_no_bad_image_is_not_replaced():
    class Wrong:
        def read(self, key: str) -> bytes:
            raise ValueError("the program is at fault")

    samples = [Sample(f"{number}.png", 0, 0) for number in range(4)]
    images = Replaced(DecodedImages(Wrong(), samples, (8, 4)), StandIns(np.zeros(4, int), 0))
    with pytest.raises(ValueError, match="the program is at fault"):
        images[0, 0, 1]


def test_a_test_stops_whatever_the_key_says(data):
    loaders = loaders_of(data, test=True)
    test = next(iter(loaders.test.values()))
    damage(data, [test.samples[2].key])
    with pytest.raises(BadImage, match=f"{test.samples[2].key}: the PNG file is cut off"):
        list(test.loader)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_bad_test_image_leaves_out_the_evaluations_of_a_training_that_asked_to_skip(data, caplog, workers):
    key = next(iter(loaders_of(data, test=True).test.values())).samples[2].key
    damage(data, [key])
    options = [*tiny_options(data, data.parent / "model"), "SOLVER.MAX_EPOCHS", "2", "SOLVER.STEPS", "[1]",
               "SOLVER.EVAL_PERIOD", "1", "DATALOADER.NUM_WORKERS", workers]
    with pytest.raises(ValueError, match=f"{key}: the PNG file is cut off"):
        do_train(load_cfg(None, options))
    assert do_train(load_cfg(None, [*options, "DATALOADER.ON_BAD_IMAGE", "skip"])).is_file()
    for epoch in (1, 2):
        assert f"Epoch[{epoch}] no evaluation: {key}: the PNG file is cut off" in caplog.text


def test_planted_faults_do_not_stop_a_training_that_asked_to_skip(data, caplog):
    """Cut, empty, a HEIC, damaged, in the list a path that leaves the folder and an image that is not there; a picture
    of one pixel, one of 16 bits, a Chinese name, CRLF and a byte-order mark are no faults."""
    keys = [sample.key for sample in loaders_of(data).data.train]
    chosen = keys[::7]
    damage(data, chosen[:4])
    (data / "MyDataSet" / chosen[4]).write_bytes(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    (data / "MyDataSet" / chosen[5]).write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint16))[1].tobytes())
    options = [*tiny_options(data, data.parent / "model"), "SOLVER.MAX_EPOCHS", "2", "SOLVER.STEPS", "[1]"]
    with pytest.raises(ValueError, match=r"\.png: "):
        do_train(load_cfg(None, options))
    path = data / "MyDataSet/train_2020_fs/train_list.txt"
    lines, chinese = path.read_text().splitlines(), "行人.png"
    shutil.copy(path.parent / "images" / lines[0].split(":")[0], path.parent / "images" / chinese)
    lines += ["../../train_2020_cs/images/x.png:3", "not_there.png:4", f"{chinese}:{lines[0].split(':')[1]}"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    with pytest.raises(ValueError, match=r"(?s)training lists: 2 problems.*DATALOADER\.ON_BAD_IMAGE skip"):
        do_train(load_cfg(None, options))
    last = do_train(load_cfg(None, [*options, "DATALOADER.ON_BAD_IMAGE", "skip"]))
    assert last.is_file()
    named = {line for key in chosen for line in re.findall(rf"bad image, replaced: ({re.escape(key)})", caplog.text)}
    assert named == set(chosen[:4])
    assert "left out: training lists: 2 problems" in caplog.text
    assert f"train_list.txt:{len(lines) - 2}: a list may only name files inside its own folder" in caplog.text
    assert f"train_list.txt:{len(lines) - 1}: no such image: 'not_there.png'" in caplog.text


class _Killing:
    """A source that ends the process that reads a certain key."""

    def read(self, key: str) -> bytes:
        if key == "5.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return cv2.imencode(".png", np.zeros((8, 4, 3), np.uint8))[1].tobytes()


def test_a_process_of_the_loader_that_dies_is_no_bad_image():
    samples = [Sample(f"{number}.png", 0, 0) for number in range(8)]
    loader = open_loader(_Killing(), samples, (8, 4), SequentialBatches(8, 2), workers=1)
    with pytest.raises(LostWorker, match=r"a process that loads images has died \((DataLoader worker|it closed)"):
        list(loader)


class _Unreachable:
    """A source on a network that is down."""

    def read(self, key: str) -> bytes:
        raise ConnectionResetError(f"{key}: connection reset by peer")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_connection_that_a_source_loses_is_no_dead_process(workers):
    loader = open_loader(_Unreachable(), [Sample("1.png", 0, 0)], (8, 4), SequentialBatches(1, 1), workers)
    with pytest.raises(ConnectionResetError, match=r"1\.png: connection reset"):
        list(loader)
