"""What is kept of an image: header, digests, perceptual hash; and a store that lets a killed run go on."""
import contextlib
import io
import os
import sqlite3
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
from doctor_data import picture, png
from PIL import Image
from processes import longest_file

from datasets.files import images, jpeg
from datasets.files.image_header import FORMATS, MODES, read_header
from datasets.files.images import FolderSource
from processor.doctor import inspection
from processor.doctor.inspection import RECORD, RecordStore, inspect_image, inspect_images, perceptual_hash
from utils.parallel import in_processes

RNG = np.random.default_rng(0)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# ---------------------------------------------------------------------------------------------------------- headers
@pytest.mark.parametrize(("kind", "mode", "format", "description"), [
    ("PNG", "RGB", "PNG", "RGB"), ("PNG", "RGBA", "PNG", "RGBA"), ("PNG", "L", "PNG", "grey"),
    ("PNG", "LA", "PNG", "grey with alpha"), ("PNG", "P", "PNG", "palette"), ("PNG", "1", "PNG", "black and white"),
    ("PNG", "I;16", "PNG", "16-bit grey"), ("JPEG", "RGB", "JPEG", "RGB"), ("JPEG", "L", "JPEG", "grey"),
    ("JPEG", "CMYK", "JPEG", "CMYK"), ("BMP", "RGB", "BMP", "RGB"), ("BMP", "P", "BMP", "palette"),
    ("TIFF", "RGB", "TIFF", "RGB"), ("TIFF", "L", "TIFF", "grey"), ("GIF", "P", "GIF", "palette"),
    ("PPM", "RGB", "PNM", "RGB"), ("JPEG2000", "RGB", "JPEG 2000", "RGB"),
])
def test_a_header_tells_format_size_and_mode(kind, mode, format, description):
    image = Image.fromarray(np.zeros((7, 5), np.uint16)) if mode == "I;16" else Image.new(mode, (5, 7))
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 255, 0])  # of greys, some versions of Pillow make a grey GIF
    assert read_header(saved(image, kind)) == (format, 5, 7, description)
    assert format in FORMATS
    assert description in MODES


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_each_kind_of_webp_tells_its_size(mode, options):
    image = Image.fromarray(RNG.integers(0, 256, (7, 5, len(mode)), dtype=np.uint8))
    assert read_header(saved(image, "WEBP", **options)) == ("WebP", 5, 7, mode)


def test_a_16_bit_png_is_told_from_an_8_bit_one():
    assert read_header(png(np.zeros((4, 3, 3), np.uint16))).mode == "16-bit RGB"
    assert read_header(png(np.zeros((4, 3, 3), np.uint8))).mode == "RGB"


def test_a_header_that_is_cut_off_or_of_another_kind_is_unknown_and_no_error():
    for data in (saved(Image.new("RGB", (5, 7)), kind) for kind in ("PNG", "JPEG", "BMP", "WEBP")):
        for length in range(40):
            read_header(data[:length])
    assert read_header(b"GIF89a") == read_header(b"P6 ") == read_header(b"") == ("unknown", 0, 0, "unknown")


# ---------------------------------------------------------------------------------------------------------- records
def test_a_record_tells_what_a_model_would_see():
    record, problem = inspect_image(png(picture(0, 96, 48)))
    assert problem == ""
    assert (record["width"], record["height"], record["good"]) == (48, 96, True)
    assert (FORMATS[record["format"]], MODES[record["mode"]]) == ("PNG", "RGB")
    assert inspect_image(png(np.full((4, 4, 3), 66, np.uint8)))[0]["green"]
    assert not inspect_image(png(np.full((4, 4, 3), 65, np.uint8)))[0]["green"]


def test_one_picture_saved_twice_differs_by_bytes_and_not_by_pixels():
    image = picture(0)
    fast, small = (inspect_image(cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes())[0]
                  for level in (0, 9))
    assert (fast["file"] != small["file"]).any()
    assert (fast["pixels"] == small["pixels"]).all()


