"""Small numpy rasteriser behind the procedural pictures: splines, polygons, noise, image + label canvas.

Everything is resolution independent: shapes live in a frame whose height is 1 and whose width is W/H, and
noise is a function of that frame, so one seed gives the same scene at any size. Needs nothing but numpy.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Colour = Sequence[float] | Array
_OVERSAMPLE = 2  # the image is painted at twice the size and averaged: anti-aliased edges; labels stay crisp


def spline(points: Sequence[tuple[float, float]], *, closed: bool = True, steps: int = 10) -> Array:
    """Catmull-Rom curve through `points`.

    Args:
        points: at least three (x, y) pairs.
        closed: join the last point to the first.
        steps: samples per span.

    Returns:
        (N, 2) float64 polygon vertices.
    """
    p = np.asarray(points, dtype=np.float64)
    if closed:
        p = np.concatenate([p[-1:], p, p[:2]])
    else:
        p = np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def ellipse(cx: float, cy: float, rx: float, ry: float, *, tilt: float = 0.0, steps: int = 48) -> Array:
    """Polygon of an ellipse with radii `rx`, `ry`, turned by `tilt` radians; (steps, 2)."""
    t = np.linspace(0.0, 2 * np.pi, steps, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    return np.stack([cx + x * np.cos(tilt) - y * np.sin(tilt), cy + x * np.sin(tilt) + y * np.cos(tilt)], axis=1)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Array:
    """The four corners of an upright rectangle; (4, 2)."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def wobble(polygon: Array, rng: np.random.Generator, amplitude: float, waves: int) -> Array:
    """Push the vertices of a closed polygon along their normals by a smooth periodic random function."""
    ahead, behind = np.roll(polygon, -1, axis=0), np.roll(polygon, 1, axis=0)
    tangent = ahead - behind
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(polygon, axis=0), axis=1))])
    turn = arc / (arc[-1] + np.linalg.norm(polygon[0] - polygon[-1])) * 2 * np.pi
    phase, size = np.array([(rng.uniform(0, 2 * np.pi), rng.normal()) for _ in range(waves)]).T
    k = np.arange(1, waves + 1)
    push = (size / np.sqrt(k)) @ np.sin(k[:, None] * turn + phase[:, None])
    return polygon + normal * (amplitude * push / np.sqrt(np.log(waves) + 1))[:, None]


Window = tuple[slice, slice]
"""Rows and columns of a rectangular part of a grid."""
_ALL = (slice(None), slice(None))


def inside(polygon: Array, height: int, width: int, scale: float) -> tuple[Window, Array]:
    """Even-odd fill sampled at pixel centres.

    Args:
        polygon: (N, 2) vertices in frame units; one pixel is `scale` frame units.
        height: rows of the grid.
        width: columns of the grid.
        scale: size of a pixel.

    Returns:
        The part of the grid that the polygon lies in, and its mask there (bool).
    """
    if len(polygon) == 4 and (polygon[[0, 1, 2, 3], [1, 0, 1, 0]] == polygon[[1, 2, 3, 0], [1, 0, 1, 0]]).all():
        limits = np.ceil(polygon[[0, 2]] / scale - 0.5).clip(0, (width, height)).astype(np.int64)  # an upright rectangle
        (left, top), (right, bottom) = np.sort(limits, axis=0).tolist()
        return (slice(top, bottom), slice(left, right)), np.ones((bottom - top, right - left), bool)
    x0, y0 = polygon[:, 0] / scale - 0.5, polygon[:, 1] / scale - 0.5
    x1, y1 = np.concatenate([x0[1:], x0[:1]]), np.concatenate([y0[1:], y0[:1]])
    start, end = np.ceil(y0).clip(0, height).astype(np.int64), np.ceil(y1).clip(0, height).astype(np.int64)
    first, last = np.minimum(start, end), np.maximum(start, end)  # rows first <= y < last cross the edge
    count = last - first
    total = int(count.sum())
    if total == 0:
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), bool)
    edge = np.repeat(np.arange(len(x0)), count)
    row = np.arange(total) - np.repeat(np.cumsum(count) - count - first, count)
    slope = np.divide(x1 - x0, y1 - y0, out=np.zeros_like(x0), where=count > 0)
    column = np.ceil(x0[edge] + (row - y0[edge]) * slope[edge]).clip(0, width).astype(np.int64)
    top, bottom, left, right = int(first.min()), int(last.max()), int(column.min()), int(column.max())
    wide = right - left + 1
    flips = np.bincount((row - top) * wide + (column - left), minlength=(bottom - top) * wide).reshape(-1, wide)
    odd = np.cumsum(flips[:, :-1], axis=1, dtype=np.uint8) & 1
    return (slice(top, bottom), slice(left, right)), odd.view(bool)


