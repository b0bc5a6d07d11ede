"""Which checkpoints a training leaves, and which of them it goes on from when some are damaged or not its own."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import quick_options, split_of
from processes import longest_file
from trainings import TINY_BACKBONE, assert_same_state, flat

from configs import dump_cfg, load_cfg
from processor import trainer
from processor.trainer import do_train, dry_run
from processor.training import state
from processor.training.build import checkpoint_folder
from processor.training.checkpoints import OtherConfiguration
from processor.training.step import train_step
from utils import checkpoint as checkpoint_files
from utils.checkpoint import CHECKSUM, read_checkpoint, save_checkpoint
from utils.files import remove_leftovers

pytestmark = pytest.mark.usefixtures("tiny_backbone")
OF_EPOCH = f"{TINY_BACKBONE}_{{}}.pth"
LATEST, BEST = "latest.pth", "best.pth"


class Killed(BaseException):
    """What ends a training in the middle of it."""


def cfg_of(tiny_data, folder, *changes):
    """Epochs of 7 batches, the best chosen by the split."""
    return load_cfg(None, quick_options(tiny_data, folder, "DATASETS.VALIDATION", split_of(tiny_data), *changes))


def killed_at(epoch, iteration):
    """A train_step that raises Killed there."""
    def step(run, batch, now, number, timer):
        if (now, number) == (epoch, iteration):
            raise Killed
        return train_step(run, batch, now, number, timer)
    return step


def scripted(figures):
    """An evaluation whose n-th call reports the n-th of each metric."""
    calls = iter(zip(*figures.values(), strict=True))

    def evaluate(*_):
        return {"all": {"plain": {**dict(zip(figures, next(calls), strict=True)), "num_valid": 1}}}
    return evaluate


@pytest.fixture(scope="module")
def whole(tiny_backbone, tiny_data, tmp_path_factory):
    """The folder of a finished run of four epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    do_train(cfg_of(tiny_data, folder))
    return folder


@pytest.fixture(scope="module")
def killed(tiny_backbone, tiny_data, tmp_path_factory):
    """The folder of a run killed in its third epoch, after two batches; the first epoch was its best."""
    folder = tmp_path_factory.mktemp("killed")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", killed_at(3, 3))
        patch.setattr(trainer, "evaluate", scripted({"mAP": [0.3, 0.2]}))
        with pytest.raises(Killed):
            do_train(cfg_of(tiny_data, folder, "SOLVER.CHECKPOINT_SECONDS", 1e-9))
    return folder


@pytest.fixture
def folder(killed, tmp_path):
    """A copy of `killed`, to damage; copies share no file."""
    return shutil.copytree(killed, tmp_path / "model")


