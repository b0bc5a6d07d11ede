"""A training that learns from a teacher: who that is, what it sees, and that all else stays exact."""
import logging
import re

import pytest
import torch
from conftest import quick_options
from trainings import assert_same_state, log_lines

from configs import ConfigError, dump_cfg, load_cfg
from datasets.transforms import Normalize
from processor import trainer
from processor.export.model_folder import feature_weights, write_model_folder
from processor.export.networks import OnePassNet
from processor.export.onnx_file import write_onnx
from processor.stages.facts import training_data
from processor.trained_model import open_trained
from processor.trainer import do_train, dry_run
from processor.training.build import build
from processor.training.teacher import open_teacher
from processor.training.used_folder import checkpoint_files
from tools.pipeline import _PATHS
from utils.checkpoint import CHECKSUM, read_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("tiny_backbone")
EVERY_STEP = ["SOLVER.CHECKPOINT_SECONDS", "1e-9"]


def options(tiny_data, folder, *changes):
    return quick_options(tiny_data, folder, "SOLVER.MAX_EPOCHS", 1, "SOLVER.STEPS", "[]", "SOLVER.EVAL_PERIOD", 0,
                         *changes)


@pytest.fixture(scope="module")
def teacher(tiny_data, tmp_path_factory):
    """The checkpoint of a training at another size, with other pixels and a wider feature."""
    folder = tmp_path_factory.mktemp("teacher")
    do_train(load_cfg(None, options(tiny_data, folder, "INPUT.SIZE_TRAIN", "[40, 20]", "INPUT.SIZE_TEST", "[40, 20]",
                                    "INPUT.PIXEL_MEAN", "[0.5,0.5,0.5]", "INPUT.PIXEL_STD", "[0.25,0.5,0.5]")))
    return folder / "latest.pth"


@pytest.fixture(scope="module")
def folder_of(teacher, tmp_path_factory):
    """The teacher's model folder, and its .onnx beside."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("exported")
    trained = open_trained(teacher)
    write_model_folder(folder, trained.info, feature_weights(trained.model))
    write_onnx(trained.network(OnePassNet), trained.info, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def whole(tiny_data, teacher, tmp_path_factory):
    """A student's folder; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    do_train(load_cfg(None, options(tiny_data, folder, "SOLVER.DISTILL_FROM", teacher, "MODEL.EMBED_DIM", 16)))
    return folder


# ------------------------------------------------------------------ exact
def test_a_student_that_was_stopped_goes_on_to_the_same_bits_and_its_checkpoint_is_its_own(
        tiny_data, teacher, whole, tmp_path, monkeypatch):
    cfg = load_cfg(None, [*options(tiny_data, tmp_path, "SOLVER.DISTILL_FROM", teacher, "MODEL.EMBED_DIM", 16),
                          *EVERY_STEP])
    step = trainer.train_step

    def stop(run, batch, epoch, iteration, timer):
        if iteration == 4:
            raise RuntimeError("stopped here")
        return step(run, batch, epoch, iteration, timer)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", stop)
        with pytest.raises(RuntimeError, match="stopped here"):
            do_train(cfg)
    assert read_checkpoint(tmp_path / "latest.pth")["batches"] == 3
    do_train(cfg, resume="auto")
    first, second = (read_checkpoint(folder / "latest.pth") for folder in (tmp_path, whole))
    assert_same_state(first, second)
    lines = log_lines(whole)
    assert log_lines(tmp_path) == lines
    assert all(line[name] >= 0 for line in lines if "loss" in line for name in ("rkd_distance", "rkd_angle", "kd"))
    plain = build(load_cfg(None, options(tiny_data, tmp_path / "plain", "MODEL.EMBED_DIM", 16)))
    assert first["model"].keys() == plain.model.state_dict().keys()
    assert [[len(group["params"]) for group in optimizer["param_groups"]] for optimizer in first["optimizers"]] == [
        [len(group["params"]) for group in optimizer.param_groups] for optimizer in plain.optimizers]


@pytest.mark.parametrize(("changes", "named"), [
    (["SOLVER.DISTILL_FROM", ""], "SOLVER.DISTILL_FROM is no teacher"),
    (["SOLVER.DISTILL_FROM", "ANOTHER"], "SOLVER.DISTILL_FROM is the teacher .*other.pth"),
    (["SOLVER.DISTILL_WEIGHT", "2"], r"SOLVER.DISTILL_WEIGHT was 1\.0 and is 2\.0"),
    (["SOLVER.DISTILL_TEMPERATURE", "2"], r"SOLVER.DISTILL_TEMPERATURE was 4\.0 and is 2\.0"),
    (["MODEL.EMBED_DIM", "8"], "MODEL.EMBED_DIM was 16 and is 8"),
])
def test_another_teacher_is_refused_at_resume_as_other_settings_are(tiny_data, teacher, whole, tmp_path, changes,
                                                                   named):
    other = tmp_path / "other.pth"
    checkpoint = read_checkpoint(teacher)
    checkpoint["model"]["bottleneck.weight"][0] += 1
    save_checkpoint(other, {key: value for key, value in checkpoint.items() if key != CHECKSUM})
    words = [str(other) if word == "ANOTHER" else word for word in changes]
    cfg = load_cfg(None, [*options(tiny_data, whole, "SOLVER.DISTILL_FROM", teacher, "MODEL.EMBED_DIM", 16), *words])
    with pytest.raises(ValueError, match=named):
        do_train(cfg, resume="auto")


