"""The programs that compute an exported or a trained model, behind one interface."""
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from model.embedding import EmbeddingNet
from processor.export.model_folder import ModelInfo, info_from_json
from processor.export.onnx_references import check_alone
from processor.export.packages import load_package
from processor.export.seal import check_seal
from utils.precision import Precision

Sides = tuple[list[int], list[int]]
METADATA = "reid"  # the key of an exported file's metadata under which model.json's content stands


class Runtime(Protocol):
    """Decoded pictures to rows."""

    def rows(self, images: np.ndarray, sides: Sides | None = None) -> np.ndarray:
        """uint8 [B, H, W, 3] RGB -> float32 [B, D], rows of length 1.

        Args:
            sides: (camids, viewids) of the pictures; None: unknown.
        """
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

    def rows(self, images: np.ndarray, sides: Sides | None = None) -> np.ndarray:
        with torch.inference_mode(), self.precision.autocast():
            return self.net(self._on_device(images), **self._rows_of(sides)).cpu().numpy()

    def branches(self, images: np.ndarray, precision: Precision | None = None,
                 sides: Sides | None = None) -> dict[str, np.ndarray]:
        """{branch: float32 [B, D_b]} before any normalisation, in another precision if one is given."""
        with torch.inference_mode(), (precision or self.precision).autocast():
            feats = self.net.branches(self._on_device(images), **self._rows_of(sides))
            return {name: feat.cpu().numpy() for name, feat in feats.items()}

    def _rows_of(self, sides: Sides | None) -> dict[str, torch.Tensor]:
        return {} if sides is None else self.net.model.sides(*sides)

    def _on_device(self, images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).to(self.precision.device, non_blocking=True)


class OnnxRuntime:
    """An exported .onnx file in onnxruntime.

    Args:
        device: auto (CUDA if onnxruntime has it) | cuda | cuda:NUMBER | cpu.
        threads: of an operation; 0 = as many as torch has here.
    Raises:
        ValueError: the file is damaged, no ONNX file, or another program's; or onnxruntime is not installed, or lacks
            CUDA.
    """

    def __init__(self, path: str | Path, device: str = "auto", threads: int = 0):
        onnxruntime = load_package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors: it warns of what it does itself
        kind, _, number = device.partition(":")
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        usable = [("CUDAExecutionProvider", {"device_id": int(number or 0)})] * (has_cuda and kind != "cpu")
        if kind == "cuda" and not usable:
            raise ValueError(f"{path}: device=cuda, but this onnxruntime has no CUDA (pip install onnxruntime-gpu)")
        check_seal(Path(path))
        check_alone(Path(path))
        self.path = path
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, [*usable, "CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own types
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: not an ONNX file that onnxruntime reads ({reason})") from error
        self.info = _read_metadata(self.session.get_modelmeta().custom_metadata_map.get(METADATA), path)

    def rows(self, images: np.ndarray, sides: Sides | None = None) -> np.ndarray:
        _refuse(sides)
        with _plain_errors(self.path):
            return self.session.run(None, {self.session.get_inputs()[0].name: images})[0]


class OpenVinoRuntime:
    """An exported .xml file, with its .bin, in OpenVINO on the CPU.

    Args:
        precision: of what is not int8: float32 | bfloat16, faster where the processor has it.
        threads: 0 = as many as torch has here.
    Raises:
        ValueError: the file is damaged, none of OpenVINO's, or another program's; or openvino is not installed.
    """

    def __init__(self, path: str | Path, precision: str = "float32", threads: int = 0):
        openvino, self.precision = load_package("openvino"), precision
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
                    "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        check_seal(Path(path))
        self.path = path
        try:
            model = core.read_model(str(path))
        except Exception as error:  # openvino has its own types
            raise ValueError(f"{path}: not a model that OpenVINO reads, or its .bin is missing") from error
        text = model.get_rt_info(METADATA).astype(str) if model.has_rt_info(METADATA) else None
        self.info = _read_metadata(text, path)
        with _plain_errors(path):
            self.model = core.compile_model(model, "CPU", settings)

    def rows(self, images: np.ndarray, sides: Sides | None = None) -> np.ndarray:
        _refuse(sides)
        with _plain_errors(self.path):
            return self.model(images)[0]


@contextlib.contextmanager
def _plain_errors(path: str | Path) -> Iterator[None]:
    """Within: what a runtime raises for a file whose parts do not fit together is a ValueError that names it."""
    try:
        yield
    except Exception as error:  # each has its own types
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "")
        raise ValueError(f"{path}: cannot be computed ({reason or type(error).__name__})") from error


def _refuse(sides: Sides | None) -> None:
    if sides is not None:
        raise ValueError("an exported file takes no cameras or views: each counts as unknown there; use the model "
                         "folder or the checkpoint that it was exported from")


def _read_metadata(text: str | None, path: str | Path) -> ModelInfo:
    try:
        return info_from_json(json.loads(text or ""), str(path))
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{path}: not written by tools/export.py: it does not say what pictures it takes") from None
