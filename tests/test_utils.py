"""utils: draws, files, checkpoints, the run lock and commands."""
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import longest_file

from configs import load_cfg
from configs.rules import ConfigError
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.files import (
    atomic_path,
    epoch_checkpoints,
    make_mapped_array,
    new_folder,
    read_array,
    read_file,
    read_json,
    read_object,
    regular_file,
    sha256_of,
    write_array,
    write_json,
)
from utils.logger import run_tool, setup_logger, user_message
from utils.precision import Precision, select_device
from utils.process import RunLock, StopRequest, run_logged
from utils.seed import uniform

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------ draws
def test_a_draw_depends_on_its_position_and_not_on_its_batch():
    whole = uniform(7, 3, np.arange(100), "flip", 5)
    part = uniform(7, 3, np.array([42, 7]), "flip", 5)
    assert np.array_equal(whole[[42, 7]], part)


@pytest.mark.parametrize("other", [(8, 3, "flip"), (7, 4, "flip"), (7, 3, "crop")])
def test_seed_epoch_and_purpose_each_change_the_draws(other):
    first = uniform(7, 3, np.arange(500), "flip", 2)
    seed, epoch, purpose = other
    second = uniform(seed, epoch, np.arange(500), purpose, 2)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.15
    assert not np.isin(first, second).any()


def test_draws_are_uniform_and_independent_across_columns():
    draws = uniform(1, 1, np.arange(20000), "x", 3)
    assert ((draws >= 0) & (draws < 1)).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert (abs(counts - 3000) < 5 * 3000**0.5).all()
    assert (abs(np.corrcoef(draws.T) - np.eye(3)) < 0.03).all()


# ------------------------------------------------------------------ files
def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})

    def interrupted():
        with atomic_path(tmp_path / "a.json") as temporary:
            temporary.write_text("{half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("array", [np.arange(700.0).reshape(7, 100), np.array([["a", "b\u00e9"]]), np.zeros((0, 5)),
                                   np.zeros(3, [("a", "<u4"), ("b", "?")]), np.arange(6).reshape(2, 3).T])
def test_an_array_is_written_whole_or_not_at_all(tmp_path, array):
    """np.save says nothing where the end of a short file finds no room."""
    path = tmp_path / "a.npy"
    write_array(path, array)
    assert np.array_equal(np.load(path), array)
    assert np.load(path).dtype == array.dtype
    before = path.read_bytes()
    with longest_file(len(before) - 1), pytest.raises(OSError, match="too large"):
        write_array(path, array)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_never_ends_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.json", tmp_path / "zero.json"):
        for read in (read_file, read_json, sha256_of):
            with pytest.raises(OSError, match=rf"{path.name}: a pipe, a device or a socket"):
                read(path)
        with pytest.raises(ConfigError, match="a pipe, a device or a socket"):
            load_cfg(path)
    assert regular_file(tmp_path) == tmp_path
    assert regular_file(tmp_path / "nowhere") == tmp_path / "nowhere"


def test_what_a_shell_opens_for_a_command_is_read():
    read_end, write_end = os.pipe()
    os.write(write_end, b"7")
    os.close(write_end)
    assert read_json(f"/dev/fd/{read_end}") == 7
    os.close(read_end)


def test_a_file_that_breaks_off_in_reading_is_named(tmp_path):
    (tmp_path / "damaged.json").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=r"damaged\.json"):
        read_json(tmp_path / "damaged.json")


def test_a_broken_json_file_is_named(tmp_path):
    (tmp_path / "b.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"b\.json: not a JSON file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": "\\ud800'])
def test_a_json_file_that_python_cannot_hold_is_named(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ValueError, match=r"b\.json: not a JSON file"):
        read_json(tmp_path / "b.json")


@pytest.mark.parametrize(("text", "reason"), [("[]", "expected a JSON object"), ("{}", "field rows is missing"),
                                              ('{"rows": "9"}', "field rows is '9'")])
def test_an_object_without_its_fields_is_named(tmp_path, text, reason):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ValueError, match=rf"b\.json: .*{reason}"):
        read_object(tmp_path / "b.json", rows=int)


