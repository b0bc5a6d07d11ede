"""Each public set, in the layout that it was published in: identities, cameras, splits, junk, incomplete downloads."""
from __future__ import annotations

import json
import re
import shutil

import pytest
from set_files import IMAGES, JUNK, load_kind, write_image, write_set

from datasets.bases import Places, Reference
from datasets.sets.public import LAYOUTS, Counts, public_folder

FIXED = [name for name in LAYOUTS if not LAYOUTS[name].trials]  # with a query and a gallery of their own


@pytest.fixture
def as_published(monkeypatch):
    """Let the table promise what the miniatures hold."""
    for name in FIXED:
        layout, splits = LAYOUTS[name], {}
        for split, rule in layout.splits.items():
            known = IMAGES[name][split].values()
            counts = Counts(len(known), len({pid for pid, _ in known}), len({camid for _, camid in known}))
            splits[split] = rule._replace(published=counts)
        monkeypatch.setitem(LAYOUTS, name, layout._replace(splits=splits))


def loaded(name: str, samples, pid_names: list[str]) -> dict[str, tuple[str, int]]:
    """Loaded samples in the form of IMAGES."""
    return {sample.key.removeprefix(f"{name}/"): (pid_names[sample.pid].removeprefix(f"{name}/"), sample.camid)
            for sample in samples}


def test_every_entry_of_the_table_has_a_miniature():
    assert set(IMAGES) == set(LAYOUTS)


@pytest.mark.parametrize("name", FIXED)
def test_a_set_is_read_as_published(name, tmp_path, as_published, caplog):
    write_set(tmp_path, name)
    data = load_kind(name, tmp_path)
    pair = data.eval_sets[name]
    assert loaded(name, data.train, data.pid_names) == IMAGES[name]["train"]
    assert loaded(name, pair.query, pair.pid_names) == IMAGES[name]["query"]
    assert loaded(name, pair.gallery, pair.pid_names) == IMAGES[name]["gallery"]
    assert data.pid_names == sorted({f"{name}/{pid}" for pid, _ in IMAGES[name]["train"].values()})
    assert (pair.has_truth, pair.drop_same_camera) == (True, True)
    assert not caplog.records


@pytest.mark.parametrize(("name", "home"), [
    *((name, home) for name in LAYOUTS for home in LAYOUTS[name].homes),
    ("market1501", "market1501/Market-1501-v15.09.15"), ("dukemtmc", "dukemtmc-reid/DukeMTMC-reID"),
    ("msmt17", "msmt17/MSMT17_V1"), ("msmt17", "MSMT17/MSMT17_V2"), ("veri", "veri/VeRi"),
    ("cuhk03", "cuhk03/cuhk03-np"), ("cuhk03_labeled", "CUHK03_np"), ("vehicleid", "VehicleID/VehicleID_V1.0"),
    ("market1501", "Market-1501-v15.09.15/Market-1501-v15.09.15"), ("veri", "VeRi/VeRi"), ("veri", "VeRi776"),
    ("market1501", "market1501/Market-1501-v15.09.15/Market-1501-v15.09.15"), ("dukemtmc", "DUKE"),
])
def test_the_usual_folder_names_are_loaded(name, home, tmp_path):
    """Those of the table; one in another, as torchreid has them or as a zip was unpacked; whatever their capitals."""
    folder = write_set(tmp_path, name, home)
    data = load_kind(name, tmp_path)
    for root in (tmp_path, tmp_path / home.split("/")[0], tmp_path / home, folder):
        assert public_folder(Reference(name, name), Places(root)) == folder
        assert load_kind(name, root) == data


def test_a_set_that_is_there_twice_is_an_error_that_names_both(tmp_path):
    first, second = write_set(tmp_path, "msmt17", "MSMT17_V1"), write_set(tmp_path, "msmt17", "msmt17/MSMT17_V2")
    with pytest.raises(ValueError, match=f"msmt17 is in {tmp_path} twice: {first} and {second}; name one.*ROOTS"):
        load_kind("msmt17", tmp_path)
    assert load_kind("msmt17", second).num_classes == 2


