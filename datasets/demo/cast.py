"""Who is in the demo set: people with their clothes, and cameras."""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What a random stream is for: the second word of its seed, so that no two uses ever share numbers.
PERSON, CAMERA, SCENE, SHOT, PLAN = range(5)


Colour = tuple[int, int, int]  # B, G, R

PALETTE: dict[str, Colour] = {
    "black": (34, 32, 32), "white": (232, 234, 236), "grey": (128, 126, 124), "red": (40, 36, 200),
    "orange": (30, 120, 236), "yellow": (50, 208, 240), "green": (62, 150, 50), "teal": (150, 150, 30),
    "sky": (226, 176, 96), "blue": (196, 80, 36), "navy": (96, 44, 28), "purple": (150, 50, 120),
    "pink": (176, 130, 240), "brown": (44, 70, 112), "beige": (150, 190, 214), "olive": (50, 110, 110),
}
SKINS: tuple[Colour, ...] = ((172, 196, 236), (140, 170, 218), (96, 132, 190), (58, 86, 134))
HAIRS: tuple[Colour, ...] = ((26, 24, 24), (30, 48, 76), (60, 110, 160), (96, 160, 206), (150, 150, 150), (36, 50, 140))
PATTERNS = ("plain", "plain", "hoops", "stripes", "diagonal", "checks", "dots", "halves", "logo")
SCENES = ("street", "lobby", "park", "shop", "subway", "bricks")


@dataclass(frozen=True)
class Cloth:
    """A garment's look: two colours and how they alternate (`period` in body heights)."""

    pattern: str
    main: Colour
    second: Colour
    period: float


@dataclass(frozen=True)
class Person:
    """What stays the same about a person from camera to camera; lengths in body heights."""

    build: float
    skin: Colour
    hair: Colour
    hair_style: str  # short, long, bun, bald, cap
    cap: Colour
    top: Cloth
    top_hem: float  # y of the lower edge: a jacket, or a coat
    sleeves: str  # long, short, contrast (long, in the second colour)
    legwear: str  # trousers, shorts, skirt
    bottom: Cloth
    shoes: Colour
    bag: str  # none, backpack, shoulder, hand
    bag_colour: Colour
    bag_side: int  # +1: the person's left


@dataclass(frozen=True)
class Camera:
    """What stays the same about a camera from person to person."""

    scene: str
    gains: tuple[float, float, float]  # B, G, R
    gamma: float
    saturation: float
    blur: float  # Gaussian sigma at 128 pixels of height
    noise: float  # standard deviation, of 1
    yaw: float  # the direction most people walk in, radians; 0 towards the camera
    size: float  # body height / picture height


def random_stream(*key: int) -> np.random.Generator:
    """The random stream that belongs to `key`, whoever asks and whenever."""
    return np.random.default_rng(key)


def _pick(rng: np.random.Generator, choices: Sequence):
    return choices[int(rng.integers(len(choices)))]


def _tint(rng: np.random.Generator, colour: Colour, spread: float = 10.0) -> Colour:
    """`colour`, a little off: two red shirts are never the same red."""
    return tuple(int(v) for v in np.clip(np.array(colour) + rng.normal(0, spread, 3), 8, 247))


def _sample_cloth(rng: np.random.Generator, patterns: Sequence[str]) -> Cloth:
    main, second = rng.permutation(len(PALETTE))[:2]
    colours = list(PALETTE.values())
    return Cloth(_pick(rng, patterns), _tint(rng, colours[main]), _tint(rng, colours[second]),
                 float(rng.uniform(0.09, 0.16)))


def sample_person(rng: np.random.Generator) -> Person:
    """Draw a person's attributes, each on its own."""
    return Person(
        build=float(rng.uniform(0.82, 1.22)),
        skin=_tint(rng, _pick(rng, SKINS), 6),
        hair=_tint(rng, _pick(rng, HAIRS), 8),
        hair_style=_pick(rng, ("short", "short", "long", "long", "bun", "bald", "cap")),
        cap=_tint(rng, _pick(rng, list(PALETTE.values()))),
        top=_sample_cloth(rng, PATTERNS),
        top_hem=float(_pick(rng, (0.5, 0.53, 0.53, 0.68))),
        sleeves=_pick(rng, ("long", "long", "short", "contrast")),
        legwear=_pick(rng, ("trousers", "trousers", "trousers", "shorts", "skirt")),
        bottom=_sample_cloth(rng, ("plain", "plain", "plain", "checks", "stripes", "halves")),
        shoes=_tint(rng, _pick(rng, list(PALETTE.values()))),
        bag=_pick(rng, ("none", "backpack", "shoulder", "hand")),
        bag_colour=_tint(rng, _pick(rng, list(PALETTE.values()))),
        bag_side=_pick(rng, (-1, 1)),
    )


def sample_cameras(rng: np.random.Generator, count: int) -> list[Camera]:
    """Draw the cameras of a demo set.

    They are spread evenly over what cameras can be, so that every seed is about as hard: `spread` gives each a share
    of a range, in random order, and the casts go round the colour circle.
    """
    def spread(low: float, high: float) -> np.ndarray:
        return low + (high - low) * (rng.permutation(count) + rng.uniform(0.2, 0.8, count)) / count

    hues = spread(0, 2 * np.pi)[:, None] + np.array([0, 2, 4]) * np.pi / 3
    gains = np.exp(0.17 * np.cos(hues)) * spread(0.85, 1.1)[:, None]
    gamma, saturation, blur, noise = spread(0.8, 1.2), spread(0.85, 1.2), spread(0.1, 0.5), spread(0.005, 0.02)
    yaw, size, scenes = spread(-np.pi, np.pi), spread(0.87, 0.96), rng.permutation(len(SCENES))
    return [Camera(scene=SCENES[scenes[i % len(SCENES)]], gains=tuple(gains[i].tolist()), gamma=float(gamma[i]),
                   saturation=float(saturation[i]), blur=float(blur[i]), noise=float(noise[i]), yaw=float(yaw[i]),
                   size=float(size[i]))
            for i in range(count)]


@functools.lru_cache(maxsize=4)
def cameras_of(seed: int, count: int) -> list[Camera]:
    """A demo set's cameras; camid 1 is the first."""
    return sample_cameras(random_stream(seed, CAMERA), count)
