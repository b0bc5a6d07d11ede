"""What a path may be in bad luck: names, links, pipes, devices, folders where files belong, and closed doors."""
from __future__ import annotations

import functools
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FINE, REFUSED, ANY = "fine", "refused", "any"  # what a command has to make of it; ANY: one of both, in good order

# Names that are legal everywhere on Linux, so that everything has to work with them.
LEGAL_NAMES = ("a b", "ä é ñ", "图片库", "😀", "..a", "a..b", "a:b", "a=b", "a'b\"c", "$HOME", "%s%d{0}", "[ab]", "a*?",
               "#a", "a,b;c", "{x}", "-a", "~", "con", "a.png", "1", "None", "true", "1e3", "x" * 255, "图" * 85,
               "!a&b|c", "é", "a+b@c", "a.", "A.PNG.TXT", "@eaDir2")
# Names that cannot be written into a list, a log or a terminal as they are.
ILLEGAL_NAMES = (b"a\nb", b"caf\xe9", "图片".encode("gbk"), b"a\x1b[31mb", b"\x7fa", b"a\rb", b"\xff\xfe", b"a\tb",
                 "a\u2028b".encode(), "a\u202eb".encode())
# Names as a Chinese system of earlier days wrote them; those of two and of four bytes a letter.
GB18030_NAMES = tuple(name.encode("gb18030") for name in ("图片", "张三", "行人 重识别", "𠀀䶮", "€", "é"))
_LINE_NAMES = ("../../outside/secret.png", "/etc/passwd", "a\0b.png", "x" * 300 + ".png", "..", ".", "a/", "C:/a.png",
               "a\\b.png", "~/a.png", "a\u2028b.png", "a\u202eb.png", "\udce9.png", "./a.png", "//a.png",
               "a\x1b[1m.png", "/dev/zero", "/proc/self/mem", "con.png", "")


class Odd(NamedTuple):
    """An oddity in place.

    Attributes:
        what: in words.
        path: where the command is to look; where it was, unless it is an argument that has another name now.
        expected: FINE, REFUSED or ANY.
        name: which a message has to have, in printable form; "" if none has to.
        is_root: False: the command must not have root's powers, which open every door.
        is_chinese: True: the command has a locale whose names are GB18030, and so a new interpreter.
    """

    what: str
    path: Path
    expected: str
    name: str = ""
    is_root: bool = True
    is_chinese: bool = False


def mount(place: Path, *words: str) -> None:
    """mount(8) at a place, with words before it."""
    done = subprocess.run(["mount", *words, place], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{place} cannot be mounted: {done.stderr.strip()}")


@functools.cache
def can_mount() -> bool:
    """Whether this process may mount something."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount(Path(folder), "-t", "tmpfs", "-o", "size=4k", "tmpfs")
        except OSError:
            return False
        return subprocess.run(["umount", folder], capture_output=True).returncode == 0


def release_mounts(folder: Path) -> None:
    """Unmount all that is mounted below a folder, the innermost first."""
    mounted = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        name = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split(b" ")[4])
        if name.startswith(os.fsencode(folder) + b"/"):
            mounted.append(name)
    for name in reversed(mounted):
        subprocess.run(["umount", "--lazy", name], check=True)


def _mount_read_only(path: Path) -> None:
    """A file or a folder on a file system of its own, which takes no change."""
    mount(path, "--bind", str(path))
    mount(path, "-o", "remount,bind,ro")


def _bytes_path(folder: Path, name: bytes) -> Path:
    return folder / os.fsdecode(name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def aside(path: Path) -> Path:
    """What lies at `path` lies there when a link has taken its place."""
    return path.with_name(f"real_{path.name}"[:60])


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    """/dev/zero itself: what reads it to its end never ends."""
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


def _socket(path: Path) -> None:
    """A socket; its path may be longer than the system's 107 bytes."""
    with socket.socket(socket.AF_UNIX) as opened:
        folder = os.open(path.parent, os.O_RDONLY)
        opened.bind(f"/proc/self/fd/{folder}/s")
        os.close(folder)
    (path.parent / "s").rename(path)


def _close(path: Path) -> None:
    path.chmod(0)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


# What may stand in a thing's place, whether it was a file or a folder.
_INSTEAD: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe, "a device": _device, "a socket": _socket, "a link to itself": _loop,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /proc/self/mem": lambda path: path.symlink_to("/proc/self/mem"),
    "nothing": lambda path: None,
}


def odd_argument(path: Path, rng: random.Random, is_input: bool, is_changed: bool = False) -> Odd:
    """Put an oddity in place of an argument.

    Args:
        path: an input, which is there; or the output, which is not.
        is_changed: the command writes into this input.
    """
    return (_odd_input(path, rng, is_changed) if is_input else _odd_output(path, rng))