def test_a_link_to_a_set_beside_it_is_the_same_set(tmp_path):
    (tmp_path / "market1501").symlink_to(write_set(tmp_path, "market1501"))
    assert load_kind("market1501", tmp_path).num_classes == 2


def test_the_roots_own_pictures_are_no_set_where_a_folder_has_its_name(tmp_path):
    """The root is Market-1501's folder, and has that of DukeMTMC-reID in it."""
    root = write_set(tmp_path, "market1501")
    folder = write_set(root, "dukemtmc", "dukemtmc-reid/DukeMTMC-reID")
    assert public_folder(Reference("dukemtmc", "dukemtmc"), Places(root)) == folder
    assert public_folder(Reference("market1501", "market1501"), Places(root)) == root


def test_junk_is_ignored_and_distractors_stay(tmp_path):
    folder = write_set(tmp_path, "market1501")
    assert (folder / JUNK).is_file()
    pair = load_kind("market1501", tmp_path).eval_sets["market1501"]
    assert not [sample.key for sample in pair.gallery if "/-1_" in sample.key]
    assert "market1501/-1" not in pair.pid_names
    assert [pair.pid_names[sample.pid] for sample in pair.gallery if "/0000_" in sample.key] == ["market1501/0"]


def test_train_and_test_identities_of_msmt17_are_different_people(tmp_path):
    """Both are counted from 0."""
    write_set(tmp_path, "msmt17")
    data = load_kind("msmt17", tmp_path)
    assert not set(data.pid_names) & set(data.eval_sets["msmt17"].pid_names)


def test_msmt17_v2_has_its_masked_folders(tmp_path):
    folder = write_set(tmp_path, "msmt17", "MSMT17_V2")
    for side in ("train", "test"):
        (folder / side).rename(folder / f"mask_{side}_v2")
    data = load_kind("msmt17", tmp_path)
    assert data.train[0].key == "msmt17/mask_train_v2/0000/0000_000_01_0303morning_0008_0.jpg"
    assert len(data.train) == 4


@pytest.mark.parametrize("name", FIXED)
def test_an_incomplete_download_is_a_warning_with_both_counts(name, tmp_path, caplog):
    folder = write_set(tmp_path, name)
    load_kind(name, tmp_path)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 3
    published = LAYOUTS[name].splits["train"].published
    assert messages[0].startswith(f"{name}: train in {folder} has 4 images of 2 identities")
    assert f"published are {published.images:,} images of {published.identities:,} identities from " in messages[0]
    assert messages[0].endswith("the download is incomplete")


def test_a_download_that_holds_too_much_is_named(tmp_path, as_published, caplog):
    folder = write_set(tmp_path, "dukemtmc")
    (folder / "query/0008_c1_f0079545.jpg").touch()
    load_kind("dukemtmc", tmp_path, ("test",))
    assert "query in" in caplog.text
    assert "holds more than the published set" in caplog.text


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_needs_no_test_folder_and_testing_no_training_folder(name, tmp_path):
    folder = write_set(tmp_path, name)
    train, test = (LAYOUTS[name].splits[split].folders[0] for split in ("train", "gallery"))
    if LAYOUTS[name].trials:
        train, test = (LAYOUTS[name].splits[split].lists[0] for split in ("train", "gallery"))
    (folder / test).rename(tmp_path / "away")
    assert load_kind(name, tmp_path, ("train",)).eval_sets == {}
    with pytest.raises(FileNotFoundError, match=f"{name} in .* is incomplete: no {test}"):
        load_kind(name, tmp_path, ("test",))
    (tmp_path / "away").rename(folder / test)
    (folder / train).rename(tmp_path / "away")
    assert load_kind(name, tmp_path, ("test",)).train == []


@pytest.mark.parametrize("name_of", ["{:04d}_c{}_0001.jpg", "{:04d}_000_{:02d}_0303morning_0008_0.jpg"])
def test_msmt17_is_read_from_market1501s_folders(name_of, tmp_path):
    for folder, pids in (("bounding_box_train", (0, 1)), ("query", (0, 7)), ("bounding_box_test", (0, 7))):
        for pid in pids:
            for camid in (3, 15) if folder != "query" else (4,):
                write_image(tmp_path / "MSMT17" / folder / name_of.format(pid, camid), pid)
    data = load_kind("msmt17", tmp_path)
    pair = data.eval_sets["msmt17"]
    assert data.pid_names == ["msmt17/0", "msmt17/1"]
    assert {sample.camid for sample in data.train} == {3, 15}
    assert pair.pid_names == ["msmt17/test_0", "msmt17/test_7"]
    assert (len(pair.query), len(pair.gallery), pair.drop_same_camera) == (2, 4, True)


