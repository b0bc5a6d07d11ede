"""Files for other programs: that they give torch's rows, and that those that do not are not kept."""
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from conftest import quick_options, tiny_options
from test_model_export import HEADS
from test_model_networks import TIMMS
from test_processor_embedder import write_checkpoint
from trainings import TINY_BACKBONE

from configs import load_cfg
from model.backbones import BACKBONES, build_backbone
from model.make_model import make_model
from processor.embedder import Embedder
from processor.export.model_folder import read_info
from processor.export.networks import OnePassNet, with_half_backbone
from processor.export.onnx_file import quantise, write_onnx
from processor.export.onnx_references import check_alone
from processor.export.openvino_file import write_openvino
from processor.export.proof import Proof, compare_rows, find_fault
from processor.export.runtimes import OnnxRuntime, OpenVinoRuntime
from processor.export.torch_file import write_torch
from processor.export_model import Request, export_model
from processor.trained_model import TrainedModel, describe_model, open_trained
from tools.campaigns.tool_server import run_tool
from utils.files import read_json, write_json

onnx = pytest.importorskip("onnx")
for package in ("onnxruntime", "openvino"):
    pytest.importorskip(package)
pytestmark = pytest.mark.usefixtures("tiny_backbone")

SIZE = (64, 32)
PARTS = ("MODEL.IF_USE_PCB", "True", "TEST.LOCAL_WEIGHT", "0.5")
FAMILIES = {"resnet18": "global", "resnet18_ibn_a": "merged parts", "resnet18_ibn_b": "GeM, learned",
            "se_resnet50_ibn_a": "local", "resnest50": "plain parts", "efficientnet_b0": "refined parts",
            "osnet_x0_25": "merged parts"}
# Of a family, pooled as its authors do.
TOKENS = ["osnet_ain_x0_25", "vit_tiny",
          *(pytest.param(name, marks=pytest.mark.slow) for name in ("clip_rn50", "clip_vit_b16"))]
ALL = [pytest.param(name, head, marks=pytest.mark.slow) for name in sorted(BACKBONES) for head in HEADS]


def trained(name, opts=()):
    """A random model, its statistics, too."""
    torch.manual_seed(0)
    cfg = load_cfg(None, ["MODEL.NAME", name, "MODEL.PRETRAIN_CHOICE", "none", "INPUT.SIZE_TEST", list(SIZE),
                          *opts])
    model = make_model(cfg, 5)
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(3, 5)  # not 1: 269 layers would make 1e-2 of float32's rounding
    return TrainedModel(model.eval(), describe_model(cfg, model, {"sets": "naic"}))


def images_of(batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *SIZE, 3), np.uint8)


def rows_of(model, batch):
    with torch.no_grad():
        return model.network()(torch.from_numpy(images_of(batch))).numpy()


def assert_same_rows(runtime, model, atol=1e-4):
    for batch in (1, 2, 7, 64):
        np.testing.assert_allclose(runtime.rows(images_of(batch)), rows_of(model, batch), atol=atol)


# ------------------------------------------------------------------ files
@pytest.mark.parametrize(("name", "head"), [*FAMILIES.items(), *((TINY_BACKBONE, head) for head in HEADS), *ALL])
def test_an_onnx_file_has_torchs_rows_at_any_batch(name, head, tmp_path):
    model = trained(name, ["TEST.FLIP_FEATS", "on" if name == TINY_BACKBONE else "off", *HEADS[head]])
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    runtime = OnnxRuntime(tmp_path / "model.onnx")
    assert_same_rows(runtime, model)
    assert runtime.info == model.info


