"""Each public set, in the layout that it was published in: identities, cameras, splits, junk, incomplete downloads."""
from __future__ import annotations

import re

import pytest
from set_files import IMAGES, JUNK, load_kind, write_set

from datasets.bases import Places, Reference
from datasets.sets.public import LAYOUTS, Counts, public_folder


@pytest.fixture
def as_published(monkeypatch):
    """Let the table promise what the miniatures hold."""
    for name, layout in LAYOUTS.items():
        splits = {}
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


@pytest.mark.parametrize("name", LAYOUTS)
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


@pytest.mark.parametrize(("name", "home"), [(name, home) for name in LAYOUTS for home in LAYOUTS[name].homes])
def test_the_usual_folder_names_are_loaded(name, home, tmp_path):
    folder = write_set(tmp_path, name, home)
    assert public_folder(Reference(name, name), Places(tmp_path)) == folder
    assert public_folder(Reference(name, name), Places(folder)) == folder
    assert load_kind(name, tmp_path) == load_kind(name, folder)


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


@pytest.mark.parametrize("name", LAYOUTS)
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
    (folder / test).rename(tmp_path / "away")
    assert load_kind(name, tmp_path, ("train",)).eval_sets == {}
    with pytest.raises(FileNotFoundError, match=f"{name} in .* is incomplete: no {test}.*/"):
        load_kind(name, tmp_path, ("test",))
    (tmp_path / "away").rename(folder / test)
    (folder / train).rename(tmp_path / "away")
    assert load_kind(name, tmp_path, ("test",)).train == []


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


@pytest.mark.parametrize(("name", "file"), [
    ("market1501", "query/0001_c1s1.jpg"), ("market1501", "query/0001_c0s1_001051_00.jpg"),
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
