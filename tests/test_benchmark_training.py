"""The benchmark of training: its arms train alike, its clock misses nothing, and its table has every row."""
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from set_files import load_naic

from datasets.registry import DATASETS
from model.backbones import build_backbone
from processor.training.build import Training, build
from tools.benchmarks import harness, training, training_measure
from tools.benchmarks.harness import Job
from tools.benchmarks.reports import format_training
from tools.benchmarks.training import TrainingOptions, flop_per_image, make_options, run_benchmark
from tools.benchmarks.training_measure import (
    ARMS,
    PHASES,
    Setting,
    arm_cfg,
    batches,
    drive,
    enlarged,
    enlarged_naic,
    measure,
)
from tools.campaigns.tool_server import run_tool
from utils.meter import PhaseTimer

NET = "resnet18_ibn_b_w32"
SETTING = Setting(data="", model=NET, size=(32, 16), identities=30, batch=8, device="cpu", warmup=1, steps=2, square=64)
SMALL = {"models": (NET,), "sizes": ((32, 16),), "identities": (30,), "batch": 8, "warmup": 1, "steps": 2,
         "device": "cpu", "square": 64}


def built(arm: str, data: Path, images: int = 4) -> Training:
    with enlarged_naic(SETTING.identities, images):
        run = build(arm_cfg(arm, replace(SETTING, data=str(data))))
    run.model.train()
    return run


# ---------------------------------------------------------------------------------------------------- what trains
def test_the_textbook_and_our_step_train_alike(tiny_data):
    losses = {}
    for arm in ("textbook_float32", "ours_float32"):
        run = built(arm, tiny_data)
        losses[arm] = torch.stack(drive(ARMS[arm].make(run, False), batches(run), 3, lambda: None)[1])
        memory = torch.contiguous_format if arm.startswith("textbook") else torch.channels_last
        assert run.model.base.layer1[0].conv1.weight.is_contiguous(memory_format=memory)
    torch.testing.assert_close(losses["textbook_float32"], losses["ours_float32"], rtol=1e-3, atol=0)
    assert len(losses["ours_float32"].unique()) == 3


def test_the_textbook_has_a_group_for_each_tensor(tiny_data, monkeypatch):
    made = []

    class Remembered(training_measure.Ranger):
        def __init__(self, groups, fused):
            super().__init__(groups, fused=fused)
            made.append(self)

    monkeypatch.setattr(training_measure, "Ranger", Remembered)
    run = built("textbook_float32", tiny_data)
    training_measure.textbook(run, fp16=False)
    ours = run.optimizers[0].param_groups
    assert [len(group["params"]) for group in made[0].param_groups] == [1] * sum(len(g["params"]) for g in ours)
    assert not made[0].one_pass
    assert {(group["lr"], group["weight_decay"]) for group in made[0].param_groups} == {
        (group["lr"], group["weight_decay"]) for group in ours}


def test_the_arms_differ_in_nothing_but_their_speed(tiny_data):
    cfgs = {name: arm_cfg(name, replace(SETTING, data=str(tiny_data))) for name in ARMS}
    differing = {f"{node}.{key}" for node, keys in cfgs["ours_float32"].items() if node != "OUTPUT_DIR"
                 for key in keys if len({str(cfg[node][key]) for cfg in cfgs.values()}) > 1}
    assert differing == {"MODEL.CHANNELS_LAST", "MODEL.COMPILE", "SOLVER.FP16"}
    assert [name for name, cfg in cfgs.items() if cfg.MODEL.COMPILE] == ["ours_float32_compile", "ours_fp16_compile"]
    assert [name for name, cfg in cfgs.items() if cfg.SOLVER.FP16] == ["ours_fp16", "ours_fp16_compile"]


def test_an_enlarged_set_has_every_class_and_no_new_file(tiny_data):
    data = load_naic(tiny_data, parts=("train",))
    large = enlarged(data, 1000, 3)
    assert large.num_classes == 1000
    assert [sample.pid for sample in large.train] == [pid for pid in range(1000) for _ in range(3)]
    assert {sample.key for sample in large.train} <= {sample.key for sample in data.train}
    owner = {sample.key: sample.pid for sample in data.train}
    assert all(owner[sample.key] == sample.pid % data.num_classes for sample in large.train)
    before = DATASETS["naic"]
    with enlarged_naic(1000, 3):
        assert DATASETS["naic"].load is not before.load
    assert DATASETS["naic"] is before


