"""The list of the backbones, with what each costs."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.backbones import BACKBONES, WEIGHTS_PACKAGES, WEIGHTS_URLS, Backbone, build_backbone
from utils.packages import PREFIX

SIZE = (256, 128)


class ZooEntry(NamedTuple):
    """parameters in millions; gflops as `multiply_adds` / 1e9; url: or `package:NAME`, "" without weights."""

    name: str
    parameters: float
    gflops: float
    feat_dim: int
    url: str


def list_models(size: tuple[int, int] = SIZE, last_stride: int = 1) -> list[ZooEntry]:
    """Every backbone that can be built here, for one image of `size` (height, width)."""
    entries = []
    for name in BACKBONES:
        with torch.device("meta"):
            net = build_backbone(name, last_stride).eval()
        parameters = sum(parameter.numel() for parameter in net.parameters())
        package = PREFIX + WEIGHTS_PACKAGES[name] if name in WEIGHTS_PACKAGES else ""
        entries.append(ZooEntry(name, parameters / 1e6, multiply_adds(net, size) / 1e9, net.feat_dim,
                                WEIGHTS_URLS.get(name, package)))
    return entries


def multiply_adds(net: Backbone, size: tuple[int, int]) -> int:
    """Multiply-adds of the convolutions and linear layers on one image; what papers call FLOPs.

    Args:
        net: on the meta device, so that nothing is computed.
        size: height and width, pixels.
    """
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


def format_zoo() -> str:
    """`list_models` as a table of plain text."""
    header = f"{'MODEL.NAME':<22} {'params M':>8} {'GFLOPs':>7} {'feat_dim':>8}  ImageNet weights"
    rows = [f"{e.name:<22} {e.parameters:>8.1f} {e.gflops:>7.2f} {e.feat_dim:>8}  {e.url or '-'}"
            for e in list_models()]
    note = (f"GFLOPs: 10^9 multiply-adds of one {SIZE[0]}x{SIZE[1]} image with LAST_STRIDE 1, without heads. "
            "'-': none with an address to download from.")
    return "\n".join([header, *rows, note])
