"""A command whose every change of files below a folder is told before it is made, and may be failed, cut or the last.

seccomp's notifications (Linux 5.6, x86-64) stop a process at each system call that writes, makes or renames a file,
whoever makes it: Python, numpy's C, torch's C++, SQLite, a loader's worker. `Watcher` answers them; this file as a
script starts what is watched:

    python tools/campaigns/watched.py exec SOCKET COMMAND WORD ...   a command
    python tools/campaigns/watched.py alone - COMMAND WORD ...       a command that is not
    python tools/campaigns/watched.py run SOCKET SCRIPT WORD ...     a Python script in this very process

Source: seccomp_unotify(2), pidfd_getfd(2).
"""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import runpy
import select
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# The numbers of x86-64: {number: (name, what is changed: the place of a descriptor, or of a path and its folder)}.
_WRITES = {1: ("write", 0), 18: ("pwrite", 0), 20: ("writev", 0), 296: ("pwritev", 0), 328: ("pwritev2", 0),
           40: ("sendfile", 0), 326: ("copy_file_range", 2)}
_BY_DESCRIPTOR = {74: ("fsync", 0), 75: ("fdatasync", 0), 77: ("ftruncate", 0), 285: ("fallocate", 0)}
_BY_PATH = {76: ("truncate", 0, None), 82: ("rename", 1, None), 264: ("rename", 3, 2), 316: ("rename", 3, 2),
            86: ("link", 1, None), 265: ("link", 3, 2), 88: ("symlink", 1, None), 266: ("symlink", 2, 1),
            83: ("mkdir", 0, None), 258: ("mkdir", 1, 0)}
_OPENS = {2: ("create", 0, None), 257: ("create", 1, 0), 85: ("create", 0, None)}
_FLAGS_AT = {2: 1, 257: 2}
_AT_FDCWD = 2**32 - 100
_SECCOMP, _PIDFD_GETFD = 317, 438
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Change(NamedTuple):
    """A system call that is about to change something.

    Attributes:
        number: 1 for the first of its Watcher.
        call: "write" (and its kin by name), "fsync", "create", "rename", "mkdir", "fallocate" ...
        path: of the file, of a rename's target.
        size: bytes that are to be written, 0 if it writes none.
        pid: of the process.
    """

    number: int
    call: str
    path: str
    size: int
    pid: int

    @property
    def can_be_cut(self) -> bool:
        """Whether half of it may be done: a write of several bytes."""
        return self.call in ("write", "pwrite", "writev", "pwritev", "pwritev2") and self.size > 1


class Answer(NamedTuple):
    """What becomes of a change: made, failed with an error number, or half made, which the call returns.

    Attributes:
        then: called when this is done, but for a change that is made whole: then just after it is let go on.
    """

    error: int = 0
    is_cut: bool = False
    then: Callable[[], None] | None = None


MADE = Answer()


def can_watch() -> str:
    """Why changes cannot be watched here; empty if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"{sys.platform} on {platform.machine()} (it needs Linux on x86-64)"
    read, write = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if _filter() >= 0 else 1
        finally:
            os._exit(code)
    os.close(read)
    os.close(write)
    return "" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 else "this kernel has no seccomp notifications"


# ------------------------------------------------------------------ within the watched process
class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


def _filter() -> int:
    """Stop this thread and all that it will start at the calls above; the descriptor to answer at."""
    load, equal, greater, end = 0x20, 0x15, 0x25, 0x06

    def argument(place: int) -> tuple:
        return load, 0, 0, 16 + 8 * place  # its lower half

    lines = [(load, 0, 0, 4), (equal, 1, 0, 0xC000003E), (end, 0, 0, _ALLOW), (load, 0, 0, 0)]
    for number, place in _FLAGS_AT.items():  # opening is told if it may make the file
        lines += [(equal, 0, 5, number), argument(place), (0x45, 1, 0, os.O_CREAT), (end, 0, 0, _ALLOW),
                  (end, 0, 0, _NOTIFY), (end, 0, 0, _ALLOW)]
    for number, (_, place) in _WRITES.items():  # writing to a terminal or its like is not
        lines += [(equal, 0, 4, number), argument(place), (greater, 1, 0, 2), (end, 0, 0, _ALLOW),
                  (end, 0, 0, _NOTIFY)]
    for number in (*_BY_DESCRIPTOR, *_BY_PATH, 85):
        lines += [(equal, 0, 1, number), (end, 0, 0, _NOTIFY)]
    lines.append((end, 0, 0, _ALLOW))
    array = (_Instruction * len(lines))(*[_Instruction(code, yes, no, k) for code, yes, no, k in lines])
    program = _Program(len(lines), array)
    no_new_privileges, set_filter, new_listener = 38, 1, 8
    _LIBC.prctl(no_new_privileges, 1, 0, 0, 0)
    return _LIBC.syscall(_SECCOMP, set_filter, new_listener, ctypes.byref(program))


def be_watched(place: str) -> None:
    """From now on the Watcher whose socket this is hears of this process' changes, and of its children's."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(place)
        listener = _filter()
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp's notifications")
        socket.send_fds(wire, [b"x"], [listener])
        os.close(listener)
        wire.recv(1)


