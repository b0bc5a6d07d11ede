"""The programs that compute an exported or a trained model, behind one interface."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from model.embedding import EmbeddingNet
from processor.export.model_folder import ModelInfo, info_from_json
from utils.precision import Precision

METADATA = "reid"  # the key of an exported file's metadata under which model.json's content stands


class Runtime(Protocol):
    """Decoded pictures to rows."""

    def rows(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] RGB -> float32 [B, D], rows of length 1."""
        ...


class TorchRuntime:
    """The network in torch.

    Args:
        net: is moved to the device.
        precision: of its forward pass.
        channels_last: in memory; faster convolutions.
    """

    def __init__(self, net: EmbeddingNet, precision: Precision, channels_last: bool = True):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net, self.precision = net.to(precision.device, memory_format=layout), precision

    def rows(self, images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), self.precision.autocast():
            return self.net(self._on_device(images)).cpu().numpy()

    def branches(self, images: np.ndarray, precision: Precision | None = None) -> dict[str, np.ndarray]:
        """{branch: float32 [B, D_b]} before any normalisation, in another precision if one is given."""
        with torch.inference_mode(), (precision or self.precision).autocast():
            return {name: feat.cpu().numpy() for name, feat in self.net.branches(self._on_device(images)).items()}

    def _on_device(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).to(self.precision.device, non_blocking=True)


class OnnxRuntime:
    """An exported .onnx file in onnxruntime.

    Args:
        threads: of an operation; 0 = a core each.
    Raises:
        ValueError: the file is no ONNX file, or another program's.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, onnxruntime.get_available_providers())
        except Exception as error:  # onnxruntime has its own types
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: not an ONNX file that onnxruntime reads ({reason})") from error
        self.info = _read_metadata(self.session.get_modelmeta().custom_metadata_map, path)

    def rows(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]


def _read_metadata(metadata: dict[str, str], path: str | Path) -> ModelInfo:
    try:
        return info_from_json(json.loads(metadata[METADATA]), str(path))
    except (KeyError, json.JSONDecodeError):
        raise ValueError(f"{path}: not written by tools/export.py: it does not say what pictures it takes") from None
