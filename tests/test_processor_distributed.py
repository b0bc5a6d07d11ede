"""Training and testing in several processes: the gradients, weights and features of one process."""
import json
import weakref

import numpy as np
import pytest
import torch
from conftest import quick_options, tiny_options
from processes import processes_by_hand, run_together
from torch.nn.parallel import DistributedDataParallel
from trainings import train_together

from configs import dump_cfg, load_cfg
from datasets.batches import Batch, SequentialBatches
from processor.training import build as training_run
from processor.training.build import build
from processor.training.step import forward_backward, train_step
from tools.campaigns.tool_server import ROOT
from utils.checkpoint import read_checkpoint
from utils.dist import ALONE, Workers
from utils.meter import PhaseTimer
from utils.process import EXIT_STOPPED

BATCH = 16
START = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
from utils.dist import worker_group
torch.set_num_threads(1)
folder = sys.argv[1]
"""


def save_teacher(opts):
    """The checkpoint of a network with the identities of the run, beside its folder; returns the path."""
    run = build(load_cfg(None, opts))
    path = run.checkpoints.folder.parent / "teacher.pth"
    torch.save({"model": run.model.state_dict(), "config": dump_cfg(run.cfg),
                "pid_names": run.loaders.data.pid_names}, path)
    return str(path)


def frozen_run(opts, workers=ALONE, **changes):
    """A run with plain SGD whose batch norms keep their statistics, so that a batch can be split.

    Its steps are small: with a rate of 0.05 the rounding of torch 2.4 grows a thousandfold from step to step.
    """
    options = {"SOLVER.OPTIMIZER_NAME": "SGD", "SOLVER.BASE_LR": 0.005, "SOLVER.WARMUP_EPOCHS": 0,
               "SOLVER.CENTER_LOSS_WEIGHT": 0.01, **changes}
    run = build(load_cfg(None, [*opts, *(str(word) for pair in options.items() for word in pair)]), workers=workers)
    run.model.eval()
    return run


def batch_of(run, step, order=None):
    """This process' share of a batch of random pictures: 8 identities, 2 of each."""
    random = np.random.default_rng(step)
    images = random.integers(0, 256, (BATCH, 32, 16, 3), dtype=np.uint8)
    pids = np.repeat(random.permutation(run.loaders.data.num_classes)[: BATCH // 2], 2)
    positions = np.arange(BATCH)
    if order is not None:
        images, pids, positions = images[order], pids[order], positions[order]
    width = BATCH // run.workers.size
    share = slice(run.workers.rank * width, (run.workers.rank + 1) * width)
    pids = torch.from_numpy(pids[share])
    return Batch(torch.from_numpy(images[share]), pids, pids, pids, [""] * width, positions[share])


def gradients(run, order=None):
    """Gradients of one batch by name, and the values that are reported."""
    values = forward_backward(run, batch_of(run, 0, order), 1, 1, PhaseTimer())
    found = {name: p.grad for name, p in [*run.model.named_parameters(), *run.criterion.named_parameters()]
             if p.grad is not None}
    means = run.workers.mean(torch.stack([value.double() for value in values.values()]))
    return found, dict(zip(values, means.tolist(), strict=True))


def weights_after(run, steps):
    for step in range(1, steps + 1):
        train_step(run, batch_of(run, step), 1, step, PhaseTimer())
    return {**run.model.state_dict(), **run.criterion.state_dict()}


SHARE = START + """
from test_processor_distributed import frozen_run, gradients, weights_after
opts, cases = torch.load(f"{folder}/cases.pt", weights_only=True)
with worker_group() as workers:
    found = {name: gradients(frozen_run(opts, workers, **case)) for name, case in cases.items()}
    found["weights"] = weights_after(frozen_run(opts, workers), 3)
    torch.save(found, f"{folder}/{workers.rank}.pt")
"""
# Batch-hard, weighted and pairwise mining, with centres; two micro-batches; held backbone; clipping is in the step.
CASES = {
    "weighted": {},
    "hard": {"MODEL.WEIGHTED_TRIPLET": False, "MODEL.NO_MARGIN": False, "MODEL.IF_LABELSMOOTH": True},
    "pairs": {"MODEL.METRIC_LOSS_TYPE": "pair_circle", "MODEL.IF_WITH_CENTER": "no"},
    "parts": {"MODEL.IF_USE_PCB": True},
    "accumulated": {"SOLVER.ACCUMULATION_STEPS": 2},
    "softmax": {"DATALOADER.SAMPLER": "softmax", "MODEL.IF_WITH_CENTER": "no", "MODEL.METRIC_LOSS_TYPE": "triplet"},
    "taught": {"SOLVER.DISTILL_FROM": "teacher.pth", "MODEL.EMBED_DIM": 16},
}


@pytest.fixture(scope="module")
def shared(tiny_data, tmp_path_factory):
    """What each of two processes found, and the options."""
    folder = tmp_path_factory.mktemp("shared")
    opts = tiny_options(tiny_data, folder / "model")
    CASES["taught"]["SOLVER.DISTILL_FROM"] = save_teacher([*opts, "SOLVER.SEED", "2"])
    torch.save((opts, CASES), folder / "cases.pt")
    codes, errors, _ = processes_by_hand(folder, 2, SHARE)
    assert codes == [0, 0], errors
    return opts, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_loss_and_gradients_of_one(shared, name):
    opts, both = shared
    # A micro-batch is made of every process' own first or second half.
    order = np.array([*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]) if name == "accumulated" else None
    expected, values = gradients(frozen_run(opts, **CASES[name]), order)
    assert values["loss"] > 0
    for found, reported in (one[name] for one in both):
        assert reported == pytest.approx(values, rel=1e-5, abs=1e-6)
        assert found.keys() == expected.keys()
        whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for key, gradient in expected.items():  # some are zero but for rounding: what goes before an instance norm
            assert (found[key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * whole, key


def test_two_processes_have_the_weights_of_one_after_some_steps(shared):
    opts, both = shared
    expected = weights_after(frozen_run(opts), 3)
    before = frozen_run(opts).model.state_dict()
    assert not torch.equal(before["base.conv1.weight"], expected["base.conv1.weight"])
    for key, weight in expected.items():
        assert torch.equal(both[0]["weights"][key], both[1]["weights"][key]), key
        torch.testing.assert_close(both[0]["weights"][key], weight, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ whole runs
def test_a_whole_run_trains_evaluates_and_tests_in_shared_work(tiny_data, tmp_path):
    opts = [*tiny_options(tiny_data, tmp_path / "model"), "SOLVER.MAX_EPOCHS", "2", "SOLVER.EVAL_PERIOD", "1",
            "DATALOADER.NUM_WORKERS", "1", "SOLVER.STEPS", "[]", "MODEL.FREEZE_EPOCHS", "1", "SOLVER.EMA_DECAY", "0.5"]
    codes, _, errors = run_together(2, "train", *opts)
    assert codes == [0, 0], errors
    assert "on 2 processes" in errors[0]
    assert errors[0].count("Epoch[2] all: ") == 1  # one process speaks
    assert "Epoch" not in errors[1]
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    weight = tmp_path / "model" / "resnet18_ibn_b_w32_2.pth"
    assert not any(key.startswith("module.") for key in read_checkpoint(weight)["model"])
    results = {}
    for name, processes in (("one", 1), ("three", 3)):
        out = tmp_path / name
        codes, _, errors = run_together(processes, "test", *opts, "TEST.WEIGHT", weight, "OUTPUT_DIR", out)
        assert not any(codes), errors
        results[name] = {path.name: path.read_bytes() for path in sorted((out / "features").glob("*.npy"))}
        results[name] |= {leaf: (out / leaf).read_bytes() for leaf in ("submission.json", "metrics.json")}
    assert len(results["one"]) > 5
    assert results["three"] == results["one"]
    tested = json.loads(results["one"]["metrics.json"])["all"]["plain"]
    assert lines[-1]["all/mAP"] == pytest.approx(tested["mAP"], abs=1e-6)


# ------------------------------------------------------------------ stopped
@pytest.mark.parametrize(("rank", "at", "held"), [
    (1, (1, 3), 0),  # the process that writes no checkpoint
    (0, (2, 2), 1),  # after an evaluation in shared work, with a wrapper made when the backbone began to learn
])
def test_a_signal_to_one_process_stops_all_at_the_same_step(tiny_data, tmp_path, rank, at, held):
    words = quick_options(tiny_data, tmp_path, "MODEL.FREEZE_EPOCHS", held)
    codes, errors = train_together(2, words, "SIGTERM to the group", ("train_step", *at), rank)
    assert codes == [EXIT_STOPPED, EXIT_STOPPED], errors
    epoch, batches = at
    stopped = read_checkpoint(tmp_path / "latest.pth")
    assert (stopped["epoch"], stopped["batches"]) == (epoch - 1, batches)  # the step at work was finished


@pytest.mark.parametrize(("lost", "at"), [(0, ("train_step", 1, 3)), (1, ("train_step", 1, 3)), (0, ("build",)),
                                          (1, ("build",))])
def test_a_killed_process_ends_the_other_with_one_line(tiny_data, tmp_path, lost, at):
    words = quick_options(tiny_data, tmp_path, "SOLVER.EVAL_PERIOD", 0)
    codes, errors = train_together(2, words, "kill", at, lost)
    assert (codes[lost], codes[1 - lost]) == (-9, 2), errors
    line = errors[1 - lost].splitlines()[-1]
    assert line.startswith(f"error: process {1 - lost} of 2: process {lost} (127.0.0.1) is gone, so this one stops")


def test_a_closed_run_lets_go_of_the_process_group(tiny_opts, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        run = build(load_cfg(None, tiny_opts), workers=Workers(0, 2))
        net, reducer = run.net, weakref.ref(run.net.reducer)  # net: as the frames of an exception hold it
        assert isinstance(net, DistributedDataParallel)
        assert reducer() is not None
        run.close()
        assert (run.net, reducer()) == (None, None)
    finally:
        torch.distributed.destroy_process_group()


# ------------------------------------------------------------------ what is refused
class Pretended(Workers):
    """Says that there are others; none of the refusals may ask them anything."""


@pytest.mark.parametrize(("workers", "changes", "message"), [
    (ALONE, ["MODEL.SYNC_BN", "True", "MODEL.DEVICE", "auto"], "SYNC_BN=True: torch's synchronised batch norm works"),
    (Pretended(0, 3), [], "IMS_PER_BATCH=16 is not divisible by DATALOADER.NUM_INSTANCE=2 x 3 processes; use 12 or 18"),
    (Pretended(0, 3), ["SOLVER.ACCUMULATION_STEPS", "2"], "STEPS=2 x 3 processes; use 12 or 24"),
])
def test_what_several_processes_cannot_do_is_refused_before_the_data_are_read(
        tiny_opts, monkeypatch, workers, changes, message):
    monkeypatch.setattr(training_run, "make_dataloader", lambda *_, **__: pytest.fail("read the data first"))
    with pytest.raises(ValueError, match=message):
        build(load_cfg(None, [*tiny_opts, *changes]), workers=workers)


@pytest.mark.parametrize(("samples", "batch", "size"), [(10, 3, 2), (1, 4, 3), (12, 4, 3), (7, 1, 4), (23, 5, 7)])
def test_processes_walk_every_image_once_in_the_batches_of_one(samples, batch, size):
    whole = list(SequentialBatches(samples, batch))
    shares = [SequentialBatches(samples, batch, rank, size) for rank in range(size)]
    assert [part for share in shares for part in share] == whole
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    rows = [index for rank in range(size) for index in range(samples)[shares[0].rows(rank)]]
    assert rows == list(range(samples))
