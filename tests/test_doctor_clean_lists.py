"""Cleaned lists: who stays, what the files say, and that a training reads them."""
from pathlib import Path

import pytest
from doctor_data import add_image, add_line, copy_image, images_of, list_of, make_naic, picture, png
from set_files import load_naic

from processor.doctor.clean_lists import STAYS_FIRST, read_equal_list
from processor.doctor.examine import DoctorOptions, examine

NEW = {"2020_cs": "new_train_list.txt", "2019_fs": "new_2019_fs_train_list.txt",
       "2019_cs": "new_2019_cs_train_list.txt"}
EQUAL = {"2020_cs": "cs_2020equal_path.txt", "2019_fs": "fs_2019equal_path.txt", "2019_cs": "cs_2019equal_path.txt"}


@pytest.fixture
def data(tmp_path) -> Path:
    return make_naic(tmp_path)


def clean(data: Path, **options) -> Path:
    """Write the cleaned lists; the folder with them."""
    output = data.parent / "derived"
    examine(data, output, DoctorOptions(**{"write_clean_lists": True, "progress": False, "workers": 1, **options}))
    return output


def trained_on(data: Path, derived: Path | None) -> set[str]:
    """What a training reads: keys."""
    return {sample.key for sample in load_naic(data, derived_dir=derived, parts=("train",)).train}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_sound_set_keeps_every_line_as_it_stands(data):
    derived = clean(data)
    for name, file in NEW.items():
        assert (derived / file).read_bytes() == list_of(data, name).read_bytes()
        assert (derived / EQUAL[name]).read_bytes() == b""
    assert trained_on(data, derived) == trained_on(data, None)


@pytest.mark.parametrize("stays", range(3))
def test_a_picture_stays_in_the_first_of_its_sets(data, stays):
    sets = STAYS_FIRST[stays:]
    content = png(picture(1000))
    for name in reversed(sets):
        add_image(data, name, f"of_{name}.png", 7, content)
    derived = clean(data)
    for name in sets[1:]:
        image = f"{images_of(data, name).relative_to(data).as_posix()}/of_{name}.png"
        assert lines(derived / EQUAL[name]) == [image]
        assert not any(f"of_{name}.png" in line for line in lines(derived / NEW[name]))
    used = {key.rsplit("/", 1)[1] for key in trained_on(data, derived) if "of_" in key}
    assert used == {f"of_{sets[0]}.png"}
    assert len(trained_on(data, derived)) == len(trained_on(data, None)) - len(sets) + 1


def test_copies_inside_a_set_stay(data):
    copy_image(data, ("2020_cs", "7_0.png"), "2020_cs", "again.png", 7)
    assert "again.png:7" in lines(clean(data) / NEW["2020_cs"])


def test_equal_by_pixels_finds_what_was_saved_again(data):
    add_image(data, "2020_cs", "level0.png", 7, png(picture(1000), level=0))
    add_image(data, "2020_fs", "level9.png", 7, png(picture(1000), level=9))
    assert lines(clean(data) / EQUAL["2020_cs"]) == []
    assert lines(clean(data, equal_by="pixels") / EQUAL["2020_cs"]) == ["train_2020_cs/images/level0.png"]


def test_lines_that_would_stop_a_training_are_left_out_and_the_rest_loads(data):
    add_line(data, "2020_cs", "no pid here")
    add_line(data, "2020_cs", "../images/3_0.png:3")
    add_line(data, "2020_cs", "none.png:3")
    add_line(data, "2020_cs", "3_0.png:7")
    add_image(data, "2020_cs", "half.png", 7, png(picture(1000))[:300])
    add_image(data, "2020_cs", "行人 甲.png", 7, png(picture(1001)))
    with pytest.raises(ValueError, match="4 problems"):
        load_naic(data, parts=("train",))
    derived = clean(data)
    assert lines(derived / NEW["2020_cs"]) == [*(f"{pid}_{number}.png:{pid}" for pid in (3, 7, 12) for number in
                                                 range(3) if (pid, number) != (3, 0)), "行人 甲.png:7"]
    assert len(trained_on(data, derived)) == 4 * 9 - 1 + 1


def test_a_picture_that_its_own_list_calls_two_people_is_no_reason_to_drop_it_elsewhere(data):
    content = png(picture(1000))
    add_image(data, "2020_cs", "unclear.png", 3, content)
    add_line(data, "2020_cs", "unclear.png:7")
    add_image(data, "2019_cs", "clear.png", 3, content)
    assert "train/clear.png 3" in lines(clean(data) / NEW["2019_cs"])