class Noise:
    """Value noise: a random lattice, smoothly interpolated and periodic, with values in [-1, 1]."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.lattice = rng.uniform(-1.0, 1.0, (64, 64)).astype(np.float32)  # a power of two, to wrap by a bit mask
        right, below = np.roll(self.lattice, -1, axis=1), np.roll(self.lattice, -1, axis=0)
        corners = np.stack([self.lattice, right, below, np.roll(below, -1, axis=1)], axis=-1)
        self.corners = corners.reshape(-1, 4).view(np.complex128).reshape(-1)  # 16 bytes: all four in one look-up

    def __call__(self, x: Array, y: Array) -> Array:
        """Sample at lattice coordinates: `x`, `y` of equal shape, or a row (1, W) and a column (H, 1); returns float32."""
        n = self.lattice.shape[0]
        floor_x, floor_y = np.floor(x), np.floor(y)
        fx, fy = (x - floor_x).astype(np.float32), (y - floor_y).astype(np.float32)
        fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        ix, iy = floor_x.astype(np.int32) & (n - 1), floor_y.astype(np.int32) & (n - 1)
        if np.ndim(x) == 2 and x.shape[0] == 1 and y.shape[1] == 1:  # a grid: along y first, then along x
            rows = self.lattice[iy[:, 0]] * (1 - fy) + self.lattice[(iy[:, 0] + 1) & (n - 1)] * fy
            return rows[:, ix[0]] * (1 - fx) + rows[:, (ix[0] + 1) & (n - 1)] * fx
        found = self.corners.take(iy * n + ix).view(np.float32).reshape(*np.shape(ix), 4)
        top = found[..., 0] + (found[..., 1] - found[..., 0]) * fx
        bottom = found[..., 2] + (found[..., 3] - found[..., 2]) * fx
        return top + (bottom - top) * fy

    def octaves(self, x: Array, y: Array, count: int = 4) -> Array:
        """Sum of `count` octaves, each twice as fine and half as strong; roughly [-1, 1]."""
        total = np.zeros(np.broadcast(x, y).shape, np.float32)
        for k in range(count):
            total += self(x * 2**k + 17.3 * k, y * 2**k + 5.9 * k) / 2**k
        return total / 1.5


class Canvas:
    """An image and its label map, painted together from back to front.

    Args:
        height: rows of the result.
        width: columns of the result.
        background: label of untouched pixels.
    """

    def __init__(self, height: int, width: int, background: int) -> None:
        self.height, self.width = height, width
        self.aspect = width / height
        self.labels = np.full((height, width), background, np.uint8)
        fine_h, fine_w = height * _OVERSAMPLE, width * _OVERSAMPLE
        self.y = (np.arange(fine_h, dtype=np.float32)[:, None] + 0.5) / fine_h
        self.x = (np.arange(fine_w, dtype=np.float32)[None, :] + 0.5) / fine_h
        self.pixels = np.zeros((fine_h, fine_w, 3), np.float32)

    def mask(self, polygon: Array) -> Array:
        """The polygon on the fine image grid; bool."""
        fine_h, fine_w = self.pixels.shape[:2]
        window, found = inside(polygon, fine_h, fine_w, 1 / fine_h)
        mask = np.zeros((fine_h, fine_w), bool)
        mask[window] = found
        return mask

    def window(self, cx: float, cy: float, rx: float, ry: float) -> Window:
        """The part of the fine grid within `rx`, `ry` (frame units) of a point."""
        fine_h, fine_w = self.pixels.shape[:2]
        top, bottom = np.clip([(cy - ry) * fine_h, (cy + ry) * fine_h + 1], 0, fine_h).astype(int)
        left, right = np.clip([(cx - rx) * fine_h, (cx + rx) * fine_h + 1], 0, fine_w).astype(int)
        return slice(top, bottom), slice(left, right)

    def multiply(self, gain: Array, window: Window = _ALL) -> None:
        """Multiply the fine samples of a window by `gain`, broadcast to (h, w)."""
        for channel in range(3):  # numpy is slow at inner loops of three
            plane = self.pixels[..., channel][window]
            plane *= gain

    def blend(self, amount: Array, colour: Colour, window: Window = _ALL) -> None:
        """Move the fine samples of a window towards `colour` by `amount`, broadcast to (h, w), 0 to 1."""
        for channel in range(3):
            plane = self.pixels[..., channel][window]
            plane += amount * (np.float32(colour[channel]) - plane)

    def fill(
        self,
        polygon: Array,
        colour: Colour | Callable[[Array, Array], Array],
        label: int | None = None,
        *,
        within: Array | None = None,
        only: Sequence[int] | None = None,
    ) -> Array:
        """Paint a polygon.

        Args:
            polygon: (N, 2) vertices in frame units.
            colour: RGB in [0, 1], or a function of the (x, y) of the painted samples that returns (N, 3).
            label: class id written into the label map; None paints the image alone.
            within: (N, 2) second polygon; only the intersection is painted.
            only: class ids; only pixels (and samples) whose label is one of these are painted.

        Returns:
            The painted mask on the fine grid (bool).
        """
        fine_h, fine_w = self.pixels.shape[:2]
        (rows, columns), fine = inside(polygon, fine_h, fine_w, 1 / fine_h)
        area, coarse = inside(polygon, self.height, self.width, 1 / self.height) if label is not None else (None, None)
        if within is not None:
            fine = fine & self.mask(within)[rows, columns]
            if area is not None:
                other, found = inside(within, self.height, self.width, 1 / self.height)
                allowed = np.zeros((self.height, self.width), bool)
                allowed[other] = found
                coarse = coarse & allowed[area]
        if only is not None:
            allowed = np.isin(self.labels, only)
            near = np.arange(rows.start, rows.stop)[:, None] // _OVERSAMPLE
            fine = fine & allowed[near, np.arange(columns.start, columns.stop)[None] // _OVERSAMPLE]
            if area is not None:
                coarse = coarse & allowed[area]
        if callable(colour):
            y, x = np.nonzero(fine)
            if len(y):
                y, x = y + rows.start, x + columns.start
                self.pixels.reshape(-1, 3)[y * fine_w + x] = colour(self.x[0, x], self.y[y, 0])
        else:
            self.pixels[rows, columns][fine] = np.asarray(colour, np.float32)
        if area is not None:
            self.labels[area][coarse] = label
        mask = np.zeros((fine_h, fine_w), bool)
        mask[rows, columns] = fine
        return mask

    def _spot(self, cx: float, cy: float, rx: float, ry: float, amount: float, mask: Array | None) -> tuple[Window, Array]:
        """A soft elliptical spot (h, w) with `amount` in its middle, and the window outside of which it cannot be seen."""
        window = self.window(cx, cy, 3.5 * rx, 3.5 * ry)
        across = np.exp(-(((self.x[:, window[1]] - cx) / rx) ** 2))
        spot = amount * np.exp(-(((self.y[window[0]] - cy) / ry) ** 2)) * across
        if mask is not None:
            spot *= mask[window]
        return window, spot

    def shade(self, cx: float, cy: float, rx: float, ry: float, amount: float, mask: Array | None = None) -> None:
        """Multiply a soft elliptical spot by 1 + amount, optionally inside `mask` only."""
        window, spot = self._spot(cx, cy, rx, ry, amount, mask)
        self.multiply(1 + spot, window)

    def tint(self, cx: float, cy: float, rx: float, ry: float, colour: Colour, amount: float, mask: Array) -> None:
        """Blend a soft elliptical spot of `colour` into the samples of `mask`."""
        window, spot = self._spot(cx, cy, rx, ry, amount, mask)
        self.blend(spot, colour, window)

    def finish(self, rng: np.random.Generator, grain: float = 0.012) -> tuple[Array, Array]:
        """Average the fine samples, add film grain; returns (image (H,W,3) uint8, labels (H,W) uint8)."""
        fine = np.clip(self.pixels, 0, 1)
        corners = [fine[y::_OVERSAMPLE, x::_OVERSAMPLE] for y in range(_OVERSAMPLE) for x in range(_OVERSAMPLE)]
        image = sum(corners[1:], corners[0]) * np.float32(1 / len(corners))
        image += rng.normal(0, grain, (self.height, self.width, 1)).astype(np.float32)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), self.labels


def rgb(hue: float, saturation: float, value: float) -> Array:
    """Colour (3,) float32 from hue (any real, periodic), saturation and value (clamped to [0, 1])."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0), 1), min(max(value, 0), 1)), np.float32)


