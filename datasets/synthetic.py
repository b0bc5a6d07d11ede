"""The demo set: drawn pedestrians, stored exactly as NAIC stores its photographs.

A person has attributes (build, clothes, textures, hair, bag), a camera has a scene, a viewpoint and a colour
cast, and a shot is one person before one camera in one pose. Matching across cameras means to see the clothes
through cast, light, pose, background and occlusion, so pixels and random features do badly and a small network
learns it in a minute. `domain` is NAIC's: a picture whose B, G and R means all exceed 65 is "green", any other
"normal".

Read it from the bottom up: `make_demo_data` plans the shots and has workers `render` them.
"""
from __future__ import annotations

import contextlib
import functools
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from datasets.domains import DOMAINS, domain_of
from utils.files import atomic_path, new_folder, read_json, write_json, write_text
from utils.progress import progress as show_progress

FOLDER = "MyDataSet"
MANIFEST = "demo.json"
TEST_FOLDER = "image_B_v1_1"
VERSION = 1  # raise it whenever the same seed gives other bytes
# Set name -> its picture folder, what a list line writes before the name, and what stands before the pid.
TRAIN_SETS = {
    "train_2019_cs": ("train", "train/", " "),
    "train_2019_fs": ("train", "train/", " "),
    "train_2020_cs": ("images", "", ":"),
    "train_2020_fs": ("images", "", ":"),
}

# What a random stream is for: the second word of its seed, so that no two uses ever share numbers.
_PERSON, _CAMERA, _SCENE, _SHOT, _PLAN = range(5)
_SUPERSAMPLE = 2  # drawn this many times larger, then averaged down: smooth edges at any angle
_SUBPIXEL_BITS = 4

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


# ---------------------------------------------------------------------------------------------- who and where
@dataclass(frozen=True)
class Sizes:
    """How large the demo set is; the defaults make about 2,400 pictures.

    Attributes:
        ids: identities with several images, in each of the four training sets.
        images: images of such an identity (each has images - 2 … images + 2, at least 2).
        singles: identities with one image only, in each training set.
        shared: identities of train_2020_cs that stand again in train_2020_fs, under another pid.
        query_ids: test identities that are asked about, half of them in each domain.
        query_images: query images of each, from different cameras.
        gallery_images: gallery images of each, over several cameras.
        distractors: gallery identities that no query asks about.
        distractor_images: gallery images of each of those.
        cameras: number of cameras; training and test see through the same ones.
        height, width: of the pictures, in pixels.
    Raises:
        ValueError: a number is too small to make a complete set.
    """

    ids: int = 50
    images: int = 8
    singles: int = 3
    shared: int = 5
    query_ids: int = 60
    query_images: int = 2
    gallery_images: int = 8
    distractors: int = 40
    distractor_images: int = 4
    cameras: int = 6
    height: int = 128
    width: int = 64

    def __post_init__(self) -> None:
        least = {"ids": 2, "images": 2, "query_ids": 2, "query_images": 1, "gallery_images": 2,
                 "distractor_images": 1, "cameras": 2, "height": 16, "width": 8}
        for name, value in asdict(self).items():
            if value < least.get(name, 0):
                raise ValueError(f"{name}={value} is too small for a demo set; the least is {least.get(name, 0)}")
        if self.shared > self.ids:
            raise ValueError(f"shared={self.shared} exceeds ids={self.ids}: only identities of a set can be shared")


@dataclass(frozen=True)
class Cloth:
    """One garment's look: two colours and how they alternate (`period` in body heights)."""

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


def _rng(*key: int) -> np.random.Generator:
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

    They are spread evenly over what cameras can be, so that every seed is about as hard: `spread` gives each its
    own share of a range, in random order, and the casts go round the colour circle.
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
def _cameras(seed: int, count: int) -> list[Camera]:
    """A demo set's cameras; camid 1 is the first."""
    return sample_cameras(_rng(seed, _CAMERA), count)