# ------------------------------------------------------------------ who answers
class Watcher:
    """Within `with`: hears of changes below `folder` made by what is started with `words`, and decides upon each.

    Args:
        decide: called with each Change, one at a time, from a thread.
    Attributes:
        changes: all that were told.
    """

    def __init__(self, folder: Path, decide: Callable[[Change], Answer] = lambda change: MADE):
        self.changes: list[Change] = []
        self._below, self._decide, self._lock = f"{folder.resolve()}/", decide, threading.Lock()
        self._holder = tempfile.TemporaryDirectory(prefix="watched")
        self.place = str(Path(self._holder.name) / "socket")

    def words(self, *command: object, how: str = "run") -> list[str]:
        """The words of a Python script for an interpreter, or with how="exec" of any command, so that it is watched."""
        return [__file__, how, self.place, *map(str, command)]

    def __enter__(self) -> Watcher:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.place)
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._holder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._server.accept()
            except OSError:
                return
            with wire:
                _, descriptors, _, _ = socket.recv_fds(wire, 1, 1)
                if descriptors:
                    threading.Thread(target=self._answer, args=(descriptors[0],), daemon=True).start()
                    wire.send(b"x")

    def _answer(self, listener: int) -> None:
        """Answer a process and its children until none is left."""
        waiting = select.poll()
        waiting.register(listener, select.POLLIN)
        try:
            while not any(event & (select.POLLHUP | select.POLLERR) for _, event in waiting.poll()):
                call = bytearray(80)
                try:
                    fcntl.ioctl(listener, _RECEIVE, call)
                except OSError:  # it was killed meanwhile
                    continue
                identity, pid, _, number, _, _, *arguments = struct.unpack("QIIiIQ6Q", call)
                try:
                    value, answer = self._judge(pid, number, arguments)
                except (OSError, ValueError):  # it was killed meanwhile
                    value, answer = 0, MADE
                is_made = not answer.error and not answer.is_cut
                if not is_made and answer.then:
                    answer.then()
                reply = struct.pack("QqiI", identity, value, -answer.error, _GO_ON if is_made else 0)
                with contextlib.suppress(OSError):
                    fcntl.ioctl(listener, _SEND, reply)
                if is_made and answer.then:
                    answer.then()
        finally:
            os.close(listener)

    def _judge(self, pid: int, number: int, arguments: list[int]) -> tuple[int, Answer]:
        """What a call returns that is cut, and what becomes of it."""
        name, path, size = _described(pid, number, arguments)
        if not path.startswith(self._below) or (name == "create" and os.path.lexists(path)):
            return 0, MADE
        with self._lock:
            change = Change(len(self.changes) + 1, name, path, size, pid)
            self.changes.append(change)
            answer = self._decide(change)
        return (_write_half(pid, number, arguments) if answer.is_cut else 0), answer


def _described(pid: int, number: int, arguments: list[int]) -> tuple[str, str, int]:
    """Name of the call, path of the file and how many bytes are to be written."""
    if number in _WRITES or number in _BY_DESCRIPTOR:
        name, place = _WRITES.get(number) or _BY_DESCRIPTOR[number]
        path = os.readlink(f"/proc/{pid}/fd/{arguments[place]}")
        return name, path, sum(size for _, size in _pieces(pid, number, arguments))
    name, place, folder_place = _BY_PATH.get(number) or _OPENS[number]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(arguments[place])
        path = os.fsdecode(memory.read(4096).split(b"\0")[0])
    if not path.startswith("/"):
        here = folder_place is None or arguments[folder_place] & 0xFFFFFFFF == _AT_FDCWD
        link = f"/proc/{pid}/cwd" if here else f"/proc/{pid}/fd/{arguments[folder_place]}"
        path = os.path.join(os.readlink(link), path)
    return name, os.path.normpath(path), 0


def _pieces(pid: int, number: int, arguments: list[int]) -> list[tuple[int, int]]:
    """(address, size) of what is written, in its order; a copy within the kernel has no address."""
    if number in (1, 18):
        return [(arguments[1], arguments[2])]
    if number in (20, 296, 328):
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(arguments[1])
            return list(struct.iter_unpack("QQ", memory.read(16 * arguments[2])))
    return [(0, arguments[{40: 3, 326: 4}[number]])] if number in (40, 326) else []


def _write_half(pid: int, number: int, arguments: list[int]) -> int:
    """Do half of a write in its process' place, at its place in the file; how many bytes that were."""
    pieces = _pieces(pid, number, arguments)
    left, data = max(sum(size for _, size in pieces) // 2, 1), b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for address, size in pieces:
            memory.seek(address)
            data += memory.read(min(size, left - len(data)))
    process = os.pidfd_open(_leader(pid))
    try:
        file = _LIBC.syscall(_PIDFD_GETFD, process, arguments[0], 0)  # the same place in the file as theirs
    finally:
        os.close(process)
    try:
        return os.write(file, data) if number in (1, 20) else os.pwrite(file, data, arguments[3])
    finally:
        os.close(file)


def _leader(thread: int) -> int:
    """The process of a thread."""
    for line in Path(f"/proc/{thread}/status").read_text().splitlines():
        if line.startswith("Tgid:"):
            return int(line.split()[1])
    raise ValueError(f"{thread} has ended")


def main() -> None:
    how, place, *words = sys.argv[1:]
    if how != "alone":
        be_watched(place)
    if how != "run":
        os.execvp(words[0], words)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
