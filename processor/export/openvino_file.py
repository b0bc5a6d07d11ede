"""OpenVINO's .xml and .bin, made of an .onnx file."""
from __future__ import annotations

import json
from pathlib import Path

from processor.export.model_folder import ModelInfo
from processor.export.packages import load_package
from processor.export.runtimes import METADATA
from processor.export.seal import EMPTY, SEALS, seal


def write_openvino(source: Path, info: ModelInfo, path: Path) -> None:
    """Convert an .onnx file of float32 or int8; a float16 file has its weights in float16.

    Args:
        info: of the new file.
        path: the .xml file; the .bin is put beside it.
    Raises:
        ValueError: a package is missing.
    """
    openvino = load_package("openvino")
    model = openvino.convert_model(str(source))
    model.set_rt_info(json.dumps(info.to_json()), METADATA)
    model.set_rt_info(SEALS[".bin"] + EMPTY, "checksum_of_bin")
    model.set_rt_info(SEALS[".xml"] + EMPTY, "checksum")
    openvino.save_model(model, str(path), compress_to_fp16=info.precision == "float16")
    seal(path)