# ---------------------------------------------------------------------------------------------------- drawing
class _Canvas:
    """A picture being drawn on, with a figure's own coordinates: x from its middle, y from head 0 to feet 1."""

    def __init__(self, image: np.ndarray, centre: float, top: float, unit: float, lean: float) -> None:
        self.image = image
        self.centre, self.top, self.unit, self.lean = centre, top, unit, lean

    def _pixels(self, points) -> np.ndarray:
        points = np.asarray(points, np.float64)
        x = self.centre + self.unit * (points[:, 0] + self.lean * (1 - points[:, 1]))
        y = self.top + self.unit * points[:, 1]
        return np.round(np.stack([x, y], 1) * (1 << _SUBPIXEL_BITS)).astype(np.int32)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """The figure's x [1, W] (without lean) and y [H, 1] at every pixel."""
        height, width = self.image.shape[:2]
        return ((np.arange(width, dtype=np.float32)[None] - self.centre) / self.unit,
                (np.arange(height, dtype=np.float32)[:, None] - self.top) / self.unit)

    def fill(self, points, paint: Colour | np.ndarray, edge: float = 0.72) -> None:
        """Fill a polygon with a colour or a texture [H, W, 3], and draw its edge a shade darker."""
        polygon = self._pixels(points)
        if isinstance(paint, np.ndarray):
            mask = np.zeros(self.image.shape[:2], np.uint8)
            cv2.fillPoly(mask, [polygon], 255, cv2.LINE_8, _SUBPIXEL_BITS)
            cv2.copyTo(paint, mask, self.image)
            rim = tuple(float(v) * edge for v in cv2.mean(paint, mask)[:3])
        else:
            cv2.fillPoly(self.image, [polygon], paint, cv2.LINE_AA, _SUBPIXEL_BITS)
            rim = tuple(v * edge for v in paint)
        thickness = max(1, round(self.unit * 0.006))
        cv2.polylines(self.image, [polygon], True, rim, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)

    def block(self, x: float, top: float, bottom: float, upper: float, lower: float, paint: Colour) -> None:
        """An upright trapezium around `x`; `upper` and `lower` are half its widths."""
        self.fill([(x - upper, top), (x + upper, top), (x + lower, bottom), (x - lower, bottom)], paint)

    def oval(self, x: float, y: float, rx: float, ry: float, paint: Colour | np.ndarray, edge: float = 0.8) -> None:
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        self.fill(np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1), paint, edge)

    def limb(self, start, end, wide: float, narrow: float, paint: Colour | np.ndarray) -> None:
        """A tapered bar with round ends."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        angle = np.arctan2(*(end - start)[::-1])
        arc = np.linspace(-np.pi / 2, np.pi / 2, 7)
        outline = [end + narrow * np.array([np.cos(angle + a), np.sin(angle + a)]) for a in arc]
        outline += [start - wide * np.array([np.cos(angle + a), np.sin(angle + a)]) for a in arc]
        self.fill(outline, paint)


@dataclass(frozen=True)
class _Pose:
    """How a person stands in one shot. `front`: 1 towards us, -1 away; `side`: 1 walks to the right."""

    front: float
    side: float
    swing: float  # of the leading leg, radians
    girth: float  # half the shoulders' width as seen from here

    @property
    def mirrored(self) -> int:
        """+1 where the person's left is on the picture's right, as when they face us."""
        return 1 if self.front >= 0 else -1


def _pattern_mask(cloth: Cloth, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the second colour is at each point of the cloth: [H, W] in [0, 1]."""
    def bands(t):
        return ((t / cloth.period) % 1.0 < 0.45).astype(np.float32)

    zero = np.zeros((y.shape[0], x.shape[1]), np.float32)
    if cloth.pattern == "hoops":
        return zero + bands(y)
    if cloth.pattern == "stripes":
        return zero + bands(x + 0.2 * cloth.period)
    if cloth.pattern == "diagonal":
        return bands((x + y) * 0.75)
    if cloth.pattern == "checks":
        return 0.5 * (bands(x) + bands(y))
    if cloth.pattern == "dots":
        u, v = x / cloth.period % 1 - 0.5, y / cloth.period % 1 - 0.5
        return (u * u + v * v < 0.1).astype(np.float32)
    if cloth.pattern == "halves":
        return zero + (y > 0.34 if cloth.period < 0.125 else y < 0.3)
    if cloth.pattern == "logo":
        return ((np.abs(x) < 0.055) & (np.abs(y - 0.29) < cloth.period * 0.55)).astype(np.float32)
    return zero


def _texture(cloth: Cloth, canvas: _Canvas, pose: _Pose, rng: np.random.Generator) -> np.ndarray:
    """The garment's cloth over the whole picture [H, W, 3], with folds and light from one side."""
    x, y = canvas.grid()
    x = x / (0.6 + 0.4 * abs(pose.front))
    mask = _pattern_mask(cloth, x, y)[..., None]
    colour = np.float32(cloth.main) * (1 - mask) + np.float32(cloth.second) * mask
    folds = cv2.resize(rng.normal(1, 0.08, (14, 7)).astype(np.float32), canvas.image.shape[1::-1],
                       interpolation=cv2.INTER_CUBIC)
    shade = folds * np.clip(1 + x * rng.uniform(-1.6, 1.6), 0.6, 1.3)
    return np.clip(colour * shade[..., None], 0, 255).astype(np.uint8)


