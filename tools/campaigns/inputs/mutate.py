"""Damage to a file: as disks and networks do it, as other programs' habits do it, and as an attacker would."""
from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.campaigns.inputs import arrays, pictures, raw, stores, texts, videos
from tools.campaigns.inputs.values import Change, Means


def mutate(data: bytes, draw: Random, means: Means) -> tuple[bytes, str]:
    """A damaged copy of a file, and what was done in words.

    Args:
        draw: all choices come from it.
    """
    fitting = [*_BYTES, *(change for fits, changes in _KINDS if fits(data) for change in changes for _ in range(2))]
    words = []
    for _ in range(draw.choice((1, 1, 1, 1, 2, 3, 8))):
        try:
            changed, done = draw.choice(fitting)(data, draw, means)
        except Exception:  # whatever a format's library makes of what an earlier change has left
            continue
        if len(changed) <= _MOST:
            data = changed
            words.append(done)
    if not words:
        data, done = raw.flip(data, draw, means)
        words = [done]
    return data, ", ".join(words)


_MOST = 1 << 27  # bytes of a damaged file: what a reader takes is to come from what it promises, not from what it is
_BYTES = (raw.flip, raw.flip, raw.overwrite, raw.number, raw.cut, raw.remove, raw.insert, raw.repeat, raw.append,
          raw.splice, raw.pickled)
# Whether changes fit a file, and the changes, those that are to come more often several times.
_KINDS: tuple[tuple[Callable[[bytes], bool], tuple[Change, ...]], ...] = (
    (texts.is_text, (texts.recode, *[texts.change_lines] * 2, *[texts.change_word] * 2, texts.nest)),
    (texts.is_json_like, (texts.change_json,) * 3),
    (texts.is_csv, (texts.put_cells,) * 2),
    (lambda data: b"MODEL:" in data[:400] or b"_BASE_" in data[:400], (*[texts.put_yaml] * 2, *[texts.put_value] * 2)),
    (lambda data: data.startswith(b"\x93NUMPY"), (arrays.change_npy,) * 3),
    (lambda data: data.startswith(b"PK\3\4"), (arrays.change_zip,) * 2),
    (arrays.is_torch, (arrays.change_tensors,) * 2),
    (arrays.is_safetensors, (arrays.change_safetensors,) * 3),
    (pictures.is_png, (pictures.change_png,) * 4),
    (pictures.is_jpeg, (*[pictures.change_jpeg] * 2, pictures.change_segments, *[pictures.change_scan] * 2)),
    (pictures.is_rarer, (pictures.change_rarer,) * 4),
    (videos.is_avi, (*[videos.change_frame] * 3, videos.change_header)),
    (stores.is_sqlite, (stores.change_sqlite,) * 4),
    (stores.is_onnx, (stores.change_onnx,) * 2),
    (stores.is_openvino, (stores.change_openvino,) * 2),
)