def test_pictures_of_other_shapes_are_not_equal_though_their_bytes_are():
    flat = [inspect_image(png(np.zeros(shape, np.uint8)))[0]["pixels"] for shape in ((4, 6, 3), (6, 4, 3))]
    assert (flat[0] != flat[1]).any()


def huge(kind: str) -> bytes:
    """A small file that promises 40,000 x 40,000 pixels."""
    at, order = {"PNG": (16, "big"), "BMP": (18, "little"), "GIF": (6, "little"), "PPM": (0, "")}[kind]
    data = bytearray(saved(Image.new("RGB", (8, 8)), kind))
    if kind == "PPM":
        return bytes(data).replace(b"8 8", b"40000 40000")
    side = (40_000).to_bytes(2 if kind == "GIF" else 4, order)
    data[at:at + 2 * len(side)] = side * 2
    if kind == "PNG":
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "PPM"])
def test_a_file_that_asks_for_gigabytes_is_not_decoded(kind, monkeypatch):
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_, **__: pytest.fail("decoded"))
    record, problem = inspect_image(huge(kind))
    assert problem.endswith("1,600,000,000 pixels; more than 50,000,000 are not decoded")
    assert not record["good"]


def test_a_jpeg_of_thousands_of_scans_over_many_pixels_is_not_decoded():
    data = saved(Image.new("L", (8, 8)), "JPEG", progressive=True)
    frame, scan = data.index(b"\xff\xc2"), data.rindex(b"\xff\xda")
    many = data[:frame + 5] + b"\x1b\x58" * 2 + data[frame + 9:scan] + data[scan:-2] * 200 + data[-2:]
    assert inspect_image(many)[1].endswith("scans over 49,000,000 pixels; a whole JPEG has some tens")
    small = data[:scan] + data[scan:-2] * 200 + data[-2:]
    assert "scans over" not in inspect_image(small)[1]


def test_a_header_that_no_reader_expects_is_unknown_and_no_error(monkeypatch):
    def fail(*_, **__):
        raise SystemError("tile cannot extend outside image")

    monkeypatch.setattr(Image, "open", fail)
    assert read_header(b"P6 8 8 255 ").format == "unknown"


# ---------------------------------------------------------------------------------------------------------- damage
JPEG = saved(Image.fromarray(np.clip(picture(3, 96, 48).astype(int) + RNG.normal(0, 9, (96, 48, 3)), 0, 255
                                     ).astype(np.uint8)), "JPEG", quality=90)


def test_a_jpeg_that_is_overwritten_in_its_middle_is_good_and_has_a_problem(capfd):
    middle = len(JPEG) // 2
    record, problem = inspect_image(JPEG[:middle] + RNG.bytes(64) + JPEG[middle + 64:])
    assert record["good"]
    assert problem.startswith("Corrupt JPEG data")
    assert problem.endswith("; a part of the picture may be wrong")
    assert inspect_image(JPEG)[1] == ""
    assert capfd.readouterr().err == ""


def test_a_jpeg_without_its_end_mark_is_heard_twice_at_once(capfd):
    record, problem = inspect_image(JPEG[:-2])
    assert (bool(record["good"]), problem) == (True, "")
    with jpeg.hear_warnings() as outer:
        with jpeg.hear_warnings() as inner:
            os.write(2, b"Premature end of JPEG file\n")
        os.write(2, b"Corrupt JPEG data: x\n")
    assert (outer, inner) == (["Corrupt JPEG data: x"], ["Premature end of JPEG file"])
    assert capfd.readouterr().err == ""


def test_what_others_write_while_a_jpeg_is_heard_is_passed_on(capfd):
    with jpeg.hear_warnings() as said:
        os.write(2, b"Corrupt JPEG data: bad Huffman code\nanother library's word\n")
        os.write(2, b"Warning: unknown JFIF revision number 9.09\n")
    assert said == ["Corrupt JPEG data: bad Huffman code"]
    assert capfd.readouterr().err == "another library's word\n"


