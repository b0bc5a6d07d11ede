"""In training an instance norm leaves channels last what came so, and the values are those of torch's."""
import pytest
import torch
from torch import nn

from model.backbones import build_backbone
from model.backbones.norms import InstanceNorm2d
from model.backbones.resnet_ibn_a import IBN


@pytest.mark.parametrize("make", [lambda: IBN(8), lambda: InstanceNorm2d(8, affine=True)])
def test_the_format_is_kept_in_training_and_values_are_the_same(make):
    torch.manual_seed(0)
    norm, x = make(), torch.randn(2, 8, 5, 4)
    plain = norm(x)
    assert plain.is_contiguous()
    last = norm(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain)
    assert norm.eval()(x.to(memory_format=torch.channels_last)).is_contiguous()  # as it always was


@pytest.mark.parametrize("name", ["resnet18_ibn_a", "resnet18_ibn_b_w32"])
def test_every_map_of_a_channels_last_network_is(name):
    network = build_backbone(name).to(memory_format=torch.channels_last).train()
    other = []
    for path, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ReLU)):
            module.register_forward_pre_hook(
                lambda _, args, path=path: other.append(path)
                if not args[0].is_contiguous(memory_format=torch.channels_last) else None)
    network(torch.randn(2, 3, 64, 32).to(memory_format=torch.channels_last))
    assert not other
