"""The average of the weights, and that it is what is tested."""
import json

import numpy as np
import pytest
import torch
from conftest import quick_options
from torch import nn

from configs import load_cfg
from model.pretrained import MODEL_HEADS
from processor import trainer
from processor.inference import do_inference, load_trained
from processor.trainer import do_train
from solver.ema import WeightAverage
from utils.checkpoint import read_checkpoint


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def move(model, seed):
    """Other weights and statistics, as after a step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                assert name == "1.num_batches_tracked"
                tensor.add_(1)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_a_loop_in_float64(decay):
    model = network()
    average = WeightAverage(model, decay)
    expected = {name: tensor.double().numpy().copy() for name, tensor in model.state_dict().items()}
    for step in range(1, 31):
        move(model, step)
        average.update()
        share = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            new = tensor.double().numpy()
            expected[name] = share * expected[name] + (1 - share) * new if tensor.is_floating_point() else new
    for name, tensor in average.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert int(average.steps) == 30
    assert average.state_dict()["1.num_batches_tracked"] == 30


def test_a_step_that_was_not_taken_leaves_the_average():
    model = network()
    average, other = WeightAverage(model, 0.9), WeightAverage(model, 0.9)
    for step in range(4):
        move(model, step)
        average.update(torch.tensor(True))
        other.update()
        before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        move(model, 99)
        model.state_dict()["1.num_batches_tracked"].sub_(1)  # a skipped step takes its counter back
        average.update(torch.tensor(False))
        for name, tensor in average.state_dict().items():
            assert torch.equal(tensor, before[name])
        model.load_state_dict(kept)
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_model_has_its_own_weights_again_to_the_bit(ends_well):
    model = network()
    average = WeightAverage(model, 0.9)
    for step in range(3):
        move(model, step)
        average.update()
    learned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        with average.applied():
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, average.state_dict()[name])
            assert not torch.equal(model[0].weight, learned["0.weight"])
            if not ends_well:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, learned[name])


@pytest.mark.parametrize("kind", [int, torch.as_tensor])
def test_a_restored_average_goes_on_as_it_would_have(kind):
    model = network()
    average = WeightAverage(model, 0.9)
    for step in range(3):
        move(model, step)
        average.update()
    restored = WeightAverage(model, 0.9)
    restored.load_state_dict({name: tensor.clone() for name, tensor in average.state_dict().items()},
                             kind(int(average.steps)))
    move(model, 3)
    average.update()
    restored.update()
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])
    assert torch.equal(average.steps, restored.steps)


def test_a_model_without_counters_has_an_average():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.zero_()
    average.update()
    assert average.state_dict()["weight"].abs().max() > 0


# ------------------------------------------------------------------ in a training
@pytest.mark.usefixtures("tiny_backbone")
def test_the_average_is_what_evaluation_and_test_use(tiny_data, tmp_path, monkeypatch):
    changes = ("SOLVER.MAX_EPOCHS", 2, "SOLVER.STEPS", "[]", "SOLVER.BASE_LR", 0.03, "SOLVER.WARMUP_EPOCHS", 0,
               "SOLVER.OPTIMIZER_NAME", "Adam", "TEST.RE_RANKING", False)
    evaluate, tested, as_learned = trainer.evaluate, [], []

    def evaluate_and_record(cfg, model, *others):
        tested.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return evaluate(cfg, model, *others)

    monkeypatch.setattr(trainer, "evaluate", evaluate_and_record)
    weight = do_train(load_cfg(None, quick_options(tiny_data, tmp_path / "model", *changes)))
    checkpoint = read_checkpoint(weight)
    for name, tensor in tested[-1].items():
        assert torch.equal(tensor, checkpoint["ema"][name])
        as_learned.append(torch.equal(tensor, checkpoint["model"][name]))
    assert not all(as_learned)
    cfg = load_cfg(None, [*quick_options(tiny_data, tmp_path / "test", *changes), "TEST.WEIGHT", str(weight)])
    for name, tensor in load_trained(cfg, weight).state_dict().items():
        assert name.startswith(MODEL_HEADS) or torch.equal(tensor, checkpoint["ema"][name])
    metrics = do_inference(cfg)
    last = json.loads((tmp_path / "model" / "metrics.jsonl").read_text().splitlines()[-1])
    for domain in ("all", "green", "normal"):
        for name in ("mAP", "rank1", "mINP"):
            assert last[f"{domain}/{name}"] == metrics[domain]["plain"][name]
