"""Depthwise convolutions whose backward pass is quick on a CPU, too.

oneDNN has no depthwise kernel for two of their gradients and takes others, up to a hundred times as long: for that of
the weights where kernels are wider than 3, and in bfloat16 for that of the input at a stride. The first is put together
from pieces of 2 or 3 columns, each a convolution's gradient of its own, and the second is computed in float32. Nothing
but the training's backward pass is changed: neither parameters, nor the forward pass, nor what is exported.
"""
from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDEST = 3  # kernel whose weights' gradient oneDNN's depthwise code computes


def quicken_depthwise(model: nn.Module) -> None:
    """Give the depthwise convolutions of a model the quick backward pass, in place; others stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, _Quick) and _needs_it(module):
            module.__class__ = _quick(type(module))


def _needs_it(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    plain = conv.padding_mode == "zeros" and tuple(conv.dilation) == (1, 1) and not isinstance(conv.padding, str)
    known = type(conv).forward is nn.Conv2d.forward or type(conv).__name__ in _SAME
    return depthwise and plain and known and (conv.kernel_size[1] > WIDEST or max(conv.stride) > 1)


# Classes of efficientnet-pytorch and of timm that pad as TensorFlow's SAME does, by the size of the map.
_SAME = ("Conv2dDynamicSamePadding", "Conv2dSame")


class _Quick:
    """Before a class of convolution: in training on a CPU, another way to the same gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and x.device.type == "cpu"):
            return super().forward(x)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):  # a function of autograd is not cast by itself
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        (top, bottom), (left, right) = (self._padding(x, axis) for axis in (0, 1))
        if top != bottom or left != right:
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        out = _Depthwise.apply(x, weight, tuple(self.stride), (top, left))
        return out if bias is None else out + bias[:, None, None]

    def _padding(self, x: Tensor, axis: int) -> tuple[int, int]:
        """Zeros before and behind the map's rows (axis 0) or columns (1)."""
        if type(self).__name__ not in _SAME:
            return (self.padding[axis],) * 2
        size, stride, kernel = x.shape[2 + axis], self.stride[axis], self.kernel_size[axis]
        zeros = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return zeros // 2, zeros - zeros // 2


@cache
def _quick(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    return type(kind.__name__, (_Quick, kind), {"__doc__": kind.__doc__, "__module__": __name__})


class _Depthwise(torch.autograd.Function):
    """[B, C, H, W], [C, 1, k, k], strides and zeros on both sides -> [B, C, h, w]; exact up to rounding."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            half = max(ctx.stride) > 1 and grad.dtype in (torch.bfloat16, torch.float16)
            arguments = (grad, x, weight)
            if half:  # of x nothing but the shape is looked at
                arguments = (grad.float(), torch.empty_like(x, dtype=torch.float32), weight.float())
            grad_x = _gradient(*arguments, ctx.stride, ctx.padding, 0).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(grad, x, weight, ctx.stride, ctx.padding)
        return grad_x, grad_weight, None, None


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int],
              which: int) -> Tensor:
    """The gradient of the input (0) or of the weights (1), by torch."""
    mask = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(grad, x, weight, None, stride, padding, (1, 1), False, (0, 0),
                                               weight.shape[0], mask)[which]


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int],
                     padding: tuple[int, int]) -> Tensor:
    """[C, 1, k, k], piece by piece; a piece sees the columns of the padded map that its weights slide over."""
    narrow = x.shape[3] < weight.shape[3] + stride[1]  # some piece sees nothing but zeros there
    if narrow or weight.shape[3] <= WIDEST:
        return _gradient(grad, x, weight, stride, padding, 1)
    reach, (rows, columns) = (grad.shape[3] - 1) * stride[1], padding
    pieces, at = [], 0
    for piece in weight.tensor_split(-(-weight.shape[3] // WIDEST), 3):  # 3 + 2 of 5 columns: 1 is slow at a stride
        end = at + reach + piece.shape[3]
        window = F.pad(x, (columns - at, end - columns - x.shape[3]))
        pieces.append(_gradient(grad, window, piece, stride, (rows, 0), 1))
        at += piece.shape[3]
    return torch.cat(pieces, 3)
