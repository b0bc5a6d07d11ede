"""An .onnx file: the whole way from decoded pictures to rows, with a free batch, and what it is in its metadata."""
from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from processor.export.model_folder import ModelInfo
from processor.export.packages import load_package
from processor.export.runtimes import METADATA
from processor.export.seal import EMPTY, SEALS, seal
from utils.logger import silence

OPSET = 17  # read by onnxruntime from 1.12, OpenVINO from 2022.3, TensorRT from 8.5
INPUT, OUTPUT = "images", "feats"
MODEL, HEADS = "/model/", ("/model/gap", "/model/bottleneck", "/model/pcb")  # how names of operations begin


def write_onnx(net: nn.Module, info: ModelInfo, path: Path) -> None:
    """Trace a network [B, H, W, 3] uint8 -> [B, D] into a file.

    Raises:
        ValueError: a package is missing.
    """
    onnx = load_package("onnx")
    images = torch.zeros(2, *info.size, 3, dtype=torch.uint8)
    # The tracing exporter, not torch.export's: it is there in all versions, and ten times as quick.
    tracing = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it traces: sizes are to be constants here, all but the batch
        torch.onnx.export(net, (images,), str(path), input_names=[INPUT], output_names=[OUTPUT], opset_version=OPSET,
                          dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}, **tracing)
    model = onnx.load(str(path))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = info.dim
    _write(model, info, path)


def quantise(source: Path, info: ModelInfo, images: Tensor, path: Path) -> None:
    """An int8 file of a float32 one: the backbone's convolutions and sums, static, weights by output channel.

    What is before and after the backbone stays float32: normalisation, pooling and heads.

    Args:
        info: of the new file.
        images: [N, H, W, 3] uint8, pictures whose activations' ranges are taken.
    Raises:
        ValueError: a package is missing.
    """
    onnx, quantization = load_package("onnx"), load_package("onnxruntime.quantization")
    load_package("onnxruntime.quantization.shape_inference").quant_pre_process(str(source), str(path),
                                                                               skip_symbolic_shape=True)
    nodes = [node.name for node in onnx.load(str(path)).graph.node
             if node.op_type in ("Conv", "Add") and node.name.startswith(MODEL) and not node.name.startswith(HEADS)]
    assert nodes, "onnxruntime takes no names for all names"
    batches = iter([{INPUT: batch.numpy()} for batch in images.split(8)])

    class Pictures(quantization.CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(batches, None)

    with silence(""):  # it tells the root logger of every bias that it copies
        quantization.quantize_static(
            str(path), str(path), Pictures(), quantization.QuantFormat.QDQ, nodes_to_quantize=nodes, per_channel=True,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            reduce_range=True)  # uint8 by int8 is what x86 multiplies; 7 bits: older ones add two products in 16
    _write(onnx.load(str(path)), info, path)


def _write(model, info: ModelInfo, path: Path) -> None:
    """Write the file with its metadata: model.json's content, and beside it what a tracker asks for."""
    onnx = load_package("onnx")
    height, width = info.size
    facts = {METADATA: json.dumps(info.to_json()), "model_id": info.model_id, "precision": info.precision,
             "height": height, "width": width, "color": info.preprocessing["color"], "dim": info.dim,
             "resizing": info.preprocessing["resizing"], "distance": "cosine: rows have length 1",
             "checksum": SEALS[".onnx"] + EMPTY}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    model.producer_name = "tools/export.py"
    domains = {node.domain for node in model.graph.node}
    for unused in [entry for entry in model.opset_import if entry.domain not in domains]:
        model.opset_import.remove(unused)  # quantisation leaves onnxruntime's own, which others do not know
    onnx.save(model, str(path))
    seal(path)