# ------------------------------------------------------------------ damaged and foreign files
def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def flip_a_weight(path):
    weight = read_checkpoint(path)["model"]["classifier.weight"].numpy().tobytes()
    flip(path, path.read_bytes().index(weight) + len(weight) // 2)


def become_a_folder(path):
    path.unlink()
    path.mkdir()


def rewrite(path, change):
    """Change a checkpoint's content and write it with a right checksum."""
    data = read_checkpoint(path)
    del data[CHECKSUM]
    change(data)
    save_checkpoint(path, data)


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated or damaged"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or damaged"),
    "a bit of a weight": (flip_a_weight, "does not have the checksum"),
    "a bit of a key": (lambda path: flip(path, path.read_bytes().index(b"scheduler")), "does not have the checksum"),
    "a text": (lambda path: path.write_text("MODEL:\n  NAME: resnet50\n"), "not a checkpoint"),
    "a folder": (become_a_folder, "a folder without model.safetensors, expected a checkpoint file"),
    "weights only": (lambda path: torch.save(read_checkpoint(path)["model"], path), "holds weights only"),
    "a list": (lambda path: torch.save([1, 2], path), "holds a list"),
    "code": (lambda path: torch.save({"model": Path}, path), "never as code"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_good_is_passed_over_with_the_reason_or_refused_by_name(tiny_data, folder, caplog, damage):
    spoil, reason = DAMAGES[damage]
    spoil(folder / LATEST)
    checkpoints = checkpoint_folder(cfg_of(tiny_data, folder))
    path, state = checkpoints.find("auto")
    assert (path.name, state["epoch"]) == (OF_EPOCH.format(2), 2)
    assert f"passed over: {folder / LATEST}: " in caplog.text
    assert reason in caplog.text
    with pytest.raises(ValueError, match=reason):
        checkpoints.find(str(folder / LATEST))


def test_the_newest_good_one_is_found_wherever_it_is(tiny_data, folder):
    checkpoints = checkpoint_folder(cfg_of(tiny_data, folder))
    for name, *position in ((LATEST, 2, 2), (OF_EPOCH.format(2), 2, 0), (BEST, 1, 0), (OF_EPOCH.format(1), 1, 0)):
        path, state = checkpoints.find("auto")
        assert (path.name, [state["epoch"], state["batches"]]) == (name, position)
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no checkpoint to go on from, but best\.pth, latest\.pth, "):
        checkpoints.find("auto")
    assert checkpoints.newest_good() is None


def test_a_run_goes_on_from_the_newest_good_one_to_the_same_bits(tiny_data, folder, whole):
    (folder / LATEST).write_bytes(b"PK")
    flip_a_weight(folder / OF_EPOCH.format(2))
    last = do_train(cfg_of(tiny_data, folder), resume="auto")
    # Its evaluations were other ones, and with them the best.
    but = ("/config", "/checksum", "/best/epoch", "/best/value")
    assert_same_state(read_checkpoint(last), read_checkpoint(whole / last.name), but)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_flipped_bit_goes_unnoticed(tmp_path):
    path = tmp_path / "small.pth"
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(path, {"epoch": 3, "model": layer.state_dict(), "optimizers": [optimizer.state_dict()],
                           "config": "OUTPUT_DIR: x\n", "best": {}, "pid_names": ["a", "b"]})
    whole, good = path.read_bytes(), flat(read_checkpoint(path))
    del good[f"/{CHECKSUM}"]
    refused = 0
    for offset in range(0, len(whole), 3):
        data = bytearray(whole)
        data[offset] ^= 1 << offset % 8
        path.write_bytes(data)
        try:
            state = flat(read_checkpoint(path))
        except ValueError:  # nothing else may be raised
            refused += 1
            continue
        for name, value in good.items():  # it lay where nothing is read
            assert torch.equal(state[name], value) if torch.is_tensor(value) else state[name] == value, (offset, name)
    assert refused > len(whole) // 3 // 3


def doubled(times):
    value = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: torch.zeros(1).expand(2**40), "again and again"),
    (lambda: torch.zeros(1, 1).expand(9, 2**40), "again and again"), (lambda: doubled(60), "again and again"),
    (lambda: [torch.zeros(2**20).expand(19, -1) for _ in range(9)], "again and again"),
    (lambda: torch.eye(3).to_sparse(), "a sparse_coo cpu tensor"),
    (lambda: torch.zeros(2**40, device="meta"), "a strided meta tensor"),
    (lambda: torch.eye(3).to_sparse_csr(), "a sparse_csr cpu tensor"),
    (lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.quint8), "a quantised tensor")])
