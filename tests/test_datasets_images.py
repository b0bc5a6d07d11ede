"""Reading and decoding: whole images of any kind become 8-bit RGB, broken ones an error with a name."""
import io
import os
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.files import images, jpeg
from datasets.files.images import BadImage, FolderSource, MountedSource, decode, is_safe_path, list_images, resize
from datasets.files.same_file import identify, pair_up


@pytest.fixture
def rgb() -> np.ndarray:
    """A smooth picture whose channels differ, uint8 [48, 24, 3]."""
    y, x = np.mgrid[:48, :24]
    return np.stack([20 + 4 * y, 10 + 9 * x, 250 - 3 * y - 2 * x], 2).astype(np.uint8)


def encode(image: np.ndarray, suffix: str = ".png") -> bytes:
    """An RGB(A) or grey array as a file's bytes."""
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    if image.ndim == 3:
        image = cv2.cvtColor(image, order[image.shape[2]])
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from its header and chunks, for kinds that OpenCV does not write."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in [(b"IHDR", header), *chunks, (b"IEND", b"")]:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


# ------------------------------------------------------------------------------------------------------- decoding
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pnm"])
def test_channels_come_in_rgb_order(rgb, suffix):
    decoded = decode(encode(rgb, suffix))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, rgb)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_channels_exchanged_by_the_decoder_are_those_exchanged_after(rgb, suffix, monkeypatch):
    """Older versions of OpenCV decode to BGR alone."""
    for image in (rgb, rgb[..., 0], rgb.astype(np.uint16) * 200):
        if image.dtype == np.uint8 or suffix == ".png":
            data = encode(image, suffix)
            monkeypatch.setattr(images, "_WHOLE", cv2.IMREAD_COLOR)
            after = decode(data, (20, 30))
            monkeypatch.undo()
            np.testing.assert_array_equal(decode(data, (20, 30)), after)