def _draw_leg(canvas: _Canvas, person: Person, pose: _Pose, which: int, cloth: np.ndarray) -> None:
    """One leg, `which` = -1 or +1, with its shoe: thigh, shin and what covers them."""
    hip = np.array([which * 0.05 * person.build * (0.3 + 0.7 * abs(pose.front)), 0.5])
    thigh = which * pose.swing
    shin = thigh - 0.9 * max(0.0, -thigh)
    sideways = 0.25 + 0.75 * abs(pose.side)
    forward = np.sign(pose.side) * sideways if abs(pose.side) > 0.2 else 0.12
    knee = hip + 0.235 * np.array([np.sin(thigh) * forward, np.cos(thigh)])
    ankle = knee + 0.21 * np.array([np.sin(shin) * forward, np.cos(shin)])
    upper = person.skin if person.legwear == "skirt" else cloth
    lower = cloth if person.legwear == "trousers" else person.skin
    thick = 0.052 * person.build
    heel, toe = ankle + np.array([0, 0.02]), ankle + np.array([0.055 * pose.side, 0.028])
    canvas.limb(heel, toe, 0.024, 0.02, person.shoes)
    canvas.limb(knee, ankle, thick * 0.72, thick * 0.5, lower)
    canvas.limb(hip, knee, thick, thick * 0.76, upper)


def _draw_arm(canvas: _Canvas, person: Person, pose: _Pose, which: int, cloth: np.ndarray) -> np.ndarray:
    """One arm, swinging against its leg; returns where the hand is."""
    shoulder = np.array([which * (pose.girth - 0.015), 0.195])
    swing = -which * pose.swing * 0.9
    out = which * 0.22 * abs(pose.front)
    elbow = shoulder + 0.15 * np.array([np.sin(swing) * pose.side + out, np.cos(swing)])
    hand = elbow + 0.145 * np.array([np.sin(swing + 0.35) * pose.side + 0.3 * out, np.cos(swing + 0.2)])
    sleeve = person.top.second if person.sleeves == "contrast" else cloth
    thick = 0.034 * person.build
    canvas.oval(*hand, 0.02, 0.024, person.skin)
    canvas.limb(elbow, hand, thick * 0.85, thick * 0.65, person.skin if person.sleeves == "short" else sleeve)
    canvas.limb(shoulder, elbow, thick, thick * 0.9, sleeve)
    return hand


def _draw_head(canvas: _Canvas, person: Person, pose: _Pose) -> None:
    """Neck, hair and face; from behind there is only hair."""
    turn = 0.016 * pose.side
    bare = person.hair_style == "bald"
    canvas.limb((0, 0.12), (0, 0.165), 0.028, 0.032, person.skin)
    if person.hair_style == "long":
        canvas.oval(-turn, 0.105, 0.064, 0.1, person.hair)
    if person.hair_style == "bun":
        canvas.oval(-2.6 * turn, 0.01 + 0.03 * abs(pose.side), 0.032, 0.03, person.hair)
    canvas.oval(0, 0.075, 0.052, 0.066, person.skin if bare else person.hair)
    if pose.front > -0.35:
        lift = 0.0 if bare else 0.014
        canvas.oval(turn * (1.2 + lift), 0.078 + lift, 0.04, 0.052, person.skin)
    elif person.hair_style == "long":
        canvas.oval(0, 0.115, 0.058, 0.085, person.hair)
    if person.hair_style == "cap":
        canvas.oval(0, 0.042, 0.056, 0.036, person.cap)
        canvas.limb((0, 0.055), (0.075 * pose.side, 0.06), 0.016, 0.01, person.cap)


def _draw_torso(canvas: _Canvas, person: Person, pose: _Pose, cloth: np.ndarray) -> None:
    girth, waist, hem = pose.girth, pose.girth * 0.8, person.top_hem
    flare = waist * (1.05 if hem < 0.6 else 1.25)
    canvas.fill([(-girth * 0.55, 0.15), (girth * 0.55, 0.15), (girth, 0.185), (girth * 0.95, 0.3), (waist, 0.42),
                 (flare, hem), (-flare, hem), (-waist, 0.42), (-girth * 0.95, 0.3), (-girth, 0.185)], cloth)


def _draw_skirt(canvas: _Canvas, person: Person, pose: _Pose, cloth: np.ndarray) -> None:
    waist = pose.girth * 0.85
    sway = 0.03 * pose.side * np.sign(pose.swing)
    canvas.fill([(-waist, 0.46), (waist, 0.46), (waist * 1.45 + sway, 0.73), (-waist * 1.45 + sway, 0.73)], cloth)