def _odd_input(path: Path, rng: random.Random, is_changed: bool) -> Odd:
    kind = rng.choice(("legal", "legal", "illegal", "link", "instead", "instead", "other kind", "closed", "read-only",
                       "through a file", "too long", "mounted", "mounted", "GB18030", "Chinese"))
    if kind == "legal":
        name = rng.choice(LEGAL_NAMES)
        return Odd(f"an input called {name!r}", path.rename(path.parent / _suffixed(name, path)), FINE)
    if kind == "illegal":
        name = rng.choice(ILLEGAL_NAMES)
        return Odd(f"an input called {name!r}", path.rename(_bytes_path(path.parent, name + path.suffix.encode())), ANY)
    if kind in ("GB18030", "Chinese"):
        name = rng.choice(GB18030_NAMES)
        return Odd(f"an input called {name!r}" + ", in a locale of GB18030" * (kind == "Chinese"),
                   path.rename(_bytes_path(path.parent, name + path.suffix.encode())),
                   FINE if kind == "Chinese" else ANY, is_chinese=kind == "Chinese")
    if kind == "mounted" and can_mount():
        _mount_read_only(path)
        return Odd("an input that is mounted read-only", path, ANY if is_changed else FINE)
    if kind in ("link", "mounted"):
        path.symlink_to(path.rename(aside(path)))
        return Odd("a link to an input", path, FINE)
    if kind == "other kind":
        is_folder = path.is_dir()
        _remove(path)
        _empty(path) if is_folder else path.mkdir()
        return Odd("a file in place of a folder" if is_folder else "a folder in place of a file", path, ANY)
    if kind == "closed":
        _close(path)
        return Odd("an input that may not be read", path, REFUSED, path.name, is_root=False)
    if kind == "read-only":
        _make_read_only(path)
        return Odd("an input that may not be written", path, ANY if is_changed else FINE, is_root=False)
    if kind == "through a file":
        file = path.with_name("a_file")
        _empty(file)
        return Odd("an input below a file", file / path.name, REFUSED, path.name)
    if kind == "too long":
        name = rng.choice(("x" * 256, "x/" * 2100 + "x", "图" * 100))
        return Odd("an input of too long a name", path.parent / name, REFUSED, "")
    name = rng.choice(list(_INSTEAD))
    _remove(path)
    _INSTEAD[name](path)
    return Odd(f"{name} in place of an input", path, REFUSED, path.name)


def _suffixed(name: str, path: Path) -> str:
    """The name with the path's suffix, by which a tool may tell what a file is, in 255 bytes."""
    suffix = path.suffix if path.is_file() else ""
    room = 255 - len(suffix.encode())
    return name.encode()[:room].decode("utf-8", "ignore") + suffix


