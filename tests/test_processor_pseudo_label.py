"""A model labels pictures: what it leaves, that training reads it, and that nobody's folder is written to."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_options
from set_files import load_naic

from configs import load_cfg
from datasets.bases import Sample
from datasets.files.images import decode
from datasets.make_dataloader import make_dataloader
from model.make_model import make_model
from processor import pseudo_label as module
from processor.prepare import pack_set
from processor.pseudo_label import file_names, pseudo_label, rules_of, unlabelled_images
from processor.uda import label_round
from utils.checkpoint import save_checkpoint
from utils.files import read_json
from utils.seed import seed_everything


@pytest.fixture(scope="module")
def weight(tiny_data, tmp_path_factory) -> Path:
    """A random model's checkpoint."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("labeller") / "net_1.pth"
    seed_everything(1)
    cfg = load_cfg(None, tiny_options(tiny_data, path.parent))
    save_checkpoint(path, {"model": make_model(cfg, 5).state_dict()})
    return path


@pytest.fixture
def cfg_of(tiny_opts, weight):
    def make(*changes):
        return load_cfg(None, [*tiny_opts, "TEST.WEIGHT", str(weight), *map(str, changes)])
    return make


NEAREST = ("UDA.THRESHOLD", 0.29)
CLUSTERS = ("UDA.METHOD", "agglomerative", "UDA.THRESHOLD", 0.7, "UDA.RE_RANKING_PARAMETER", "[6, 2, 0]")


def labelled(cfg, tmp_path, name="unlabel", unlabelled=None, **options):
    place = tmp_path / name
    report = pseudo_label(cfg, unlabelled or unlabelled_images(cfg), place, tmp_path / "features", **options)
    return place, report


def read_list(place):
    lines = (place / "label.txt").read_text().splitlines()
    return {name: int(pid) for name, _, pid in (line.rpartition(":") for line in lines)}


