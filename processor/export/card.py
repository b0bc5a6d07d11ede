"""card.md: what a model is, how to call it, and how far its files can be trusted."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from processor.export.model_folder import ModelInfo, read_info
from processor.export.proof import Proof
from utils.files import as_damage, read_object, write_text

CARD, PROOFS = "card.md", "proof.json"
_EXAMPLE = '''\
import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")

def embed(paths):
    images = [cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB) for path in paths]
    shrinks = [image.shape[0] >= {height} and image.shape[1] >= {width} for image in images]
    images = [cv2.resize(image, ({width}, {height}), interpolation=cv2.INTER_AREA if small else cv2.INTER_LINEAR_EXACT)
              for image, small in zip(images, shrinks)]
    return session.run(None, {{"images": np.stack(images)}})[0]  # [N, {dim}], rows of length 1

feats = embed(["a.jpg", "b.jpg"])
print(feats @ feats.T)  # cosines: the larger, the more alike
'''
_WITHOUT_FILE = '''\
from processor.embedder import Embedder  # in a clone of the repository that trained it

embedder = Embedder.load("this/folder")
feats = embedder.embed(["a.jpg", "b.jpg"])  # [N, {dim}], rows of length 1
'''


def write_card(folder: Path) -> None:
    """Write card.md of what is in a model folder, whichever exports it is from."""
    known = read_object(folder / PROOFS) if (folder / PROOFS).is_file() else {}
    info = read_info(folder)
    with as_damage(folder / PROOFS, "remove it, and export the model again"):
        torch_speed = known.pop("torch", {}).get("images_per_second", {})
        proofs = {file: Proof(**values) for file, values in known.items() if (folder / file).is_file()}
        text = _card(info, proofs, torch_speed)
    write_text(folder / CARD, text)


def _card(info: ModelInfo, proofs: Mapping[str, Proof], torch_speed: Mapping[str, float]) -> str:
    """The text; torch_speed: {batch: images per second} of torch beside the files."""
    onnx = next((file for file in proofs if file.endswith(".onnx")), None)
    height, width = info.size
    example = (_EXAMPLE if onnx else _WITHOUT_FILE).format(file=onnx, height=height, width=width, dim=info.dim)
    return "\n".join([*_what(info), "", "## Call", "", "```python", example.rstrip(), "```", "", *_pictures(info), "",
                      *_files(proofs, torch_speed)]).rstrip() + "\n"


def _what(info: ModelInfo) -> list[str]:
    trained, (height, width) = info.trained_on, info.size
    branches = ", ".join(f"{name} {branch['dim']} (weight {branch['weight']:g})"
                         for name, branch in info.branches.items())
    return [
        f"# {info.architecture['MODEL.NAME']}, {height} x {width}", "",
        f"Turns a picture of a person into a row of {info.dim} numbers of length 1; the cosine of two rows says how "
        "alike the people are.", "",
        f"- model_id: `{info.model_id}`",
        f"- trained on: {trained.get('sets', 'unknown')} ({trained.get('identities') or 'unknown'} identities), epoch "
        f"{trained.get('epoch') or 'unknown'}, commit {trained.get('commit') or 'unknown'}",
        f"- branches: {branches}. A row has each of length 1 times the root of its share of the weights.",
        f"- thresholds: {describe_thresholds(info)}",
        "- licence: that of the program covers the program. Weights carry the terms of the pictures that they learned "
        "from; most re-identification sets allow research alone. Ask their owners before any other use.",
    ]


def describe_thresholds(info: ModelInfo) -> str:
    """They, and what they were measured on, in words."""
    if not info.thresholds:
        return "not calibrated (tools/calibrate.py)"
    cosines = ", ".join(f"{cosine:.4f} at a false positive rate of {rate}"
                        for rate, cosine in info.thresholds["cosine"].items())
    return (f"cosine {cosines}; measured on {info.thresholds.get('measured_on', 'an unknown set')}. They do not carry "
            "over to other cameras: measure them where the model is used.")


def _pictures(info: ModelInfo) -> list[str]:
    steps, (height, width) = info.preprocessing, info.size
    mirrored = "the mean of the picture and its mirror image is taken" if steps["flip"] else "no mirror image is taken"
    return [
        "## Pictures", "",
        f"Input `images`: uint8 [B, {height}, {width}, 3], {steps['color']}, any B. Output `feats`: float32 [B, "
        f"{info.dim}].", "",
        f"Crop the person's box, then resize to {width} x {height} pixels without keeping the aspect. Resizing stays "
        f"outside of the file: {steps['resizing']}. Another method moves the rows by more than an export does.",
        f"Inside are: division by 255, mean {steps['mean']}, standard deviation {steps['std']}; {mirrored}.",
    ]


def _files(proofs: Mapping[str, Proof], torch_speed: Mapping[str, float]) -> list[str]:
    if not proofs:
        return ["## Files", "", "`model.safetensors` and `model.json`: the weights alone, and all else that their use "
                "needs. `tools/export.py --format onnx openvino torch` adds files for other programs, and proves each."]
    lines = [
        "## Files and their proof", "",
        "The same pictures through torch (float32) and through the file; images/s of decoded pictures, on the machine "
        "that exported. The mAP is without re-ranking; its difference has the 95 % interval and the verdict of the "
        "paired test of tools/compare.py.", "",
        "| file | pictures | largest difference | smallest cosine | mAP torch → file | Rank-1 torch → file | "
        "difference of mAP, points | images/s, batch 1 | batch 64 |", "|---|---|---|---|---|---|---|---|---|",
        f"| torch, float32 | | | | | | |{_speeds(torch_speed)}"]
    for file, proof in proofs.items():
        lines.append(f"| `{file}` | {proof.pictures} | {proof.largest_difference:.2g} | {proof.smallest_cosine:.6f} | "
                     f"{_pair(proof.mean_ap)} | {_pair(proof.rank1)} | {proof.verdict or 'not measured'} |"
                     f"{_speeds(proof.images_per_second)}")
    sources = dict.fromkeys(proof.source for proof in proofs.values())
    ids = {proof.precision: proof.model_id for proof in proofs.values() if proof.precision != "float32"}
    others = [f"- model_id of {precision}, whose rows are others and whose thresholds are to be measured anew: "
              f"`{model_id}`" for precision, model_id in ids.items()]
    return [*lines, "", f"Pictures: {'; '.join(sources)}.", "", *others]


def _pair(values: tuple[float, float] | None) -> str:
    return "not measured" if values is None else f"{100 * values[0]:.2f} → {100 * values[1]:.2f} %"


def _speeds(speeds: Mapping[str, float]) -> str:
    return "".join(f" {speed:.0f} |" for speed in speeds.values())
