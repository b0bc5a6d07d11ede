"""A .pt2 file: a network as a program of torch alone, which runs where this repository is not."""
from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from processor.export.model_folder import INFO, ModelInfo

_LARGEST = 2**16  # the batch; a bound that torch.export asks for


def write_torch(net: nn.Module, info: ModelInfo, path: Path) -> None:
    """Export a network [B, H, W, 3] uint8 -> [B, D]; model.json's content is the file's extra file of that name."""
    images = torch.zeros(2, *info.size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=_LARGEST)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors that share memory on a device
        program = torch.export.export(net, (images,), dynamic_shapes=({0: batch},), strict=False)
        torch.export.save(program, str(path), extra_files={INFO: json.dumps(info.to_json())})


class ExportedProgram:
    """A .pt2 file that this process has written, to prove it. Those of others are programs, which nothing here runs."""

    def __init__(self, path: Path):
        self.program = torch.export.load(str(path)).module()

    def rows(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.program(torch.from_numpy(images)).numpy()