def _make_read_only(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for file in files:
            os.chmod(os.path.join(folder, file), 0o444)
        os.chmod(folder, 0o555)
    if path.is_file():
        path.chmod(0o444)


def _odd_output(path: Path, rng: random.Random) -> Odd:
    kind = rng.choice(("legal", "legal", "legal", "illegal", "linked parent", "instead", "wrong kind", "closed parent",
                       "through a file", "too long", "proc", "deep", "mounted", "mounted", "read-only",
                       "mounted itself", "link to a mount", "GB18030", "Chinese"))
    if kind == "legal":
        name = rng.choice(LEGAL_NAMES)
        return Odd(f"an output called {name!r}", path.parent / _with_suffix_of(name, path), FINE)
    if kind == "illegal":
        name = rng.choice(ILLEGAL_NAMES)
        return Odd(f"an output called {name!r}", _bytes_path(path.parent, name + path.suffix.encode()), ANY)
    if kind in ("GB18030", "Chinese"):
        name = rng.choice(GB18030_NAMES)
        return Odd(f"an output called {name!r}" + ", in a locale of GB18030" * (kind == "Chinese"),
                   _bytes_path(path.parent, name + path.suffix.encode()), FINE if kind == "Chinese" else ANY,
                   is_chinese=kind == "Chinese")
    if kind in ("mounted", "read-only", "mounted itself", "link to a mount") and can_mount():
        return _odd_file_system(path, kind)
    if kind in ("linked parent", "mounted", "read-only", "mounted itself", "link to a mount"):
        (path.parent / "elsewhere").mkdir()
        (path.parent / "link").symlink_to("elsewhere")
        return Odd("an output through a link", path.parent / "link" / path.name, FINE)
    if kind == "instead":
        name = rng.choice([name for name in _INSTEAD if name != "nothing"])
        _INSTEAD[name](path)
        return Odd(f"{name} in place of the output", path, ANY)
    if kind == "wrong kind":
        _empty(path) if not path.suffix else path.mkdir()
        return Odd("an output of the other kind is there", path, REFUSED, path.name)
    if kind == "closed parent":
        closed = path.parent / "closed"
        closed.mkdir(mode=0o555)
        return Odd("an output where nothing may be written", closed / path.name, REFUSED, "closed", is_root=False)
    if kind == "through a file":
        file = path.parent / "a_file"
        _empty(file)
        return Odd("an output below a file", file / path.name, REFUSED, "a_file")
    if kind == "too long":
        return Odd("an output of too long a name", path.parent / rng.choice(("x" * 256, "x/" * 2100 + "x")), REFUSED)
    if kind == "proc":
        return Odd("an output below /proc", Path(rng.choice(("/proc/x", "/proc/self/x", "/sys/x"))) / path.name,
                   REFUSED, "/")
    return Odd("an output of many folders that are not there", path.parent / "a" / "b" / "c" / path.name, FINE)


def _odd_file_system(path: Path, kind: str) -> Odd:
    """An output on a file system of its own, which is in memory."""
    place = path if kind == "mounted itself" and not path.suffix else path.parent / "mounted"
    place.mkdir()
    mount(place, "-t", "tmpfs", "-o", f"size=1g{',ro' if kind == 'read-only' else ''}", "tmpfs")
    if kind == "read-only":
        return Odd("an output on a file system that is read-only", place / path.name, REFUSED, "mounted")
    if kind == "link to a mount":
        if not path.suffix:
            (place / path.name).mkdir()
        path.symlink_to(place / path.name)
        return Odd("an output that is a link to another file system", path, ANY)
    if place == path:
        return Odd("an output that is a file system itself, and empty", path, ANY)
    return Odd("an output on another file system", place / path.name, FINE)


def _with_suffix_of(name: str, path: Path) -> str:
    room = 255 - len(path.suffix.encode())
    return name.encode()[:room].decode("utf-8", "ignore") + path.suffix


def odd_entry(folder: Path, outside: Path, rng: random.Random) -> Odd:
    """Change something below an input folder: an entry of it, what stands there instead, or a line of a list.

    Args:
        outside: a folder with a picture and a folder of pictures, for links to lead to.
    """
    entries = sorted(folder.rglob("*"))
    entry = rng.choice(entries)
    kind = rng.choice(("rename", "rename", "extra", "extra", "instead", "instead", "out", "inside", "closed", "line",
                       "line", "twin", "other kind", "mounted"))
    if kind == "line":
        return _odd_line(folder, rng)
    where = f"{entry.relative_to(folder)}"
    legal = rng.random() < 0.5
    name = os.fsencode(rng.choice(LEGAL_NAMES)) if legal else rng.choice((*ILLEGAL_NAMES, *GB18030_NAMES))
    name = name[:255 - len(entry.suffix)] + entry.suffix.encode()
    if kind == "rename":
        entry.rename(_bytes_path(entry.parent, name))
        return Odd(f"{where} is called {name!r} now", folder, ANY)
    if kind == "twin":
        if not entry.is_file() or entry.with_name(entry.name.upper()).exists():
            return _odd_line(folder, rng)
        shutil.copy2(entry, entry.with_name(entry.name.upper()))
        return Odd(f"{where} has a twin in capitals", folder, ANY)
    if kind == "extra":
        what = rng.choice([*_INSTEAD, "a file", "a folder", "a picture"])
        place = _bytes_path(entry.parent, name[:251] + b".png" if rng.random() < 0.5 else name)
        _remove(place)
        if what == "a folder":
            place.mkdir()
        else:
            {**_INSTEAD, "a file": _empty,
             "a picture": lambda path: shutil.copyfile(outside / "secret.png", path)}[what](place)
        return Odd(f"{what} called {name!r} beside {where}", folder, ANY)
    if kind == "mounted" and can_mount():
        _mount_read_only(entry)
        return Odd(f"{where} is mounted read-only", folder, ANY)
    if kind == "closed":
        _close(entry)
        return Odd(f"{where} may not be read", folder, ANY, is_root=False)
    if kind in ("inside", "mounted"):
        entry.symlink_to(entry.rename(aside(entry)).name)
        return Odd(f"{where} is a link beside it", folder, ANY)
    is_folder = entry.is_dir()
    _remove(entry)
    if kind == "out":
        entry.symlink_to(outside / ("pictures" if is_folder else "secret.png"))
        return Odd(f"{where} is a link to outside", folder, ANY)
    if kind == "other kind":
        _empty(entry) if is_folder else entry.mkdir()
        return Odd(f"{where} is {'an empty file' if is_folder else 'a folder'}", folder, ANY)
    what = rng.choice(list(_INSTEAD))
    _INSTEAD[what](entry)
    return Odd(f"{what} in place of {where}", folder, ANY)


def _odd_line(folder: Path, rng: random.Random) -> Odd:
    """Let a list, a CSV or a JSON name something else."""
    lists = [path for path in sorted(folder.rglob("*")) if path.suffix in (".txt", ".csv", ".json") and path.is_file()]
    named = [path for path in lists if re.search(rb"[\w/]+\.png", path.read_bytes())]
    if not named:
        return Odd("nothing odd", folder, ANY)
    path = rng.choice(named)
    text, name = path.read_bytes(), rng.choice(_LINE_NAMES)
    match = rng.choice(list(re.finditer(rb"[\w/]+\.png", text)))
    path.write_bytes(text[:match.start()] + name.encode("utf-8", "surrogateescape") + text[match.end():])
    return Odd(f"{path.relative_to(folder)} names {name[:60]!r}", folder, ANY)
