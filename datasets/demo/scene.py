"""Drawing what is around a person, and what a camera makes of it."""
from __future__ import annotations

import functools

import cv2
import numpy as np

from datasets.demo.cast import SCENE, Camera, random_stream


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
    rng = random_stream(seed, SCENE, camid)
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
    """The camera's scene as a shot has it: a part of it, with things left and right.

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


def draw_occluder(image: np.ndarray, rng: np.random.Generator) -> None:
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