def state_of(folder):
    """Every entry below a folder with its content's and its own times."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("rules", [NEAREST, CLUSTERS, ("UDA.METHOD", "dbscan", *CLUSTERS[2:])])
def test_a_labelled_set_is_what_training_reads(cfg_of, tmp_path, tiny_data, rules):
    cfg = cfg_of(*rules)
    before = state_of(tiny_data)
    place, report = labelled(cfg, tmp_path)
    assert state_of(tiny_data) == before
    pid_of = read_list(place)
    assert sorted(pid_of) == sorted(path.name for path in (place / "images").iterdir())
    assert len(pid_of) == report["labelled"] > 0
    assert sorted(set(pid_of.values())) == list(range(report["identities"]))
    assert sum(int(size) * count for size, count in report["sizes"].items()) == report["labelled"]
    assert report == read_json(place / "report.json")
    assert 0 < report["quality"]["pair_precision"] <= 1
    assert cv2.imread(str(place / "samples.png")).shape[1] == 12 * 54

    cfg = cfg_of("DATASETS.USE_UNLABEL", True, "DATASETS.UNLABEL_DIR", place)
    loaders = make_dataloader(cfg, test=False)
    known = load_naic(tiny_data, parts=("train",)).pid_names
    assert loaders.data.pid_names == [*known, *sorted(f"train_2020_fs_unlabel_{i}" for i in set(pid_of.values()))]
    batched = {key: pid for batch in loaders.train for key, pid in zip(batch.keys, batch.pids.tolist(), strict=True)}
    pseudo = {key: pid for key, pid in batched.items() if key.startswith("unlabel/")}
    assert pseudo
    for key, pid in pseudo.items():
        assert loaders.data.pid_names[pid] == f"train_2020_fs_unlabel_{pid_of[Path(key).name]}"


def test_the_default_place_is_found_without_being_named(cfg_of, tmp_path):
    cfg = cfg_of(*NEAREST, "DATASETS.DERIVED_DIR", tmp_path / "derived")
    place = module.default_place(cfg)
    pseudo_label(cfg, unlabelled_images(cfg), place, tmp_path / "features")
    cfg = cfg_of("DATASETS.USE_UNLABEL", True, "DATASETS.DERIVED_DIR", tmp_path / "derived")
    assert any(sample.key.startswith("unlabel/") for sample in make_dataloader(cfg, test=False).data.train)


def test_beside_a_packed_set_the_labelled_images_stay_files(cfg_of, tmp_path, tiny_data):
    place, _ = labelled(cfg_of(*NEAREST), tmp_path)
    union = ("DATASETS.USE_UNLABEL", True, "DATASETS.UNLABEL_DIR", place)
    packed = pack_set(cfg_of(*union), tmp_path / "pack", decoded=False)
    assert not any(key.startswith("unlabel/") for key in packed.all_keys())
    from_files, from_pack = (make_dataloader(cfg_of(*union, *more), test=False).train
                             for more in ((), ("DATASETS.PACKED", tmp_path / "pack")))
    pairs = list(zip(from_files, from_pack, strict=True))
    assert all(torch.equal(one.images, other.images) and one.keys == other.keys for one, other in pairs)
    assert any(key.startswith("unlabel/") for one, _ in pairs for key in one.keys)
    make_dataloader(cfg_of("DATASETS.USE_UNLABEL", True, "DATASETS.UNLABEL_DIR", "nowhere", "DATASETS.PACKED",
                           tmp_path / "pack"), train=False)  # testing needs no training set


@pytest.mark.parametrize("copy", [False, True])
def test_images_are_linked_or_copied(cfg_of, tmp_path, tiny_data, copy):
    cfg = cfg_of(*NEAREST)
    place, _ = labelled(cfg, tmp_path, copy=copy)
    image = next((place / "images").iterdir())
    original, = (tiny_data / "MyDataSet/image_B_v1_1").rglob(image.name)
    assert image.read_bytes() == original.read_bytes()
    assert not image.is_symlink()
    assert os.path.samefile(image, original) is not copy


def test_where_links_cannot_be_made_images_are_copied(cfg_of, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    place, report = labelled(cfg_of(*NEAREST), tmp_path)
    assert len(list((place / "images").iterdir())) == report["labelled"]


def test_labelling_again_extracts_nothing_and_gives_the_same(cfg_of, tmp_path, monkeypatch):
    first, _ = labelled(cfg_of(*NEAREST), tmp_path)
    monkeypatch.setattr(module, "write_bank", lambda *_, **__: pytest.fail("extracted again"))
    second, _ = labelled(cfg_of(*NEAREST), tmp_path, "again")
    assert read_list(first) == read_list(second)
    stricter, _ = labelled(cfg_of("UDA.THRESHOLD", 0.26), tmp_path, "stricter")
    assert set(read_list(stricter)) < set(read_list(first))


@pytest.mark.parametrize("change", [("TEST.FLIP_FEATS", "off"), ("INPUT.SIZE_TEST", "[16, 16]")])
def test_other_features_are_extracted_anew(cfg_of, tmp_path, monkeypatch, change):
    labelled(cfg_of(*NEAREST), tmp_path)
    monkeypatch.setattr(module, "write_bank", lambda *_, **__: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        labelled(cfg_of(*NEAREST, *change), tmp_path, "again")


def test_the_lineages_threshold_is_an_angle_and_counts_where_no_other_is_set(cfg_of, tmp_path):
    lineage = rules_of(cfg_of("MODEL.THRESH", 0.29))
    assert (lineage.method, lineage.distance, lineage.threshold) == ("nearest_query", "angle", 0.29)
    assert rules_of(cfg_of("MODEL.THRESH", 0.3, "UDA.THRESHOLD", 0.29)).threshold == 0.29
    for rules in ((), ("MODEL.THRESH", 0.3, "UDA.DISTANCE", "cosine"), ("MODEL.THRESH", 0.3, "UDA.METHOD", "dbscan")):
        with pytest.raises(ValueError, match=r"UDA\.THRESHOLD is 0, not set"):
            rules_of(cfg_of(*rules))
    assert read_list(labelled(cfg_of("MODEL.THRESH", 0.29), tmp_path, "a")[0]) == read_list(
        labelled(cfg_of(*NEAREST), tmp_path, "b")[0])


def test_several_branches_are_labelled_by_their_joined_features(cfg_of, tmp_path, tiny_data):
    parts = ("MODEL.IF_USE_PCB", "on", "TEST.USE_PCB_MERGE_FEAT", "off", "INPUT.SIZE_TEST", "[96, 32]",
             "TEST.WEIGHT", tmp_path / "parts_1.pth", *NEAREST)
    cfg = cfg_of(*parts)
    save_checkpoint(tmp_path / "parts_1.pth", {"model": make_model(cfg, 5).state_dict()})
    place, report = labelled(cfg, tmp_path)
    assert report["labelled"] == len(read_list(place)) > 0


def test_nothing_that_is_not_ours_is_replaced(cfg_of, tmp_path):
    (tmp_path / "unlabel").mkdir()
    (tmp_path / "unlabel" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="stays as it is"):
        labelled(cfg_of(*NEAREST), tmp_path)
    (tmp_path / "unlabel" / "thesis.txt").unlink()
    labelled(cfg_of(*NEAREST), tmp_path)
    place, report = labelled(cfg_of("UDA.THRESHOLD", 0.26), tmp_path)  # ours
    assert len(list((place / "images").iterdir())) == report["labelled"]


@pytest.mark.parametrize("change", [
    '"made_of": [1]', '"made_of": null', '"distance": NaN', '"distance": "\\ud800"', '"threshold": 1e999',
])
def test_a_damaged_report_of_an_earlier_round_is_named(cfg_of, tmp_path, change):
    cfg, place = cfg_of(*NEAREST), tmp_path / "unlabel"
    labelled(cfg, tmp_path)
    text = (place / "report.json").read_text()
    (place / "report.json").write_text(text.rstrip().removesuffix("}") + f", {change}}}")
    with pytest.raises(ValueError, match=r"report\.json: damaged; remove .*unlabel"):
        label_round(cfg, unlabelled_images(cfg), tmp_path, None)
    with pytest.raises(ValueError, match=r"report\.json: damaged; remove .*unlabel"):
        labelled(cfg, tmp_path)


@pytest.mark.parametrize("line", [b"a.png", b"a.png:x", b"a.png:-3", b"a.png:99999999999999999999", b"a.png:\xff"])
def test_a_damaged_list_of_an_earlier_round_is_named_with_its_line(cfg_of, tmp_path, line):
    cfg = cfg_of(*NEAREST)
    place, _ = labelled(cfg, tmp_path)
    (place / "label.txt").write_bytes(b"b.png:1\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"label\.txt.*2: "):
        labelled(cfg, tmp_path, "again", before=place)


def test_damaged_features_are_extracted_anew(cfg_of, tmp_path):
    cfg = cfg_of(*NEAREST)
    place, report = labelled(cfg, tmp_path)
    before, bank = read_list(place), next((tmp_path / "features").glob("*.global.npy"))
    data = bytearray(bank.read_bytes())
    data[-7] ^= 64
    bank.write_bytes(data)
    assert labelled(cfg, tmp_path)[1] == report
    assert (read_list(place), bank.read_bytes() != bytes(data)) == (before, True)


def test_a_failure_leaves_the_earlier_set(cfg_of, tmp_path, monkeypatch):
    place, _ = labelled(cfg_of(*NEAREST), tmp_path)
    before = read_list(place)
    monkeypatch.setattr(module, "write_sheet", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        labelled(cfg_of("UDA.THRESHOLD", 0.26), tmp_path)
    assert read_list(place) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "unlabel"]


@pytest.mark.parametrize(("changes", "message"), [
    (("UDA.THRESHOLD", 1e-6), "no two images are near enough"),
    ((*NEAREST, "TEST.WEIGHT", "nowhere.pth"), "name the checkpoint that is to label"),
])
def test_what_cannot_label_is_said(cfg_of, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        labelled(cfg_of(*changes, "UDA.MERGE_QUERIES", "no"), tmp_path)
    assert not (tmp_path / "unlabel").exists()


def test_images_without_queries_are_clustered_or_refused_at_once(cfg_of, tmp_path, tiny_data, monkeypatch):
    gallery = tiny_data / "MyDataSet/train_2020_cs/images"
    unlabelled = unlabelled_images(cfg_of(), (), [gallery])
    place, report = labelled(cfg_of(*CLUSTERS), tmp_path, unlabelled=unlabelled)
    assert report["queries"] == 0
    assert set(read_list(place)) <= {path.name for path in gallery.iterdir()}
    monkeypatch.setattr(module, "write_bank", lambda *_, **__: pytest.fail("slow"))
    with pytest.raises(ValueError, match="needs query and gallery images"):
        labelled(cfg_of(*NEAREST), tmp_path, "second", unlabelled=unlabelled)


def test_images_of_one_name_get_names_of_their_own():
    keys = ["query/a.png", "gallery/a.png", "gallery/b.png", "gallery2/a.png", "gallery2/ c.PNG", "gallery3/a\nb.jpg"]
    names = file_names([Sample(key, -1, 0) for key in keys])
    assert names == ["a.png", "gallery_a.png", "b.png", "gallery2_a.png", "000004.png", "000005.jpg"]
    assert file_names([Sample(key, -1, 0) for key in ("query/a", "query/gallery_a", "gallery/a")])[2] == "_gallery_a"


def test_the_sheet_frames_queries_and_strangers(cfg_of, tmp_path):
    place, _ = labelled(cfg_of(*NEAREST), tmp_path)
    sheet = decode((place / "samples.png").read_bytes())
    corners = sheet[14::116, 0]  # a row's first image is a query
    assert len(corners) > 1
    assert {tuple(corner) for corner in corners.tolist()} <= {(0, 120, 220), (230, 0, 0)}
    assert np.all(sheet[:14, -3:] == 255)