def npy(array: np.ndarray, *changes: tuple[bytes, bytes]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    data = out.getvalue()
    for old, new in changes:
        assert old in data
        data = data.replace(old, new)
    return data


DAMAGED_ARRAYS = {
    "empty": b"",
    "cut off": npy(np.zeros((4, 4)))[:-8],
    "a shape of terabytes": npy(np.zeros((4, 4)), (b"(4, 4), }       ", b"(4, 4000000000),}")),
    "a shape below 0": npy(np.zeros((4, 4)), (b"(4, 4)", b"(-4,4)")),
    "a header that is no Python": npy(np.zeros((4, 4)), (b"(4, 4)", b"(4, 4(")),
    "objects": npy(np.array([[None]])),
    "another number of dimensions": npy(np.zeros(4)),
    "records": npy(np.zeros((2, 2), [("a", "<f4")])),
    "whole numbers": npy(np.zeros((2, 2), np.int64)),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("damage", DAMAGED_ARRAYS)
def test_a_damaged_array_is_named_and_takes_no_memory(tmp_path, damage, mapped):
    (tmp_path / "a.npy").write_bytes(DAMAGED_ARRAYS[damage])
    with pytest.raises(ValueError, match=r"a\.npy: ") as caught:
        read_array(tmp_path / "a.npy", "f", 2, mapped)
    assert "\n" not in str(caught.value)


def test_an_array_of_what_is_no_text_is_named(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(np.array(["ab", "c"]), (b"a\0\0\0", b"a\0\0\xff")))
    with pytest.raises(ValueError, match="no text"):
        read_array(tmp_path / "a.npy", "U", 1)
    (tmp_path / "a.npy").write_bytes(npy(np.array(["ab", "中"])))
    assert read_array(tmp_path / "a.npy", "U", 1).tolist() == ["ab", "中"]


def test_a_signal_that_comes_while_a_command_is_started_ends_it(tmp_path, monkeypatch):
    """Python swallows an exception that a handler raises in the hooks of a fork."""
    started = subprocess.Popen

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return started(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_logged([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", tmp_path)
        assert time.monotonic() - begun < 30
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_mapped_array_has_its_room_or_is_refused(tmp_path, monkeypatch):
    made = make_mapped_array(tmp_path / "a.npy", (3, 2))
    made[:] = 7
    made.flush()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.full((3, 2), 7, np.float32))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"b\.npy cannot be made: it takes \d+ MiB, .* \(No space left on device\)"):
        make_mapped_array(tmp_path / "b.npy", (3, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


# ------------------------------------------------------------------ checkpoints
def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    data = {"model": {"w": torch.randn(3)}, "epoch": 4, "pid_names": ["a", "b"], "scaler": {}}
    save_checkpoint(tmp_path / "net_4.pth", data)
    back = read_checkpoint(tmp_path / "net_4.pth")
    assert torch.equal(back["model"]["w"], data["model"]["w"])
    assert {key: back[key] for key in ("epoch", "pid_names", "scaler")} == {
        "epoch": 4, "pid_names": ["a", "b"], "scaler": {}}


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path):
    save_checkpoint(tmp_path / "net_1.pth", {"w": torch.randn(1000)})
    whole = (tmp_path / "net_1.pth").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "net_1.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"net_1\.pth"):
            read_checkpoint(tmp_path / "net_1.pth")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    with open(tmp_path / "bomb.pth", "wb") as out:
        pickle.dump({"model": Bomb()}, out)
    torch.save({"model": Bomb()}, tmp_path / "bomb2.pth")
    for name in ("bomb.pth", "bomb2.pth"):
        with pytest.raises(ValueError, match="never as code"):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_epoch_checkpoints_are_found_by_number(tmp_path):
    for name in ("net_2.pth", "net_10.pth", "net_x.pth", "net_3.pth.tmp", "net_b_4.pth"):
        (tmp_path / name).touch()
    assert [*epoch_checkpoints(tmp_path, "net")] == [2, 10]


# ------------------------------------------------------------------ devices
def test_asking_for_cuda_where_there_is_none_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE=cuda"):
        select_device("cuda", "0")
    assert select_device("auto", "0,1").type == "cpu"


def test_half_precision_is_off_on_the_cpu():
    assert not Precision(torch.device("cpu"), fp16=True).enabled


def test_an_error_from_a_loader_worker_is_cut_to_its_message():
    wrapped = ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
                         "last):\n  File x\nValueError: a.png: truncated")
    assert user_message(wrapped) == "a.png: truncated"


def test_a_name_that_is_not_utf8_is_named_before_a_tool_begins(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "OUTPUT_DIR", os.fsdecode("/data/张三".encode("gbk"))])
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda: pytest.fail("the tool was begun"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(r"error: /data/\xd5\xc5\xc8\xfd: not UTF-8; rename that file or folder")


# ------------------------------------------------------------------ processes
def test_a_line_break_in_an_argument_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "a\nb\x1b[31m"])
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: None)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: a\\nb\\x1b[31m: a line break or another control character")


def test_a_name_in_a_message_cannot_steer_a_terminal(tmp_path, capsys):
    setup_logger(tmp_path)
    record = logging.makeLogRecord({"levelno": logging.INFO, "msg": "read a\x1b[2Jb\u202ec\udce9.png\nnext line"})
    for handler in logging.getLogger().handlers:
        if getattr(handler, "_of_setup_logger", False):  # pytest's would keep the name, which is not UTF-8
            handler.handle(record)
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert text.endswith("read a\\x1b[2Jb\\u202ec\\xe9.png\nnext line\n")


@pytest.mark.parametrize(("path", "message"), [
    ("/proc/x/y", "/proc/x: No such file or directory (the system lets nobody make files there)"),
    ("/dev/null/x", "/dev/null: not a folder, and one is needed there"),
])
def test_a_place_where_nothing_can_be_made_is_told_without_numbers(path, message, capsys):
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: write_json(path, {}))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_memory_that_runs_out_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        run_tool(lambda: bytearray(1 << 62))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: out of memory\n"


