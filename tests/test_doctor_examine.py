"""The doctor finds what was planted, and nothing where all is well."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from doctor_data import SETS, add_image, add_line, copy_image, images_of, list_of, make_naic, picture, png

from processor.doctor import checks, duplicates
from processor.doctor.checks import MIN_SIDE
from processor.doctor.examine import RECORDS, DoctorOptions, examine
from processor.doctor.findings import KINDS, SEVERITIES, STOPS, Findings, Picture
from processor.doctor.page import histograms, shared_cells, stacked_bars, templates
from processor.doctor.report import format_text
from tools.campaigns.tool_server import ROOT, run_tool


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make_naic(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def data(sound, tmp_path) -> Path:
    """A copy of the sound set, to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "MyDataSet", symlinks=True))


def examined(data: Path, **options):
    return examine(data, data.parent / "out", DoctorOptions(**{"progress": False, "workers": 1, **options}))


def texts_of(report) -> dict[str, list[str]]:
    """kind -> the findings' texts."""
    return {kind: [item.text for item in report.findings.items(kind)] for kind in report.findings.kinds()}


def test_a_sound_set_has_no_finding(sound, tmp_path):
    report = examine(sound, tmp_path, DoctorOptions(near_bits=10, progress=False, workers=1))
    assert texts_of(report) == {}
    assert not report.stops
    assert report.verdict() == "Nothing stops a training"
    assert [(row.name, row.images, row.identities) for row in report.figures] == [
        *((name, 9, 3) for name in SETS), ("query", 2, 2), ("gallery", 4, 2)]


# ---------------------------------------------------------------------------------------------------- planted faults
def overwrite(data, content: bytes, name: str = "2020_cs", file: str = "7_1.png") -> None:
    (images_of(data, name) / file).write_bytes(content)


def write_list(data, content: bytes, name: str = "2020_cs") -> None:
    list_of(data, name).write_bytes(content)


def list_content(data, name: str = "2020_cs") -> bytes:
    return list_of(data, name).read_bytes()


def image(data, name: str = "2020_cs", file: str = "7_1.png") -> bytes:
    return (images_of(data, name) / file).read_bytes()


def link(data, target: Path) -> None:
    overwrite_path = images_of(data, "2020_cs") / "7_1.png"
    overwrite_path.unlink()
    overwrite_path.symlink_to(target)


def shared_people(data) -> None:
    """2019_fs also has the six pictures of 2019_cs' identities 3 and 7, as its identities 50 and 60."""
    for pid, other in ((3, 50), (7, 60)):
        for number in range(3):
            copy_image(data, ("2019_cs", f"{pid}_{number}.png"), "2019_fs", f"x{pid}_{number}.png", other)


def swapped_labels(data) -> None:
    shared_people(data)
    text = list_content(data, "2019_cs").replace(b"3_0.png 3", b"3_0.png !").replace(b"7_0.png 7", b"7_0.png 3")
    write_list(data, text.replace(b"!", b"7"), "2019_cs")


def overwritten_jpeg() -> bytes:
    jpeg = cv2.imencode(".jpg", picture(1))[1].tobytes()
    middle = len(jpeg) * 3 // 4
    return jpeg[:middle] + np.random.default_rng(0).bytes(64) + jpeg[middle + 64:]


