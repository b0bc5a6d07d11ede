"""The quick backward pass of depthwise convolutions gives the gradients of the usual one, and changes nothing else."""
import copy

import pytest
import torch
from torch import nn

from configs import load_cfg
from model.backbones import build_backbone
from model.backbones.depthwise import _Depthwise, quicken_depthwise
from model.make_model import make_model, place_model


def pair(conv):
    """The convolution as it is, and quickened."""
    quick = nn.ModuleList([copy.deepcopy(conv)])  # the model around it is what is changed
    quicken_depthwise(quick)
    return conv, quick[0]


def gradients(conv, x, weights):
    """Of the input and the weights, and the output, with a loss that no two positions weigh alike in."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    out = conv(x)
    (out * weights[:, :, :out.shape[2], :out.shape[3]]).sum().backward()
    return x.grad, *(parameter.grad.clone() for parameter in conv.parameters()), out.detach()


def same_padded(*args, **kwargs):
    """efficientnet-pytorch's convolution."""
    from efficientnet_pytorch.utils import Conv2dDynamicSamePadding

    kwargs.pop("padding")
    return Conv2dDynamicSamePadding(*args, **kwargs)


@pytest.mark.parametrize("kind", [nn.Conv2d, same_padded])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (5, 2), (7, 1), (3, 2), ((4, 7), (2, 1))])
@pytest.mark.parametrize("channels_last", [True, False])
def test_gradients_are_those_of_conv2d(kind, kernel, stride, channels_last):
    torch.manual_seed(0)
    if kind is same_padded and isinstance(kernel, tuple):
        stride = 1  # the package has one stride for both axes
    conv, quick = pair(kind(6, 6, kernel, stride=stride, padding=2, groups=6, bias=True).double())
    x = torch.randn(2, 6, 11, 8, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    weights = torch.randn(2, 6, 16, 16, dtype=torch.float64)
    assert type(quick) is not type(conv)
    assert isinstance(quick, type(conv))
    for ours, theirs in zip(gradients(quick, x, weights), gradients(conv, x, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 4, 7, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_map_may_be_narrower_than_the_kernel(width, stride):
    torch.manual_seed(0)
    conv, quick = pair(nn.Conv2d(3, 3, 7, stride=stride, padding=3, groups=3).double())
    x, weights = torch.randn(2, 3, 2, width, dtype=torch.float64), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for ours, theirs in zip(gradients(quick, x, weights), gradients(conv, x, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradient_holds_against_finite_differences_and_can_be_differentiated_again():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _Depthwise.apply(x, w, (2, 1), (2, 1)), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: _Depthwise.apply(x, w, (2, 1), (2, 1)), (x, weight))


@pytest.mark.parametrize("stride", [1, 2])
def test_under_autocast_it_is_as_near_to_float64_as_conv2d_is(stride):
    torch.manual_seed(0)
    conv, quick = pair(nn.Conv2d(16, 16, 5, stride=stride, padding=2, groups=16, bias=False))
    exact = copy.deepcopy(conv).double()
    x, weights = torch.randn(4, 16, 16, 8), torch.randn(4, 16, 16, 8)
    truth = gradients(exact, x.double(), weights.double())
    with torch.autocast("cpu", torch.bfloat16):
        results = [gradients(module, x, weights) for module in (conv, quick)]
    assert results[1][-1].dtype == torch.bfloat16
    for usual, ours, true in zip(*results, truth, strict=True):
        assert ours.dtype == usual.dtype
        errors = [float((value - true).norm() / true.norm()) for value in (usual, ours)]
        assert errors[1] <= 1.5 * errors[0] < 0.02


def test_only_depthwise_convolutions_with_a_slow_backward_pass_are_changed():
    backbone = build_backbone("efficientnet_lite0")
    names, kinds = list(backbone.state_dict()), {name: type(m) for name, m in backbone.named_modules()}
    quicken_depthwise(backbone)
    changed = [name for name, module in backbone.named_modules() if type(module) is not kinds[name]]
    assert changed
    assert all(name.endswith("_depthwise_conv") for name in changed)
    slow = [name for name, module in backbone.named_modules() if name.endswith("_depthwise_conv")
            and (module.kernel_size[0] > 3 or module.stride[0] > 1)]
    assert changed == slow
    assert list(backbone.state_dict()) == names
    quicken_depthwise(backbone)  # once more is no harm


@pytest.mark.parametrize("evaluated", [True, False])
def test_the_usual_way_is_gone_without_gradients(evaluated, monkeypatch):
    conv, quick = pair(nn.Conv2d(4, 4, 5, padding=2, groups=4))
    monkeypatch.setattr(_Depthwise, "apply", None)  # to call it would raise
    x = torch.randn(1, 4, 8, 8)
    with torch.set_grad_enabled(evaluated):
        assert torch.equal(quick.train(not evaluated)(x), conv(x))
    with pytest.raises(TypeError):
        quick.train()(x)


def test_a_model_on_the_cpu_has_it_in_channels_last_alone():
    for channels_last in (True, False):
        cfg = load_cfg(None, ["MODEL.NAME", "efficientnet_lite0", "MODEL.PRETRAIN_CHOICE", "none",
                            "MODEL.CHANNELS_LAST", str(channels_last)])
        model = place_model(cfg, make_model(cfg, 4), torch.device("cpu"))
        depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 5]
        assert depthwise
        assert all((type(m).__module__ == "model.backbones.depthwise") == channels_last for m in depthwise)
