"""Portraits with the 19 face classes, drawn by code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .raster import Array, Canvas, Noise, ellipse, frame_size, painted, rgb, spline, wobble


def _face_backdrop(canvas: Canvas, rng: np.random.Generator, noise: Noise) -> None:
    """An out-of-focus room: a gradient, a few vertical bars, a few discs of light."""
    hue, dark = rng.uniform(), rng.uniform(0.25, 0.8)
    a, b = (
        rgb(hue, rng.uniform(0.1, 0.45), dark),
        rgb(hue + rng.normal(0, 0.1), rng.uniform(0.1, 0.4), dark * 1.3),
    )
    canvas.pixels[:] = b
    canvas.blend(np.clip(canvas.y + 0.35 * noise(canvas.x * 2.5, canvas.y * 2.5), 0, 1), a)
    for _ in range(rng.integers(0, 4)):
        x, w, gain = rng.uniform(0, canvas.aspect), rng.uniform(0.04, 0.16), rng.uniform(-0.35, 0.35)
        edge = np.clip((np.abs(canvas.x - x) - w) * 90, -30, 30)
        canvas.multiply(1 + gain / (1 + np.exp(edge)))
    for _ in range(rng.integers(0, 9)):
        x, y, r = rng.uniform(0, canvas.aspect), rng.uniform(0, 0.8), rng.uniform(0.02, 0.07)
        light = rgb(hue + rng.normal(0, 0.15), 0.3, 1.0)
        rows, columns = canvas.window(x, y, r + 0.04, r + 0.04)
        distance = np.hypot(canvas.x[:, columns] - x, canvas.y[rows] - y) - r
        disc = (0.3 / (1 + np.exp(np.clip(distance * 260, -30, 30)))).astype(np.float32)
        canvas.blend(disc, light, (rows, columns))


def _hair_shader(base: Array, rng: np.random.Generator, noise: Noise, cx: float, curl: float) -> Callable[..., Array]:
    fine, band = rng.uniform(38, 60), rng.uniform(0.16, 0.3)

    def shader(x: Array, y: Array) -> Array:
        across = (x - cx) / (0.35 + 0.55 * y) + curl * 0.05 * np.sin(y * 34 + 3 * noise(x * 6, y * 3))
        strands = noise(across * fine, y * 3.2) + 0.6 * noise(across * fine * 2.7, y * 6 + 11)
        gloss = np.exp(-(((y - band - 0.5 * np.abs(x - cx) ** 1.5) / 0.07) ** 2))
        light = 0.92 + 0.2 * strands + 0.35 * gloss * (0.8 + 0.4 * strands) - 0.25 * np.clip(y - 0.5, 0, 1)
        return np.clip(base * light[:, None] + 0.05 * gloss[:, None], 0, 1)

    return shader


def _cloth_shader(rng: np.random.Generator, noise: Noise) -> Callable[..., Array]:
    base = rgb(rng.uniform(), rng.uniform(0.05, 0.7), rng.uniform(0.15, 0.9))
    second = np.clip(base * rng.uniform(0.4, 0.75) + rng.uniform(0, 0.15), 0, 1)
    kind, pitch = (
        rng.choice(["plain", "stripes", "check", "dots"], p=[0.5, 0.2, 0.15, 0.15]),
        rng.uniform(28, 55),
    )

    def shader(x: Array, y: Array) -> Array:
        u, v = x + 0.01 * noise(x * 8, y * 8), y + 0.02 * noise(x * 6 + 9, y * 6)
        if kind == "stripes":
            w = (np.sin(u * pitch * 3) > 0.2).astype(np.float32)
        elif kind == "check":
            w = 0.5 * (np.sin(u * pitch * 2) > 0.3) + 0.5 * (np.sin(v * pitch * 2) > 0.3)
        elif kind == "dots":
            w = (np.sin(u * pitch * 2) * np.sin(v * pitch * 2) > 0.55).astype(np.float32)
        else:
            w = np.zeros_like(x)
        colour = base * (1 - w[:, None]) + second * w[:, None]
        folds = 0.9 + 0.22 * noise(x * 9 + y * 6, y * 3 + x * 2)
        return np.clip(colour * folds[:, None], 0, 1)

    return shader


def draw_face(seed: int, size: int | tuple[int, int] = 256) -> tuple[Array, Array]:
    """A portrait with the 19 face classes (background skin nose eye_g l_eye ... cloth).

    "l_" is the side of the person, hence the right half of the picture, as in the usual face label sets.

    Args:
        seed: any non-negative integer; equal seeds give equal pictures.
        size: side of a square, or (height, width).

    Returns:
        image (H, W, 3) uint8 and labels (H, W) uint8 in [0, 19).
    """
    height, width = frame_size(size)
    rng = np.random.default_rng([seed, 0xFACE])
    noise = Noise(rng)
    canvas = Canvas(height, width, 0)
    _face_backdrop(canvas, rng, noise)

    # Who is it.
    tone = rng.uniform()
    skin = np.array([0.96, 0.79, 0.69]) * (1 - tone) + np.array([0.42, 0.27, 0.19]) * tone
    skin = np.clip(skin * rng.uniform(0.92, 1.04) + rng.normal(0, 0.015, 3), 0, 1).astype(np.float32)
    hair_odds = np.array([0.2 + tone, 0.3, 0.25, 0.25, 0.14, 0.08]) * np.array(
        [1, 1, 1, 1, 1, 1] if tone < 0.5 else [1, 1, 0.3, 0.04, 0.04, 0.8]
    )
    hair = np.array(
        [
            [0.10, 0.08, 0.07],
            [0.24, 0.15, 0.10],
            [0.42, 0.26, 0.14],
            [0.80, 0.63, 0.38],
            [0.55, 0.22, 0.10],
            [0.66, 0.65, 0.64],
        ]
    )[rng.choice(6, p=hair_odds / hair_odds.sum())] * rng.uniform(0.85, 1.15)
    hair = np.clip(hair, 0, 1).astype(np.float32)
    iris = np.array([[0.25, 0.14, 0.07], [0.22, 0.40, 0.58], [0.28, 0.42, 0.26], [0.40, 0.28, 0.12]])[rng.integers(4)]
    style = rng.choice(["short", "crop", "bob", "long", "tied"], p=[0.24, 0.12, 0.18, 0.32, 0.14])
    fringe = style != "crop" and rng.uniform() < 0.3
    hat, glasses = rng.uniform() < 0.1, rng.uniform() < 0.13
    necklace, smile = rng.uniform() < 0.18, rng.uniform(-0.2, 1.0)
    earrings = style in ("bob", "long", "tied") and rng.uniform() < 0.45
    yaw, roll = rng.normal(0, 0.33), rng.normal(0, 0.045)
    yaw = float(np.clip(yaw, -0.8, 0.8))
    fat, jaw = rng.uniform(0.93, 1.07), rng.uniform(0.9, 1.08)
    top, chin = rng.uniform(0.185, 0.215), rng.uniform(0.845, 0.875)
    centre = canvas.aspect / 2 + rng.normal(0, 0.012)

    cos, sin = np.cos(roll), np.sin(roll)

    def put(polygon: Array) -> Array:
        """Face frame (x = 0 on the nose axis, y as in the picture) -> picture frame: roll about the mouth."""
        x, y = polygon[:, 0], polygon[:, 1] - 0.6
        return np.stack([centre + x * cos - y * sin, 0.6 + x * sin + y * cos], axis=1)

    def curve(points: list[tuple[float, float]], closed: bool = True) -> Array:
        return put(spline(points, closed=closed))

    def at(x: float, y: float) -> tuple[float, float]:
        px, py = put(np.array([[x, y]]))[0]
        return float(px), float(py)

    profile = [
        (0.035, 0.115),
        (0.10, 0.185),
        (0.22, 0.226),
        (0.36, 0.236),
        (0.50, 0.228),
        (0.64, 0.212),
        (0.76, 0.178),
        (0.87, 0.128),
        (0.955, 0.072),
    ]
    outline_right = []
    for t, half in profile:
        half = half * fat * (jaw if t > 0.6 else 1.0)
        outline_right.append((half, top + t * (chin - top)))
    left = [(-x * (1 - 0.10 * yaw) + 0.012 * yaw, y) for x, y in reversed(outline_right)]
    right = [(x * (1 + 0.10 * yaw) + 0.012 * yaw, y) for x, y in outline_right]
    face = curve([(0.0, top), *right, (0.03 * yaw, chin), *left])
    mid = 0.055 * yaw  # where the nose axis appears after turning the head

    # Hair behind everything: outer contour by style.
    crown = top - rng.uniform(0.085, 0.135)
    wide = fat * rng.uniform(0.275, 0.305)
    reach = {"short": 0.50, "crop": 0.46, "bob": rng.uniform(0.70, 0.82), "long": 1.15, "tied": 0.52}[style]
    flare = {"short": 0.0, "crop": -0.02, "bob": 0.035, "long": rng.uniform(0.03, 0.10), "tied": -0.012}[style]
    curl = max(0.0, rng.normal(0.3, 0.5)) if style in ("long", "bob") else 0.0
    sides = [(wide * 0.62, crown + 0.045), (wide * 0.95, crown + 0.15), (wide + 0.3 * flare, 0.40)]
    if reach > 0.6:
        sides += [(wide + 0.8 * flare, 0.58), (wide + flare, min(reach - 0.08, 0.8))]
        sides += [(wide + flare * 1.4, 1.1)] if style == "long" else [(wide * 0.8, reach)]
    else:
        sides += [(fat * 0.245, reach)]
    lopsided = rng.normal(0, 0.012)
    outer_right = [(x + lopsided, y) for x, y in sides]
    outer_left = [(-x + lopsided, y + rng.normal(0, 0.012)) for x, y in reversed(sides)]
    shader = _hair_shader(hair, rng, noise, centre, curl)
    outer = curve([(lopsided, crown), *outer_right, *outer_left])
    roughness = {"short": 0.005, "crop": 0.002, "bob": 0.004, "long": 0.006 + 0.004 * curl, "tied": 0.002}[style]
    outer = wobble(outer, rng, roughness, 24)
    if style == "tied":
        canvas.fill(put(ellipse(rng.normal(0, 0.05), crown - 0.005, 0.085, 0.07)), shader, 13)
    behind = canvas.fill(outer, shader, 13)
    canvas.shade(centre, 0.75, 0.2, 0.2, -0.45, behind)

    # Neck, necklace, clothes.
    thick = fat * rng.uniform(0.125, 0.15)
    collar = rng.uniform(0.915, 0.965)
    neck = curve(
        [
            (-thick, 0.66),
            (thick, 0.66),
            (thick * 1.02, 0.85),
            (thick * 1.45, 0.97),
            (thick * 2.4, 1.06),
            (-thick * 2.4, 1.06),
            (-thick * 1.45, 0.97),
            (-thick * 1.02, 0.85),
        ]
    )

    def flesh(x: Array, y: Array) -> Array:
        light = 1.0 + 0.10 * noise(x * 3 + 4, y * 3) + 0.025 * noise(x * 60, y * 60) - 0.14 * (x - centre) / 0.25
        return np.clip(skin * light[:, None], 0, 1)

    neck_mask = canvas.fill(neck, flesh, 17)
    canvas.shade(*at(0, chin - 0.01), 0.2, 0.085, -0.42, neck_mask)
    depth = rng.choice([0.0, 0.025, 0.09], p=[0.4, 0.35, 0.25])
    cloth = curve(
        [
            (-1.6, 1.3),
            (-1.2, 1.12),
            (-0.52, 1.0),
            (-thick * 1.9, collar),
            (-thick * 1.12, collar - 0.03),
            (-thick * 0.55, collar + 0.03 + 0.5 * depth),
            (0.0, collar + 0.045 + depth),
            (thick * 0.55, collar + 0.03 + 0.5 * depth),
            (thick * 1.12, collar - 0.03),
            (thick * 1.9, collar),
            (0.52, 1.0),
            (1.2, 1.12),
            (1.6, 1.3),
        ]
    )
    canvas.fill(cloth, _cloth_shader(rng, noise), 18)
    if necklace:
        chain = [(x, 0.875 + 0.055 * (1 - (x / thick) ** 2)) for x in np.linspace(-thick * 1.05, thick * 1.05, 9)]
        band = np.concatenate([spline(chain, closed=False), spline(chain, closed=False)[::-1] + (0.0, 0.013)])
        canvas.fill(put(band), rgb(0.13, 0.45, 0.92), 16, only=[17])

    # Ears before the face, hair in front of the face after it.
    ear_open = style in ("short", "crop", "tied")
    for side, label in ((1, 8), (-1, 9)):
        visible = ear_open or rng.uniform() < 0.25
        if not visible or side * yaw > 0.45:
            continue
        ex = side * fat * 0.236 * (1 + 0.10 * side * yaw) + 0.012 * yaw
        ear = ellipse(ex + side * 0.012, 0.525, 0.030, 0.068, tilt=-0.22 * side)
        mask = canvas.fill(put(wobble(ear, rng, 0.002, 5)), lambda x, y: flesh(x, y) * 0.93, label)
        canvas.shade(*at(ex + side * 0.016, 0.525), 0.013, 0.036, -0.32, mask)
    face_mask = canvas.fill(face, flesh, 1)

    # Modelling of the skin: light from one side, cheeks, sockets, jaw.
    canvas.shade(*at(-0.3, 0.55), 0.16, 0.4, 0.06, face_mask)
    canvas.shade(*at(0.27, 0.62), 0.12, 0.32, -0.22, face_mask)
    canvas.shade(*at(-0.29, 0.62), 0.08, 0.3, -0.16, face_mask)
    canvas.shade(*at(mid, 0.30), 0.16, 0.09, 0.09, face_mask)
    canvas.shade(*at(mid, chin), 0.16, 0.035, -0.16, face_mask)
    canvas.shade(*at(mid, 0.80), 0.06, 0.03, 0.07, face_mask)
    canvas.shade(*at(mid, 0.785 + 0.01), 0.06, 0.012, -0.12, face_mask)
    blush = np.clip(skin * np.array([1.03, 0.78, 0.76]), 0, 1)
    for side in (1, -1):
        canvas.tint(*at(mid + side * 0.135, 0.615), 0.07, 0.05, blush, 0.55, face_mask)
        canvas.shade(*at(mid + side * 0.10, 0.475), 0.062, 0.036, -0.2, face_mask)
        canvas.shade(*at(mid + side * 0.13, 0.57), 0.05, 0.03, 0.07, face_mask)

    # Nose.
    long = rng.uniform(0.655, 0.675)
    flank = rng.uniform(0.058, 0.072)
    nx = mid * 1.35
    nose = curve(
        [
            (mid - 0.026, 0.475),
            (mid + 0.026, 0.475),
            (mid + 0.03, 0.53),
            (nx + 0.036, 0.585),
            (nx + flank, 0.63),
            (nx + flank * 0.92, long - 0.012),
            (nx + 0.03, long - 0.002),
            (nx, long + 0.008),
            (nx - 0.03, long - 0.002),
            (nx - flank * 0.92, long - 0.012),
            (nx - flank, 0.63),
            (nx - 0.036, 0.585),
            (mid - 0.03, 0.53),
        ]
    )
    nose_mask = canvas.fill(nose, lambda x, y: painted(canvas, x, y), 2)
    canvas.shade(*at(nx + 0.045, 0.60), 0.022, 0.075, -0.13, face_mask)
    canvas.shade(*at(nx - 0.005, 0.57), 0.014, 0.075, 0.13, nose_mask)
    canvas.shade(*at(nx - 0.004, 0.632), 0.02, 0.016, 0.15, nose_mask)
    canvas.shade(*at(nx, long + 0.012), 0.06, 0.011, -0.22, face_mask)
    for side in (1, -1):
        canvas.shade(*at(nx + side * 0.028, long - 0.008), 0.013, 0.0075, -0.62, nose_mask)
        canvas.shade(*at(nx + side * flank * 0.86, 0.635), 0.007, 0.022, -0.16, face_mask)

    # Mouth.
    mw, my = rng.uniform(0.082, 0.102), rng.uniform(0.737, 0.752)
    gap = max(0.0, smile - 0.45) * 0.038
    lift = 0.016 * max(smile, 0.0) + 0.010
    lip = np.clip(np.array([0.78, 0.36, 0.36]) * (0.62 + 0.45 * skin.mean()) * rng.uniform(0.8, 1.15), 0, 1)
    if gap > 0.0025:
        mouth = curve(
            [
                (nx - mw * 0.84, my - lift * 0.6),
                (nx, my - 0.003),
                (nx + mw * 0.84, my - lift * 0.6),
                (nx + mw * 0.5, my + gap * 0.75),
                (nx, my + gap + 0.003),
                (nx - mw * 0.5, my + gap * 0.75),
            ]
        )

        def teeth(x: Array, y: Array) -> Array:
            slots = 0.94 + 0.05 * np.cos((x - centre - nx) * 300)
            return np.stack([0.96 * slots, 0.94 * slots, 0.90 * slots], 1)

        canvas.fill(mouth, teeth, 10)
    upper = curve(
        [
            (nx - mw, my - lift),
            (nx - mw * 0.45, my - 0.021 - lift * 0.2),
            (nx - 0.014, my - 0.026),
            (nx, my - 0.021),
            (nx + 0.014, my - 0.026),
            (nx + mw * 0.45, my - 0.021 - lift * 0.2),
            (nx + mw, my - lift),
            (nx + mw * 0.5, my - 0.004),
            (nx, my - 0.001),
            (nx - mw * 0.5, my - 0.004),
        ]
    )
    lower = curve(
        [
            (nx - mw, my - lift),
            (nx - mw * 0.5, my + gap * 0.8 - 0.004),
            (nx, my + gap),
            (nx + mw * 0.5, my + gap * 0.8 - 0.004),
            (nx + mw, my - lift),
            (nx + mw * 0.62, my + gap + 0.015),
            (nx, my + gap + 0.033),
            (nx - mw * 0.62, my + gap + 0.015),
        ]
    )
    lower_mask = canvas.fill(lower, lip, 12)
    canvas.shade(*at(nx - 0.01, my + gap + 0.014), 0.045, 0.008, 0.22, lower_mask)
    canvas.fill(upper, lip * 0.86, 11)

    # Eyes and brows.
    open_eye, gaze = rng.uniform(0.015, 0.0205), rng.normal(0, 0.006)
    arch, heavy, brow_y = rng.uniform(0.010, 0.028), rng.uniform(0.008, 0.0135), rng.uniform(0.415, 0.432)
    brow = np.clip(0.45 * hair + 0.1 * skin * np.array([1.0, 0.8, 0.6]), 0, 0.5)
    eyes = []
    for side, label, brow_label in ((1, 4, 6), (-1, 5, 7)):
        ex = mid + side * 0.104 * (1 - 0.12 * side * yaw)
        ew = 0.049 * (1 - 0.16 * side * yaw)
        eye = [
            (ex - side * ew, 0.487),
            (ex - side * ew * 0.45, 0.484 - open_eye * 0.85),
            (ex + side * ew * 0.1, 0.481 - open_eye),
            (ex + side * ew * 0.65, 0.482 - open_eye * 0.5),
            (ex + side * ew, 0.481),
            (ex + side * ew * 0.5, 0.485 + open_eye * 0.72),
            (ex - side * ew * 0.35, 0.486 + open_eye * 0.72),
        ]
        eyes.append((side, label, ex, ew, eye))
        inner, outer_x, peak = ex - side * ew * 1.05, ex + side * ew * 1.32, ex + side * ew * 0.5
        arc = spline(
            [
                (inner, brow_y + 0.002),
                (ex - side * ew * 0.3, brow_y - arch * 0.6),
                (peak, brow_y - arch),
                (outer_x, brow_y + 0.004),
            ],
            closed=False,
        )
        taper = heavy * np.linspace(1.15, 0.25, len(arc))[:, None] * np.array([[0.0, 1.0]])
        hairs = lambda x, y: np.clip(brow * (1 + 0.35 * noise(x * 150 + y * 60, y * 90))[:, None], 0, 1)  # noqa: E731
        canvas.fill(put(np.concatenate([arc - taper, (arc + taper)[::-1]])), hairs, brow_label)
    if glasses:
        lens = rng.choice([0.0, 0.75], p=[0.75, 0.25])  # clear or sun glasses
        for _, _, ex, ew, _ in eyes:
            rim = put(wobble(ellipse(ex, 0.492, ew * 1.6, 0.058), rng, 0.002, 4))
            canvas.fill(rim, lambda x, y: painted(canvas, x, y) * (1 - 0.8 * lens) * 0.97, 3)
        bridge = np.array([(mid - 0.05, 0.470), (mid + 0.05, 0.470), (mid + 0.05, 0.481), (mid - 0.05, 0.481)])
        canvas.fill(put(bridge), (0.13, 0.11, 0.10), 3)
        for side in (1, -1):
            arm = np.array(
                [
                    (mid + side * 0.175, 0.472),
                    (side * 0.245, 0.463),
                    (side * 0.245, 0.475),
                    (mid + side * 0.175, 0.484),
                ]
            )
            canvas.fill(put(arm), (0.13, 0.11, 0.10), 3)
    for _, label, ex, _, points in eyes:
        shape = curve(points)
        dark = glasses and lens > 0
        white = canvas.fill(shape, np.array([0.93, 0.92, 0.91]) * (0.35 if dark else 1.0), label)
        ix, iy, ir = ex + gaze + 0.006 * yaw, 0.483, 0.0195
        canvas.fill(put(ellipse(ix, iy, ir, ir)), iris * (0.35 if dark else 1.0), within=shape)
        canvas.fill(put(ellipse(ix, iy, ir * 0.46, ir * 0.46)), (0.03, 0.03, 0.03), within=shape)
        canvas.shade(*at(ex, 0.470), 0.05, 0.010, -0.55, white)
        canvas.fill(put(ellipse(ix - 0.007, iy - 0.007, 0.0042, 0.0042)), (1.0, 1.0, 1.0), within=shape)
        lash = spline(points[:5], closed=False)
        lid = np.concatenate([lash + (0, -0.0065), lash[::-1] + (0, 0.0005)])
        canvas.fill(put(lid), np.clip(brow * 0.5, 0, 1), only=[1, 2, 4, 5])
        crease = np.concatenate([lash + (0, -0.019), lash[::-1] + (0, -0.016)])
        canvas.shade(*at(ex, 0.452), 0.045, 0.006, -0.12, face_mask)
        canvas.fill(put(crease), lambda x, y: painted(canvas, x, y) * 0.86, only=[1])
    if glasses:
        for _, _, ex, ew, _ in eyes:
            big, small = ellipse(ex, 0.492, ew * 1.6, 0.058), ellipse(ex, 0.492, ew * 1.6 - 0.006, 0.052)
            ring = np.concatenate([big, big[:1], small[::-1], small[-1:]])
            canvas.fill(put(ring), (0.13, 0.11, 0.10))

    # Hair in front: from the outer contour down to the hair line, with or without a fringe and locks.
    lock = 0.0 if ear_open else rng.uniform(0.0, 0.035)
    low = 0.50 if ear_open else min(reach, 0.86)
    line_y = top + (0.035 if style != "crop" else 0.02)
    part = rng.uniform(-0.1, 0.1)
    inner_x = fat * 0.232 - lock
    line: list[tuple[float, float]] = [(fat * 0.30, low)] if not ear_open else []
    line += [(inner_x + 0.004, low), (inner_x + 0.002, 0.48), (inner_x - 0.012, 0.38)]
    if fringe:
        tips = rng.integers(5, 10)
        xs = np.linspace(0.185, -0.185, 2 * tips + 1) * fat
        base = rng.uniform(0.33, 0.39)
        sweep = rng.normal(0, 0.25)
        for i, x in enumerate(xs):
            deep = rng.uniform(0.01, 0.045) if i % 2 else -rng.uniform(0.0, 0.03)
            line.append((float(x), base + deep + sweep * float(x)))
    else:
        line += [
            (0.16 * fat, 0.285 + 0.3 * (part + 0.05)),
            (0.5 * (0.16 * fat + part), line_y + 0.012),
            (part, line_y - 0.008),
            (0.5 * (part - 0.16 * fat), line_y + 0.012),
            (-0.16 * fat, 0.285 - 0.3 * (part - 0.05)),
        ]
    line += [(-inner_x + 0.012, 0.38), (-inner_x - 0.002, 0.48), (-inner_x - 0.004, low)]
    line += [(-fat * 0.30, low)] if not ear_open else []
    upper_half = (
        [p for p in outer_left if p[1] <= low + 0.02] + [(lopsided, crown)] + [p for p in outer_right if p[1] <= low + 0.02]
    )
    front = wobble(curve(line + upper_half), rng, 0.0022, 40)
    hairy = canvas.fill(front, shader, 13, within=wobble(outer, rng, 0.001, 12))
    canvas.shade(*at(mid, line_y + (0.15 if fringe else 0.035)), 0.22, 0.02, -0.18, face_mask & ~hairy)
    if style in ("long", "bob", "short") and rng.uniform() < 0.8:  # loose strands leave the contour
        for _ in range(rng.integers(2, 9)):
            k = int(rng.integers(len(outer)))
            root, away = outer[k], outer[k] - np.array([centre, 0.55])
            away = away / (np.linalg.norm(away) + 1e-9) * 0.5 + np.array([rng.normal(0, 0.5), rng.uniform(0.1, 0.9)])
            tip = root + away * rng.uniform(0.01, 0.045)
            bend = (root + tip) / 2 + rng.normal(0, 0.005, 2)
            wide_root = np.array([rng.uniform(0.003, 0.011), 0.004])
            canvas.fill(
                spline([root - wide_root, bend, tip, bend + 0.003, root + wide_root]),
                shader,
                13,
                only=[0, 13, 18],
            )
    if earrings:
        drop, ring_r = rng.uniform(0.0, 0.03), rng.uniform(0.012, 0.034)
        metal = rgb(rng.choice([0.12, 0.6]), rng.uniform(0.1, 0.5), 0.9)
        for side in (1, -1):
            if side * yaw > 0.45:
                continue
            gx, gy = side * fat * 0.245 + 0.012 * yaw, 0.605 + drop + ring_r
            mask = canvas.fill(put(ellipse(gx, gy, ring_r * 0.9, ring_r)), metal, 15)
            canvas.shade(*at(gx + 0.3 * ring_r, gy + 0.3 * ring_r), ring_r * 0.6, ring_r * 0.6, -0.5, mask)
    if hat:
        felt = rgb(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.8))

        def weave(x: Array, y: Array) -> Array:
            light = 0.95 + 0.18 * noise(x * 5, y * 5) + 0.08 * noise(x * 90, y * 90)
            return np.clip(felt * light[:, None], 0, 1)

        brim = rng.choice([0.0, 0.1])
        rim_y = rng.uniform(0.25, 0.31)
        cap = curve(
            [
                (-wide * 1.03, rim_y + 0.045),
                (-wide * 1.0, rim_y - 0.07),
                (-wide * 0.7, crown - 0.03),
                (0.0, crown - 0.075),
                (wide * 0.7, crown - 0.03),
                (wide * 1.0, rim_y - 0.07),
                (wide * 1.03, rim_y + 0.045),
                (0.0, rim_y - 0.005),
            ]
        )
        canvas.fill(cap, weave, 14)
        if brim:
            edge = curve(
                [
                    (-wide * 1.45, rim_y + 0.03),
                    (0.0, rim_y - 0.05),
                    (wide * 1.45, rim_y + 0.03),
                    (0.0, rim_y + 0.045),
                ]
            )
            canvas.fill(edge, lambda x, y: weave(x, y) * 0.82, 14)
        canvas.shade(*at(0, rim_y + 0.05), 0.25, 0.02, -0.3, face_mask & ~canvas.mask(cap))
    return canvas.finish(rng)
