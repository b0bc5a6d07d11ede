"""A few training steps of the small net with every ID loss and metric loss: the whole chain learns."""
import itertools

import pytest
import torch

from configs.defaults import get_cfg_defaults
from loss.make_loss import METRIC_LOSSES, make_loss
from model.classifiers import CLASSIFIERS
from model.make_model import make_model
from solver.make_optimizer import OPTIMIZERS, make_optimizer, make_scheduler

PIDS = torch.arange(4).repeat_interleave(2)


def train(steps=6, **keys):
    """Losses of `steps` steps on one batch of 4 x 2 images."""
    cfg = get_cfg_defaults()
    keys = {
        "MODEL__NAME": "resnet18_ibn_b_w32", "MODEL__PRETRAIN_CHOICE": "none", "DATALOADER__SAMPLER": "softmax_triplet",
        "SOLVER__WARMUP_EPOCHS": 0, "SOLVER__BASE_LR": 1e-3, "SOLVER__CENTER_LR": 0.5, **keys,
    }
    for key, value in keys.items():
        node, name = key.split("__")
        cfg[node][name] = value
    torch.manual_seed(0)
    model = make_model(cfg, 4).train()
    criterion = make_loss(cfg, 4, model.feat_dims)
    optimizers = [o for o in make_optimizer(cfg, model, criterion) if o is not None]
    make_scheduler(cfg, optimizers[0])
    images = torch.randn(8, 3, 32, 16)
    losses = []
    for _ in range(steps):
        total, _ = criterion(model(images, PIDS), PIDS)
        total.backward()
        criterion.unweight_center_gradient()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(total.item())
    return losses


CHOICES = {
    "MODEL__ID_LOSS_TYPE": tuple(CLASSIFIERS), "MODEL__METRIC_LOSS_TYPE": tuple(METRIC_LOSSES),
    "MODEL__IF_LABELSMOOTH": (True, False), "MODEL__NECK": ("bnneck", "no"), "MODEL__IF_USE_PCB": (True, False),
}


def covering(choices):
    """Combinations in which every pair of two keys' values stands once at least; chosen greedily."""
    def pairs(values):
        return set(itertools.combinations(enumerate(values), 2))

    everything = list(itertools.product(*choices.values()))
    left, chosen = set().union(*map(pairs, everything)), []
    while left:
        best = max(everything, key=lambda values: len(pairs(values) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


COVERING = covering(CHOICES)
PRODUCT = [values if values in COVERING else pytest.param(*values, marks=pytest.mark.slow)
           for values in itertools.product(*CHOICES.values())]


def test_the_covering_set_has_every_pair_and_is_small():
    seen = {pair for values in COVERING for pair in itertools.combinations(enumerate(values), 2)}
    assert len(seen) == sum(len(a) * len(b) for a, b in itertools.combinations(CHOICES.values(), 2))
    assert len(COVERING) < 45 < len(PRODUCT)


@pytest.mark.parametrize(tuple(CHOICES), PRODUCT)
def test_loss_falls_with_every_combination(request, MODEL__ID_LOSS_TYPE, MODEL__METRIC_LOSS_TYPE,
                                           MODEL__IF_LABELSMOOTH, MODEL__NECK, MODEL__IF_USE_PCB):
    losses = train(**{key: request.node.callspec.params[key] for key in CHOICES}, SOLVER__COSINE_MARGIN=0.3)
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_falls_with_every_optimizer(name):
    losses = train(SOLVER__OPTIMIZER_NAME=name, MODEL__WEIGHTED_TRIPLET=True, MODEL__NO_MARGIN=True,
                   MODEL__POOLING_METHOD="GeM", MODEL__GEM_LEARN_P=True, MODEL__ID_LOSS_TYPE="arcface")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("sampler", ["softmax", "triplet"])
def test_loss_falls_with_one_kind_of_loss_alone(sampler):
    losses = train(DATALOADER__SAMPLER=sampler, MODEL__NO_MARGIN=True)
    assert losses[-1] < losses[0]
