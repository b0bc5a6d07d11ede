"""Packed sets: what is read from one is what the files give, and what is wrong with it is named."""
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.files.images import FolderSource, decode
from datasets.files.pack_reader import HEADER, ROW, PackedSource, open_packed
from datasets.files.pack_writer import pack, to_bmp, verify

SIZE = (20, 11)  # a width whose rows in a BMP are padded


def encode(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.fixture
def files(tmp_path) -> FolderSource:
    """Images of many kinds in a folder."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    for number in range(12):
        path = folder / f"set_{number % 3}" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(random.integers(0, 256, (16 + number, 8, 3), dtype=np.uint8), ".png"))
    smooth = cv2.resize(random.integers(0, 256, (6, 4, 3), dtype=np.uint8), (64, 96))
    (folder / "large.jpg").write_bytes(encode(smooth, ".jpg"))  # is decoded at half its size
    (folder / "grey 16 bit.png").write_bytes(encode(smooth[..., 0].astype(np.uint16) * 200, ".png"))
    (folder / "行人.bmp").write_bytes(encode(smooth, ".bmp"))
    return FolderSource(folder)


def keys_of(files: FolderSource) -> list[str]:
    return [path.relative_to(files.root).as_posix() for path in files.root.rglob("*.*")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


class Watched:
    """A source that counts what is read, and fails at a key."""

    def __init__(self, files: FolderSource, fail_at: str = "") -> None:
        self.files, self.fail_at, self.read_keys = files, fail_at, []

    def read(self, key: str) -> bytes:
        self.read_keys.append(key)
        if key == self.fail_at:
            raise OSError(f"{key}: the disk is gone")
        return self.files.read(key)


# -------------------------------------------------------------------------------------------------------- equal images
@pytest.mark.parametrize("shard_bytes", [1, 5000, 2**31])
def test_stored_files_come_back_to_the_byte(files, tmp_path, shard_bytes):
    keys = keys_of(files)
    packed = pack(files, keys, tmp_path / "pack", shard_bytes=shard_bytes)
    assert packed.all_keys() == sorted(keys, key=str.encode)
    assert len(packed) == len(keys) == 15
    for key in keys:
        assert packed.read(key) == files.read(key)
    shards = sorted((tmp_path / "pack").glob("*.shard"))
    assert (len(shards) == 1) == (shard_bytes == 2**31)
    assert b"".join(shard.read_bytes().removeprefix(HEADER) for shard in shards) == b"".join(
        map(files.read, packed.all_keys()))


@pytest.mark.parametrize("size", [SIZE, (48, 32), (16, 8)])
def test_decoded_images_are_those_of_the_files_to_the_byte(files, tmp_path, size):
    packed = pack(files, keys_of(files), tmp_path / "pack", size)
    assert packed.size == size
    for key in keys_of(files):
        np.testing.assert_array_equal(decode(packed.read(key), size), decode(files.read(key), size))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (5, 4), (7, 9)])
def test_a_bmp_holds_every_pixel(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(to_bmp(image)), image)


def test_a_file_that_cannot_be_decoded_gives_the_error_that_it_gives_itself(files, tmp_path, caplog):
    whole = (files.root / "large.jpg").read_bytes()
    broken = {"cut.jpg": whole[: len(whole) // 2], "empty.png": b"", "gif.png": b"GIF89a\1\0\1\0"}
    for name, data in broken.items():
        (files.root / name).write_bytes(data)
    packed = pack(files, keys_of(files), tmp_path / "pack", SIZE, shard_bytes=1)
    assert "3 of 18 images cannot be decoded and are kept as they are: cut.jpg, empty.png, gif.png" in caplog.text
    for key in broken:
        errors = []
        for source in (files, packed):
            with pytest.raises(ValueError, match=key) as caught:
                decode(source.read(key), SIZE, key)
            errors.append(str(caught.value))
        assert errors[0] == errors[1]


def test_threads_do_not_change_a_pack(files, tmp_path):
    packs = [tmp_path / str(threads) for threads in (1, 4)]
    for folder, threads in zip(packs, (1, 4), strict=True):
        pack(files, keys_of(files), folder, SIZE, threads, shard_bytes=3000)
    assert contents(packs[0]) == contents(packs[1])
    assert len(list(packs[0].glob("*.shard"))) > 3


def test_a_pack_is_small_when_pickled_and_reads_the_same_after(files, tmp_path):
    packed = pack(files, keys_of(files), tmp_path / "pack")
    data = pickle.dumps(packed)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert [again.read(key) for key in packed.all_keys()] == [packed.read(key) for key in packed.all_keys()]


def test_keys_that_are_not_there_are_named(files, tmp_path):
    packed = pack(files, [key for key in keys_of(files) if key != "large.jpg"], tmp_path / "pack")
    asked = ["large.jpg", *packed.all_keys(), "0", "zzz", "set_0/00.pn", "x" * 5000, "行人"]
    there = set(packed.all_keys())
    assert packed.missing(asked) == [key for key in asked if key not in there]
    assert packed.missing([]) == []
    for key in ("large.jpg", "../data/large.jpg", "x" * 5000, "set_0/00.png\0"):
        with pytest.raises(FileNotFoundError, match=r"not in the packed set .*pack"):
            packed.read(key)


# -------------------------------------------------------------------------------------------------------------- damage
def test_a_damaged_image_is_noticed_when_it_is_read_and_no_other_is(files, tmp_path):
    packed = pack(files, keys_of(files), tmp_path / "pack")
    shard, records = tmp_path / "pack" / "00000.shard", np.load(tmp_path / "pack" / "records.npy")
    assert records.dtype == ROW
    whole = shard.read_bytes()
    for row, key in enumerate(packed.all_keys()):
        for place in (0, records["length"][row] // 2, records["length"][row] - 1):
            data = bytearray(whole)
            data[int(records["offset"][row] + place)] ^= 1
            shard.write_bytes(data)
            damaged = PackedSource(tmp_path / "pack")
            with pytest.raises(OSError, match=rf"{key}: damaged in .*00000\.shard \(checksum\)"):
                damaged.read(key)
            others = [other for other in packed.all_keys() if other != key]
            assert [damaged.read(other) for other in others] == [files.read(other) for other in others]
    with pytest.raises(ValueError, match=rf"pack: 1 problem\n{key}: damaged"):
        verify(damaged)
    shard.write_bytes(whole)
    assert verify(PackedSource(tmp_path / "pack"), files) == 15


@pytest.mark.parametrize("name", ["keys.npy", "records.npy"])
def test_a_damaged_table_is_noticed_on_opening(files, tmp_path, name):
    pack(files, keys_of(files), tmp_path / "pack")
    path = tmp_path / "pack" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"pack is damaged: {name} is not as it was written; pack it again"):
        PackedSource(tmp_path / "pack")


@pytest.mark.parametrize("length", [0, 100, -1, None])
def test_a_shard_that_is_cut_or_missing_is_noticed_on_opening(files, tmp_path, length):
    pack(files, keys_of(files), tmp_path / "pack", shard_bytes=3000)
    path = tmp_path / "pack" / "00001.shard"
    data = path.read_bytes()
    path.unlink() if length is None else path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=rf"00001\.shard should have {len(data):,} bytes and has"):
        PackedSource(tmp_path / "pack")


@pytest.mark.parametrize(("text", "problem"), [
    ("{", "not a JSON file"), ("[]", "not an index"), ('{"format": 2}', "not an index"), ('{"format": 1}', "not whole"),
])
def test_a_damaged_index_is_noticed_on_opening(files, tmp_path, text, problem):
    pack(files, keys_of(files), tmp_path / "pack")
    (tmp_path / "pack" / "index.json").write_text(text)
    with pytest.raises(ValueError, match=problem):
        PackedSource(tmp_path / "pack")


def test_what_is_no_pack_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere"):
        PackedSource(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no packed set.*tools/pack\.py makes one"):
        PackedSource(tmp_path)


# ------------------------------------------------------------------------------------------------------------- packing
def test_a_stopped_packing_goes_on_after_its_last_whole_shard(files, tmp_path):
    keys, folder = sorted(keys_of(files), key=str.encode), tmp_path / "pack"
    whole = contents(pack(files, keys, tmp_path / "whole", SIZE, 1, shard_bytes=3000).folder)
    with pytest.raises(OSError, match="the disk is gone"):
        pack(Watched(files, keys[9]), keys, folder, SIZE, 1, shard_bytes=3000)
    with pytest.raises(ValueError, match=r"is not finished; run the same tools/pack\.py command again"):
        PackedSource(folder)
    shards = list(folder.glob("*.shard"))
    in_shards = sum(len(np.load(path)) for path in folder.glob("0*.npy"))
    assert 0 < in_shards <= 9
    (folder / ".00004.shard.123.0123abcd.tmp").write_bytes(b"left by a kill")

    rest = Watched(files)
    pack(rest, keys, folder, SIZE, 1, shard_bytes=3000)
    assert rest.read_keys[: len(keys) - in_shards] == keys[in_shards:]
    assert contents(folder) == whole
    assert len(shards) >= 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _change_rows(change):
    return lambda path: np.save(path, change(np.load(path)))


@pytest.mark.parametrize(("name", "damage"), [
    ("00001.shard", _cut), ("00001.npy", _cut), ("00001.npy", lambda path: np.save(path, np.zeros(2))),
    ("00001.npy", _change_rows(lambda rows: rows[:0])), ("00001.npy", _change_rows(lambda rows: rows[:1])),
    ("00001.npy", _change_rows(lambda rows: np.repeat(rows, 20))), ("00000.npy", lambda path: path.write_bytes(b"x")),
])
def test_what_is_damaged_of_a_stopped_packing_is_packed_again(files, tmp_path, name, damage, caplog):
    keys, folder = sorted(keys_of(files), key=str.encode), tmp_path / "pack"
    with pytest.raises(OSError, match="the disk is gone"):
        pack(Watched(files, keys[12]), keys, folder, SIZE, 1, shard_bytes=1500)
    damage(folder / name)
    pack(files, keys, folder, SIZE, 1, shard_bytes=1500)
    assert contents(folder) == contents(pack(files, keys, tmp_path / "whole", SIZE, 1, shard_bytes=1500).folder)
    assert "packed again" in caplog.text


@pytest.mark.parametrize("change", [{"images": "many"}, {"keys": 3}, {"size": "x"}, {"size": [1, None]}, {"size": {}}])
def test_a_plan_that_is_none_is_refused_in_a_line(files, tmp_path, change):
    keys, folder = sorted(keys_of(files), key=str.encode), tmp_path / "pack"
    with pytest.raises(OSError, match="the disk is gone"):
        pack(Watched(files, keys[9]), keys, folder, SIZE, 1, shard_bytes=3000)
    plan = json.loads((folder / "begun.json").read_text())
    (folder / "begun.json").write_text(json.dumps({**plan, **change}))
    with pytest.raises(ValueError, match=r"holds other files .*name a new folder"):
        pack(files, keys, folder, SIZE, 1, shard_bytes=3000)


def test_a_finished_pack_is_left_as_it_is(files, tmp_path):
    folder = pack(files, keys_of(files), tmp_path / "pack").folder
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}
    pack(files, keys_of(files), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"} == before


def test_another_pack_is_replaced_only_by_force(files, tmp_path):
    keys, folder = keys_of(files), tmp_path / "pack"
    pack(files, keys, folder, shard_bytes=3000)
    for others, size in ((keys[:9], None), (keys, SIZE)):
        with pytest.raises(ValueError, match=r"holds another pack, of 15 images as files .*--force"):
            pack(files, others, folder, size, shard_bytes=3000)
    assert len(PackedSource(folder)) == 15
    assert pack(files, keys[:9], folder, SIZE, force=True).all_keys() == sorted(keys[:9], key=str.encode)
    assert contents(folder) == contents(pack(files, keys[:9], tmp_path / "new", SIZE).folder)


def test_a_replacing_that_is_stopped_never_takes_an_old_shard_for_a_new_one(files, tmp_path):
    keys, folder = sorted(keys_of(files), key=str.encode), tmp_path / "pack"
    with pytest.raises(OSError, match="disk"):
        pack(Watched(files, keys[9]), keys, folder, None, 1, shard_bytes=3000)
    with pytest.raises(OSError, match="disk"):
        pack(Watched(files, keys[0]), keys, folder, SIZE, 1, force=True, shard_bytes=3000)
    assert not list(folder.glob("*.shard"))
    pack(files, keys, folder, SIZE, 1, shard_bytes=3000)
    assert contents(folder) == contents(pack(files, keys, tmp_path / "new", SIZE, shard_bytes=3000).folder)


def test_a_folder_with_other_files_is_refused_and_left_alone(files, tmp_path):
    for name in ("00000.npy", "index.json", "notes.txt"):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=rf"holds other files \({name}\); name a new folder"):
            pack(files, keys_of(files), folder, force=True)
        assert contents(folder) == {name: b"{}"}


def test_files_that_changed_since_are_named(files, tmp_path):
    keys, folder = keys_of(files), tmp_path / "pack"
    for size in (None, SIZE):
        pack(files, keys, folder, size, force=True)
        original = files.read("set_1/01.png")
        image = cv2.imdecode(np.frombuffer(original, np.uint8), cv2.IMREAD_COLOR)
        (files.root / "set_1/01.png").write_bytes(encode(255 - image, ".png"))
        with pytest.raises(ValueError, match=r"was packed from other files .*set_1/01\.png .*--force"):
            pack(files, keys, folder, size)
        with pytest.raises(ValueError, match=r"^packed set .*: 1 problem\nset_1/01\.png"):
            verify(PackedSource(folder), files)
        (files.root / "set_1/01.png").write_bytes(original)


def test_a_full_disk_is_known_before_decoding(files, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    watched = Watched(files)
    with pytest.raises(OSError, match=r"15 images of 20x11 take 0\.01 MiB, and 0\.00 MiB are free"):
        pack(watched, keys_of(files), tmp_path / "pack", SIZE)
    assert not watched.read_keys


def test_nothing_to_pack_is_an_error(files, tmp_path):
    with pytest.raises(ValueError, match="no image to pack"):
        pack(files, [], tmp_path / "pack")


# ------------------------------------------------------------------------------------------------- instead of the files
def test_a_pack_that_does_not_fit_is_refused(files, tmp_path):
    keys = keys_of(files)
    packed = pack(files, keys[:10], tmp_path / "pack", SIZE).folder
    sizes = {"INPUT.SIZE_TRAIN": SIZE}
    assert len(open_packed(packed, files, keys[:10], sizes)) == 10
    with pytest.raises(ValueError, match=r"decoded at 20x11, but INPUT\.SIZE_TEST=\[32, 16\]; pack the set at that"):
        open_packed(packed, files, keys[:10], {**sizes, "INPUT.SIZE_TEST": (32, 16)})
    with pytest.raises(ValueError, match=rf"lacks 5 of 15 images \({'|'.join(keys[10:])}"):
        open_packed(packed, files, keys, sizes)
    for key in keys[:10]:
        (files.root / key).write_bytes(files.read("large.jpg" if key != "large.jpg" else keys[0]))
    with pytest.raises(ValueError, match=r"was made from other files than those in FolderSource"):
        open_packed(packed, files, keys[:10], sizes)


def test_an_index_says_what_a_person_may_ask(files, tmp_path):
    packed = pack(files, keys_of(files), tmp_path / "pack", SIZE, shard_bytes=3000)
    index = json.loads((tmp_path / "pack" / "index.json").read_text())
    assert (index["images"], index["size"], index["opencv"]) == (15, [20, 11], cv2.__version__)
    assert packed.describe().startswith("15 images, decoded at 20x11, in ")