def different_bits(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.unpackbits((a ^ b).view(np.uint8)).sum())


@pytest.mark.parametrize("change", ["jpeg", "half", "brighter", "noise"])
def test_the_perceptual_hash_stays_near_when_a_picture_is_saved_otherwise(change):
    for seed in range(10):
        image = picture(seed, 128, 64) // 2
        changed = {
            "jpeg": lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], 1),
            "half": lambda x: cv2.resize(x, (32, 64), interpolation=cv2.INTER_AREA),
            "brighter": lambda x: x + np.uint8(40),
            "noise": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 2, x.shape), 0, 255).astype(np.uint8),
        }[change](image)
        others = [different_bits(perceptual_hash(image), perceptual_hash(picture(seed + other, 128, 64)))
                  for other in range(1, 5)]
        assert different_bits(perceptual_hash(image), perceptual_hash(changed)) < min(others) / 3


def test_a_picture_with_too_little_in_it_has_no_perceptual_hash():
    assert not perceptual_hash(np.full((96, 48, 3), 200, np.uint8)).any()
    noise = RNG.integers(199, 202, (96, 48, 3)).astype(np.uint8)
    assert not perceptual_hash(noise).any()
    assert perceptual_hash(picture(0)).any()


# ------------------------------------------------------------------------------------------------- all, and restarts
@pytest.fixture
def folder(tmp_path):
    """Twelve images, one of them no image."""
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(picture(number)) if number != 7 else b"nothing")
    return tmp_path


def inspect(folder, count=12, store="records.sqlite", made_for="test", workers=1):
    with RecordStore(folder / store, made_for) as records:
        return inspect_images(FolderSource(folder), count, lambda index: f"{index}.png", records, workers,
                              progress=False)


def count_reads(monkeypatch) -> list[str]:
    """The keys that are read from now on."""
    read = []
    real = inspection.inspect_file
    monkeypatch.setattr(inspection, "inspect_file", lambda source, key: read.append(key) or real(source, key))
    return read


def test_every_image_has_its_record_and_its_problem(folder):
    inspected = inspect(folder)
    assert inspected.records.dtype == RECORD
    assert inspected.records["good"].tolist() == [number != 7 for number in range(12)]
    assert list(inspected.problems) == [7]
    assert "not a PNG" in inspected.problems[7]
    assert len(np.unique(inspected.records["pixels"][inspected.records["good"]], axis=0)) == 11


def test_an_image_that_vanishes_is_a_problem_and_no_error(folder):
    (folder / "3.png").unlink()
    assert inspect(folder).problems[3] == "cannot be read: No such file or directory"


def test_a_file_far_too_large_is_not_read(folder):
    with open(folder / "3.png", "wb") as out:
        out.truncate(1 << 40)
    assert inspect(folder).problems[3].startswith("cannot be read: 1,099,511,627,776 bytes")


def test_a_file_from_before_1970_is_a_file(folder, monkeypatch):
    os.utime(folder / "3.png", (-1000, -1000))
    inspect(folder)
    read = count_reads(monkeypatch)
    inspect(folder)
    assert read == []


def test_records_whose_table_is_an_endless_query_are_begun_anew(folder, caplog):
    before = inspect(folder)
    with contextlib.closing(sqlite3.connect(folder / "records.sqlite")) as db:
        db.execute("DROP TABLE images")
        db.execute("CREATE VIEW images AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
                   "SELECT x AS key, x AS record, x AS problem FROM c")
    assert inspect(folder).records.tobytes() == before.records.tobytes()
    assert "records.sqlite is damaged or no record store" in caplog.text


def test_another_run_reads_only_what_is_new_or_has_changed(folder, monkeypatch):
    before = inspect(folder)
    (folder / "5.png").write_bytes(png(picture(99)))
    (folder / "7.png").write_bytes(png(picture(7)))
    (folder / "12.png").write_bytes(png(picture(12)))
    read = count_reads(monkeypatch)
    after = inspect(folder, 13)
    assert read == ["5.png", "7.png", "12.png"]
    assert after.problems == {}
    unchanged = [number for number in range(12) if number not in (5, 7)]
    assert (after.records[unchanged] == before.records[unchanged]).all()
    assert after.records.tobytes() == inspect(folder, 13, store="anew.sqlite").records.tobytes()