def test_the_classifier_has_the_identities_that_were_asked_for(tiny_data):
    run = built("ours_float32", tiny_data)
    assert run.model.classifier.weight.shape[0] == SETTING.identities
    _, iteration, batch = next(batches(run))
    assert (iteration, tuple(batch.images.shape)) == (1, (8, 32, 16, 3))


# ------------------------------------------------------------------------------------------------------ the clock
@pytest.mark.parametrize(("apart", "waits"), [(False, 1), (True, 4 * 3 + 2)])
def test_all_time_of_a_loop_belongs_to_the_four_phases(apart, waits):
    waited = []

    def step(batch, epoch, iteration, timer: PhaseTimer):
        for phase in PHASES[1:]:
            timer.end(phase)
        return batch

    timer, losses = drive(step, iter([(1, i, torch.tensor(i)) for i in range(3)]), 3, lambda: waited.append(0), apart)
    assert set(timer.seconds) == set(PHASES)
    assert sum(timer.share(phase) for phase in PHASES) == pytest.approx(1)
    assert losses == [0, 1, 2]
    assert len(waited) == waits


def test_flop_are_those_that_torch_counts():
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    with torch.device("meta"):
        net = build_backbone(NET, 1)
        images, weight = torch.empty(2, 3, 64, 32), torch.empty(700, net.feat_dim, requires_grad=True)
        with flop_counter.FlopCounterMode(display=False) as counter:
            loss = (net(images).mean((2, 3)) @ weight.t()).sum()
            forward = counter.get_total_flops()
            loss.backward()
    assert flop_per_image(NET, (64, 32), 700) == 3 * forward / 2
    assert 0.95 < counter.get_total_flops() / 2 / flop_per_image(NET, (64, 32), 700) <= 1  # no gradient by the images


# ------------------------------------------------------------------------------------------------------ the whole
class Children:
    """Stands in for the child processes: gives figures, and remembers what was asked for."""

    def __init__(self, monkeypatch, **speeds: list[float]) -> None:
        self.speeds, self.asked = speeds, []
        monkeypatch.setattr(harness, "run_child", self)

    def __call__(self, module: str, job: Job, tuned_malloc: bool) -> dict:
        assert tuned_malloc
        self.asked.append((job.setting.identities, job.what))
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent == Path(job.result).parent
        speed = self.speeds[job.what].pop(0)
        if not isinstance(speed, (int, float)):
            return speed()
        return {"images_per_second": speed, "shares": dict(zip(PHASES, (0.1, 0.2, 0.3, 0.4), strict=True)),
                "first_step_seconds": speed, "first_loss": 7.125, "type": "float32", "peak": 2e10, "workers": 2}


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(training, "draw_pictures", lambda folder: None)


def fail() -> dict:
    raise RuntimeError("failed with code -9")


def test_arms_take_turns_and_the_median_counts(monkeypatch, no_pictures):
    children = Children(monkeypatch, textbook_float32=[20, 30, 10, 10, 10, 10], ours_float32=[25, 40, 30, 40, 40, 40])
    usual = dict(os.environ)
    options = TrainingOptions(**{**SMALL, "identities": (30, 52_000)}, arms=("textbook_float32", "ours_float32"))
    report = run_benchmark(options)
    assert dict(os.environ) == usual
    turn = ["textbook_float32", "ours_float32"]
    assert children.asked == [(30, what) for what in turn * 3] + [(52_000, what) for what in turn * 3]
    ours = report["rows"][1]
    assert (ours["images_per_second"], ours["times"], ours["first_step_seconds"]) == (30, {"textbook_float32": 1.5}, 25)
    flops = 30 * flop_per_image(NET, (32, 16), 30)
    assert (f"| {NET} | 32x16 | 30 | ours, float32 | 3 | 30.0 | 1.50 | 10.0 % | 20.0 % | 30.0 % | 40.0 % | "
            f"{flops / 1e12:.3g} | {100 * flops / 2e10:.1f} % | 25.0 | 7.125 |" in format_training(report))
    assert "| 52,000 | ours, float32 | 3 | 40.0 | 4.00 |" in format_training(report)
    assert json.loads(json.dumps(report))["plan"]["repeats"] == 3


