"""House fronts with the 12 facade classes, drawn by code."""

from __future__ import annotations

import numpy as np

from .raster import Array, Canvas, Noise, frame_size, glass_shader, painted, rectangle, rgb, sky, wall_shader


def draw_facade(seed: int, size: int | tuple[int, int] = 256) -> tuple[Array, Array]:
    """A house front with the 12 facade classes (background facade window door ... pillar shop = 0..11).

    Args:
        seed: any non-negative integer; equal seeds give equal pictures.
        size: side of a square, or (height, width).

    Returns:
        image (H, W, 3) uint8 and labels (H, W) uint8 in [0, 12).
    """
    height, width = frame_size(size)
    rng = np.random.default_rng([seed, 0xFACADE])
    noise = Noise(rng)
    canvas = Canvas(height, width, 0)
    wide = canvas.aspect
    sky(canvas, rng, noise)
    ground = rng.uniform(0.93, 0.97)
    canvas.fill(
        rectangle(-1, ground, wide + 1, 2),
        lambda x, y: (0.36 + 0.06 * noise(x * 40, y * 90))[:, None] * np.ones(3),
    )

    left, right = rng.uniform(0.02, 0.10) * wide, wide - rng.uniform(0.02, 0.10) * wide
    roof = rng.uniform(0.05, 0.14)
    base = rgb(rng.choice([0.04, 0.09, 0.12, 0.0, 0.6]), rng.uniform(0.05, 0.42), rng.uniform(0.6, 0.9))
    trim = np.clip(base * 0.35 + 0.58, 0, 1)
    for x0, x1, y in (
        (-1, left, roof + rng.uniform(0.02, 0.2)),
        (right, wide + 1, roof + rng.uniform(0.02, 0.2)),
    ):
        neighbour = rgb(rng.uniform(0, 0.15), rng.uniform(0.05, 0.3), rng.uniform(0.4, 0.7))
        canvas.fill(rectangle(x0, y, x1, ground), wall_shader(rng, noise, neighbour, False))

    def tiles(x: Array, y: Array) -> Array:
        light = 0.9 + 0.2 * np.sin(y * 520) + 0.2 * noise(x * 60, y * 60)
        return np.array([0.42, 0.25, 0.20]) * light[:, None]

    pitched = np.array(
        [
            (left - 0.015, roof + 0.012),
            (left + 0.05, roof - 0.05),
            (right - 0.05, roof - 0.05),
            (right + 0.015, roof + 0.012),
        ]
    )
    canvas.fill(pitched, tiles)
    canvas.fill(rectangle(left, roof, right, ground), wall_shader(rng, noise, base, rng.uniform() < 0.4), 1)

    floors = int(rng.integers(3, 6))
    columns = max(2, int(round((right - left) / rng.uniform(0.13, 0.2))))
    storey = (ground - roof) / (floors + 0.35)
    pitch = (right - left) / columns
    shop_floor, has_blind, has_balcony = rng.uniform() < 0.55, rng.uniform() < 0.45, rng.uniform() < 0.5
    arched, has_deco, has_pillar = rng.uniform() < 0.25, rng.uniform() < 0.6, rng.uniform() < 0.45
    shutter = rgb(rng.choice([0.33, 0.08, 0.58]), 0.45, rng.uniform(0.25, 0.5))
    window_w, window_h = pitch * rng.uniform(0.34, 0.46), storey * rng.uniform(0.5, 0.62)
    glass = glass_shader(rng, noise)
    jitter = lambda s=0.003: float(rng.normal(0, s))  # noqa: E731

    def band(y0: float, y1: float, label: int, gain: float, reach: float = 0.0) -> None:
        canvas.fill(rectangle(left - reach, y0, right + reach, y1), np.clip(trim * gain, 0, 1), label)
        canvas.fill(rectangle(left - reach, y1, right + reach, y1 + 0.006), lambda x, y: painted(canvas, x, y) * 0.7)

    def window(cx: float, y0: float, w: float, h: float) -> None:
        x0, x1, y1 = cx - w / 2 + jitter(), cx + w / 2 + jitter(), y0 + h + jitter()
        frame = 0.007
        canvas.fill(rectangle(x0 - frame, y0 - frame, x1 + frame, y1 + frame), np.clip(trim * 0.95, 0, 1))
        shape = rectangle(x0, y0, x1, y1)
        if arched:
            arc = [(cx + w / 2 * np.cos(t), y0 - w / 2 * np.sin(t) * 0.8) for t in np.linspace(0, np.pi, 14)]
            shape = np.array([(x1, y1), *arc, (x0, y1)])
        canvas.fill(shape, glass, 2)
        if rng.uniform() < 0.35:
            drop = y0 + h * rng.uniform(0.25, 0.6)
            canvas.fill(rectangle(x0, y0, x1, drop), (0.86, 0.84, 0.78), within=shape)
        for bar in (
            rectangle(cx - 0.003, y0, cx + 0.003, y1),
            rectangle(x0, y0 + h * 0.35, x1, y0 + h * 0.35 + 0.005),
        ):
            canvas.fill(bar, trim, within=shape)
        canvas.fill(rectangle(x0, y0, x1, y0 + 0.008), lambda x, y: painted(canvas, x, y) * 0.55, within=shape)

    for floor in range(floors):
        y0 = roof + storey * (floor + 0.45)
        ground_floor = floor == floors - 1
        if ground_floor and shop_floor:
            continue
        for c in range(columns):
            cx = left + pitch * (c + 0.5) + jitter(0.002)
            window(cx, y0, window_w, window_h)
            if has_blind and rng.uniform() < 0.9:
                for side in (1, -1):
                    inner, outer = (
                        cx + side * (window_w / 2 + 0.002),
                        cx + side * (window_w / 2 + window_w * 0.36),
                    )
                    slats = lambda x, y: shutter * (0.85 + 0.3 * (np.sin(y * 700) > 0))[:, None]  # noqa: E731
                    canvas.fill(
                        rectangle(min(inner, outer), y0 + jitter(), max(inner, outer), y0 + window_h),
                        slats,
                        7,
                    )
            if rng.uniform() < 0.85:
                canvas.fill(
                    rectangle(
                        cx - window_w * 0.62,
                        y0 + window_h + jitter(0.002),
                        cx + window_w * 0.62,
                        y0 + window_h + 0.02,
                    ),
                    trim,
                    5,
                )
            if has_deco and not has_blind and rng.uniform() < 0.7:
                peak = np.array([(cx - window_w * 0.68, y0 - 0.014), (cx, y0 - 0.05), (cx + window_w * 0.68, y0 - 0.014)])
                canvas.fill(peak, np.clip(trim * 0.9, 0, 1), 8)
            if has_balcony and floor > 0 and c % 2 == 1 and not ground_floor:
                rail = rectangle(cx - pitch * 0.46, y0 + window_h * 0.62, cx + pitch * 0.46, y0 + window_h + 0.025)
                behind = canvas.pixels.copy()
                iron = canvas.fill(rail, (0.14, 0.14, 0.16), 6)
                gaps = (
                    iron
                    & (np.sin(canvas.x * 420) > -0.35)
                    & (canvas.y > y0 + window_h * 0.62 + 0.008)
                    & (canvas.y < y0 + window_h + 0.012)
                )
                canvas.pixels[gaps] = behind[gaps] * 0.9
        if floor > 0:
            band(y0 - storey * 0.32, y0 - storey * 0.32 + rng.uniform(0.012, 0.02), 9 if floor % 2 else 4, 0.93)
    band(roof, roof + rng.uniform(0.03, 0.055), 4, 0.98, 0.012)

    y0, y1 = ground - storey * 1.02, ground
    if shop_floor:
        band(y0 - 0.012, y0 + 0.012, 9, 0.9)
        count = max(1, columns // 2)
        for c in range(count):
            a, b = left + (right - left) * (c + 0.10) / count, left + (right - left) * (c + 0.90) / count
            canvas.fill(rectangle(a, y0 + 0.02, b, y1), np.clip(trim * 0.4, 0, 1), 11)
            canvas.fill(rectangle(a, y0 + 0.02, b, y0 + 0.055), rgb(rng.uniform(), 0.6, 0.6))
            canvas.fill(
                rectangle(a + 0.012, y0 + 0.065, b - 0.012, y1 - 0.02),
                lambda x, y: glass(x, y) * 0.8 + np.array([0.18, 0.14, 0.06]),
            )
    for _ in range(1 if columns < 5 else 2):
        cx = left + pitch * (rng.integers(columns - 1) + (0.5 if not shop_floor else 1.0))
        w, h = min(0.10, pitch * 0.5), min(0.19, storey * 0.98)
        wood = rgb(rng.choice([0.07, 0.35, 0.0, 0.6]), rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.5))
        door = rectangle(cx - w / 2, ground - h, cx + w / 2, ground)
        canvas.fill(rectangle(cx - w / 2 - 0.01, ground - h - 0.012, cx + w / 2 + 0.01, ground), trim)
        canvas.fill(door, wood, 3)
        for k in (0.14, 0.58):
            canvas.fill(
                rectangle(cx - w * 0.34, ground - h * (1 - k), cx + w * 0.34, ground - h * (0.66 - k)),
                wood * 0.75,
            )
    if has_pillar:
        for cx in (left + 0.02, right - 0.02, *(left + pitch * k for k in range(2, columns - 1, 2))):
            w = 0.016
            column = lambda x, y, cx=cx: trim * (1.02 - 0.35 * np.abs((x - cx) / 0.016 - 0.2))[:, None]  # noqa: E731
            canvas.fill(rectangle(cx - w, roof + 0.06, cx + w, ground), column, 10)
    canvas.shade(wide * 0.9, 0.8, 0.8 * wide, 0.7, -0.18)
    return canvas.finish(rng)
