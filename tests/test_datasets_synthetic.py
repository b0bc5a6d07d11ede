"""The demo set: NAIC's formats, a function of the seed, honest domains, and hard for raw pixels."""
from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.demo import scene, synthetic
from datasets.demo.plan import TRAIN_SETS, Sizes, plan_demo
from datasets.demo.synthetic import make_demo_data, render, sample_sheet

TINY = Sizes(ids=5, images=4, singles=2, shared=2, query_ids=6, query_images=2, gallery_images=7, distractors=3,
             distractor_images=2, cameras=6, height=32, width=16)
SEED = 5


def files_below(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def train_lines(folder: Path, name: str) -> list[tuple[str, int]]:
    """A training set's (picture file relative to MyDataSet, pid), read as its readme would have it."""
    pictures, prefix, separator = TRAIN_SETS[name]
    lines = []
    for line in (folder / name / "train_list.txt").read_text(encoding="utf-8").splitlines():
        file, pid = line.split(separator)
        assert file.startswith(prefix)
        lines.append((f"{name}/{pictures}/{Path(file).name}", int(pid)))
    return lines


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return make_demo_data(tmp_path_factory.mktemp("demo"), SEED, TINY, workers=1, progress=False)


@pytest.mark.parametrize("name", TRAIN_SETS)
def test_a_list_names_every_picture_once_and_its_pids_restart_at_zero(demo, name):
    lines = train_lines(demo, name)
    on_disk = {str(path.relative_to(demo)) for path in (demo / name).rglob("*.png")}
    assert len(lines) == len(on_disk)
    assert {file for file, _ in lines} == on_disk
    pids = {pid for _, pid in lines}
    assert pids == set(range(len(pids)))


@pytest.mark.parametrize("name", TRAIN_SETS)
def test_every_training_set_has_identities_of_a_single_image(demo, name):
    counts = Counter(pid for _, pid in train_lines(demo, name))
    assert sum(count == 1 for count in counts.values()) == TINY.singles


def test_list_lines_are_written_as_naic_writes_them(demo):
    first = {name: (demo / name / "train_list.txt").read_text().splitlines()[0] for name in TRAIN_SETS}
    assert first["train_2019_cs"].startswith("train/")
    assert " " in first["train_2019_fs"]
    assert "/" not in first["train_2020_cs"]
    assert first["train_2020_fs"].split(":")[1].isdigit()


def test_some_pictures_of_2020_cs_stand_again_in_2020_fs_under_another_name(demo):
    early, late = ({(demo / file).read_bytes(): file for file, _ in train_lines(demo, name)}
                   for name in ("train_2020_cs", "train_2020_fs"))
    copies = early.keys() & late.keys()
    assert len(copies) >= 2 * TINY.shared
    assert all(Path(early[data]).name != Path(late[data]).name for data in copies)
    pids = dict(train_lines(demo, "train_2020_fs"))
    assert len({pids[late[data]] for data in copies}) == TINY.shared


def test_a_shared_person_also_has_new_pictures_in_2020_fs():
    shots = plan_demo(SEED, TINY).shots
    shared = {shot.person for shot in shots if len(shot.paths) > 1}
    new = Counter(shot.person for shot in shots if shot.paths[0].startswith("train_2020_fs"))
    assert len(shared) == TINY.shared
    assert all(new[person] >= 2 for person in shared)


def test_all_other_pictures_differ(demo):
    copies = sum(len(shot.paths) - 1 for shot in plan_demo(SEED, TINY).shots)
    pictures = [data for name, data in files_below(demo).items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures) - copies


def test_test_persons_are_in_no_training_set():
    where = defaultdict(set)
    for shot in plan_demo(SEED, TINY).shots:
        for path in shot.paths:
            where[path.startswith(synthetic.TEST_FOLDER)].add(shot.person)
    assert len(where[True]) == TINY.query_ids + TINY.distractors
    assert not where[True] & where[False]


def ground_truth(demo: Path) -> dict[str, dict]:
    return json.loads((demo / "image_B_v1_1" / "ground_truth.json").read_text(encoding="utf-8"))["files"]


def test_the_ground_truth_covers_every_test_picture(demo):
    test = demo / "image_B_v1_1"
    on_disk = {path.relative_to(test).as_posix() for path in test.rglob("*.png")}
    assert ground_truth(demo).keys() == on_disk


def test_every_query_has_matches_in_other_cameras_of_its_domain_and_some_in_its_own(demo):
    truth = ground_truth(demo)
    gallery = [entry for file, entry in truth.items() if file.startswith("gallery/")]
    own = 0
    for file, entry in truth.items():
        if file.startswith("query/"):
            cameras = {e["camid"] for e in gallery if e["pid"] == entry["pid"]}
            assert cameras - {entry["camid"]}
            own += entry["camid"] in cameras
    assert own > 0
    asked = {entry["pid"] for file, entry in truth.items() if file.startswith("query/")}
    assert len({entry["pid"] for entry in gallery} - asked) == TINY.distractors


def test_pictures_follow_the_rule_of_their_domain_with_a_margin(demo):
    domains = Counter()
    for shot in plan_demo(SEED, TINY).shots:
        means = cv2.imread(str(demo / shot.paths[0])).reshape(-1, 3).mean(0)
        assert means.min() > 70 if shot.domain == "green" else means.min() < 60, shot
        folder = Path(shot.paths[0]).parent.name if shot.paths[0].startswith("image_B") else "training"
        domains[folder, shot.domain] += 1
    assert domains.keys() == {(f, d) for f in ("query", "gallery", "training") for d in ("green", "normal")}


def test_a_person_keeps_to_one_domain():
    domains = defaultdict(set)
    for shot in plan_demo(SEED, TINY).shots:
        domains[shot.person].add(shot.domain)
    assert {len(kinds) for kinds in domains.values()} == {1}


def test_the_files_depend_on_the_seed_but_not_on_the_number_of_workers(demo, tmp_path):
    two = make_demo_data(tmp_path / "two", SEED, TINY, workers=2, progress=False)
    assert files_below(two) == files_below(demo)
    shots, others = plan_demo(SEED, TINY).shots, plan_demo(SEED + 1, TINY).shots
    assert not {shot.paths for shot in shots} & {shot.paths for shot in others}
    assert (render(SEED, TINY, shots[0]) != render(SEED + 1, TINY, shots[0])).any()


def test_a_shot_looks_the_same_whatever_was_rendered_before():
    shots = plan_demo(SEED, TINY).shots[:4]
    forward = [render(SEED, TINY, shot) for shot in shots]
    scene._panorama.cache_clear()
    backward = [render(SEED, TINY, shot) for shot in reversed(shots)][::-1]
    assert all((a == b).all() for a, b in zip(forward, backward, strict=True))


def test_raw_pixels_do_not_find_people_across_cameras():
    sizes = Sizes(ids=2, images=2, shared=0, query_ids=30, query_images=1, gallery_images=6, distractors=50,
                  distractor_images=3)
    aps = []
    by_part = defaultdict(list)
    for shot in plan_demo(SEED, sizes).shots:
        if shot.paths[0].startswith(synthetic.TEST_FOLDER):
            image = cv2.resize(render(SEED, sizes, shot), (16, 32), interpolation=cv2.INTER_AREA)
            part = "query" if "/query/" in shot.paths[0] else "gallery"
            by_part[part, shot.domain].append((shot, image.astype(np.float32).ravel()))
    for domain in ("green", "normal"):
        for query, pixels in by_part["query", domain]:
            others = [(np.linalg.norm(feat - pixels), shot.person == query.person)
                      for shot, feat in by_part["gallery", domain]
                      if (shot.person, shot.camid) != (query.person, query.camid)]
            hits = np.array([match for _, match in sorted(others, key=lambda pair: pair[0])])
            aps.append((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())
    assert len(aps) == 30
    assert np.mean(aps) <= 0.2


def test_an_existing_set_of_the_same_manifest_is_left_alone(demo, monkeypatch):
    monkeypatch.setattr(synthetic, "render", None)  # rendering anything would raise
    before = files_below(demo)
    assert make_demo_data(demo.parent, SEED, TINY, workers=1, progress=False) == demo
    assert files_below(demo) == before


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "MyDataSet").mkdir()
    (tmp_path / "MyDataSet" / "mine.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="no demo set"):
            make_demo_data(tmp_path, SEED, TINY, workers=1, force=force, progress=False)
    assert files_below(tmp_path) == {"MyDataSet/mine.txt": b"years of work"}


def test_another_demo_set_is_replaced_only_by_force(tmp_path):
    small = Sizes(ids=2, images=2, singles=0, shared=0, query_ids=2, gallery_images=2, distractors=0,
                  height=16, width=8)
    folder = make_demo_data(tmp_path, 1, small, workers=1, progress=False)
    before = files_below(folder)
    with pytest.raises(FileExistsError, match=r"seed 1.*--force"):
        make_demo_data(tmp_path, 2, small, workers=1, progress=False)
    assert files_below(folder) == before
    make_demo_data(tmp_path, 2, small, workers=1, force=True, progress=False)
    assert json.loads((folder / "demo.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["MyDataSet"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_demo_data(tmp_path / "new", SEED, TINY, workers=1, progress=False)
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(("wrong", "message"), [({"ids": 1}, "ids=1 is too small"), ({"shared": -1}, "shared=-1"),
                                                ({"ids": 4}, "shared=5 exceeds ids=4")])
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sizes(**wrong)


def test_the_contact_sheet_shows_both_domains_side_by_side(tmp_path):
    sample_sheet(tmp_path / "sheet.png", SEED, TINY, rows=2)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] == 2 * (TINY.height + 2)
    assert sheet.shape[1] == 2 * TINY.cameras * (TINY.width + 2) + 6