def saved(image: np.ndarray, kind: str, **options) -> bytes:
    """A picture as Pillow writes it."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("old", [False, True])
def test_of_a_gif_the_first_frame_is_read(rgb, old, monkeypatch):
    frame = np.repeat(rgb[..., :1] // 64 * 64, 3, 2)  # few colours, so that nothing is lost
    data = saved(frame, "GIF", save_all=True, append_images=[Image.fromarray(255 - frame)])
    if old:  # OpenCV before 4.11 decodes to BGR alone, and no GIF
        monkeypatch.setattr(images, "_WHOLE", cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode(data), frame)
    red = saved(np.full((8, 4, 3), (255, 0, 0), np.uint8), "GIF")
    assert decode(red, (4, 2)).tolist() == [[[255, 0, 0]] * 2] * 4


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}])
def test_a_tiff_is_read_however_it_is_compressed(rgb, options):
    np.testing.assert_array_equal(decode(saved(rgb, "TIFF", **options)), rgb)


def test_every_suffix_of_an_image_is_of_a_kind_that_is_decoded(rgb):
    kinds = {".jpe": "JPEG", ".jfif": "JPEG", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".gif": "GIF", ".dib": "BMP"}
    for suffix in images.IMAGE_SUFFIXES:
        grey = np.ascontiguousarray(rgb[..., 0]) if suffix in (".pgm", ".pbm") else rgb
        data = saved(grey, kinds[suffix]) if suffix in kinds else encode(grey, suffix)
        assert decode(data, (20, 10), suffix).shape == (20, 10, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files_come_close(rgb, suffix):
    assert np.abs(decode(encode(rgb, suffix)).astype(int) - rgb).mean() < 4


def test_grey_becomes_three_equal_channels(rgb):
    np.testing.assert_array_equal(decode(encode(rgb[..., 0])), np.repeat(rgb[..., :1], 3, 2))


def test_transparency_is_dropped(rgb):
    alpha = np.zeros((*rgb.shape[:2], 1), np.uint8)
    np.testing.assert_array_equal(decode(encode(np.concatenate([rgb, alpha], 2))), rgb)


def test_sixteen_bits_become_eight(rgb):
    np.testing.assert_array_equal(decode(encode(rgb.astype(np.uint16) * 257)), rgb)
    np.testing.assert_array_equal(decode(encode(rgb[..., 0].astype(np.uint16) * 257))[..., 1], rgb[..., 0])


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_is_looked_up(transparent):
    palette = bytes([255, 0, 0, 0, 128, 0, 7, 8, 9])
    rows = b"".join(b"\0" + bytes(row) for row in ([0, 1, 2, 2], [2, 1, 0, 0]))
    chunks = [(b"PLTE", palette), *([(b"tRNS", b"\0\x80\xff")] * transparent), (b"IDAT", zlib.compress(rows))]
    decoded = decode(png(struct.pack(">IIBBBBB", 4, 2, 8, 3, 0, 0, 0), *chunks))
    red, green, dark = [255, 0, 0], [0, 128, 0], [7, 8, 9]
    assert decoded.tolist() == [[red, green, dark, dark], [dark, green, red, red]]


def test_a_jpeg_named_png_is_read(rgb, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(rgb, ".jpg"))
    assert decode(FolderSource(tmp_path).read("a.png"), None, "a.png").shape == rgb.shape


def test_exif_orientation_is_ignored(rgb):
    jpeg = encode(rgb, ".jpg")
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", 1, 0x0112, 3, 1, 6, 0) + b"\0\0\0\0"  # 6: turned by 90 degrees
    exif = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    np.testing.assert_array_equal(decode(turned), decode(jpeg))


GIF = (b"GIF89a\1\0\1\0\x80\0\0\xff\xff\xff\0\0\0"  # one white pixel
       b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;")


@pytest.mark.parametrize(("data", "problem"), [
    (b"", "empty"), (GIF[:30], "cannot be decoded"), (b"\0\0\0 ftypheic", "HEIC"),
    (b"<html>not found</html>", "not a PNG"), (b"\x89PNG\r\n\x1a\n", "cut off"),
    (b"\xff\xd8\xff", "cut off"), (b"BM", "cannot be decoded"),
])
def test_what_is_no_image_is_named(data, problem):
    with pytest.raises(BadImage, match=rf"^query/a\.png: .*{problem}"):
        decode(data, (8, 4), "query/a.png")


# Bytes that say no more than that the file ends.
END_MARKS = {".png": 12, ".jpg": 2, ".bmp": 0, ".webp": 0, ".tif": 0, ".ppm": 0, ".jp2": 0}


@pytest.mark.parametrize("suffix", END_MARKS)
def test_every_cut_file_is_refused(rgb, suffix, capfd):
    """OpenCV may return such a picture with a grey lower half; its last byte counts, too."""
    data = saved(rgb, "JPEG2000") if suffix == ".jp2" else encode(rgb, suffix)
    end = len(data) - END_MARKS[suffix]
    for length in {*range(1, end, max(1, len(data) // 40)), end - 1}:
        with pytest.raises(BadImage, match=r"^x\.png: "):
            decode(data[:length], None, "x.png")
    assert "rror" not in capfd.readouterr().err or suffix in (".bmp", ".tif", ".ppm", ".jp2")


def test_rows_that_inflate_to_more_than_the_picture_are_not_decoded(monkeypatch):
    header = struct.pack(">IIBBBBB", 24, 48, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    bomb = png(header, (b"IDAT", b"\x78\xda" + piece * 600 + packer.flush() + b"\0\0\0\0"))
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadImage, match="more rows than its height"):
        decode(bomb)


def test_texts_that_inflate_to_gigabytes_are_not_inflated(rgb, monkeypatch):
    data, seen = encode(rgb), []
    text = b"a\0\0" + zlib.compress(bytes(10**8), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    real = cv2.imdecode
    monkeypatch.setattr(images.cv2, "imdecode", lambda given, flag: seen.append(len(given)) or real(given, flag))
    for times in (1, 9):
        np.testing.assert_array_equal(decode(data[:33] + chunk * times + data[33:]), rgb)
    assert seen[1] < len(chunk) < seen[0]


def test_a_large_picture_whose_rows_hardly_deflate_is_decoded():
    picture = np.random.default_rng(0).integers(0, 256, (500, 400, 3), np.uint8)
    data = encode(picture)
    assert len(data) > 550_000  # so that its rows are looked at
    np.testing.assert_array_equal(decode(data), picture)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_that_lacks_nothing_but_its_end_mark_is_whole(rgb, suffix, capfd):
    data = encode(rgb, suffix)
    whole = decode(data)
    for lacking in range(1, END_MARKS[suffix] + 1):
        np.testing.assert_array_equal(decode(data[:-lacking]), whole)
        np.testing.assert_array_equal(decode(data[:-lacking], (24, 12)), decode(data, (24, 12)))
    assert capfd.readouterr().err == ""


JPEGS = {"plain": [], "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
         "with restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
         "fine": [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]}


@pytest.mark.parametrize("kind", [*JPEGS, "grey"])
def test_a_jpeg_without_its_end_mark_is_told_from_one_whose_scan_is_cut(kind):
    image = photo(64, 48)[..., 0] if kind == "grey" else photo(64, 48)
    data = cv2.imencode(".jpg", image, JPEGS.get(kind, []))[1].tobytes()
    assert jpeg.find_problem(data[:-2]) is None
    np.testing.assert_array_equal(decode(data[:-2] + bytes(64)), decode(data))
    for lacking in (*range(3, 40), *range(40, len(data) - 700, 97)):
        assert jpeg.find_problem(data[:-lacking]) == "the JPEG file is cut off", lacking
    assert jpeg.find_problem(data[:-40] + bytes(4096)) == "the JPEG file is cut off"  # a download that stopped
    scan = data.rfind(b"\xff\xda")
    for end in ((data.rfind(b"\xff\xc4"), scan, scan + 5) if kind == "progressive" else (scan, scan + 5)):
        assert jpeg.find_problem(data[:end]) == "the JPEG file is cut off"


def test_a_png_without_its_last_rows_but_with_whole_chunks_is_refused(rgb):
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rgb))
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 0)
    whole = png(header, (b"IDAT", rows[:50]), (b"IDAT", rows[50:]), (b"tEXt", b"a\0b"))
    for lacking in (12, 17):  # IEND; half of the text as well
        np.testing.assert_array_equal(decode(whole[:-lacking]), rgb)
    with pytest.raises(BadImage, match="the PNG file is cut off"):
        decode(png(header, (b"IDAT", rows[:50]))[:-12])


def test_a_cut_jpeg_with_a_whole_thumbnail_is_refused(rgb):
    jpeg, thumbnail = encode(rgb, ".jpg"), encode(rgb[:8, :8], ".jpg")
    segment = b"Exif\0\0" + thumbnail
    data = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert decode(data).shape == rgb.shape
    with pytest.raises(BadImage, match="cut off"):
        decode(data[:-40])


def test_a_flipped_byte_in_a_png_is_noticed(rgb):
    data = bytearray(encode(rgb))
    for position in range(40, len(data) - 12, 29):
        data[position] ^= 0x55
        with pytest.raises(BadImage, match=r"^x\.png: the PNG file is (damaged|cut off)"):
            decode(bytes(data), None, "x.png")
        data[position] ^= 0x55


def test_bytes_behind_the_end_do_not_matter(rgb):
    for suffix in (".png", ".jpg"):
        assert decode(encode(rgb, suffix) + b"\0\0junk").shape == rgb.shape


# ----------------------------------------------------------------------------------------- JPEGs decoded at less size
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}


def photo(height: int, width: int) -> np.ndarray:
    """Soft shapes with edges and grain, as pictures have."""
    random = np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 256, (9, 5, 3), dtype=np.uint8), (width, height))
    image[height // 3 : height // 2, width // 4 :] //= 2
    return np.clip(image + random.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("shape", "size", "factor"), [
    ((256, 128), (256, 128), 1), ((511, 256), (256, 128), 2), ((510, 256), (256, 128), 1), ((256, 127), (128, 64), 2),
    ((1024, 512), (256, 128), 4), ((1024, 256), (256, 128), 2), ((800, 400), (256, 128), 2), ((800, 400), (64, 32), 8),
    ((900, 100), (64, 64), 1),
])
def test_a_large_jpeg_is_decoded_at_the_least_size_that_has_the_wanted_one(shape, size, factor):
    data = encode(photo(*shape), ".jpg")
    small = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[factor])
    assert small.shape[:2] == tuple(-(-side // factor) for side in shape)
    np.testing.assert_array_equal(decode(data, size), resize(small, size)[..., ::-1])


@pytest.mark.parametrize("kind", ["plain", "progressive", "grey", "with a thumbnail"])
def test_a_jpeg_decoded_small_looks_as_one_decoded_whole(kind):
    image = photo(512, 256)
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if kind == "progressive" else []
    data = cv2.imencode(".jpg", image[..., 0] if kind == "grey" else image[..., ::-1], flags)[1].tobytes()
    if kind == "with a thumbnail":
        segment = b"Exif\0\0" + encode(image[:16, :16], ".jpg")
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    whole = decode(data)
    for size in ((256, 128), (128, 64), (64, 32), (100, 50)):
        found = decode(data, size).astype(int)
        assert not np.array_equal(found, resize(whole, size))  # it was decoded small
        assert np.abs(found - resize(whole, size)).mean() < 2.5


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_other_kinds_are_decoded_whole(suffix):
    data = encode(photo(512, 256), suffix)
    np.testing.assert_array_equal(decode(data, (64, 32)), resize(decode(data), (64, 32)))


# ------------------------------------------------------------------------------------------------------- resizing
@pytest.mark.parametrize("size", [(48, 24), (96, 48), (24, 12), (96, 12), (12, 96), (7, 5), (48, 10)])
def test_size_is_height_and_width(rgb, size):
    assert decode(encode(rgb), size).shape == (*size, 3)


def test_shrinking_averages_areas(rgb):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for size, blocks in (((10, 30), (10, 4, 30, 1, 3)), ((20, 10), (20, 2, 10, 3, 3))):
        expected = noise.reshape(blocks).mean((1, 3))
        assert np.abs(resize(noise, size) - expected).max() <= 0.51


def test_a_direction_that_shrinks_is_averaged_though_the_other_grows():
    noise = np.random.default_rng(0).integers(0, 256, (40, 8, 3), dtype=np.uint8)
    narrow = noise.reshape(10, 4, 8, 1, 3).mean((1, 3))
    wide = resize(noise, (10, 16))
    # Bilinear weights of a doubling are 1/4 and 3/4.
    expected = 0.75 * narrow[:, 1:-1] + 0.25 * narrow[:, :-2]
    assert np.abs(wide[:, 2:-2:2] - expected).max() <= 1.01


def test_enlarging_is_bilinear(rgb):
    """The oracle: pixel centres at (i + 0.5) / scale - 0.5, clamped at the border."""
    def positions(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        return low, low + 1, (at - low)

    noise = np.random.default_rng(1).integers(0, 256, (16, 8, 3), dtype=np.uint8).astype(float)
    y0, y1, fy = positions(16, 40)
    x0, x1, fx = positions(8, 11)
    rows = noise[y0] * (1 - fy)[:, None, None] + noise[y1] * fy[:, None, None]
    expected = rows[:, x0] * (1 - fx)[:, None] + rows[:, x1] * fx[:, None]
    assert np.abs(resize(noise.astype(np.uint8), (40, 11)) - expected).max() <= 1.01


def test_resizing_does_not_change_its_input(rgb):
    before = rgb.copy()
    resize(rgb, (20, 60))
    np.testing.assert_array_equal(rgb, before)


# -------------------------------------------------------------------------------------------------- keys and folders
@pytest.mark.parametrize("path", [
    "a.png", "train/a.png", "a b:c.png", "图片/行人.png", "..a", "a..", ".hidden", "...", "1:2",
])
def test_paths_that_stay_inside(path):
    assert is_safe_path(path)


@pytest.mark.parametrize("path", [
    "", ".", "..", "../a", "a/../b", "a/..", "/a", "a//b", "a/", "./a", "a/./b", "C:/a", "c:a", "a/C:/b", "a\\b",
    "\\\\host\\a", "a\0b",
])
def test_paths_that_may_lead_outside(path):
    assert not is_safe_path(path)


def test_folder_source_reads_below_its_root(tmp_path):
    (tmp_path / "行人").mkdir()
    (tmp_path / "行人" / "a b.png").write_bytes(b"bytes")
    source = FolderSource(str(tmp_path) + os.sep)
    assert source.read("行人/a b.png") == b"bytes"
    with pytest.raises(FileNotFoundError, match="none"):
        source.read("none.png")


def test_folder_source_refuses_keys_that_leave_it(tmp_path):
    (tmp_path / "root" / "set").mkdir(parents=True)
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    source = FolderSource(tmp_path / "root")
    for key in ("../secret.png", str(secret), "set/../../secret.png", "", "."):
        with pytest.raises(ValueError, match="leads out of"):
            source.read(key)
    (tmp_path / "root" / "set" / "link.png").symlink_to(secret)
    with pytest.raises(BadImage, match=r"'set/link.png' is a link that leads out of"):
        source.read("set/link.png")


def test_folder_source_follows_a_linked_folder(tmp_path):
    """A user keeps the sets on several disks."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(b"a")
    (tmp_path / "disk" / "b.png").symlink_to(tmp_path / "disk" / "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "set").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert FolderSource(tmp_path / "root").read("set/a.png") == b"a"
    assert FolderSource(tmp_path / "root").read("set/b.png") == b"a"


def test_folder_source_needs_a_folder(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        FolderSource(tmp_path / "nowhere")


def test_only_images_are_listed_and_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.jpeg", "d.bmp", "e.webp", ".hidden.png", "notes.txt", "Thumbs.db", "f.heic"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    others = []
    assert list_images(tmp_path, others) == ["a.jpg", "b.PNG", "c.jpeg", "d.bmp", "e.webp"]
    assert sorted(others) == ["f.heic", "folder.png/", "notes.txt"]
    (tmp_path / "z.png").symlink_to(tmp_path.parent / "outside.png")
    with pytest.raises(ValueError, match=r"z\.png: is a link that leads out"):
        list_images(tmp_path)


def test_images_below_a_folder_are_found_and_links_to_it_are_not_followed_for_ever(tmp_path):
    for name in ("a.jpg", "cam1/b.jpg", "cam1/day/c.tif", "cam1/.hidden/d.jpg", "__MACOSX/._a.jpg", "cam2/x.heic"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "cam1" / "up").symlink_to(tmp_path)
    others = []
    assert sorted(images.scan_images(tmp_path, True, others)) == [("a.jpg", ""), ("cam1/b.jpg", ""),
                                                                  ("cam1/day/c.tif", "")]
    assert others == ["cam2/x.heic"]
    (tmp_path / "out").symlink_to(tmp_path.parent)
    assert ("out", "is a link that leads out of its folder; put the folder itself there") in images.scan_images(
        tmp_path, deep=True)


@pytest.mark.parametrize(("name", "printed", "problem"), [
    ("张三.jpg".encode("gbk"), r"\xd5\xc5\xc8\xfd.jpg", "is not UTF-8 .*convmv -f gbk"),
    (b"a\nb.jpg", r"a\nb.jpg", "line break"), (b"a\x1b[1m.jpg", r"a\x1b[1m.jpg", "control character"),
    (b"a\\b.jpg", r"a\b.jpg", "backslash"),
])
def test_a_name_that_cannot_be_a_key_is_printable_in_its_error(name, printed, problem, tmp_path):
    (tmp_path / os.fsdecode(name)).touch()
    with pytest.raises(ValueError, match=f"(?s)1 problem\n.*{re.escape(printed)}: .*{problem}") as error:
        list_images(tmp_path)
    assert str(error.value).encode("utf-8").count(b"\n") == 1


def test_links_and_hard_links_lead_to_one_file_and_copies_do_not(tmp_path):
    for name in ("a.png", "copy.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    files = MountedSource({"one": FolderSource(tmp_path), "two": FolderSource(tmp_path / "again")})
    keys = ["one/a.png", "one/copy.png", "one/link.png", "one/hard.png", "two/a.png", "one/gone.png", "two/gone.png"]
    first, copy, *same, gone, other = identify(files, keys)
    assert set(same) == {first}
    assert copy != first
    assert (gone, other) == ("one/gone.png", "two/gone.png")  # in a pack, perhaps
    assert pair_up([gone, copy], [first, gone, gone]).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize(("query", "gallery", "kinds"), [(40, 60, 9), (30, 50, 1), (0, 5, 3), (5, 0, 3), (20, 20, 500)])
def test_equal_identities_are_paired_up(query, gallery, kinds):
    rng = np.random.default_rng(query)
    sides = [[("file", int(number)) for number in rng.integers(0, kinds, count)] for count in (query, gallery)]
    expected = [[row, place] for row, one in enumerate(sides[0]) for place, two in enumerate(sides[1]) if one == two]
    assert pair_up(*sides).tolist() == expected


def test_one_file_for_all_queries_and_all_images_is_refused():
    with pytest.raises(ValueError, match=r"25,000,000 pairs .* lead to one file, more than 16,777,216: 5,000 gallery"):
        pair_up(["a"] * 5000, ["a"] * 5000)