def painted(canvas: Canvas, x: Array, y: Array) -> Array:
    """The colours already painted at sample positions (x, y) in frame units; (N, 3)."""
    rows = canvas.pixels.shape[0]
    return canvas.pixels[(y * rows).astype(np.int64), (x * rows).astype(np.int64)]


def frame_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a side or a pair; ValueError below 8 x 8."""
    height, width = (size, size) if isinstance(size, int) else size
    if height < 8 or width < 8:
        raise ValueError(f"size: expected at least 8 x 8 pixels, got {height} x {width}")
    return int(height), int(width)


def sky(canvas: Canvas, rng: np.random.Generator, noise: Noise) -> None:
    """Paint the whole canvas with a sky: a gradient and clouds."""
    zenith, horizon = rgb(0.58, rng.uniform(0.1, 0.55), rng.uniform(0.6, 0.9)), np.array([0.88, 0.91, 0.94])
    canvas.pixels[:] = zenith
    canvas.blend(np.clip(canvas.y * 1.4, 0, 1), horizon)
    cloud = np.clip(noise.octaves(canvas.x * 2.2, canvas.y * 5, 5) * 1.2 - rng.uniform(-0.2, 0.5), 0, 0.85)
    canvas.blend(cloud, (0.97, 0.97, 0.97))


def wall_shader(rng: np.random.Generator, noise: Noise, base: Array, bricks: bool) -> Callable[..., Array]:
    """Colour function of a plastered wall, or of bricks."""
    course = rng.uniform(55, 85)

    def shader(x: Array, y: Array) -> Array:
        light = 0.97 + 0.08 * noise.octaves(x * 5, y * 5, 4) - 0.06 * noise(x * 22, y * 1.5 + 7)
        if bricks:
            row = np.floor(y * course)
            u = x * course * 0.42 + 0.5 * (row % 2)
            joint = ((y * course) % 1 < 0.16) | (u % 1 < 0.07)
            light = light * (0.93 + 0.14 * noise(np.floor(u) * 3.7, row * 5.3)) * np.where(joint, 1.16, 1.0)
        return np.clip(base * light[:, None], 0, 1)

    return shader


def glass_shader(rng: np.random.Generator, noise: Noise) -> Callable[..., Array]:
    """Colour function of window glass with a reflection."""
    dark, shift = rng.uniform(0.10, 0.3), rng.uniform(0, 40)

    def shader(x: Array, y: Array) -> Array:
        sheen = np.clip(noise(x * 5 + shift, y * 7 + x * 4), 0, 1) * 0.45
        return np.stack([dark + 0.8 * sheen, dark * 1.1 + 0.9 * sheen, dark * 1.25 + sheen], 1)

    return shader