def write_raw_cuhk03(folder, boxes):
    """As torchreid extracts it; the test person's label counts from 0 again, as the training person's does."""
    split = {"train": ["1_001_1_01.png", "1_001_2_06.png"], "query": ["2_001_1_01.png"], "gallery": ["2_001_2_07.png"]}
    rows = {part: [[f"/home/me/data/cuhk03/images_{boxes}/{file}", 0, int(file[6]) - 1] for file in files]
            for part, files in split.items()}
    for file in (file for files in split.values() for file in files):
        write_image(folder / f"images_{boxes}" / file, int(file[0]))
    (folder / f"splits_new_{boxes}.json").write_text(json.dumps([rows]))


@pytest.mark.parametrize(("name", "boxes"), [("cuhk03", "detected"), ("cuhk03_labeled", "labeled")])
def test_cuhk03_is_read_as_torchreid_extracts_it(name, boxes, tmp_path):
    write_raw_cuhk03(tmp_path / "cuhk03", boxes)
    data = load_kind(name, tmp_path)
    pair = data.eval_sets[name]
    assert loaded(name, data.train, data.pid_names) == {
        f"images_{boxes}/1_001_1_01.png": ("1_001", 1), f"images_{boxes}/1_001_2_06.png": ("1_001", 2)}
    assert loaded(name, pair.query + pair.gallery, pair.pid_names) == {
        f"images_{boxes}/2_001_1_01.png": ("2_001", 1), f"images_{boxes}/2_001_2_07.png": ("2_001", 2)}


def test_of_two_layouts_in_one_folder_the_first_counts(tmp_path):
    write_raw_cuhk03(tmp_path / "cuhk03", "detected")
    folder = write_set(tmp_path, "cuhk03", "cuhk03")
    assert public_folder(Reference("cuhk03", "cuhk03"), Places(tmp_path)) == folder == tmp_path / "cuhk03/detected"


def test_a_wrong_list_of_raw_cuhk03_is_named(tmp_path):
    write_raw_cuhk03(tmp_path / "cuhk03", "detected")
    (tmp_path / "cuhk03/images_detected/2_001_1_01.png").unlink()
    with pytest.raises(ValueError, match=r"splits_new_detected\.json: query 0: no such image: '2_001_1_01\.png'"):
        load_kind("cuhk03", tmp_path)
    (tmp_path / "cuhk03/splits_new_detected.json").write_text("{}")
    with pytest.raises(ValueError, match=r"splits_new_detected\.json: not torchreid's list of splits"):
        load_kind("cuhk03", tmp_path)
    (tmp_path / "cuhk03/splits_new_detected.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"incomplete: no splits_new_detected\.json"):
        load_kind("cuhk03", tmp_path)


@pytest.mark.parametrize("place", ["cuhk03/cuhk03_release", "cuhk03", "cuhk03_release", "."])
def test_the_raw_download_of_cuhk03_is_known_and_what_to_do_with_it(place, tmp_path):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "cuhk-03.mat").touch()
    with pytest.raises(FileNotFoundError, match=r"raw download .*cuhk-03\.mat: .*CUHK03-NP.*images_labeled/"):
        load_kind("cuhk03_labeled", tmp_path)