def test_what_fails_or_cannot_run_has_a_note_in_the_table(monkeypatch, no_pictures):
    monkeypatch.setattr(training, "cpu_has_bfloat16", lambda: False)
    Children(monkeypatch, textbook_float32=[fail], ours_float32_compile=[30, 30],
             ours_float32=[30, lambda: {"note": "out of the device's memory"}])
    arms = ("textbook_float32", "ours_float32", "ours_fp16", "textbook_fp16", "ours_float32_compile")
    table = format_training(run_benchmark(TrainingOptions(**SMALL, arms=arms, repeats=2)))
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(f"| {NET}")]
    assert [row[3] for row in rows] == [ARMS[arm].title.format(half="bfloat16") for arm in arms]
    assert [row[5] for row in rows] == [
        "failed with code -9", "out of the device's memory", "this processor has no bfloat16 products",
        "float16 needs CUDA", "30.0"]
    assert len({len(row) for row in rows}) == 1
    assert rows[-1][6] == "–"  # nothing to compare with


def test_a_full_device_is_a_note(monkeypatch):
    def full(job):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training_measure, "train", full)
    assert measure(Job("ours_float32", SETTING, "")) == {"note": "out of the device's memory"}


@pytest.mark.parametrize(("change", "message"), [
    ({"models": ("resnet51",)}, "resnet51"),
    ({"batch": 9}, "IMS_PER_BATCH=9 is not divisible .* use 8 or 10"),
    ({"identities": (3,)}, "3 identities are too few: a batch of 8 has 4"),
    ({"steps": 0}, "at least one step"),
])
def test_what_is_out_of_range_is_refused_before_anything_runs(change, message, monkeypatch):
    monkeypatch.setattr(harness, "run_child", None)
    with pytest.raises(ValueError, match=message):
        run_benchmark(TrainingOptions(**{**SMALL, **change}, arms=("ours_float32",)))


def test_the_options_of_a_command_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(training, "cpu_has_bfloat16", lambda: True)
    options = make_options("auto", False, None, None, steps=None, batch=64)
    assert (options.models, options.sizes, options.batch, options.steps) == (("resnet50_ibn_a",), ((128, 64),), 64, 12)
    assert options.arms == tuple(name for name in ARMS if name != "textbook_fp16")
    transformer = options.settings()[-1]
    assert (transformer.model, transformer.size, transformer.batch) == ("vit_small", (256, 128), 8)
    assert [setting.model for setting in make_options("cpu", False, ["64x32"], None).settings()] == ["resnet50_ibn_a"]
    assert [s.model for s in make_options("cpu", False, None, None, models=["vit_tiny"]).settings()] == ["vit_tiny"]
    large = make_options("cpu", True, None, None)
    assert len(large.settings()) == 9
    assert make_options("cpu", True, ["384x192"], None).sizes == ((384, 192),)
    with pytest.raises(ValueError, match="unknown arm 'theirs'; choose from textbook_float"):
        make_options("cpu", False, None, ["theirs"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = make_options("auto", False, None, None)
    assert (len(options.settings()), options.arms) == (13, tuple(ARMS))


@pytest.mark.slow
def test_the_tool_prints_every_row_and_leaves_nothing(tmp_path):
    (tmp_path / "temporary").mkdir()
    words = ["--models", NET, "--sizes", "32x16", "--identities", "30", "--batch", "8", "--steps", "2", "--warmup", "0",
             "--repeats", "1", "--square", "64", "--device", "cpu", "--arms", "textbook_float32", "ours_float32",
             "--json", str(tmp_path / "raw.json")]
    # torch itself makes a folder of compiled code beside its temporary files
    done = run_tool("benchmark", "train", *words, cwd=tmp_path, seconds=400,
                    env={"TMPDIR": tmp_path / "temporary", "TORCHINDUCTOR_CACHE_DIR": tmp_path / "inductor"})
    assert done.returncode == 0, done.stderr
    cells = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith(f"| {NET}")]
    assert [row[3] for row in cells] == ["textbook, float32", "ours, float32"]
    raw = json.loads((tmp_path / "raw.json").read_text())
    for row in raw["rows"]:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert min(row["shares"].values()) > 0
        assert row["images_per_second"] > 0
        assert row["type"] == "float32"
    first, second = raw["rows"]
    assert first["first_loss"] == pytest.approx(second["first_loss"], rel=1e-4)
    assert second["times"]["textbook_float32"] == second["images_per_second"] / first["images_per_second"]
    assert not list((tmp_path / "temporary").iterdir())
