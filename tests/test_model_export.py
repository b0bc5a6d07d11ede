"""A model's graph with a free batch: what torch.export and tracing make of every head and family."""
import pytest
import torch
from torch import nn
from trainings import TINY_BACKBONE

from configs import load_cfg
from model.backbones.resnest import SplitAttention
from model.make_model import make_model

pytestmark = pytest.mark.usefixtures("tiny_backbone")
SIZE = (64, 32)
HEADS = {
    "global": [],
    "GeM, learned": ["MODEL.POOLING_METHOD", "GeM", "MODEL.GEM_LEARN_P", True],
    "before the neck": ["TEST.NECK_FEAT", "before"],
    "merged parts": ["MODEL.IF_USE_PCB", True],
    "plain parts": ["MODEL.IF_USE_PCB", True, "TEST.USE_PCB_MERGE_FEAT", False],
    "weighted parts": ["MODEL.IF_USE_PCB", True, "TEST.USE_PCB_MERGE_FEAT", False, "TEST.PCB_PART_FEAT", "weighted"],
    "refined parts": ["MODEL.IF_USE_PCB", True, "MODEL.PCB_RPP", True],
    "local": ["MODEL.IF_USE_PCB", True, "TEST.PCB_GLOBAL_FEAT_ENSEMBLE", True],
}
SLOW = [pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet18_ibn_a", "resnet18_ibn_b", "se_resnet50_ibn_a", "resnest50", "efficientnet_b0")]


class Embedding(nn.Module):
    """A model as a function of images alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return torch.cat(list(self.model(images).values()), dim=1)


def embedding_of(name, opts=()):
    torch.manual_seed(0)
    cfg = load_cfg(None, ["MODEL.NAME", name, "MODEL.PRETRAIN_CHOICE", "none", *opts])
    return Embedding(make_model(cfg, 5)).eval()


def images_of(batch):
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))


def assert_batch_is_free(model):
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (images_of(2),), dynamic_shapes=({0: batch},)).module()
        for size in (1, 2, 7):
            images = images_of(size)
            assert torch.allclose(program(images), model(images), atol=1e-5), size


@pytest.mark.parametrize("head", HEADS)
def test_every_head_exports_with_a_free_batch(head):
    assert_batch_is_free(embedding_of(TINY_BACKBONE, HEADS[head]))


@pytest.mark.parametrize("name", ["resnet18", *SLOW])
def test_every_family_exports_with_a_free_batch(name):
    assert_batch_is_free(embedding_of(name))


def test_split_attention_exports_and_traces_with_a_free_batch():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SplitAttention(4)).eval()
    assert_batch_is_free(model)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(model, images_of(2))(images_of(5)), model(images_of(5)))


def test_a_trace_of_refined_parts_has_a_free_batch():
    model = embedding_of(TINY_BACKBONE, HEADS["refined parts"])
    with torch.no_grad():
        trace = torch.jit.trace(model, images_of(2))
        assert torch.allclose(trace(images_of(5)), model(images_of(5)), atol=1e-5)
