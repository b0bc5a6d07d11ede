"""A model folder: `model.safetensors`, the weights alone, and `model.json`, all else that its use needs.

Nothing in it is a program, and no config file is needed beside it.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.make_model import ReIDModel
from model.pretrained import MODEL_HEADS
from utils.checkpoint import FOLDER_WEIGHTS, digest, read_checkpoint
from utils.files import as_damage, atomic_path, read_json, write_json

FORMAT = 1
INFO, WEIGHTS = "model.json", FOLDER_WEIGHTS
RESIZING = "OpenCV: INTER_AREA in a direction that shrinks, first; INTER_LINEAR_EXACT in one that enlarges"


@dataclass(frozen=True)
class ModelInfo:
    """What model.json says, and an exported file's metadata.

    Attributes:
        model_id: SHA-256 of the float32 weights, `architecture` and `preprocessing`; what thresholds and galleries
            belong to. A file of another precision has another.
        architecture: {config key: value} of what the network is.
        preprocessing: size [height, width], mean and std of R, G, B scaled to 0..1, flip, resizing in words.
        branches: {branch: {"dim": D, "weight": its weight in a row}}.
        evaluation: how tools/test.py computes: mixed_precision, dtype, batch_size, channels_last.
        trained_on: sets, identities, epoch, checkpoint, commit.
        thresholds: what tools/calibrate.py wrote; {} = not calibrated.
        precision: of the file's weights.
    """

    model_id: str
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    branches: dict[str, dict[str, float]]
    evaluation: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    precision: str = "float32"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's pictures."""
        height, width = self.preprocessing["size"]
        return height, width

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return sum(branch["dim"] for branch in self.branches.values())

    @property
    def weights(self) -> dict[str, float]:
        """{branch: its weight}."""
        return {name: branch["weight"] for name, branch in self.branches.items()}

    def to_json(self) -> dict[str, Any]:
        """What `info_from_json` reads back."""
        return {"format": FORMAT, "model_id": self.model_id, "dim": self.dim, **asdict(self)}


def info_from_json(data: Any, place: str) -> ModelInfo:
    """A ModelInfo from a JSON object.

    Args:
        place: where it stands, for errors.
    Raises:
        ValueError: it is of another version, or no model of this program.
    """
    if not isinstance(data, dict) or "model_id" not in data:
        raise ValueError(f"{place}: not written by tools/export.py (it has no model_id)")
    if data.get("format") != FORMAT:
        raise ValueError(f"{place}: format {data.get('format')}, this version reads {FORMAT}")
    try:
        info = ModelInfo(**{key: value for key, value in data.items() if key not in ("format", "dim")})
    except TypeError as error:
        raise ValueError(f"{place}: not as tools/export.py writes it ({error})") from error
    for name, value in vars(info).items():
        if not isinstance(value, str if name in ("model_id", "precision") else dict):
            raise ValueError(f"{place}: not as tools/export.py writes it ({name} is {value!r})")
    with as_damage(place, "export the model again"):
        if fault := _find_fault(info):
            raise ValueError(f"{place}: not as tools/export.py writes it ({fault})")
    return info


def _find_fault(info: ModelInfo) -> str:
    """What of the values is not as it must be, "" if nothing is; what is missing raises KeyError or TypeError."""
    steps, thresholds = info.preprocessing, info.thresholds
    cosines, curve = (thresholds.get(name, {}) for name in ("cosine", "probability"))
    checks = {
        "architecture": isinstance(info.architecture["MODEL.NAME"], str),
        "size": len(steps["size"]) == 2 and all(type(side) is int and 0 < side < 2**14 for side in steps["size"]),
        "mean and std": all(len(steps[name]) == 3 and _are_numbers(steps[name]) for name in ("mean", "std")),
        "flip": isinstance(steps["flip"], bool),
        "color and resizing": all(isinstance(steps[name], str) for name in ("color", "resizing")),
        "branches": bool(info.branches) and all(
            type(branch["dim"]) is int and branch["dim"] > 0 and _are_numbers([branch["weight"]]) and
            branch["weight"] >= 0 for branch in info.branches.values()),
        "batch_size": type(size := info.evaluation.get("batch_size", 1)) is int and size > 0,
        "thresholds": _are_numbers(cosines.values()) and all(_is_rate(rate) for rate in cosines) and (
            not curve or (set(curve) == {"slope", "offset"} and _are_numbers(curve.values()))),
    }
    return ", ".join(name for name, fits in checks.items() if not fits)


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) and abs(value) < 1e30 for value in values)


def _is_rate(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def with_model_id(info: ModelInfo, weights: Mapping[str, Tensor]) -> ModelInfo:
    """The same with the identity that follows from these float32 weights."""
    named = {"architecture": info.architecture, "preprocessing": info.preprocessing, "branches": info.branches,
             "weights": {name: weights[name] for name in sorted(weights)}}
    return replace(info, model_id=digest(named))


def feature_weights(model: ReIDModel) -> dict[str, Tensor]:
    """The weights that features depend on: all but the classifiers'."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(MODEL_HEADS)}


def write_model_folder(folder: str | Path, info: ModelInfo, weights: Mapping[str, Tensor]) -> None:
    """Write both files, the weights first: a folder with model.json is whole.

    Thresholds of the same model that stand there already are kept.
    """
    from safetensors.torch import save

    folder = Path(folder)
    if (folder / INFO).is_file():
        before = read_info(folder)
        if before.model_id == info.model_id and not info.thresholds:
            info = replace(info, thresholds=before.thresholds)
    with atomic_path(folder / WEIGHTS) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}))
    write_json(folder / INFO, info.to_json())


def holds_other_model(folder: Path, info: ModelInfo, force: bool) -> bool:
    """Whether another model is in the folder; raises ValueError unless `force` lets it be replaced."""
    if not (folder / INFO).is_file():
        return False
    there = read_info(folder)
    if there.model_id != info.model_id and not force:
        raise ValueError(f"{folder} has another model in it ({there.architecture['MODEL.NAME']}, model_id "
                         f"{there.model_id[:12]}...): name another folder, or --force replaces it")
    return there.model_id != info.model_id


def read_info(folder: str | Path) -> ModelInfo:
    """model.json of a model folder.

    Raises:
        FileNotFoundError: there is none; the message says what makes one.
        ValueError: it cannot be used.
    """
    path = Path(folder) / INFO
    if not path.is_file():
        checkpoints = sorted(file.name for file in Path(folder).glob("*.pth"))
        advice = f"name a checkpoint in it, such as {checkpoints[-1]}" if checkpoints else (
            "tools/export.py --weight CHECKPOINT --output DIR makes one")
        raise FileNotFoundError(f"{folder} is no model folder (no {INFO}): {advice}")
    return info_from_json(read_json(path), str(path))


def with_thresholds_beside(info: ModelInfo, file: Path) -> ModelInfo:
    """What an exported file says of itself, with the thresholds of model.json beside it, which may be newer."""
    there = read_info(file.parent) if (file.parent / INFO).is_file() else info
    return replace(info, thresholds=there.thresholds) if there.model_id == info.model_id else info


def read_weights(folder: str | Path, info: ModelInfo) -> dict[str, Tensor]:
    """The weights of a model folder, which are those that its model_id names.

    Raises:
        FileNotFoundError: they are missing.
        ValueError: they are damaged, or another model's.
    """
    path = Path(folder) / WEIGHTS
    weights = read_checkpoint(path)
    if with_model_id(info, weights).model_id != info.model_id:
        raise ValueError(f"{path}: not the weights that {INFO} beside it was written for, or one of the two was "
                         "changed; export the model again")
    return weights