def test_a_run_that_was_stopped_goes_on(folder, monkeypatch):
    monkeypatch.setattr(inspection, "_SECONDS_BETWEEN_SAVES", 0.0)
    real = inspection.inspect_file

    def stop_at_eight(source, key):
        if key == "8.png":
            raise KeyboardInterrupt
        return real(source, key)

    monkeypatch.setattr(inspection, "inspect_file", stop_at_eight)
    with pytest.raises(KeyboardInterrupt):
        inspect(folder)
    monkeypatch.setattr(inspection, "inspect_file", real)
    read = count_reads(monkeypatch)
    whole = inspect(folder)
    assert read == ["8.png", "9.png", "10.png", "11.png"]
    assert list(whole.problems) == [7]


def test_processes_find_the_same(folder, monkeypatch):
    monkeypatch.setattr("utils.parallel._PROCESS_WORTH", 1)
    monkeypatch.setattr(inspection, "in_processes", partial(in_processes, batch=2))
    alone, together = inspect(folder, store="one.sqlite"), inspect(folder, store="two.sqlite", workers=2)
    assert alone.records.tobytes() == together.records.tobytes()
    assert alone.problems == together.problems


@pytest.mark.parametrize("content", [b"no database at all, but text" * 100, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_damaged_store_is_replaced(folder, content, monkeypatch, caplog):
    (folder / "records.sqlite").write_bytes(content)
    read = count_reads(monkeypatch)
    inspect(folder)
    assert len(read) == 12
    assert "all images are read again" in caplog.text
    read.clear()
    inspect(folder)
    assert read == []


def test_records_made_for_something_else_are_forgotten(folder, monkeypatch):
    inspect(folder, made_for="OpenCV 4")
    read = count_reads(monkeypatch)
    inspect(folder, made_for="OpenCV 5")
    assert len(read) == 12


DAMAGES = {
    "a page that is overwritten": None,
    "records of another length": "UPDATE images SET record = x'00'",
    "a record that is a text": "UPDATE images SET record = 'a'",
    "a kind that no format has": f"UPDATE images SET record = zeroblob({RECORD.fields['format'][1]}) || "
                                 f"x'ff' || zeroblob({RECORD.itemsize - RECORD.fields['format'][1] - 1})",
    "no problem": "UPDATE images SET problem = NULL",
    "a column of another name": "ALTER TABLE images RENAME COLUMN record TO other",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_store_that_is_damaged_behind_its_first_page_costs_the_records_alone(folder, damage):
    before = inspect(folder)
    path = folder / "records.sqlite"
    if DAMAGES[damage]:
        with sqlite3.connect(path) as store:
            store.execute(DAMAGES[damage])
        store.close()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))
    after = inspect(folder)
    assert after.problems == before.problems
    assert (after.records == before.records).all()


def test_a_store_that_is_killed_keeps_what_it_saved(tmp_path):
    store = RecordStore(tmp_path / "s.sqlite", "test")
    store.add("a", b"1", "")
    store.save()
    store.add("b", b"2", "")
    with sqlite3.connect(tmp_path / "s.sqlite") as other:  # as another process would find it
        assert other.execute("SELECT key FROM images").fetchall() == [("a",)]
    store.close()


def test_a_store_whose_disk_is_full_is_named(tmp_path):
    with RecordStore(tmp_path / "s.sqlite", "test") as store:
        store.add("a", bytes(9000), "")
        good = bytes(RECORD.itemsize), ""
        with longest_file((tmp_path / "s.sqlite").stat().st_size), pytest.raises(OSError, match=r"s\.sqlite: disk I/O"):
            store.save()
        store.add("a", *good)
        store.save()
        assert store.find("a") == good
