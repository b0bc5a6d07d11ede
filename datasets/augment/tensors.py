"""Between a uint8 batch and float planes, and from numpy's draws to a tensor that an operation can use."""
from __future__ import annotations

import numpy as np
import torch


def to_planes(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in 0..1, a plane a channel: what follows works on whole planes."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).mul_(1 / 255)


def to_pixels(x: torch.Tensor) -> torch.Tensor:
    """float [B, 3, H, W] in 0..1 -> the nearest uint8 [B, H, W, 3]."""
    return x.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """Numbers made on the CPU, on `device`, which is not waited for."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)


def per_image(values: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """[B, ...] numbers -> [B, ..., 1, 1] on x's device and of its type: a number for whole planes."""
    return on_device(values.astype(np.float32), x.device).to(x.dtype)[..., None, None]