# ------------------------------------------------------------------ trials
@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name].trials])
def test_vehicleid_is_measured_in_ten_divisions_of_its_test_list(name, tmp_path, caplog):
    write_set(tmp_path, name)
    data = load_kind(name, tmp_path)
    assert loaded(name, data.train, data.pid_names) == IMAGES[name]["train"]
    assert list(data.eval_sets) == [f"{name}_trial{number:02d}" for number in range(1, 11)]
    for pair in data.eval_sets.values():
        assert loaded(name, pair.query + pair.gallery, pair.pid_names) == IMAGES[name]["test"]
        assert sorted(pair.pid_names[sample.pid] for sample in pair.gallery) == pair.pid_names
        assert (len(pair.query), len(pair.gallery), pair.has_truth, pair.drop_same_camera) == (6, 3, True, False)
    assert len({tuple(pair.gallery) for pair in data.eval_sets.values()}) > 5
    assert load_kind(name, tmp_path) == data
    size = LAYOUTS[name].splits["gallery"].published.identities
    assert f"{name}: gallery in {tmp_path / 'VehicleID_V1.0'} has 3 images of 3 identities" in caplog.text
    assert f"published are {size:,} images of {size:,} identities: the download is incomplete" in caplog.text


def test_the_draw_of_a_vehicle_does_not_depend_on_the_others(tmp_path):
    folder = write_set(tmp_path, "vehicleid")
    pairs = load_kind("vehicleid", tmp_path).eval_sets.values()
    galleries = [{sample.key for sample in pair.gallery} for pair in pairs]
    path = folder / "train_test_split/test_list_800.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith(" 700\n")))
    for pair, gallery in zip(load_kind("vehicleid", tmp_path).eval_sets.values(), galleries, strict=True):
        assert {sample.key for sample in pair.gallery} < gallery


@pytest.mark.parametrize(("line", "fault"), [
    ("0000009 5", "no such image: '0000009.jpg'"), ("0000001 x", "expected 'PATH PID'"),
    ("../0000001 5", "only name files inside"), ("0000001 5", "'0000001.jpg' is 5 here and 2 above"),
    (f"0000001 {'9' * 19}", "expected 'PATH PID'"), (f"0000001 {'9' * 5000}", "expected 'PATH PID'"),
])
def test_a_bad_line_of_vehicleid_is_named(line, fault, tmp_path):
    with open(write_set(tmp_path, "vehicleid") / "train_test_split/train_list.txt", "a") as out:
        out.write(line + "\n")
    with pytest.raises(ValueError, match=rf"train_list\.txt:5: .*{fault}"):
        load_kind("vehicleid", tmp_path, ("train",))


@pytest.mark.parametrize("camera", ["9" * 10, "9" * 30])
def test_a_camera_that_no_array_holds_is_no_camera(camera, tmp_path):
    folder = write_set(tmp_path, "market1501")
    shutil.copy(next((folder / "query").iterdir()), folder / "query" / f"0001_c{camera}s1_000451_03.jpg")
    with pytest.raises(ValueError, match="not a name of this set"):
        load_kind("market1501", tmp_path)


# ------------------------------------------------------------------ own names
@pytest.mark.parametrize("end", ["c3_0001.jpg", "c3.jpg", "c03s1_000451_03.jpg", "c3s1.jpg", "c3_f0001.jpg",
                                 "C3S1_000451_03.JPG", "cam3_1.png", "c3-0001.jpg", "c3s1_000002_01 (1).jpg"])
def test_own_pictures_in_market1501s_folders_need_no_more_than_person_and_camera_in_their_names(end, tmp_path):
    folder = write_set(tmp_path, "market1501")
    write_image(folder / "query" / f"1600_{end}", 1)
    pair = load_kind("market1501", tmp_path, ("test",)).eval_sets["market1501"]
    own = next(sample for sample in pair.query if "1600_" in sample.key)
    assert (pair.pid_names[own.pid], own.camid) == ("market1501/1600", 3)


@pytest.mark.parametrize("name", FIXED)
def test_the_error_of_a_name_shows_a_right_one_and_who_takes_any(name, tmp_path):
    folder = write_set(tmp_path, name)
    if not LAYOUTS[name].splits["query"].lists:
        (folder / LAYOUTS[name].splits["query"].folders[0] / "IMG_20200101.jpg").touch()
    else:
        (folder / "list_query.txt").write_text("0000/IMG_20200101.jpg 0")
    example = LAYOUTS[name].example
    advice = rf"A right name is {re.escape(example)}\. .*tree:FOLDER and csv:FILE take pictures of any name"
    with pytest.raises(ValueError, match=advice) as error:
        load_kind(name, tmp_path)
    assert LAYOUTS[name].name.fullmatch(example.split(" ")[0])
    assert str(error.value).count(example) == 1