def test_domain_lists_beside_the_cleaned_lists_are_found(data):
    (data.parent / "derived").mkdir()
    for path in (data / "image_B_v1_1").glob("*.txt"):
        path.rename(data.parent / "derived" / path.name)
    report = examine(data, clean(data), DoctorOptions(write_clean_lists=True, progress=False, workers=1))
    assert report.findings.counts == {}


def test_cleaning_starts_from_the_original_lists_and_says_which_wins(data, caplog):
    copy_image(data, ("2020_fs", "7_0.png"), "2020_cs", "copy.png", 7)
    existing = data / "train_2020_cs" / NEW["2020_cs"]
    existing.write_text("3_0.png:3\n3_1.png:3\n")
    report = examine(data, data.parent / "derived", DoctorOptions(write_clean_lists=True, progress=False, workers=1))
    assert lines(data.parent / "derived" / EQUAL["2020_cs"]) == ["train_2020_cs/images/copy.png"]
    assert {clean.set: clean.overruled for clean in report.clean_lists} == {"2019_cs": False, "2019_fs": False,
                                                                     "2020_cs": True}
    assert any("NOT USED" in clean.describe() for clean in report.clean_lists)


# ------------------------------------------------------------------------------------------------------- equal lists
@pytest.mark.parametrize("text", [
    "\n/home/wenli/data/MyDataSet/train_2019_cs/train/3_0.png\n/home/wenli/data/MyDataSet/train_2019_cs/train/7_1.png",
    "train_2019_cs/train/3_0.png\r\ntrain_2019_cs/train/7_1.png\r\n",
    "\ufeffC:\\data\\train_2019_cs\\train\\3_0.png\nC:\\data\\train_2019_cs\\train\\7_1.png\n",
    "3_0.png\n7_1.png\n3_0.png\n",
])
def test_an_existing_list_is_applied_by_file_name(data, text):
    given = data.parent / EQUAL["2019_cs"]
    given.write_bytes(text.encode())
    derived = clean(data, write_clean_lists=False, equal_lists=[given], lists_only=True)
    assert sorted(path.name for path in derived.glob("*.txt")) == ["doctor.txt", NEW["2019_cs"]]
    assert lines(derived / NEW["2019_cs"]) == [line for line in lines(list_of(data, "2019_cs"))
                                               if not line.startswith(("train/3_0", "train/7_1"))]
    assert len(trained_on(data, derived)) == 4 * 9 - 2
    assert given.read_bytes() == text.encode()


def test_an_existing_list_goes_before_equal_images(data):
    copy_image(data, ("2020_fs", "7_0.png"), "2020_cs", "copy.png", 7)
    copy_image(data, ("2020_fs", "7_0.png"), "2019_cs", "copy.png", 7)
    given = data.parent / "any_name.txt"
    given.write_text("/other/train_2020_cs/images/3_0.png\n")
    derived = clean(data, equal_lists=[given])
    assert "copy.png:7" in lines(derived / NEW["2020_cs"])
    assert "3_0.png:3" not in lines(derived / NEW["2020_cs"])
    assert not (derived / EQUAL["2020_cs"]).exists()
    assert lines(derived / EQUAL["2019_cs"]) == ["train_2019_cs/train/copy.png"]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("any.txt", "a.png\n", r"any.txt:1: 'a.png' names no training set"),
    ("any.txt", "\n\n", "names no image"),
    ("any.txt", "/x/train_2020_fs/images/3_0.png\n", "names no training set that can be cleaned"),
    ("cs_2020equal_path.txt", "elsewhere.png\n", "none of its 1 file names"),
    ("cs_2020equal_path.txt", "行人.png", "not UTF-8"),
])
def test_a_list_that_does_not_fit_is_refused_before_anything_is_written(data, name, text, message):
    (data.parent / name).write_bytes(text.encode("gbk" if "UTF" in message else "utf-8"))
    with pytest.raises(ValueError, match=message):
        clean(data, equal_lists=[data.parent / name])
    assert not (data.parent / "derived").exists()


def test_a_list_of_an_absent_set_is_refused(data):
    (data.parent / EQUAL["2020_cs"]).write_text("3_0.png\n")
    with pytest.raises(ValueError, match="it is about 2020_cs"):
        clean(data, equal_lists=[data.parent / EQUAL["2020_cs"]], train_sets=["2019_cs"])
    assert read_equal_list(data.parent / EQUAL["2020_cs"]) == {"2020_cs": {"3_0.png"}}
