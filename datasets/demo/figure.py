"""Drawing a person."""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.demo.cast import Camera, Cloth, Colour, Person

_SUBPIXEL_BITS = 4


# ---------------------------------------------------------------------------------------------------- drawing
class _Canvas:
    """A picture being drawn on, with a figure's coordinates: x from its middle, y from head 0 to feet 1."""

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
        """An ellipse around (x, y)."""
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
    """How a person stands in a shot. `front`: 1 towards us, -1 away; `side`: 1 walks to the right."""

    front: float
    side: float
    swing: float  # of the leading leg, radians
    girth: float  # half the shoulders' width as seen from here

    @property
    def mirrored(self) -> int:
        """+1 if the person's left is on the picture's right, as when they face us."""
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
    """The part of the bag that lies behind the body, or the part before it."""
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

    The camera decides from where they are mostly seen and how large; the rest is the shot's.
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