FAULTS = {
    "bytes cut off": (lambda d: overwrite(d, image(d)[:-40]), "truncated image", "7_1.png: the PNG file is cut off"),
    "a JPEG cut off": (lambda d: overwrite(d, cv2.imencode(".jpg", picture(1))[1].tobytes()[:-200]),
                       "truncated image", "the JPEG file is cut off"),
    "a JPEG overwritten in its middle": (lambda d: overwrite(d, overwritten_jpeg()), "damaged image",
                                         "Corrupt JPEG data"),
    "an empty file": (lambda d: overwrite(d, b""), "truncated image", "the file is empty"),
    "a byte changed": (lambda d: overwrite(d, image(d)[:200] + bytes([image(d)[200] ^ 1]) + image(d)[201:]),
                       "unreadable image", "the PNG file is damaged"),
    "a GIF that is damaged": (lambda d: overwrite(d, b"GIF89a" + bytes(40)), "unreadable image", "cannot be decoded"),
    "a HEIC named .png": (lambda d: overwrite(d, b"\0\0\0 ftypheic" + bytes(40)), "unreadable image", "(HEIC, "),
    "a text named .png": (lambda d: overwrite(d, b"<html>404"), "unreadable image", "it begins with b'<html>40'"),
    "a missing image": (lambda d: (images_of(d, "2020_cs") / "7_1.png").unlink(), "missing image",
                        "train_2020_cs/train_list.txt:5: no such image: '7_1.png'"),
    "a line without pid": (lambda d: add_line(d, "2020_cs", "a.png"), "malformed line",
                           "train_2020_cs/train_list.txt:10: expected 'name:pid' or 'name pid' with a pid of "
                           "digits, got 'a.png'"),
    "a path with ..": (lambda d: add_line(d, "2020_cs", "../../train_2020_fs/images/3_0.png:3"), "outside",
                       "train_list.txt:10: a list may only name files inside its own folder"),
    "an absolute path": (lambda d: add_line(d, "2020_cs", "/etc/passwd:3"), "outside", "got '/etc/passwd'"),
    "a link that leads out": (lambda d: link(d, Path("/etc/passwd")), "outside",
                              "a link that leads out of it: '7_1.png'"),
    "a link in the test folder": (lambda d: (d / "image_B_v1_1/gallery/x.png").symlink_to("/etc/passwd"), "outside",
                                  "image_B_v1_1/gallery: 'x.png': is a link that leads out"),
    "a link to nothing": (lambda d: link(d, images_of(d, "2020_cs") / "none.png"), "missing image",
                          "a link to no file"),
    "one file, two pids": (lambda d: add_line(d, "2020_cs", "7_1.png:3"), "two pids",
                           "'7_1.png' is identity 3 here and identity 7 in line 5"),
    "a list in GBK": (lambda d: write_list(d, list_content(d) + "行人.png:7\n".encode("gbk")), "not text",
                      "train_2020_cs/train_list.txt:10: not UTF-8 text (byte 0xd0)"),
    "a list in UTF-16": (lambda d: write_list(d, list_content(d).decode().encode("utf-16")), "not text",
                         "train_list.txt:1: not UTF-8 text (byte 0xff)"),
    "no list": (lambda d: list_of(d, "2020_cs").unlink(), "incomplete set", "no list"),
    "no image folder": (lambda d: shutil.rmtree(images_of(d, "2020_cs")), "incomplete set", "no image folder"),
    "no gallery": (lambda d: shutil.rmtree(d / "image_B_v1_1/gallery"), "incomplete set", "gallery"),
    "a truth without an image": (lambda d: (d / "image_B_v1_1/ground_truth.json").write_text('{"files": {}}'),
                                 "wrong truth", "6 test images not in it"),
    "a domain list without an image": (lambda d: [(d / f"image_B_v1_1/query_{domain}.txt").write_text("") for domain in
                                                  ("green", "normal")], "wrong truth", "in neither list"),
    "a test image with a line break in its name":
        (lambda d: (d / "image_B_v1_1/gallery/a\nb.png").write_bytes(image(d)), "bad name", "a line break or"),
    "a 1x1 image": (lambda d: overwrite(d, png(picture(1)[:1, :1])), "odd size",
                    "7_1.png: 1 x 1 pixels, where 32 x 64 is usual"),
    "a picture lying on its side": (lambda d: overwrite(d, png(picture(999, 32, 64))), "odd size", "64 x 32 pixels"),
    "a 16-bit PNG": (lambda d: overwrite(d, png(picture(999).astype(np.uint16) * 257)), "odd mode", "16-bit RGB"),
    "a grey PNG": (lambda d: overwrite(d, png(picture(999)[..., 0])), "odd mode", "7_1.png: grey"),
    "a PNG with alpha": (lambda d: overwrite(d, png(np.dstack([picture(999), picture(998)[..., :1]]))), "odd mode",
                         "RGBA"),
    "a JPEG named .png": (lambda d: overwrite(d, cv2.imencode(".jpg", picture(999))[1].tobytes()), "misnamed format",
                          "7_1.png: a JPEG file"),
    "CRLF": (lambda d: write_list(d, list_content(d).replace(b"\n", b"\r\n")), "list format", "CRLF line ends"),
    "BOM": (lambda d: write_list(d, b"\xef\xbb\xbf" + list_content(d)), "list format", "a byte-order mark"),
    "blank lines": (lambda d: write_list(d, b"\n" + list_content(d)), "list format", "blank lines"),
    "a line twice": (lambda d: add_line(d, "2020_cs", "7_1.png:7"), "repeated line", "'7_1.png' stands in line 5, too"),
    "a name in Chinese": (lambda d: add_image(d, "2020_cs", "行人甲.png", 7, png(picture(999))), "foreign name",
                          "行人甲.png"),
    "an identity with one image": (lambda d: add_image(d, "2020_cs", "one.png", 99, png(picture(999))), "one image",
                                   "2020_cs 99"),
    "an unlisted image": (lambda d: (images_of(d, "2020_cs") / "more.png").write_bytes(png(picture(999))),
                          "unlisted image", "train_2020_cs/images/more.png"),
    "a known wrong label": (lambda d: add_image(d, "2019_fs", "105180993.png", 7, png(picture(999))), "mislabelled",
                            "105180993.png"),
    "a set that is absent": (lambda d: shutil.rmtree(d / "train_2019_fs"), "absent", "train_2019_fs"),
    "no domain lists": (lambda d: (d / "image_B_v1_1/query_green.txt").unlink(), "absent", "tools/split_domains.py"),
    "a cleaned list": (lambda d: (d / "train_2020_cs/new_train_list.txt").write_bytes(list_content(d)), "list in use",
                       "2020_cs: train_2020_cs/new_train_list.txt"),
    "a duplicate": (lambda d: copy_image(d, ("2020_cs", "7_1.png"), "2020_cs", "copy.png", 7), "copies in a set",
                    "7_1.png = train_2020_cs/images/copy.png, byte for byte"),
    "a duplicate saved again": (lambda d: [add_image(d, "2020_cs", f"{level}.png", 7, png(picture(999), level))
                                           for level in (1, 9)], "copies in a set", "9.png, pixel for pixel"),
    "a duplicate under another identity":
        (lambda d: copy_image(d, ("2020_cs", "7_1.png"), "2020_cs", "copy.png", 3), "picture of two identities",
         "7_1.png = train_2020_cs/images/copy.png"),
    "a test picture in training":
        (lambda d: add_image(d, "2020_cs", "t.png", 7, (d / "image_B_v1_1/gallery/1_0.png").read_bytes()),
         "test picture in training", "train_2020_cs/images/t.png = image_B_v1_1/gallery/1_0.png"),
    "a picture in two sets": (lambda d: copy_image(d, ("2020_fs", "7_1.png"), "2020_cs", "copy.png", 7),
                              "picture in two sets", "copy.png = train_2020_fs/images/7_1.png"),
    "one person in two sets": (shared_people, "same person", "2019_cs 3 = 2019_fs 50: 3 pictures shared"),
    "swapped labels": (swapped_labels, "contradiction",
                       "2019_cs 3 = 2019_fs 60: 1 picture shared, but 2019_fs 60 = 2019_cs 7: 2 pictures"),
    "a query in the gallery":
        (lambda d: shutil.copy(d / "image_B_v1_1/query/1_0.png", d / "image_B_v1_1/gallery/1_0.png"),
         "query in gallery", "image_B_v1_1/query/1_0.png = image_B_v1_1/gallery/1_0.png"),
    "nothing but single images": (lambda d: [write_list(d, re.sub(rb"\d+$", b"%d", list_content(d, name), flags=re.M)
                                                        % tuple(range(9)), name) for name in SETS],
                                  "nothing to train on", "MyDataSet"),
}
# What else a fault brings with it.
COMPANIONS = {
    "a JPEG overwritten in its middle": {"misnamed format"},  # it is read, by its content
    "a list in UTF-16": {"unlisted image"}, "a picture in two sets": {"same person"},
    "one person in two sets": {"picture in two sets"}, "swapped labels": {"picture in two sets", "same person"},
    "nothing but single images": {"one image"}, "a test picture in training": {"same person"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_no_other(data, fault):
    plant, kind, text = FAULTS[fault]
    plant(data)
    report = examined(data)
    texts = texts_of(report)
    assert any(text in finding for finding in texts.get(kind, ())), texts
    assert set(texts) - COMPANIONS.get(fault, set()) == {kind}
    assert report.stops == (KINDS[kind].severity == STOPS)


def test_swapped_labels_show_as_two_pairs_and_the_right_ones_stay(data):
    swapped_labels(data)
    texts = texts_of(examined(data))
    pairs = sorted(finding.split(":")[0] for finding in texts["contradiction"])
    assert pairs == ["2019_cs 3 = 2019_fs 60", "2019_cs 7 = 2019_fs 50"]
    assert sorted(texts["same person"]) == ["2019_cs 3 = 2019_fs 50: 2 pictures shared",
                                           "2019_cs 7 = 2019_fs 60: 2 pictures shared"]


@pytest.mark.parametrize("where", ["other identity", "test", "same identity"])
def test_near_duplicates_are_findings_unless_of_one_identity(data, where):
    image = picture(12_345)
    add_image(data, "2020_cs", "one.png", 7, png(image))
    again = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    if where == "test":
        (data / "image_B_v1_1/query/1_0.png").write_bytes(again)
    else:
        add_image(data, "2020_cs", "two.jpg", 7 if where == "same identity" else 3, again)
    assert "near-duplicate" not in texts_of(examined(data))
    report = examined(data, near_bits=10)
    assert report.near == (where == "same identity")
    assert len(texts_of(report).get("near-duplicate", ())) == (where != "same identity")


def test_the_report_says_that_too_many_pictures_were_too_much_alike(data, monkeypatch, caplog):
    monkeypatch.setattr(duplicates, "_MOST", 0)
    monkeypatch.setattr(duplicates, "_MOST_EACH", 0)
    for number in range(3):  # of one picture, each a little darker in a corner
        image = picture(12_345)
        image[:4 * number, :4] //= 2
        add_image(data, "2020_cs", f"near{number}.png", 7, png(image))
    report = examined(data, near_bits=10)
    assert report.uncompared.pictures >= 3
    line = f"{report.uncompared.pictures} pictures are so much alike that not all of their "
    assert line in format_text(report)
    assert line in caplog.text


def test_an_unlabelled_folder_is_looked_at_without_identities(data):
    images = data / "unlabel/images"
    images.mkdir(parents=True)
    shutil.copy(images_of(data, "2020_cs") / "7_1.png", images / "u.png")
    (images / "broken.png").write_bytes(b"")
    report = examined(data)
    assert set(texts_of(report)) == {"absent", "truncated image", "picture in two sets"}
    assert [(row.name, row.images, row.identities) for row in report.figures][4] == ("unlabel", 2, 0)
    (images.parent / "label.txt").write_text("u.png:1\n")
    assert set(texts_of(examined(data))) == {"unlisted image", "one image", "picture in two sets", "same person"}


def test_a_blank_picture_of_very_many_people_links_nobody(data):
    for pid in range(100, 160):
        add_image(data, "2020_cs", f"blank{pid}.png", pid, png(np.full((64, 32, 3), 255, np.uint8)))
    add_image(data, "2020_fs", "blank.png", 3, png(np.full((64, 32, 3), 255, np.uint8)))
    texts = texts_of(examined(data))
    assert "same person" not in texts
    assert len(texts["picture of two identities"]) == 1
    assert "… (60 in all)" in texts["picture of two identities"][0]


# ------------------------------------------------------------------------------------------------------------ reports
class CountedIdentity(int):
    """Counts how often it is compared."""

    compared = 0

    def __ne__(self, other):
        CountedIdentity.compared += 1
        return int(self) != int(other)

    __hash__ = int.__hash__


def test_an_identity_that_shares_pictures_with_very_many_is_compared_with_two_of_them():
    many = 2_000

    class People:
        identities = tuple(map(str, range(many)))
        numbering = staticmethod(lambda image: "one" if image == 0 else "many")
        picture = staticmethod(lambda image: Picture(str(image), ""))

    links = {(CountedIdentity(0), CountedIdentity(other)): checks._Link(1 + (other == 7), (0, other))
             for other in range(1, many)}
    findings = Findings(many)
    checks._check_links(People, links, findings)
    assert [item.text for item in findings.items("same person")] == ["0 = 7: 2 pictures shared"]
    assert findings.counts["contradiction"] == many - 2
    assert CountedIdentity.compared <= 4 * many  # with each other of the 2,000: 4,000,000


def test_the_three_reports_agree_and_nothing_is_written_beside_the_data(data):
    before = sorted(data.rglob("*"))
    swapped_labels(data)
    overwrite(data, b"")
    report = examined(data)
    out = data.parent / "out"
    written = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    assert written["stops_a_training"] is True
    assert {finding["kind"]: finding["count"] for finding in written["findings"]} == report.findings.counts
    assert [row["name"] for row in written["sets"]] == [*SETS, "query", "gallery"]
    text = (out / "doctor.txt").read_text(encoding="utf-8")
    page = (out / "doctor.html").read_text(encoding="utf-8")
    for kind, count in report.findings.counts.items():
        assert f"{KINDS[kind].title}: {count}" in text
        assert f": <b>{count}</b>" in page
        for item in report.findings.items(kind)[:12]:
            assert item.text in text
    assert page.count("data:image/jpeg") == page.count("<img") > 10
    assert "cannot be read</div>" in page
    assert {path for path in data.rglob("*") if path not in before} == set(data.rglob("x*.png"))


def test_the_report_does_not_depend_on_processes_or_on_what_is_known(data, monkeypatch):
    monkeypatch.setattr("utils.parallel._PROCESS_WORTH", 1)
    swapped_labels(data)
    overwrite(data, image(data)[:100])
    names = ("doctor.txt", "doctor.json", "doctor.html")
    examined(data, near_bits=10)
    first = [(data.parent / "out" / name).read_bytes() for name in names]
    examined(data, near_bits=10)
    assert [(data.parent / "out" / name).read_bytes() for name in names] == first
    (data.parent / "out" / RECORDS).unlink()
    examined(data, near_bits=10, workers=2)
    assert [(data.parent / "out" / name).read_bytes() for name in names] == first


def test_names_are_text_and_no_markup_in_the_page(data):
    name = "<img src=x onerror=alert(1)>'\"&.png"
    add_image(data, "2020_cs", name, 99, png(picture(999)))
    add_image(data, "2020_cs", "b" + name, 7, b"")
    add_line(data, "2020_cs", "<script>alert(2)</script>")
    examined(data)
    page = (data.parent / "out/doctor.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(2)" in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "default-src 'none'" in page


def test_lists_only_opens_no_image(data, monkeypatch):
    overwrite(data, b"")
    add_line(data, "2020_cs", "none.png:3")
    monkeypatch.setattr("processor.doctor.examine.inspect_images", lambda *_: pytest.fail("an image was opened"))
    report = examined(data, lists_only=True)
    assert set(texts_of(report)) == {"missing image"}
    assert not (data.parent / "out" / RECORDS).exists()
    assert "no image was opened" in verdict_without_faults(data)


def verdict_without_faults(data: Path) -> str:
    write_list(data, list_content(data).replace(b"none.png:3\n", b""))
    return examined(data, lists_only=True).verdict()


def test_derived_lists_are_read_as_in_a_training(data):
    derived = data.parent / "derived"
    derived.mkdir()
    (derived / "new_train_list.txt").write_text("3_0.png:3\n3_1.png:3\n")
    report = examined(data, derived_dir=derived)
    assert [row.images for row in report.figures][2] == 2
    assert texts_of(report)["list in use"] == [f"2020_cs: {derived / 'new_train_list.txt'}"]
    assert set(texts_of(report)) == {"list in use"}  # and no word on the images that it leaves out


@pytest.mark.parametrize(("options", "message"), [
    ({"train_sets": ["2021"]}, "unknown training set '2021'; choose from 2019_cs"),
    ({"test_dir": "../x"}, "must be the name of a folder"),
    ({"near_bits": 16}, "choose from 0 … 15"),
    ({"workers": 0}, "at least one process"),
    ({"equal_by": "eye"}, "choose from bytes, pixels"),
    ({"lists_only": True, "write_clean_lists": True}, "cannot be found from the lists only"),
    ({"write_clean_lists": True, "derived_dir": Path("x")}, "leave out the folder of derived ones"),
])
def test_options_out_of_range_or_in_contradiction_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        examined(data, **options)
    assert not (data.parent / "out").exists()


def test_findings_count_all_and_keep_some():
    findings = Findings(kept=2)
    for number in range(5):
        findings.add("one image", str(number), (Picture("key", "label"),))
    findings.count_more("one image", 3)
    findings.count_more("absent", 0)
    assert findings.counts == {"one image": 8}
    assert [item.text for item in findings.items("one image")] == ["0", "1"]
    assert not findings.wants("one image")
    assert findings.total(KINDS["one image"].severity) == 8


def test_a_text_has_the_first_findings_and_their_number(data):
    for number in range(30):
        add_line(data, "2020_cs", f"none{number}.png:3")
    text = format_text(examined(data), max_items=5)
    assert "none4.png" in text
    assert "none5.png" not in text
    assert "… and 25 more" in text


def test_every_kind_has_a_severity_and_advice():
    assert {kind.severity for kind in KINDS.values()} == set(SEVERITIES)
    order = [SEVERITIES.index(kind.severity) for kind in KINDS.values()]
    assert order == sorted(order)
    assert all(kind.advice.endswith(".") for kind in KINDS.values())
    planted = {kind for _, kind, _ in FAULTS.values()}
    assert set(KINDS) - planted == {"near-duplicate", "no match", "unreadable set", "too few identities"}
    assert MIN_SIDE == 16


def test_charts_hold_their_numbers():
    charts = templates().get_template("charts.html").module
    bars = charts.stacked_bars(stacked_bars([("a", (3, 1)), ("b<", (0, 2))]), ("x", "y"), ("first", "second"))
    assert [float(width) for width in re.findall(r"width:([\d.]+)%", bars)] == [75.0, 25.0, 50.0]
    assert "b&lt;" in bars
    drawn = [charts.histogram(*chart) for chart in histograms([("s", {1: 2, 3: 1, 4: 3, 200: 1}), ("t", {2: 1})])]
    heights = re.findall(r'height="([\d.]+)" rx', "".join(drawn))
    assert [float(height) for height in heights[:9]] == [33.0, 0.0, 66.0, 0.0, 0.0, 0.0, 0.0, 0.0, 16.5]
    assert [float(height) for height in heights[9:]] == [0.0, 66.0, *[0.0] * 7]
    table = charts.shared_table(["a", "b"], shared_cells(np.array([[0, 25], [25, 0]]), [100, 50]))
    assert "--part:0.500" in table
    assert 'title="50.00 % of the set">25' in table


# --------------------------------------------------------------------------------------------------------------- tool
def test_the_exit_code_is_1_if_a_training_would_stop(data):
    words = ("--root", data.parent, "--output", data.parent / "out", "--workers", 1)
    done = run_tool("doctor", *words)
    assert done.returncode == 0, done.stderr
    assert "Nothing stops a training." in done.stdout
    overwrite(data, image(data)[:50])
    done = run_tool("doctor", *words, "--near-duplicates", "--write-clean-lists")
    assert done.returncode == 1, done.stderr
    assert "stops a training: images that are cut off: 1" in done.stdout
    assert "new_train_list.txt: 8 images kept" in done.stdout
    assert "41 of 42 images are known from an earlier run" in done.stderr
    done = run_tool("doctor", "--root", data.parent / "nowhere", "--output", data.parent / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no NAIC data in")


def test_the_tool_does_not_load_torch():
    """A process of 300 MB and two seconds, for every worker."""
    code = ("import sys; sys.path.insert(0, '.'); import processor.doctor.examine; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