def test_missing_lists_are_all_named(tmp_path):
    folder = write_set(tmp_path, "msmt17")
    for split in ("val", "query"):
        (folder / f"list_{split}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list_val\.txt, no list_query\.txt"):
        load_kind("msmt17", tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_set_is_named_with_the_place_to_put_it(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"expected {re.escape(LAYOUTS[name].homes[0])}/.*DATASETS.ROOT_DIR"):
        load_kind(name, tmp_path)


def test_the_error_of_a_missing_set_lists_what_lies_there(tmp_path):
    (tmp_path / "Market-1501-v15.09.15/pytorch").mkdir(parents=True)
    (tmp_path / "Market-1501-v15.09.15.zip").touch()
    with pytest.raises(FileNotFoundError) as error:
        load_kind("market1501", tmp_path)
    assert f"{tmp_path} has Market-1501-v15.09.15.zip, Market-1501-v15.09.15/; " in str(error.value)
    assert f"{tmp_path / 'Market-1501-v15.09.15'} has pytorch/; " in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="nowhere has not been found"):
        load_kind("market1501", tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "file"), [
    ("market1501", "query/0001_1_0001.jpg"), ("market1501", "query/0001_c0s1_001051_00.jpg"),
    ("market1501", "query/c1_0001.jpg"), ("market1501", "query/copy of 0001_c1.jpg"),
    ("dukemtmc", "query/0001_c1s1_001051_00.jpg"), ("veri", "image_query/copy of 0002_c002_00030600_0.jpg"),
])
def test_a_foreign_image_is_an_error_that_names_it(name, file, tmp_path):
    (write_set(tmp_path, name) / file).touch()
    with pytest.raises(ValueError, match=f"1 problem\n{re.escape(file)}: not a name of this set"):
        load_kind(name, tmp_path)


@pytest.mark.parametrize(("line", "fault"), [
    ("0000/0000_000_01_0303morning_9999_0.jpg 0", "no such image"),
    ("../../0000_000_01_0303morning_0008_0.jpg 0", "only name files inside"),
    ("/tmp/0000_000_01_0303morning_0008_0.jpg 0", "only name files inside"),
    ("0000/0000_000_01_0303morning_0008_0.jpg", "expected 'PATH PID'"),
    ("0000/0000_000_01_0303morning_0008_0.jpg x", "expected 'PATH PID'"),
    ("0000/picture.jpg 0", "expected 'PATH PID'"),
])
def test_a_bad_line_of_msmt17_is_named(line, fault, tmp_path):
    folder = write_set(tmp_path, "msmt17")
    with open(folder / "list_query.txt", "a") as out:
        out.write(line + "\n")
    with pytest.raises(ValueError, match=rf"list_query\.txt:2: .*{fault}"):
        load_kind("msmt17", tmp_path)


def test_a_link_that_leaves_the_set_is_refused(tmp_path):
    folder, outside = write_set(tmp_path, "msmt17"), tmp_path / "outside"
    (folder / "test" / "0000").rename(outside)
    (folder / "test" / "0000").symlink_to(outside)
    with pytest.raises(ValueError, match="a link leads out of it"):
        load_kind("msmt17", tmp_path)


def test_what_lies_beside_a_sets_pictures_is_named_and_warned_of_if_it_may_be_one(tmp_path, caplog):
    home = write_set(tmp_path, "market1501")
    with caplog.at_level("INFO"):
        (home / "query/readme.txt").touch()
        load_kind("market1501", tmp_path)
        (home / "query/more").mkdir()
        (home / "query/0002_c1s1_000451_03.heic").touch()
        load_kind("market1501", tmp_path)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if "passed over" in record.message]
    assert lines == [("INFO", f"{home}/query: passed over 1 .txt: readme.txt"),
                     ("WARNING", f"{home}/query: passed over 1 .heic, 1 folder, 1 .txt: 0002_c1s1_000451_03.heic, "
                                 "more/, readme.txt")]