SPEAK = f"""import sys, time; sys.path[0] = {str(ROOT)!r}
from utils.logger import run_tool
time.sleep(0.2)  # the reader has gone by now
run_tool(lambda: print('x'))"""


@pytest.mark.parametrize(("streams", "code", "message"), [
    ("<&- >&- 2>&-", 0, ""), (">&- 2>$0", 0, ""), ("2>&-", 0, ""), (">/dev/full 2>$0", 2, "error: [Errno 28] No "),
    ("2>$0 | true; exit ${PIPESTATUS[0]}", 141, ""), ("2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", 0, ""),
    (">/dev/full 2>/dev/full", 2, ""),
])
def test_a_tool_whose_streams_are_closed_or_full_ends_in_good_order(streams, code, message, tmp_path):
    words = ["bash", "-c", f'"$1" -c "$2" {streams}', tmp_path / "err", sys.executable, SPEAK]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    errors = (tmp_path / "err").read_text() if "$0" in streams else ""
    assert done.returncode == code, errors
    assert errors.startswith(message)
    assert bool(errors) == bool(message)


def test_a_file_that_is_opened_does_not_get_the_number_of_a_closed_stream(tmp_path):
    code = f"""import sys; sys.path[0] = {str(ROOT)!r}
from utils.logger import run_tool
run_tool(lambda: sys.exit(open({str(tmp_path / "x")!r}, 'w').fileno()))"""
    done = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code])
    assert done.returncode > 2


