"""Published re-ID networks against golden features: weights by the upstream's keys, outputs of the upstream's code."""
import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.backbones import build_backbone
from model.pooling import POOLINGS
from model.pretrained import load_weights

GOLDEN = Path(__file__).parent / "golden"


def load_fill_tokens():
    """tests/golden/networks/fill_tokens.py as a module; it imports fill.py, which lies a folder higher."""
    path = GOLDEN / "networks" / "fill_tokens.py"
    spec = importlib.util.spec_from_file_location("golden_fill_tokens", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(GOLDEN))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(GOLDEN))
    return module


tokens = load_fill_tokens()
# What stands before a backbone's names in the files of its upstream, by the first word of a golden network's name.
PREFIXES = {"fastreid": "backbone.", "torchreid": "", "solider": "base.", "clipreid": "image_encoder."}
# (golden network, our name, case, settings of our constructor).
FASTREID = [
    ("fastreid_sbs_R50-ibn", "fastreid_r50_ibn_nl", "236x108", {}),
    ("fastreid_sbs_R50-ibn", "fastreid_r50_ibn_nl", "384x128", {}),
    ("fastreid_sbs_R50-ibn", "fastreid_r50_ibn_nl", "256x128", {}),
    ("fastreid_bot_R50-ibn", "fastreid_r50_ibn", "236x108", {}),
    ("fastreid_bot_R50-ibn", "fastreid_r50_ibn", "384x128", {}),
    ("fastreid_bot_R50-ibn", "fastreid_r50_ibn", "256x128", {}),
]


def with_slow(cases):
    """The first case of a family in the quick suite, the others slow."""
    return [pytest.param(*case, id="-".join(map(str, case[:3])), marks=[pytest.mark.slow] if i else [])
            for i, case in enumerate(cases)]


def size_of(case):
    return tuple(int(n) for n in case.partition("_")[0].split("x"))


def image_of(case):
    return torch.from_numpy(tokens.golden_image(*size_of(case), batch=2 if case.startswith("256x128") else 1))


@functools.cache
def weights_of(golden, case):
    """The file of the upstream, classifier included."""
    return tokens.golden_checkpoint(f"{golden}.keys.json", case)


def load_golden(golden, name, case, settings, **renamed):
    """Our backbone with the weights of the upstream's file; all of its weights must be there."""
    prefix = PREFIXES[golden.partition("_")[0]]
    weights = weights_of(golden, case)
    inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    with torch.device("meta"):
        shapes = build_backbone(name, **settings)
    net = shapes.to_empty(device="cpu").eval()
    load_weights(net, {**inner, **renamed}, golden, skip=("classifier",))
    return net, weights


def complaints(golden, case, outputs):
    archive = np.load(GOLDEN / "networks" / f"{golden}.npz")
    return tokens.compare_case(archive, case, {item: value.numpy() for item, value in outputs.items()})


@pytest.mark.parametrize(("golden", "name", "case", "settings"), with_slow(FASTREID))
@torch.no_grad()
def test_fast_reids_networks_give_its_maps_and_its_pooled_features(golden, name, case, settings):
    net, weights = load_golden(golden, name, case, settings)
    x = net(image_of(case))
    pool = POOLINGS["GeM" if "sbs" in golden else "avg"](float(weights.get("heads.pool_layer.p", [1.0])[0]), False)
    assert complaints(golden, case, {"map": x, "emb_pooled": pool(x)}) == []


def test_a_non_local_block_is_the_sum_over_all_pairs_of_positions():
    torch.manual_seed(0)
    block = build_backbone("fastreid_r50_nl").NL_2[0].eval()
    torch.nn.init.ones_(block.W[1].weight)
    x = torch.randn(2, 512, 3, 2)
    with torch.no_grad():
        theta, phi, g = (layer(x).flatten(2) for layer in (block.theta, block.phi, block.g))  # [B, 1, N]
        y = (theta.transpose(1, 2) @ phi / 6 @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 2))
        torch.testing.assert_close(block(x), x + block.W(y))