@pytest.mark.parametrize("name", TOKENS)
def test_an_onnx_file_of_a_class_token_has_torchs_rows(name, tmp_path):
    parts = ["MODEL.JPM", "True", "MODEL.SIE_CAMERA", "True"] * (name == "vit_tiny")
    model = trained(name, ["TEST.FLIP_FEATS", "off", "MODEL.POOLING_METHOD", "token", "INPUT.SIZE_TRAIN", [96, 48],
                           *parts])
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    assert_same_rows(OnnxRuntime(tmp_path / "model.onnx"), model)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name != "convnext_atto" else [])
                                  for name in TIMMS])
def test_an_onnx_file_of_a_network_of_timm_has_torchs_rows(name, tmp_path):
    if not pytest.importorskip("timm").is_model(name):
        pytest.skip("this timm does not have it")
    pooling = "token" if build_backbone(f"timm:{name}").has_token else "avg"
    model = trained(f"timm:{name}", ["TEST.FLIP_FEATS", "off", "MODEL.POOLING_METHOD", pooling, "INPUT.SIZE_TRAIN",
                                     list(SIZE)])
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    assert_same_rows(OnnxRuntime(tmp_path / "model.onnx"), model)


def test_an_onnx_file_tells_what_a_tracker_asks_for(tmp_path):
    model = trained(TINY_BACKBONE, PARTS)
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    file = onnx.load(str(tmp_path / "model.onnx"))
    shapes = [[dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
              for value in (*file.graph.input, *file.graph.output)]
    assert shapes == [["batch", *SIZE, 3], ["batch", model.info.dim]]
    facts = {entry.key: entry.value for entry in file.metadata_props}
    assert (facts["height"], facts["width"], facts["color"], facts["dim"]) == ("64", "32", "RGB", str(model.info.dim))
    onnx.checker.check_model(file)


def test_a_float16_file_has_a_backbone_in_float16_alone(tmp_path):
    model = trained(TINY_BACKBONE, PARTS)
    half = TrainedModel(with_half_backbone(model.model), model.info)
    write_onnx(half.network(OnePassNet), model.info, tmp_path / "model.onnx")
    assert_same_rows(OnnxRuntime(tmp_path / "model.onnx"), model, 5e-3)
    types = {value.name: value.data_type for value in onnx.load(str(tmp_path / "model.onnx")).graph.initializer}
    assert {kind for name, kind in types.items() if name.startswith("model.pcb")} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in types.values()
    assert next(model.model.base.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet18_ibn_b_w32", "osnet_x0_25"])
def test_an_int8_file_has_convolutions_by_channel_and_a_float32_head(name, tmp_path):
    model = trained(name, PARTS)
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    quantise(tmp_path / "model.onnx", model.info, torch.from_numpy(images_of(16)), tmp_path / "int8.onnx")
    rows = OnnxRuntime(tmp_path / "int8.onnx").rows(images_of(7))
    difference, cosine = compare_rows(rows_of(model, 7), rows)
    assert difference > 1e-5
    assert cosine > 0.95
    file = onnx.load(str(tmp_path / "int8.onnx"))
    assert [entry.domain for entry in file.opset_import] == [""]
    weights = {value.name: value for value in file.graph.initializer}
    assert any(value.dims and value.dims[0] >= 32 for name, value in weights.items() if "scale" in name)
    assert not [name for name in weights if "pcb" in name and "quantized" in name]
    assert onnx.TensorProto.INT8 in {value.data_type for value in weights.values()}


@pytest.mark.parametrize("head", ["global", "merged parts", *(pytest.param(head, marks=pytest.mark.slow)
                                                              for head in HEADS)])
def test_openvino_has_torchs_rows_at_any_batch(head, tmp_path):
    model = trained(TINY_BACKBONE, HEADS[head])
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    write_openvino(tmp_path / "model.onnx", model.info, tmp_path / "model.xml")
    runtime = OpenVinoRuntime(tmp_path / "model.xml")
    assert_same_rows(runtime, model)
    assert runtime.info == model.info
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ValueError, match=r"or its \.bin is missing"):
        OpenVinoRuntime(tmp_path / "model.xml")


def test_a_pt2_file_runs_without_this_repository(tmp_path):
    model = trained(TINY_BACKBONE)
    write_torch(model.network(OnePassNet), model.info, tmp_path / "model.pt2")
    np.save(tmp_path / "images.npy", images_of(7))
    program = ("import numpy, sys, torch\nassert not any(n in sys.modules for n in ('model', 'datasets', 'utils'))\n"
               "net = torch.export.load('model.pt2').module()\n"
               "numpy.save('rows', net(torch.from_numpy(numpy.load('images.npy'))).detach().numpy())\n")
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, timeout=100,
                   env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), rows_of(model, 7), atol=1e-5)
    with pytest.raises(ValueError, match=r"model\.pt2: .*exported program"):
        Embedder.load(tmp_path / "model.pt2")


