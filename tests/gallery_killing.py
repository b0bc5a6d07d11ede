"""Kills a process that changes a gallery at random moments, and compares what is left with a plain dict.

python tests/gallery_killing.py FOLDER SEED KILLS  prints "KILLS kills, N acknowledged, M found whole that were not".
"""
import os
import pickle
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from processor.gallery import open_gallery

DIM = 8


def vectors_of(ids, dim=DIM, salt=0):
    """A row for each id, [n, D] of length 1."""
    rows = np.stack([np.random.default_rng([int(row), salt]).standard_normal(dim) for row in ids])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def draw_change(draw, rows, salt):
    """(what to do, ids, salt); `rows` is {id: (salt, identity)}."""
    what = draw.choices(["add", "replace", "remove", "take", "erase", "assign", "compact"], [8, 2, 1, 1, 1, 2, 1])[0]
    if what == "add":
        first = max(rows, default=0) + 1
        return what, list(range(first, first + draw.randint(1, 60))), salt
    return what, draw.sample(sorted(rows), min(len(rows), draw.randint(1, 20))) if what != "compact" else [], salt


def make_change(gallery, what, ids, salt):
    if what in ("add", "replace"):
        if ids:
            gallery.add(ids, vectors_of(ids, salt=salt), {"identity": [salt] * len(ids)}, replace=what == "replace")
    elif what in ("remove", "erase"):
        gallery.remove(ids, erase=what == "erase")
    elif what == "take":  # so that it can be undone
        gallery.ledger.remove(ids)
    elif what == "assign":
        gallery.assign(ids, identity=salt)
    else:
        gallery.compact()


def changed(rows, what, ids, salt):
    """The dict after a change."""
    if what in ("add", "replace"):
        return rows | dict.fromkeys(ids, (salt, salt))
    if what in ("remove", "take", "erase"):
        return {row: value for row, value in rows.items() if row not in ids}
    return rows | {row: (rows[row][0], salt) for row in ids}


def content(gallery):
    """{id: (vector's bytes, identity)}"""
    return {row: (batch.vectors[place].tobytes(), batch.facts["identity"][place])
            for batch in gallery.scan() for place, row in enumerate(batch.ids.tolist())}


def work_until_killed(folder, draw, rows, salt, pipe):
    with open_gallery(folder, DIM) as gallery:
        gallery.segment_rows = 100
        while True:
            change = draw_change(draw, rows, salt)
            pipe.write(pickle.dumps(change))
            pipe.flush()
            make_change(gallery, *change)
            rows, salt = changed(rows, *change), salt + 1
            pipe.write(pickle.dumps("done"))
            pipe.flush()


def read_all(source):
    while True:
        try:
            yield pickle.load(source)
        except (EOFError, pickle.UnpicklingError):
            return


def main(folder, seed, kills):
    draw, rows, salt, acknowledged, whole, erased = random.Random(seed), {}, 1, 0, 0, []
    for _ in range(kills):
        source, target = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(source)
            work_until_killed(folder, draw, rows, salt, os.fdopen(target, "wb"))
        os.close(target)
        time.sleep(draw.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(source, "rb") as pipe:
            words = list(read_all(pipe))
        for change, answer in zip(words[::2], [*words[1::2], None], strict=False):
            before, rows, salt = rows, changed(rows, *change), salt + 1
            acknowledged += answer is not None
            if change[0] == "erase" and answer:
                erased += [(row, before[row][0]) for row in change[1]]
        with open_gallery(folder, DIM) as gallery:
            assert gallery.verify() == []
            held = content(gallery)
        if words and words[-1] != "done":  # it was under way: wholly there or not at all
            if held == expected(rows) and rows != before:
                whole += 1
            else:
                rows = before
        assert held == expected(rows), f"after {words[-1:]}"
        salt += 1
        draw = random.Random(draw.random())
    files = b"".join(path.read_bytes() for path in Path(folder).iterdir())
    assert not [row for row, salt in erased if vectors_of([row], salt=salt).tobytes() in files]
    print(f"{kills} kills, {acknowledged} acknowledged, {whole} found whole that were not; {len(rows)} rows, "
          f"nothing left of {len(erased)} erased")


def expected(rows):
    ids = sorted(rows)
    return {row: (vectors_of([row], salt=rows[row][0])[0].tobytes(), rows[row][1]) for row in ids}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