def _draw_bag(canvas: _Canvas, person: Person, pose: _Pose, hand: np.ndarray, behind: bool) -> None:
    """The part of the bag that lies behind the body, or the one before it."""
    colour, dark = person.bag_colour, tuple(int(v * 0.6) for v in person.bag_colour)
    if person.bag == "backpack":
        away = pose.front < 0.1
        if behind != away:
            x, half = -pose.side * pose.girth * 0.9, 0.05 + 0.045 * abs(pose.front)
            if away or abs(pose.side) > 0.4:
                canvas.block(x, 0.19, 0.43, half, half * 1.1, colour)
                canvas.block(x, 0.33, 0.41, half * 0.7, half * 0.7, dark)
        if not behind and not away:
            for x in (-0.055, 0.055):
                canvas.limb((x, 0.17), (x * 1.15, 0.36), 0.011, 0.011, colour)
    elif person.bag == "shoulder" and not behind:
        x = person.bag_side * pose.mirrored * pose.girth
        canvas.limb((-x * 0.6, 0.165), (x * 0.9, 0.45), 0.01, 0.01, dark)
        canvas.block(x, 0.43, 0.55, 0.06, 0.065, colour)
    elif person.bag == "hand" and not behind:
        x, y = hand
        canvas.limb((x - 0.03, y + 0.06), (x, y), 0.006, 0.006, dark)
        canvas.limb((x + 0.03, y + 0.06), (x, y), 0.006, 0.006, dark)
        canvas.block(x, y + 0.05, y + 0.17, 0.055, 0.065, colour)