# ------------------------------------------------------------------ what is not ours
def write_other(path, location=None):
    """An .onnx file of somebody else, y = x + w; location: of a file that w is in."""
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4], np.zeros(4, np.float32))
    if location:
        weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4],
                                  data_location=onnx.TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:],
                                   [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def test_other_files_are_refused_in_a_line(tmp_path):
    write_other(tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "text.xml").write_text("<net/>")
    for name, reason in (("other.onnx", "not written by tools/export.py"), ("text.onnx", "not an ONNX file"),
                         ("text.xml", "not a model that OpenVINO reads")):
        with pytest.raises(ValueError, match=reason) as caught:
            Embedder.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_changed_byte_is_noticed_and_a_file_without_a_checksum_warned_of(tmp_path, caplog):
    model = trained(TINY_BACKBONE)
    write_onnx(model.network(OnePassNet), model.info, tmp_path / "model.onnx")
    write_openvino(tmp_path / "model.onnx", model.info, tmp_path / "model.xml")
    for name, runtime in (("model.onnx", OnnxRuntime), ("model.xml", OpenVinoRuntime), ("model.bin", OpenVinoRuntime)):
        path = tmp_path / name
        whole = path.read_bytes()
        for place in (len(whole) // 2, -1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place:][1:])
            with pytest.raises(ValueError, match=rf"{name}: damaged"):
                runtime(path.with_suffix(".onnx" if name == "model.onnx" else ".xml"))
        path.write_bytes(whole)
    assert not caplog.records
    for name, runtime in (("model.onnx", OnnxRuntime), ("model.xml", OpenVinoRuntime)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes().replace(b"-sha256:", b"-sha255:"))  # as an earlier version wrote it
        runtime(path)
    assert [record.getMessage().count("has no checksum") for record in caplog.records] == [1, 1]


def test_weights_outside_of_the_folder_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "in").mkdir()
    for location in ("../secret", str(tmp_path / "secret")):
        write_other(tmp_path / "in" / "model.onnx", location)
        with pytest.raises(ValueError, match="has weights in other files, which are not read"):
            OnnxRuntime(tmp_path / "in" / "model.onnx")


@pytest.mark.parametrize("place", ["a constant", "a branch", "a branch of a function", "sparse"])
def test_weights_in_another_file_are_found_wherever_a_tensor_can_be(tmp_path, place):
    make, numbers = onnx.helper.make_node, onnx.TensorProto(name="w", data_type=1, dims=[4])
    written = {"a constant": make("Constant", [], ["y"], value=numbers)}
    branch = onnx.helper.make_graph([written["a constant"]], "inner", [], [])
    written["a branch"] = make("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    sparse = onnx.SparseTensorProto(values=numbers, dims=[9])
    written["sparse"] = make("Constant", [], ["y"], sparse_value=sparse)
    function = onnx.helper.make_function("own", "f", ["x"], ["y"], [written["a branch"]], [])
    model = onnx.helper.make_model(onnx.helper.make_graph(
        [written[place]] if place in written else [], "g", [], []), functions=[] if place in written else [function])
    (tmp_path / "alone.onnx").write_bytes(model.SerializeToString())
    check_alone(tmp_path / "alone.onnx")
    for tensor in tensors_of(model):
        tensor.external_data.add(key="location", value="elsewhere")
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"other.onnx: has weights in other files"):
        check_alone(tmp_path / "other.onnx")


def tensors_of(message):
    """Every tensor within a message."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for _, value in message.ListFields():
        for inner in [value] if hasattr(value, "ListFields") or isinstance(value, int) else value:
            if hasattr(inner, "ListFields"):
                yield from tensors_of(inner)


# ------------------------------------------------------------------ the proof
def test_a_proof_fails_where_rows_or_the_map_are_others():
    good = {"model_id": "", "pictures": 1, "source": "", "largest_difference": 1e-5, "smallest_cosine": 0.999,
            "images_per_second": {}}
    assert find_fault(Proof(precision="float32", **good)) == ""
    for worse in (2e-4, float("nan")):
        assert "more than 0.0001" in find_fault(Proof(precision="float32", **{**good, "largest_difference": worse}))
    for worse in (0.98, float("nan")):
        assert "less than 0.99" in find_fault(Proof(precision="int8", **{**good, "smallest_cosine": worse}))
    lost = Proof(precision="int8", **{**good, "smallest_cosine": 0.5}, mean_ap=(0.85, 0.841))
    assert find_fault(lost) == ""
    assert find_fault(lost, 0.5) == "loses 0.90 points of mAP, more than --max-drop 0.5"
    assert "--max-drop 0.1" in find_fault(Proof(precision="float16", **good, mean_ap=(0.85, 0.84)))


def test_a_nan_in_a_row_is_a_difference():
    rows = np.eye(3, dtype=np.float32)
    assert compare_rows(rows, rows) == (0.0, 1.0)
    broken = rows.copy()
    broken[1, 1] = np.nan
    assert np.isnan(compare_rows(rows, broken)).all()


# ------------------------------------------------------------------ the whole
@pytest.fixture(scope="module")
def checkpoint(tiny_data, tmp_path_factory, tiny_backbone):
    folder = tmp_path_factory.mktemp("run") / "model"
    write_checkpoint(folder, [*quick_options(tiny_data, folder), *PARTS])
    return folder / "latest.pth"


@pytest.fixture(autouse=True)
def _quick_timing(monkeypatch):
    monkeypatch.setattr("processor.export.proof._SECONDS", 0)


def test_an_export_is_proved_on_its_set_and_its_card_runs(checkpoint, tiny_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    request = {"weight": checkpoint, "output": out}
    assert export_model(Request(**request, formats=("onnx", "openvino"), verify=str(tiny_data))) == []
    again = Request(**request, formats=("onnx",), precisions=["int8"], verify=str(tiny_data), max_drop=100)
    assert export_model(again) == []
    card, proofs = (out / "card.md").read_text(), read_json(out / "proof.json")
    assert list(proofs) == ["torch", "model.onnx", "model.xml", "model_int8.onnx"]
    assert proofs["model.onnx"]["mean_ap"][0] == pytest.approx(proofs["model.onnx"]["mean_ap"][1], abs=1e-6)
    assert all(f"`{file}`" in card for file in list(proofs)[1:])
    assert "training pictures of naic, and all pictures of green, normal" in card
    for name in ("a.jpg", "b.jpg"):
        picture = np.random.default_rng(ord(name[0])).integers(0, 256, (90, 40, 3), np.uint8)
        (out / name).write_bytes(cv2.imencode(".png", picture)[1])
    monkeypatch.chdir(out)
    scope = {}
    exec(card.split("```python\n")[1].split("```")[0], scope)
    expected = Embedder.load(checkpoint, precision="float32").embed([out / "a.jpg", out / "b.jpg"])
    for feats in (scope["feats"], *(Embedder.load(out / name).embed([out / "a.jpg", out / "b.jpg"])
                                    for name in ("model.onnx", "model.xml"))):
        np.testing.assert_allclose(feats, expected, atol=1e-4)
    write_json(out / "model.json", {**read_json(out / "model.json"), "thresholds": {"cosine": {"0.01": 0.5}}})
    assert Embedder.load(out / "model.onnx").threshold(0.01) == 0.5
    assert Embedder.load(out / "model_int8.onnx").info.thresholds == {}
    ids = [Embedder.load(out / name).info.model_id for name in ("model.onnx", "model_int8.onnx")]
    assert ids[0] == read_info(out).model_id != ids[1]


def test_a_file_that_loses_too_much_is_not_kept(checkpoint, tmp_path):
    words = ["--weight", checkpoint, "--output", tmp_path / "out"]
    calibration = tmp_path / "crops" / "below"
    calibration.mkdir(parents=True)
    for number in range(3):
        cv2.imwrite(str(calibration / f"{number}.png"), np.full((40, 20, 3), 80 * number, np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("processor.export.proof.SMALLEST_COSINE", 1.1)
        faults = export_model(Request(*words[1::2], formats=("onnx",), precisions=["float32", "float16"],
                                      calibration=tmp_path / "crops"))
    assert [fault.split(":")[0] for fault in faults] == ["model_float16.onnx is not kept"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "card.md", "model.json", "model.onnx", "model.safetensors", "proof.json"]
    assert "3 pictures of crops" in (tmp_path / "out" / "card.md").read_text()


def test_a_damaged_record_of_proofs_is_named_before_anything_is_computed(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export_model(Request(checkpoint, out))
    (out / "proof.json").write_text("[1]")
    monkeypatch.setattr("processor.export_model.time_batches", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(ValueError, match=r"proof\.json: damaged, or of another program"):
        export_model(Request(checkpoint, out, ("onnx",)))


def test_without_the_packages_a_model_folder_is_written_and_a_file_says_what_to_install(checkpoint, tmp_path,
                                                                                        monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"onnx is not installed: pip install -r requirements-export\.txt"):
        export_model(Request(checkpoint, tmp_path / "out", formats=("onnx",)))
    assert not (tmp_path / "out").exists()
    assert export_model(Request(checkpoint, tmp_path / "out")) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.md", "model.json", "model.safetensors"]
    for place in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        assert Embedder.load(place).info == open_trained(checkpoint).info
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="onnxruntime is not installed"):
        OnnxRuntime(tmp_path / "model.onnx")


def test_another_models_folder_is_replaced_only_if_asked(checkpoint, tiny_data, tmp_path):
    write_checkpoint(tmp_path / "other", [*quick_options(tiny_data, tmp_path), *PARTS], seed=1)
    export_model(Request(checkpoint, tmp_path / "out", formats=("onnx",)))
    before = read_info(tmp_path / "out")
    other = Request(tmp_path / "other" / "latest.pth", tmp_path / "out")
    with pytest.raises(ValueError, match="has another model in it"):
        export_model(other)
    assert read_info(tmp_path / "out") == before
    export_model(Request(other.weight, other.output, force=True))
    assert read_info(tmp_path / "out") != before
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize(("words", "reason"), [
    (["--format", "onnx", "--precision", "int8"], "int8 needs pictures"),
    (["--format", "torch", "--precision", "int8", "--calibration", "."], "torch has no such file"),
    (["--format", "onnx", "--calibration", "no_such_folder"], "no_such_folder"),
    (["--format", "onnx", "--verify", "no_such.yml"], "no_such.yml"),
    (["--precision", "float16"], "are of the files of --format"),
])
def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path, tiny_data, words, reason):
    write_checkpoint(tmp_path, tiny_options(tiny_data, tmp_path))
    done = run_tool("export", "--weight", tmp_path / "latest.pth", "--output", tmp_path / "out", *words)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