@pytest.mark.filterwarnings("ignore:.*(quantize|Sparse CSR|sparse tensor|TypedStorage)")
def test_tensors_without_numbers_of_their_own_are_refused_and_take_no_memory(tmp_path, make, reason):
    torch.save({"model": {"a": torch.ones(3), "b": make()}, CHECKSUM: "x"}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth: holds .*{reason}"):
        read_checkpoint(tmp_path / "a.pth")


def test_tensors_that_share_their_numbers_are_read(tmp_path):
    shared = torch.arange(12.0)
    save_checkpoint(tmp_path / "a.pth", {"rows": shared.view(3, 4).t(), "one": shared[:1].expand(5000), "all": shared})
    read = read_checkpoint(tmp_path / "a.pth")
    assert read["rows"].tolist() == shared.view(3, 4).t().tolist()
    assert read["one"].shape == (5000,)


def test_another_configuration_is_refused_by_its_keys(tiny_data, folder):
    cfg = cfg_of(tiny_data, folder, "SOLVER.BASE_LR", 0.5, "SOLVER.EMA_DECAY", 0.8)
    for resume in ("auto", str(folder / OF_EPOCH.format(1))):
        with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR was 0\.0003 and is 0\.5; SOLVER\.EMA_DECAY was 0\.9"):
            do_train(cfg, resume)


def test_a_training_made_longer_ends_in_the_bits_of_one_that_was_long_from_the_start(tiny_data, whole, tmp_path):
    do_train(cfg_of(tiny_data, tmp_path, "SOLVER.MAX_EPOCHS", 2, "SOLVER.STEPS", "[2]"))
    longer = cfg_of(tiny_data, tmp_path)
    with pytest.raises(ValueError, match=r"SOLVER\.STEPS was \[2\]"):  # an epoch ago, were it not for the next line
        do_train(cfg_of(tiny_data, tmp_path, "SOLVER.STEPS", "[1, 3]"), resume="auto")
    assert dry_run(longer, resume="auto").splitlines()[3].endswith("= 28, of which 14 are taken")
    last = do_train(longer, resume="auto")
    assert_same_state(read_checkpoint(last), read_checkpoint(whole / last.name))


COSINE = {"LR_SCHEDULER": "cosine"}


@pytest.mark.parametrize(("then", "now", "refused"), [
    ({}, {"MAX_EPOCHS": 9}, ""),
    ({}, {"MAX_EPOCHS": 9, "STEPS": "[3, 6]"}, ""),
    ({}, {"STEPS": "[5]", "GAMMA": 0.5}, ""),  # in the third epoch none has been
    ({}, {"MAX_EPOCHS": 3}, ""),
    ({}, {"MAX_EPOCHS": 2}, "MAX_EPOCHS was 4 and is 2; the epochs that are trained must keep their schedule"),
    ({}, {"STEPS": "[2]"}, r"STEPS was \[3\] and is \[2\]"),
    ({}, {"WARMUP_EPOCHS": 2}, "WARMUP_EPOCHS was 1 and is 2"),
    ({}, {"MAX_EPOCHS": 9, "BASE_LR": 0.1}, "BASE_LR was 0.0003 and is 0.1$"),  # the epochs are no obstacle
    ({}, {"IMS_PER_BATCH": 8}, "IMS_PER_BATCH was 16 and is 8"),
    (COSINE, {**COSINE, "MAX_EPOCHS": 9}, "MAX_EPOCHS was 4 and is 9"),
    ({**COSINE, "WARMUP_EPOCHS": 3}, {**COSINE, "WARMUP_EPOCHS": 3, "MAX_EPOCHS": 9}, ""),
    ({"WARMUP_EPOCHS": 3}, {**COSINE, "WARMUP_EPOCHS": 3}, ""),
])
def test_the_schedule_may_change_from_here_on(tiny_data, folder, then, now, refused):
    def words(values):
        return [word for key, value in values.items() for word in (f"SOLVER.{key}", value)]

    was = dump_cfg(cfg_of(tiny_data, folder, *words(then)))
    rewrite(folder / LATEST, lambda state: state.update(config=was))
    checkpoints = checkpoint_folder(cfg_of(tiny_data, folder, *words(now)))
    if not refused:
        assert checkpoints.find("auto")[0].name == LATEST
        return
    with pytest.raises(OtherConfiguration) as error:
        checkpoints.find("auto")
    assert re.search(refused, "; ".join(error.value.changes))
    assert f"MODEL.PRETRAIN_CHOICE finetune MODEL.PRETRAIN_PATH {folder / LATEST} to" in str(error.value)


def test_a_training_that_fine_tunes_as_the_message_says_starts(tiny_data, folder, tmp_path):
    other = ("SOLVER.IMS_PER_BATCH", 8, "SOLVER.MAX_EPOCHS", 1, "SOLVER.STEPS", "[]", "SOLVER.WARMUP_EPOCHS", 0,
             "SOLVER.EVAL_PERIOD", 0)
    with pytest.raises(OtherConfiguration) as error:
        do_train(cfg_of(tiny_data, folder, *other), resume="auto")
    words = re.search(r"\(with (.*) to begin", str(error.value))[1].split()
    assert do_train(cfg_of(tiny_data, tmp_path / "other", *other, *words)).is_file()
    with pytest.raises(OtherConfiguration) as error:
        do_train(cfg_of(tiny_data, folder, "MODEL.NECK", "no", *other), resume="auto")
    assert "finetune" not in str(error.value)


def test_other_lists_are_refused_though_they_have_the_same_name(tiny_data, folder, tmp_path):
    derived = shutil.copytree(tiny_data / "derived", tmp_path / "derived")
    lines = (tiny_data / "MyDataSet" / "train_2020_cs" / "train_list.txt").read_text().splitlines()
    (derived / "new_train_list.txt").write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(ValueError, match="trained on other training lists"):
        do_train(cfg_of(tiny_data, folder, "DATASETS.DERIVED_DIR", derived), resume="auto")


# ------------------------------------------------------------------ what is left
def test_a_damaged_last_checkpoint_of_a_finished_run_is_made_anew(tiny_data, whole, tmp_path, monkeypatch, caplog):
    folder = shutil.copytree(whole, tmp_path / "model")
    last = folder / OF_EPOCH.format(4)
    monkeypatch.setattr(trainer, "train_step", lambda *_: pytest.fail("trained again"))
    for spoil in (flip_a_weight, Path.unlink):
        spoil(last)
        (folder / "training_curve.png").unlink()
        assert do_train(cfg_of(tiny_data, folder), resume="auto") == last
        assert_same_state(read_checkpoint(last), read_checkpoint(whole / last.name), ())
        assert (folder / "training_curve.png").is_file()
    assert "does not have the checksum" in caplog.text
    assert caplog.text.count("is made anew from") == 2


def test_the_newest_n_are_kept_and_those_of_an_earlier_training_stay(tiny_data, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for epoch in (9, 10):
        (folder / OF_EPOCH.format(epoch)).write_text("of an earlier training")
    do_train(cfg_of(tiny_data, folder, "SOLVER.CHECKPOINT_KEEP", 2, "SOLVER.EVAL_PERIOD", 0))
    kept = {OF_EPOCH.format(epoch) for epoch in (3, 4, 9, 10)}
    assert {path.name for path in folder.glob("*.pth")} == {*kept, LATEST}


@pytest.mark.parametrize(("metric", "best", "after_two"), [("mAP", 2, 2), ("rank1", 3, 1)])
def test_best_follows_its_metric_across_a_kill(tiny_data, tmp_path, monkeypatch, metric, best, after_two):
    figures = {"mAP": [0.1, 0.3, 0.2, 0.3], "rank1": [0.2, 0.1, 0.5, 0.4]}
    cfg = cfg_of(tiny_data, tmp_path, "SOLVER.BEST_METRIC", metric, "SOLVER.CHECKPOINT_PERIOD", 3)
    monkeypatch.setattr(trainer, "evaluate", scripted(figures))
    monkeypatch.setattr(trainer, "train_step", killed_at(3, 1))
    with pytest.raises(Killed):
        do_train(cfg)
    state = read_checkpoint(tmp_path / BEST)["best"]
    assert {"epoch": after_two, "metric": metric, "value": figures[metric][after_two - 1]}.items() <= state.items()
    monkeypatch.setattr(trainer, "train_step", train_step)
    done = read_checkpoint(tmp_path / LATEST)["epoch"]  # a second epoch that was not the best is not kept
    monkeypatch.setattr(trainer, "evaluate", scripted({name: row[done:] for name, row in figures.items()}))
    do_train(cfg, resume="auto")
    state = read_checkpoint(tmp_path / BEST)
    assert state["epoch"] == best
    assert {"epoch": best, "metric": metric, "value": figures[metric][best - 1]}.items() <= state["best"].items()


def test_latest_can_be_loaded_at_every_moment(tiny_data, tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def watched(source, target):
        if (tmp_path / LATEST).exists():
            state = read_checkpoint(tmp_path / LATEST)
            seen.append((state["epoch"], state["batches"]))
        replace(source, target)
        if Path(target).name == LATEST:
            read_checkpoint(target)

    monkeypatch.setattr(os, "replace", watched)
    do_train(cfg_of(tiny_data, tmp_path, "SOLVER.MAX_EPOCHS", 2, "SOLVER.STEPS", "[]",
                    "SOLVER.CHECKPOINT_SECONDS", 1e-9))
    assert seen == sorted(seen)
    assert {(0, 1), (0, 6), (1, 0), (1, 7), (2, 0)} <= set(seen)


def test_one_file_has_several_names_or_copies_where_there_are_no_links(tiny_data, tmp_path, monkeypatch):
    names = [OF_EPOCH.format(1), LATEST, BEST]
    for case in ("links", "copies"):
        do_train(cfg_of(tiny_data, tmp_path / case, "SOLVER.MAX_EPOCHS", 1, "SOLVER.STEPS", "[]"))
        first, *others = (read_checkpoint(tmp_path / case / name) for name in names)
        for other in others:
            assert_same_state(first, other, ())
        shared = {os.stat(tmp_path / case / name).st_ino for name in names}
        assert len(shared) == (1 if case == "links" else 3)

        def no_links(*_):
            raise OSError("no hard links here")

        monkeypatch.setattr(checkpoint_files.os, "link", no_links)


def test_a_short_epoch_does_not_put_off_the_next_checkpoint(tiny_data, tmp_path, monkeypatch):
    now, saved = iter(range(1000)), []  # a clock that each look moves on by a second
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(trainer, "save_position", lambda run, epochs, batches: saved.append((epochs, batches)))
    do_train(cfg_of(tiny_data, tmp_path, "SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.EVAL_PERIOD", 0,
                    "SOLVER.CHECKPOINT_SECONDS", 12))
    assert [7 * epochs + batches for epochs, batches in saved] == [12, 24]


def test_a_name_with_a_colon_and_slashes_is_that_of_files_in_one_folder(tmp_path):
    cfg = load_cfg(None, ["MODEL.NAME", "resnet18", "OUTPUT_DIR", str(tmp_path)]).clone()
    cfg.defrost()
    cfg.MODEL.NAME = "timm:hub/net.tag"
    assert checkpoint_folder(cfg).of_epoch(3) == tmp_path / "timm_hub_net.tag_3.pth"


def older(path, change):
    """A checkpoint of before there was a checksum, changed."""
    data = read_checkpoint(path)
    del data[CHECKSUM]
    change(data)
    torch.save(data, path)


@pytest.mark.parametrize("field", ["epoch", "batches", "config", "data_digest", "model"])
@pytest.mark.parametrize("value", [None, [1], -1, 10**30])
def test_fields_that_no_training_writes_are_passed_over(tiny_data, folder, field, value, caplog):
    older(folder / LATEST, lambda data: data.update({field: value}))
    path, _ = checkpoint_folder(cfg_of(tiny_data, folder)).find("auto")
    assert path != folder / LATEST
    assert f"{LATEST}: damaged, or of another program: {field} is not what a training writes" in caplog.text


def first_state(data):
    return next(iter(data["optimizers"][0]["state"].values()))


@pytest.mark.parametrize("change", [
    lambda data: data.pop("criterion"), lambda data: data.update(optimizers=[]), lambda data: data.update(scheduler=3),
    lambda data: data["model"].update({"classifier.weight": torch.zeros(2)}), lambda data: data.update(meters=[1]),
    lambda data: data["optimizers"][0]["param_groups"].pop(), lambda data: data.update(skipped=torch.zeros(5)),
    lambda data: data["optimizers"][0]["param_groups"][0].update(lr="x"), lambda data: data.update(best=5),
    lambda data: data["optimizers"][0].update(state=4), lambda data: data.update(teacher=[1]),
    lambda data: first_state(data).update({name: torch.zeros(7) for name in first_state(data)}),
])
def test_a_state_that_does_not_fit_is_refused_with_the_files_name(tiny_data, folder, change):
    older(folder / LATEST, change)
    with pytest.raises(ValueError, match=rf"{LATEST}: damaged, or of another program: "):
        do_train(cfg_of(tiny_data, folder), resume="auto")


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 20.00 MiB", "CUDA error: device-side assert",
                                  "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"])
def test_a_want_of_memory_or_a_device_at_fault_is_not_blamed_on_the_checkpoint(tiny_data, folder, text, monkeypatch):
    def fail(*_):
        raise RuntimeError(text)

    monkeypatch.setattr(state, "_take", fail)
    with pytest.raises(RuntimeError) as error:
        do_train(cfg_of(tiny_data, folder), resume="auto")
    assert str(error.value) == text


# ------------------------------------------------------------------ going on
def test_a_checkpoint_of_the_format_before_this_one_is_gone_on_from(tiny_data, tmp_path):
    changes = ("SOLVER.OPTIMIZER_NAME", "Adam", "SOLVER.EMA_DECAY", 0, "SOLVER.EVAL_PERIOD", 0)
    last = do_train(cfg_of(tiny_data, tmp_path / "whole", *changes))
    old = read_checkpoint(tmp_path / "whole" / OF_EPOCH.format(2))
    for key in ("batches", "meter", "skipped", "best", "versions", CHECKSUM):
        del old[key]
    for group in (group for optimizer in old["optimizers"] for group in optimizer["param_groups"]):
        group["fused"] = None  # there were no fused optimisers
    (tmp_path / "parts").mkdir()
    torch.save(old, tmp_path / "parts" / OF_EPOCH.format(2))
    again = do_train(cfg_of(tiny_data, tmp_path / "parts", *changes), resume="auto")
    assert_same_state(read_checkpoint(again), read_checkpoint(last))


def test_a_named_checkpoint_is_gone_on_from_in_another_folder(tiny_data, whole, tmp_path):
    do_train(cfg_of(tiny_data, tmp_path), resume=str(whole / OF_EPOCH.format(3)))
    assert_same_state(read_checkpoint(tmp_path / LATEST), read_checkpoint(whole / LATEST))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_kill_between_an_epochs_checkpoint_and_its_other_names_leaves_none_out(tiny_data, tmp_path, monkeypatch,
                                                                                 epochs):
    changes = ["SOLVER.MAX_EPOCHS", epochs, "SOLVER.STEPS", "[]", "SOLVER.EVAL_PERIOD", 0]
    do_train(cfg_of(tiny_data, tmp_path / "whole", *changes))

    def killed(path, other):
        raise Killed

    cfg = cfg_of(tiny_data, tmp_path / "killed", *changes)
    with monkeypatch.context() as patch:
        patch.setattr(state, "link_checkpoint", killed)
        with pytest.raises(Killed):
            do_train(cfg)
    assert [path.name for path in (tmp_path / "killed").glob("*.pth")] == [OF_EPOCH.format(1)]
    do_train(cfg, resume="auto")
    for path in (tmp_path / "whole").glob("*.pth"):
        assert_same_state(read_checkpoint(tmp_path / "killed" / path.name), read_checkpoint(path))


def test_equal_checkpoints_are_equal_files(tmp_path):
    for name in ("a.pth", "b.pth"):
        save_checkpoint(tmp_path / name, {"weight": torch.ones(3), "epoch": 1})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as process:
        gone = process.pid
    names = {f".latest.pth.{gone}.0123abcd.tmp": False, f".latest.pth.{os.getpid()}.0123abcd.tmp": False,
             f".latest.pth.{os.getppid()}.0123abcd.tmp": True, ".latest.pth.tmp": True, "latest.pth": True,
             f"notes.{gone}.0123abcd.tmp": True}
    for name in names:
        (tmp_path / name).touch()
    names |= {f".ranks.{gone}.0123abcd.tmp": False}
    (tmp_path / f".ranks.{gone}.0123abcd.tmp" / "pictures").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


@pytest.mark.parametrize("room", [0, 100, 300, 100_000])
def test_a_full_disk_is_one_message_and_the_checkpoint_before_stays(tmp_path, room):
    path = tmp_path / "latest.pth"
    save_checkpoint(path, {"weight": torch.ones(3)})
    message = r"latest\.pth cannot be written, \d+ MiB are free there; make room.* \(.*File too large"
    with longest_file(room), pytest.raises(OSError, match=message):
        save_checkpoint(path, {"weight": torch.zeros(30_000)})
    assert [one.name for one in tmp_path.iterdir()] == ["latest.pth"]
    assert torch.equal(read_checkpoint(path)["weight"], torch.ones(3))