def draw_person(image: np.ndarray, person: Person, camera: Camera, rng: np.random.Generator) -> None:
    """Draw a walking person into `image` (uint8 BGR, changed in place), far parts first.

    The camera decides from where they are mostly seen and how large; the rest is the shot's own.
    """
    height, width = image.shape[:2]
    yaw = camera.yaw + rng.normal(0, 0.9)
    front, side = float(np.cos(yaw)), float(np.sin(yaw))
    swing = float(rng.choice((-1, 1)) * rng.uniform(0.1, 0.55))
    pose = _Pose(front, side, swing, 0.128 * person.build * (0.62 + 0.38 * abs(front)))
    unit = height * camera.size * rng.uniform(0.9, 1.08)
    top = (height - unit) * rng.uniform(0.2, 0.8) + height * rng.normal(0, 0.02)
    canvas = _Canvas(image, width * (0.5 + rng.normal(0, 0.045)), top, unit, float(rng.normal(0, 0.025)))
    top_cloth = _texture(person.top, canvas, pose, rng)
    bottom_cloth = _texture(person.bottom, canvas, pose, rng)
    near = 1 if side >= 0 else -1  # the side of the body that is towards us
    canvas.oval(0, 1.0, 0.19, 0.022, tuple(int(v * 0.45) for v in cv2.mean(image[-height // 8:])[:3]), 1.0)
    _draw_bag(canvas, person, pose, np.zeros(2), behind=True)
    if abs(side) > 0.5:
        _draw_arm(canvas, person, pose, -near, top_cloth)
    for which in (-near, near):
        _draw_leg(canvas, person, pose, which, bottom_cloth)
    if person.legwear == "skirt":
        _draw_skirt(canvas, person, pose, bottom_cloth)
    _draw_torso(canvas, person, pose, top_cloth)
    if front < 0:
        _draw_head(canvas, person, pose)
    hands = {near: _draw_arm(canvas, person, pose, near, top_cloth)}
    if abs(side) <= 0.5:
        hands[-near] = _draw_arm(canvas, person, pose, -near, top_cloth)
    _draw_bag(canvas, person, pose, hands.get(person.bag_side * pose.mirrored, hands[near]), behind=False)
    if front >= 0:
        _draw_head(canvas, person, pose)


def _draw_wall(image: np.ndarray, scene: str, rng: np.random.Generator) -> None:
    """The upper part of a scene, [H, W, 3], in place: what stands behind people."""
    height, width = image.shape[:2]
    step = height // 7
    for y in range(0, height, step):
        for x in range(-step, width, step * 2):
            left, shade = x + (y // step % 2) * step, rng.uniform(0.75, 1.2)
            if scene == "bricks":
                corner = (left + step * 2 - step // 9, y + step - step // 9)
                cv2.rectangle(image, (left, y), corner, tuple(v * shade for v in (70, 90, 150)), -1)
            elif scene == "shop":
                goods = tuple(float(v) for v in rng.uniform(30, 235, 3))
                corner = (left + int(step * rng.uniform(0.7, 1.8)), y + step)
                cv2.rectangle(image, (left, y + step // 4), corner, goods, -1)
            elif scene == "subway":
                corner = (x + step * 2 - 3, y + step - 3)
                cv2.rectangle(image, (x, y), corner, tuple(v * shade for v in (200, 205, 190)), -1)
            elif scene == "park":
                leaf = tuple(v * shade for v in (50, 120, 70))
                cv2.circle(image, (left, y), int(step * rng.uniform(0.6, 1.3)), leaf, -1)
            elif scene == "street" and y // step % 2:
                glass = tuple(v * shade for v in (150, 120, 90))
                cv2.rectangle(image, (x, y), (x + int(step * 1.2), y + int(step * 1.3)), glass, -1)
            elif scene == "lobby" and y == 0:
                cv2.rectangle(image, (x, 0), (x + step * 2 - 6, height), tuple(v * shade for v in (120, 150, 175)), -1)
    if scene == "subway":
        band = tuple(float(v) for v in rng.uniform(20, 200, 3))
        cv2.rectangle(image, (0, height // 3), (width, height // 3 + step // 2), band, -1)


@functools.lru_cache(maxsize=32)
def _panorama(seed: int, camid: int, scene: str, height: int, width: int) -> np.ndarray:
    """All that a camera can have behind people, [H, 5 W, 3]; a shot shows a part of it. Do not modify."""
    rng = _rng(seed, _SCENE, camid)
    image = np.empty((height, width * 5, 3), np.uint8)
    image[:] = rng.uniform(50, 190, 3)
    ground = int(height * rng.uniform(0.5, 0.68))
    _draw_wall(image[:ground], scene, rng)
    image[ground:] = rng.uniform(60, 180, 3)
    for x in range(-width * 5, width * 10, width // 2):  # joints of the paving, towards a far point
        cv2.line(image, (x, height), (width * 5 // 2 + (x - width * 5 // 2) // 3, ground), (70, 70, 70), 2, cv2.LINE_AA)
    for depth in (0.12, 0.3, 0.6):
        y = int(ground + (height - ground) * depth)
        cv2.line(image, (0, y), (width * 5, y), (75, 75, 75), 2)
    grain = cv2.resize(rng.normal(1, 0.16, (12, 40)).astype(np.float32), (width * 5, height),
                       interpolation=cv2.INTER_CUBIC)
    # Greyer than most clothes, but of strong contrast: colour is for the network to find, edges are everywhere.
    grey = image.mean(2, keepdims=True)
    image = (grey - 110) * 1.4 + 110 + (image - grey) * 0.35
    return np.clip(image * grain[..., None], 0, 255).astype(np.uint8)


def draw_background(seed: int, camid: int, camera: Camera, size: tuple[int, int],
                    rng: np.random.Generator) -> np.ndarray:
    """The camera's scene as one shot finds it: some part of it, with things left and right.

    Returns:
        [size[0], size[1], 3] uint8 BGR.
    """
    height, width = size
    scene = _panorama(seed, camid, camera.scene, height, width)
    zoom = rng.uniform(0.7, 1.0)
    h, w = int(height * zoom), int(width * zoom)
    y, x = int(rng.integers(height - h + 1)), int(rng.integers(width * 5 - w + 1))
    image = cv2.resize(scene[y:y + h, x:x + w], (width, height), interpolation=cv2.INTER_LINEAR)
    for _ in range(int(rng.integers(0, 5))):
        colour = tuple(float(v) for v in rng.uniform(15, 235) + rng.normal(0, 10, 3))
        middle, half = rng.uniform(0, width), width * rng.uniform(0.03, 0.22)
        top, bottom = np.sort(rng.uniform(0.05, 1.0, 2)) * height
        cv2.rectangle(image, (int(middle - half), int(top)), (int(middle + half), int(bottom)), colour, -1)
    return image


def _draw_occluder(image: np.ndarray, rng: np.random.Generator) -> None:
    """Something in front of the person: a post, or a low thing such as a bin or a hedge."""
    height, width = image.shape[:2]
    colour = tuple(float(v) for v in rng.uniform(20, 200) + rng.normal(0, 12, 3))
    if rng.random() < 0.4:
        x, half = width * rng.uniform(0.2, 0.8), width * rng.uniform(0.03, 0.08)
        cv2.rectangle(image, (int(x - half), 0), (int(x + half), height), colour, -1)
    else:
        x, half = width * rng.uniform(0, 1), width * rng.uniform(0.25, 0.6)
        top = height * rng.uniform(0.68, 0.88)
        cv2.rectangle(image, (int(x - half), int(top)), (int(x + half), height), colour, -1)


# ----------------------------------------------------------------------------------------------- through a lens
def _expose(image: np.ndarray, domain: str, rng: np.random.Generator) -> np.ndarray:
    """Bring the channel means to `domain`'s side of NAIC's rule, with a margin. Values in [0, 1]."""
    low = float(image.reshape(-1, 3).mean(0).min()) * 255
    if domain == "green":
        target = rng.uniform(74, 92)
        return image if low >= target else 1 - (1 - image) * ((255 - target) / (255 - low))
    target = rng.uniform(44, 58)
    return image if low <= target else image * (target / low)


def apply_camera(image: np.ndarray, camera: Camera, domain: str, rng: np.random.Generator) -> np.ndarray:
    """What the camera makes of a drawn picture: light, cast, gamma, blur, noise, and the domain's look.

    Args:
        image: [H, W, 3] uint8 BGR.
        domain: "green" (bright and greenish, as if its colours were encoded) or "normal" (darker).
    Returns:
        [H, W, 3] uint8; its channel means are on the domain's side of NAIC's rule.
    """
    height, width = image.shape[:2]
    picture = image.astype(np.float32) / 255
    ramp_x, ramp_y = rng.uniform(-0.3, 0.3, 2)
    picture *= (1 + ramp_x * np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
                + ramp_y * np.linspace(-1, 1, height, dtype=np.float32)[:, None, None])
    grey = picture.mean(2, keepdims=True)
    picture = grey + (picture - grey) * np.float32(camera.saturation)
    gains = np.array(camera.gains) * rng.uniform(0.92, 1.08, 3) * rng.uniform(0.75, 1.2)
    picture = np.clip(picture * gains.astype(np.float32), 0, 1) ** np.float32(camera.gamma)
    sigma = (camera.blur + rng.exponential(0.2)) * height / 128
    picture = cv2.GaussianBlur(picture, (0, 0), max(sigma, 0.05))
    if domain == "green":
        picture = 0.72 * picture + np.float32([0.12, 0.22, 0.13])
    picture = picture + rng.normal(0, camera.noise, picture.shape).astype(np.float32)
    picture = _expose(np.clip(picture, 0, 1), domain, rng)
    return np.round(picture * 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ plan and store
@dataclass(frozen=True)
class Shot:
    """One picture to render: who, where, and the files (relative to MyDataSet/) that hold its bytes."""

    person: int
    domain: str
    camid: int
    number: int  # of this person's shots: with the seed, all that the picture depends on
    paths: tuple[str, ...]


@dataclass
class Plan:
    """Everything about a demo set but the pixels.

    Attributes:
        shots: the pictures; `Shot.person` is unique over all sets, training and test.
        lists: set name -> its lines (file name, pid), in the order of train_list.txt.
        truth: test file, as "query/NAME" or "gallery/NAME" -> {"pid", "camid"}.
    """

    shots: list[Shot] = field(default_factory=list)
    lists: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    truth: dict[str, dict] = field(default_factory=dict)


def _file_name(seed: int, *what: object) -> str:
    """An opaque name, as NAIC's are: it tells neither person nor camera nor order."""
    return hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).hexdigest() + ".png"


def _camera_order(rng: np.random.Generator, cameras: int, images: int) -> list[int]:
    """The camera of each of a person's images: every camera in turn, in an order of the person's own."""
    order = rng.permutation(cameras)
    return [int(order[i % cameras]) + 1 for i in range(images)]


class _Planner:
    """Hands out persons, shots and file names while the plan grows."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        self.seed, self.sizes, self.plan = seed, sizes, Plan()
        self.persons = 0
        self.domains: list[str] = []  # of each person

    def new_person(self) -> int:
        """Persons alternate between the domains, so that any two in a row cover both."""
        self.domains.append(DOMAINS[self.persons % 2])
        self.persons += 1
        return self.persons - 1

    def shots_of(self, person: int, folder: str, cameras: Sequence[int], first: int = 0) -> list[Shot]:
        made = [Shot(person, self.domains[person], camid, number,
                     (f"{folder}/{_file_name(self.seed, folder, person, number)}",))
                for number, camid in enumerate(cameras, first)]
        self.plan.shots += made
        return made

    def also_store(self, shot: Shot, folder: str) -> Shot:
        """Put the bytes of a planned shot into `folder` as well, under another name."""
        path = f"{folder}/{_file_name(self.seed, folder, shot.person, shot.number)}"
        copied = Shot(shot.person, shot.domain, shot.camid, shot.number, (*shot.paths, path))
        self.plan.shots[self.plan.shots.index(shot)] = copied
        return copied

    def training_set(self, name: str, persons_before: dict[int, list[Shot]]) -> dict[int, list[Shot]]:
        """Plan one training set; `persons_before` stand in it again, half their images as copies.

        Returns:
            Person -> shots, for the identities of this set with several images.
        """
        sizes, folder = self.sizes, f"{name}/{TRAIN_SETS[name][0]}"
        rng = _rng(self.seed, _PLAN, list(TRAIN_SETS).index(name))
        members: list[tuple[int, list[str]]] = []  # person, its file paths in this set
        several = {}
        for i in range(sizes.ids + sizes.singles):
            person = self.new_person()
            count = max(2, sizes.images + int(rng.integers(-2, 3))) if i < sizes.ids else 1
            shots = self.shots_of(person, folder, _camera_order(rng, sizes.cameras, count))
            members.append((person, [shot.paths[0] for shot in shots]))
            if count > 1:
                several[person] = shots
        for person, shots in persons_before.items():
            copies = [self.also_store(shot, folder) for shot in shots[:(len(shots) + 1) // 2]]
            fresh = self.shots_of(person, folder, _camera_order(rng, sizes.cameras, 2), first=len(shots))
            members.append((person, [shot.paths[-1] for shot in copies + fresh]))
        pids = rng.permutation(len(members))
        lines = [(Path(path).name, int(pid)) for pid, (_, paths) in zip(pids, members, strict=True) for path in paths]
        self.plan.lists[name] = [lines[i] for i in rng.permutation(len(lines))]
        return several

    def test_set(self) -> None:
        """Plan query and gallery: a query's own camera is among its gallery cameras, and others always are."""
        sizes = self.sizes
        rng = _rng(self.seed, _PLAN, len(TRAIN_SETS))
        for i in range(sizes.query_ids + sizes.distractors):
            person = self.new_person()
            asked = i < sizes.query_ids
            images = sizes.gallery_images if asked else sizes.distractor_images
            cameras = _camera_order(rng, sizes.cameras, images)
            parts = {"gallery": cameras}
            if asked:
                parts["query"] = _camera_order(rng, len(set(cameras)), sizes.query_images)
                parts["query"] = [sorted(set(cameras))[c - 1] for c in parts["query"]]
            first = 0
            for part, part_cameras in parts.items():
                for shot in self.shots_of(person, f"{TEST_FOLDER}/{part}", part_cameras, first):
                    key = f"{part}/{Path(shot.paths[0]).name}"
                    self.plan.truth[key] = {"pid": f"person{person:04d}", "camid": shot.camid}
                first += len(part_cameras)


def plan_demo(seed: int, sizes: Sizes) -> Plan:
    """Decide everything about a demo set but its pixels; a function of the arguments alone."""
    planner = _Planner(seed, sizes)
    several: dict[int, list[Shot]] = {}
    for name in TRAIN_SETS:
        # NAIC's 2020 preliminary pictures stand again in its 2020 final set, where people are numbered anew.
        again = dict(list(several.items())[:sizes.shared]) if name == "train_2020_fs" else {}
        several = planner.training_set(name, again)
    planner.test_set()
    planner.plan.truth = dict(sorted(planner.plan.truth.items()))
    return planner.plan


def render(seed: int, sizes: Sizes, shot: Shot) -> np.ndarray:
    """The picture of a shot: [sizes.height, sizes.width, 3] uint8 BGR; a function of the arguments alone."""
    height, width = sizes.height, sizes.width
    person = sample_person(_rng(seed, _PERSON, shot.person))
    camera = _cameras(seed, sizes.cameras)[shot.camid - 1]
    rng = _rng(seed, _SHOT, shot.person, shot.number)
    large = (height * _SUPERSAMPLE, width * _SUPERSAMPLE)
    image = draw_background(seed, shot.camid, camera, large, rng)
    draw_person(image, person, camera, rng)
    if rng.random() < 0.12:
        _draw_occluder(image, rng)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    image = apply_camera(image, camera, shot.domain, rng)
    assert domain_of(image) == shot.domain, shot
    return image


def _store_shot(task: tuple[Path, int, Sizes, Shot]) -> None:
    """Render one shot and write its files (a worker's unit of work)."""
    root, seed, sizes, shot = task
    ok, data = cv2.imencode(".png", render(seed, sizes, shot), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert ok, shot
    for path in shot.paths:
        (root / path).write_bytes(data.tobytes())


def _one_thread() -> None:
    """Workers share the cores by process; OpenCV's own threads would only get in the way."""
    cv2.setNumThreads(1)


def _store_shots(tasks: list, workers: int, progress: bool) -> None:
    def bar(results: Iterable) -> Iterable:
        return show_progress(results, "rendering", "image", total=len(tasks)) if progress else results

    if workers == 1:
        for task in bar(tasks):
            _store_shot(task)
        return
    # Spawned, not forked: the caller may hold threads (OpenCV's, torch's), and a fork of those can hang.
    with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
        for _ in bar(pool.imap_unordered(_store_shot, tasks, chunksize=16)):
            pass


def _write_set(root: Path, seed: int, sizes: Sizes, workers: int, progress: bool) -> None:
    """Write a whole MyDataSet/ into the new folder `root`."""
    plan = plan_demo(seed, sizes)
    paths = [path for shot in plan.shots for path in shot.paths]
    assert len(set(paths)) == len(paths), "two pictures of one name"
    for folder in {Path(path).parent for path in paths}:
        (root / folder).mkdir(parents=True)
    _store_shots([(root, seed, sizes, shot) for shot in plan.shots], workers, progress)
    for name, lines in plan.lists.items():
        _, prefix, separator = TRAIN_SETS[name]
        write_text(root / name / "train_list.txt", "".join(f"{prefix}{n}{separator}{pid}\n" for n, pid in lines))
    note = "Matches have the same pid; cross-camera matches also have another camid. Distractors match no query."
    write_json(root / TEST_FOLDER / "ground_truth.json", {"note": note, "files": plan.truth})
    write_json(root / MANIFEST, _manifest(seed, sizes))


def _manifest(seed: int, sizes: Sizes) -> dict:
    return {"what": "synthetic re-identification demo set", "version": VERSION, "seed": seed, "sizes": asdict(sizes)}


def _already_there(target: Path, manifest: dict, force: bool) -> bool:
    """True if `target` is this very demo set.

    Raises:
        FileExistsError: it holds anything else, and `force` is not set or it is no demo set at all.
    """
    if not target.exists() and not target.is_symlink():
        return False
    found = None
    if (target / MANIFEST).is_file():
        with contextlib.suppress(ValueError):
            found = read_json(target / MANIFEST)
    if not isinstance(found, dict) or found.get("what") != manifest["what"]:
        raise FileExistsError(f"{target} exists and is no demo set (it has no {MANIFEST} of ours); it stays as it is: "
                              "choose another output folder")
    if found == manifest:
        return True
    if not force:
        raise FileExistsError(f"{target} holds another demo set (seed {found.get('seed')}, version "
                              f"{found.get('version')}); choose another output folder, or --force to replace it")
    return False


def make_demo_data(output: str | os.PathLike, seed: int = 0, sizes: Sizes | None = None,
                   workers: int | None = None, force: bool = False, progress: bool = True) -> Path:
    """Render the demo set as `output`/MyDataSet, in NAIC's on-disk format.

    The files are a function of seed and sizes, whatever the number of workers. They appear all at once: the set
    is written beside its place and renamed. Where the same set is there already, nothing is done. With more than
    one worker, processes are spawned: a script that calls this needs an `if __name__ == "__main__":`.

    Args:
        output: the folder to make MyDataSet/ in; made if missing.
        seed: which demo set, a non-negative integer.
        sizes: how much of it; None means the defaults.
        workers: processes that render; None means one a core, four at most.
        force: replace another demo set that stands there (never a folder that is no demo set).
        progress: True: a bar on a terminal, now and then a log line elsewhere.
    Returns:
        The path of MyDataSet.
    Raises:
        FileExistsError: MyDataSet is there and holds something else.
        ValueError: seed or workers is out of range.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; use 0 or more")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers} is not positive; use 1 or more, or None for one a core")
    sizes = sizes or Sizes()
    workers = workers or min(4, os.cpu_count() or 1)
    target = Path(output) / FOLDER
    if not _already_there(target, _manifest(seed, sizes), force):
        with new_folder(target) as folder:
            _write_set(folder, seed, sizes, workers, progress)
    return target


def sample_sheet(path: str | os.PathLike, seed: int = 0, sizes: Sizes | None = None, rows: int = 4) -> None:
    """Write a contact sheet: test persons in rows, cameras in columns; normal on the left, green on the right."""
    sizes = sizes or Sizes()
    gap = max(2, sizes.width // 16)
    plan = plan_demo(seed, sizes)
    tested = {shot.person: shot.domain for shot in plan.shots if shot.paths[0].startswith(TEST_FOLDER)}
    halves = []
    for domain in ("normal", "green"):
        persons = [person for person, of in tested.items() if of == domain][:rows]
        lines = []
        for person in persons:
            pictures = [render(seed, sizes, Shot(person, domain, camid, 1000 + camid, ()))
                        for camid in range(1, sizes.cameras + 1)]
            lines.append(np.hstack([np.pad(p, ((0, gap), (0, gap), (0, 0)), constant_values=255) for p in pictures]))
        halves.append(np.vstack(lines))
    ok, data = cv2.imencode(".png", np.hstack([halves[0], np.full_like(halves[0][:, :3 * gap], 255), halves[1]]))
    assert ok
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())