def test_a_working_directory_that_is_gone_is_told(tmp_path):
    script = f'mkdir "$0/gone"; cd "$0/gone"; rmdir "$0/gone"; exec "$1" "{ROOT}/tools/train.py" --print-config'
    done = subprocess.run(["bash", "-c", script, tmp_path, sys.executable], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the working directory has been removed; change to one that is there (cd)\n"


@pytest.mark.parametrize(("before", "requested"), [(signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, "")])
def test_a_closed_terminal_asks_to_stop_unless_that_is_ignored(before, requested):
    usual = signal.signal(signal.SIGHUP, before)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.requested == requested
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_two_runs_cannot_share_a_folder(tmp_path):
    with RunLock(tmp_path / ".lock"), pytest.raises(ValueError, match="another run"), RunLock(tmp_path / ".lock"):
        pass
    with RunLock(tmp_path / ".lock"):
        pass


def test_a_folder_is_free_as_soon_as_its_run_is_killed_though_a_fork_of_it_lives(tmp_path):
    """So it is with a loader's workers, which look after their parent every few seconds."""
    program = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from utils.process import RunLock
with RunLock(Path({str(tmp_path / ".lock")!r})):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        child = int(run.stdout.readline())
        try:
            with pytest.raises(ValueError, match="another run is at work"), RunLock(tmp_path / ".lock"):
                pass
            run.kill()
            run.wait()
            with RunLock(tmp_path / ".lock"):
                os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_logged_command_gives_its_code_and_keeps_its_output(tmp_path, capfd):
    code = run_logged([sys.executable, "-c", "import sys; print('seen'); sys.exit(3)"], tmp_path / "a.log", tmp_path)
    assert code == 3
    assert "seen" in (tmp_path / "a.log").read_text()
    assert "seen" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_killed_run_takes_its_command_along(tmp_path):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
              "from pathlib import Path\nfrom utils.process import run_logged\n"
              f"run_logged([sys.executable, '-c', {child!r}], Path('child.log'), Path('.'))")
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stderr=subprocess.DEVNULL)
    log = tmp_path / "child.log"
    _wait_until(lambda: log.is_file() and log.read_text().strip())
    process.send_signal(signal.SIGKILL)
    process.wait()
    status = Path(f"/proc/{int(log.read_text())}/status")
    _wait_until(lambda: not status.exists() or "zombie" in status.read_text())


def _wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_killed_process_left_of_a_new_folder_is_removed_by_the_next(tmp_path):
    dead, ours = tmp_path / ".set.999999999.01234567.tmp", tmp_path / ".another.999999999.01234567.tmp"
    for folder in (dead, ours):
        folder.mkdir()
    with new_folder(tmp_path / "set") as fresh:
        (fresh / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [ours.name, "set"]


KILLED_IN_WRITING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from utils.files import atomic_path
writings = [atomic_path(os.path.join(sys.argv[2], name)) for name in ("set.json", "other.json")]
for writing in writings:
    writing.__enter__().write_text("half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_of_a_file_is_removed_by_the_next_that_writes_it(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_IN_WRITING, str(ROOT), str(tmp_path)])
    left = {path.name.split(".")[1]: path for path in tmp_path.glob(".*.tmp")}
    assert set(left) == {"set", "other"}
    mark = left["set"].name.split(".")[-2][:4]
    elsewhere = "0000" if mark != "0000" else "0001"  # a number of another host's or container's
    kept = [f".set.json.{os.getppid()}.{mark}0000.tmp", f".set.json.{os.getpid()}.{mark}0000.tmp",
            f".set.json.999999999.{elsewhere}0000.tmp", "set.json.999999999.01234567.tmp", left["other"].name]
    old = f".set.json.999999999.{elsewhere}0001.tmp"
    for name in (*kept, old):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))
    write_json(tmp_path / "set.json", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "set.json"])
    write_json(tmp_path / "other.json", [])
    assert not left["other"].exists()


def test_a_full_disk_is_told_with_the_file_that_finds_no_room(tmp_path):
    path = tmp_path / "file"
    for write, what in ((write_json, [0] * 9999), (write_array, np.zeros(9999))):
        with longest_file(40), pytest.raises(OSError, match="File too large") as told:
            write(path, what)
        assert user_message(told.value) == f"{path}: File too large"
        assert not list(tmp_path.iterdir())
    bytes_name = OSError(28, "No space left on device", os.fsencode(path))
    assert user_message(bytes_name) == f"{path}: No space left on device"
