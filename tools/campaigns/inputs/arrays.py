"""Damage to files of numbers: .npy, archives, checkpoints of torch, safetensors."""
from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
from random import Random

import numpy as np

from tools.campaigns.inputs.bombs import crc_of_zeros, deflated_zeros
from tools.campaigns.inputs.raw import Payload, cut, flip, number, overwrite
from tools.campaigns.inputs.texts import change_value
from tools.campaigns.inputs.values import NUMBERS, SEALED, Means
from utils.checkpoint import CHECKSUM

_MOST = 1 << 26  # bytes of an archive's members that are changed once more
_SHAPES = ([2**40], [2**32, 2**32], [2**31, 2**31, 4], [0], [-1], [], [1] * 100, [2**63], [3, 0, 2**40], [1.5], "x")


def change_npy(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A header that promises another shape or type, or an array of objects."""
    if draw.random() < 0.15:
        out = io.BytesIO()
        np.lib.format.write_array(out, np.array([Payload(means.canary)], object), allow_pickle=True)
        return out.getvalue(), "an array of objects that run code"
    length = int.from_bytes(data[8:10], "little")
    header, size = data[10:10 + length].decode("latin-1"), draw.choice(NUMBERS)
    shape = draw.choice((f"({size},)", f"({size}, {size})", "()", "(0,)", "(-1, 4)", "(3, 0)", "(True,)", "'x'", "None",
                         f"(1,{'1,' * 70})", "(2, 2.5)", "(4294967296, 4294967296)", "(0, 4611686018427387904)",
                         f"({'9' * 5000},)", "(" * 3000, "(1 << 40,)", "[3, 4]"))
    kind = draw.choice(("'<f4'", "'<f8'", "'|O'", "'<U4000000000'", "'V8'", "'<i8'", "[('a', '<f4')]", "'M8[s]'", "''",
                        "'<c16'", "None", "'>f4'", "'<f2'", "'|S1'", "'?'", "'V0'", "'<U0'", "'<f4, <f4'",
                        "[('a', '<f4', (1073741824,))]", "[('a', 'O')]", "('<f4', (2, 2))"))
    key, value = draw.choice((("shape", shape), ("shape", shape), ("descr", kind), ("fortran_order", "True")))
    header = re.sub(rf"'{key}': (?:\([^)]*\)|'[^']*'|\w+|\[.*?\])", lambda _: f"'{key}': {value}", header)
    if draw.random() < 0.1:  # the format's later versions have longer headers
        length = draw.choice((len(header), 2**32 - 1, 2**31))
        return data[:6] + bytes((draw.choice((2, 3, 9)), 0)) + struct.pack("<I", length) + header.encode("latin-1"), \
            f".npy of another version, with a header of {length} bytes"
    return data[:8] + struct.pack("<H", len(header)) + header.encode("latin-1") + data[10 + length:], \
        f".npy with {key} {value[:40]}"


def change_zip(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """An archive with a member changed, made huge, renamed, repeated or left out; its checksums are right."""
    with _opened(data) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw.randrange(len(members))
    what = draw.choice(("change", "change", "bomb", "promise", "rename", "drop", "repeat", "many", "pickle"))
    name, content = members[place]
    mib = 0
    if what == "change":
        content, _ = draw.choice((flip, number, cut, overwrite))(content, draw, means)
        members[place] = name, content
    elif what in ("bomb", "promise"):
        mib = draw.choice((100, 100, 300, 3000)) if what == "bomb" else 3
        members[place] = name, deflated_zeros(mib)
    elif what == "rename":
        members[place] = draw.choice(("../x", "/tmp/x", "a" * 300, "archive/data.pkl", "x/constants.pkl")), content
    elif what == "drop":
        del members[place]
    elif what == "repeat":
        members.append(members[place])
    elif what == "many":
        members += [(f"archive/data/x{number}", b"") for number in range(5000)]
    else:
        members = [(name, pickle.dumps(Payload(means.canary), protocol=2) if name.endswith("data.pkl") else content)
                   for name, content in members]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
        if mib:
            _say_deflated(out, archive.infolist()[place], mib, 2**32 - 2 if what == "promise" else mib << 20)
    return out.getvalue(), f"archive: {what} {name[-40:]}"


def _opened(data: bytes) -> zipfile.ZipFile:
    """An archive that an earlier change did not make huge."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    if sum(info.file_size for info in archive.infolist()) > _MOST:
        raise ValueError("huge")
    return archive


def _say_deflated(out: io.BytesIO, info: zipfile.ZipInfo, mib: int, size: int) -> None:
    """Let a stored member be a deflated one of `size` bytes, in its own header and the archive's."""
    info.compress_type, info.CRC, info.file_size = zipfile.ZIP_DEFLATED, crc_of_zeros(mib), size
    end = out.tell()
    out.seek(info.header_offset + 8)
    out.write(struct.pack("<H", info.compress_type))
    out.seek(info.header_offset + 14)
    out.write(struct.pack("<III", info.CRC, info.compress_size, size))
    out.seek(end)


def change_tensors(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A checkpoint whose tensors are views that promise terabytes, of odd types and layouts, or no tensors at all."""
    import torch

    if str(means.canary).encode() in data:
        raise ValueError("it would run code")
    if data.startswith(b"PK"):
        _opened(data).close()
    root = torch.load(io.BytesIO(data), weights_only=False)  # our own specimen
    holders = [root, *(value for value in root.values() if isinstance(value, dict))]
    holder = draw.choice([holder for holder in holders if holder])
    key = draw.choice(list(holder))
    what, value = draw.choice((
        ("a view", torch.zeros(1).expand(draw.choice((2**36, 2**45)))),
        ("no strides", torch.zeros(1, 1).expand(9, 2**40)),
        ("no numbers", torch.zeros(0)), ("NaN", torch.full((4,), float("nan"))), ("halves", torch.zeros(4).half()),
        ("complex", torch.zeros(2, dtype=torch.complex64)), ("truths", torch.ones(3, dtype=torch.bool)),
        ("sparse", torch.eye(3).to_sparse()), ("rows", torch.eye(3).to_sparse_csr()),
        ("sparse and huge", torch.sparse_coo_tensor([[0], [0]], [1.0], (2**31, 2**31), check_invariants=True)),
        ("meta", torch.zeros(2**20, 2**20, device="meta")), ("turned", torch.eye(4)[:, ::2].t()),
        ("a parameter", torch.nn.Parameter(torch.zeros(3))), ("a scalar", torch.tensor(3.0)),
        ("numpy's", np.float64(2)), ("numpy's object", np.array([1, "a"], object)), ("a set", {1, 2}),
        ("a type", torch.float32), ("a device", torch.device("cuda:99")), ("bytes", b"\xff" * 9),
        ("a tuple", (1, (2,))),
        ("a plain value", draw.choice(means.values)), ("a plain value", draw.choice(means.values)),
        ("a large integer", 10**5000), ("itself", holder)))
    if what == "itself" and draw.random() < 0.5:  # and a list that doubles at each level
        what, value = "lists of lists", [0]
        for _ in range(60):
            value = [value, value]
    if draw.random() < 0.1:
        holder[draw.choice((None, 3, ("a",), 2.5, b"x", *means.texts))] = holder.pop(key)
        what = "another key"
    else:
        holder[key] = value
    out = io.BytesIO()
    torch.save(root, out, _use_new_zipfile_serialization=draw.random() < 0.8)
    # A file without its checksum is one of before there was one.
    return out.getvalue(), f"torch: {what} at {str(key)[:40]}{f', {SEALED}' if key == CHECKSUM else ''}"


def change_safetensors(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A header of safetensors with a value changed, a shape, a type or a place that its numbers have not."""
    length = int.from_bytes(data[:8], "little")
    root = json.loads(data[8:8 + length])
    what = draw.choice(("value", "shape", "dtype", "place", "length", "swap", "many"))
    tensor = root[name := draw.choice([name for name, entry in root.items() if "shape" in entry])]
    done = f"{what} of {name[:40]}"
    if what == "value":
        done = change_value(root, draw, means)
    elif what == "shape":
        tensor["shape"] = draw.choice(_SHAPES)
    elif what == "dtype":
        tensor["dtype"] = draw.choice(("F64", "I64", "BOOL", "U8", "F8_E4M3", "BF16", "F4", "X", "C64", 1))
    elif what == "place":
        tensor["data_offsets"] = draw.choice(([0, 2**62], [8, 0], [0, 0], [-1, 4], [2**63, 2**64], [0], [0, 1, 2], "x",
                                              draw.choice(list(root.values())).get("data_offsets")))
    elif what == "swap":
        other = draw.choice([name for name, entry in root.items() if "shape" in entry])
        root[name], root[other] = root[other], root[name]
    elif what == "many":
        root |= {f"more{number}": {"dtype": "F32", "shape": [0], "data_offsets": tensor["data_offsets"][:1] * 2}
                 for number in range(20_000)}
    header = json.dumps(root).encode()
    promised = draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data))) if what == "length" else len(header)
    return struct.pack("<Q", promised) + header + data[8 + length:], f"safetensors header, {done}"


def is_safetensors(data: bytes) -> bool:
    return data[8:10] == b'{"'


def is_torch(data: bytes) -> bool:
    return data.startswith(b"PK\3\4") or data.startswith(b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