def test_the_same_teacher_elsewhere_is_the_same(tiny_data, teacher, whole, tmp_path):
    moved = tmp_path / "moved.pth"
    moved.write_bytes(teacher.read_bytes())
    do_train(load_cfg(None, options(tiny_data, whole, "SOLVER.DISTILL_FROM", moved, "MODEL.EMBED_DIM", 16)),
             resume="auto")


def test_a_teacher_shifts_no_draw_of_the_student_and_stays_as_it_is(tiny_data, teacher, tmp_path):
    opts = options(tiny_data, tmp_path)
    taught, plain = build(load_cfg(None, [*opts, "SOLVER.DISTILL_FROM", str(teacher)])), build(load_cfg(None, opts))
    for key, value in plain.model.state_dict().items():
        assert torch.equal(taught.model.state_dict()[key], value), key
    before = {key: value.clone() for key, value in taught.teacher.model.state_dict().items()}
    trainer.measure(taught)
    assert not taught.teacher.model.training
    assert all(torch.equal(value, before[key]) for key, value in taught.teacher.model.state_dict().items())
    assert not any(p.requires_grad for p in taught.teacher.model.parameters())
    assert set(taught.criterion.state_dict()) == set(plain.criterion.state_dict())


# ------------------------------------------------------------------ what it sees and says
def test_the_teacher_sees_the_students_pictures_at_its_own_size_with_its_own_pixels(teacher):
    torch.manual_seed(0)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    pixels = torch.randint(0, 256, (3, 40, 20, 3), dtype=torch.uint8)
    images = Normalize(mean, std)(pixels)
    taught = open_teacher(str(teacher), "cpu")
    taught.place(torch.device("cpu"), True, mean, std)
    with torch.no_grad():
        own = taught.model.base(Normalize([0.5] * 3, [0.25, 0.5, 0.5])(pixels))
        expected = taught.model.gap(own)
    torch.testing.assert_close(taught.targets(images, {}).feat, expected, rtol=1e-4, atol=1e-4)
    twice = torch.nn.functional.interpolate(images, (80, 40), mode="nearest")
    assert taught.targets(twice, {}).feat.shape == expected.shape
    torch.testing.assert_close(images, Normalize(mean, std)(pixels))


@pytest.mark.parametrize(("kind", "changes", "said"), [
    ("checkpoint", [], "relations and logits"),
    ("checkpoint", ["DATASETS.TRAIN_SETS", "['2020_cs']", "SOLVER.IMS_PER_BATCH", "8"],
     "because its classes are others .* of the"),
    ("checkpoint", ["DATALOADER.SAMPLER", "triplet", "MODEL.METRIC_LOSS_TYPE", "triplet", "MODEL.IF_WITH_CENTER", "no"],
     "because there is no ID loss"),
    ("folder", [], "because the file has no classifier"),
    ("onnx", [], "because the file has no classifier"),
])
def test_what_is_learned_is_said_and_trains_a_step(tiny_data, teacher, folder_of, tmp_path, caplog, kind, changes,
                                                   said):
    file = {"checkpoint": teacher, "folder": folder_of, "onnx": folder_of / "model.onnx"}[kind]
    cfg = load_cfg(None, [*options(tiny_data, tmp_path, "SOLVER.DISTILL_FROM", file), *changes])
    with caplog.at_level(logging.INFO):
        text = dry_run(cfg)
    for words in (text, caplog.text):
        assert file.name in words
        assert re.search(said, words)
    assert "teacher " in text.partition("a step")[2]  # its share of the time


def test_an_exported_teacher_has_the_relations_of_its_rows(teacher, folder_of):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 40, 20, 3), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    exported = open_teacher(str(folder_of / "model.onnx"), "cpu")
    exported.place(torch.device("cpu"), True, mean, std)
    with torch.no_grad():
        rows = open_trained(teacher).network()(pixels)
    torch.testing.assert_close(exported.targets(Normalize(mean, std)(pixels), {}).feat, rows, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ mistakes, and the run that has stages
@pytest.mark.parametrize(("content", "named"), [
    (None, "teacher.pth"), (b"no checkpoint", "teacher.pth"),
    ({"model": {"a": torch.zeros(1)}}, "without the config that they were trained with"),
])
def test_a_bad_teacher_is_one_line_that_names_the_key_and_the_file(tiny_data, tmp_path, content, named):
    path = tmp_path / "teacher.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(ValueError, match=named) as error:
        build(load_cfg(None, options(tiny_data, tmp_path / "out", "SOLVER.DISTILL_FROM", path)))
    assert str(error.value).startswith("SOLVER.DISTILL_FROM: ")
    assert "\n" not in str(error.value)
    assert not checkpoint_files(tmp_path / "out")


def test_a_weight_of_nothing_with_a_teacher_is_refused():
    with pytest.raises(ConfigError, match=r"SOLVER\.DISTILL_WEIGHT=0\.0 switches off"):
        load_cfg(None, ["SOLVER.DISTILL_FROM", "a.pth", "SOLVER.DISTILL_WEIGHT", "0"])


def test_a_stage_knows_its_teacher_by_what_is_in_the_file(tiny_data, teacher, folder_of, tmp_path):
    facts = [training_data(load_cfg(None, options(tiny_data, tmp_path, "SOLVER.DISTILL_FROM", file)))
             ["the teacher of SOLVER.DISTILL_FROM"] for file in ("", teacher, folder_of, tmp_path / "none")]
    assert (facts[0], facts[3]) == ("none", "missing")
    assert len({*facts}) == 4
    assert "SOLVER.DISTILL_FROM" in _PATHS
    assert "DISTILL_FROM" in dump_cfg(load_cfg(None, []))
