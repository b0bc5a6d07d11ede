"""The lineage's steps on a CPU: an image at a time, in OpenCV.

OpenCV goes through the float pixels [H, W, 3] of one image about twice as fast as torch through the planes of several
(`tools/benchmark.py data`), and needs no other thread's help. What comes out is what color.py, geometry.py and
rectangles.py make of the same draws, but for the last bits; OpenCV 4 scales with positions rounded to 1/32 pixel.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.augment.color import LUMA, Jitter
from datasets.augment.geometry import GRAY, Crops

_LUMA, _EYE = np.array(LUMA, np.float32), np.eye(3, dtype=np.float32)


@dataclass(frozen=True)
class PixelSteps:
    """What is done to each image of a batch; None: nothing.

    Attributes:
        mean, std: of the channels, images in 0..1.
        crops, padding: see `flip_and_crop`.
        jitter: colours, see `Jitter`.
        zoom: [B] the factors of the scale.
        erased: [B, 4] rectangles, see rectangles.py.
    """

    mean: np.ndarray
    std: np.ndarray
    crops: Crops
    padding: int
    jitter: Jitter | None = None
    zoom: np.ndarray | None = None
    erased: np.ndarray | None = None

    def run(self, images: np.ndarray, out: np.ndarray, rows: Iterable[int]) -> None:
        """Write images [B, H, W, 3] uint8 of these rows into out [B, 3, H, W] float32."""
        height, width = images.shape[1:3]
        padded = np.zeros((height + 2 * self.padding, width + 2 * self.padding, 3), np.uint8)
        inside = padded[self.padding:self.padding + height, self.padding:self.padding + width]
        # Once, because the system hands out such pieces slowly. OpenCV scales four channels in two thirds of three's
        # time.
        x, spare = np.empty((2, height, width, 3), np.float32)
        wide, scaled = np.empty((2, height, width, 4), np.float32)
        unused = np.empty((height, width), np.float32)
        normalize = np.hstack([np.diag(1 / self.std), -(self.mean / self.std)[:, None]]).astype(np.float32)
        grey = (normalize @ [GRAY, GRAY, GRAY, 1]).tolist()
        for row in rows:
            if self.crops.flips[row]:
                cv2.flip(images[row], 1, dst=inside)  # numpy would take 25 times as long, pixel after pixel
            else:
                inside[:] = images[row]
            top, left = self.crops.tops[row], self.crops.lefts[row]
            np.multiply(padded[top:top + height, left:left + width], np.float32(1 / 255), out=x)
            if self.jitter is not None:
                x, spare = _jitter(x, spare, self.jitter.turns[row], self.jitter.weights[row], self.jitter.shifts[row])
            x, spare = cv2.transform(x, normalize, dst=spare), x  # in place it would take half as long again
            if self.zoom is None:
                cv2.split(x, list(out[row]))
            else:
                _scale(cv2.cvtColor(x, cv2.COLOR_RGB2RGBA, dst=wide), self.zoom[row], grey, scaled)
                cv2.split(scaled, [*out[row], unused])
            if self.erased is not None:
                top, left, bottom, right = self.erased[row]
                out[row, :, top:bottom, left:right] = 0


def _jitter(x: np.ndarray, spare: np.ndarray, turn: int, weights: np.ndarray,
            shift: float) -> tuple[np.ndarray, np.ndarray]:
    """`color_jitter_` of one image [H, W, 3]; the result, in x or in spare, and the other of the two."""
    for number, blend in enumerate(weights.tolist()):
        if number == turn:
            _shift_hue_(x, shift)
        x, spare = _blend(x, spare, *blend), x
    if turn == 3:
        _shift_hue_(x, shift)
    return x, spare


def _blend(x: np.ndarray, out: np.ndarray, kept: float, grey: float, mean: float) -> np.ndarray:
    matrix = np.zeros((3, 4), np.float32)
    matrix[:, :3] = kept * _EYE + grey * _LUMA
    if mean:
        matrix[:, 3] = mean * (_LUMA @ cv2.mean(x)[:3])
    cv2.transform(x, matrix, dst=out)
    if kept > 1:  # otherwise all weights are shares, and the result lies between what is blended
        cv2.threshold(out, 1, 0, cv2.THRESH_TRUNC, dst=out)
        cv2.threshold(out, 0, 0, cv2.THRESH_TOZERO, dst=out)
    return out


def _shift_hue_(x: np.ndarray, shift: float) -> None:
    cv2.cvtColor(x, cv2.COLOR_RGB2HSV, dst=x)
    x[..., 0] += 360 * (shift % 1)
    cv2.cvtColor(x, cv2.COLOR_HSV2RGB, dst=x)


def _scale(x: np.ndarray, factor: float, fill: list[float], out: np.ndarray) -> None:
    height, width = x.shape[:2]
    back = 1 / factor  # from the result to the image, both counted from their centre
    matrix = np.array([[back, 0, (1 - back) * (width - 1) / 2], [0, back, (1 - back) * (height - 1) / 2]])
    cv2.warpAffine(x, matrix, (width, height), dst=out, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                   borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
