"""Streets in perspective with ids of a 151-class scene set, drawn by code."""

from __future__ import annotations

import numpy as np

from ..classes import STREET_CLASSES
from .raster import (
    Array,
    Canvas,
    Noise,
    ellipse,
    frame_size,
    glass_shader,
    painted,
    rectangle,
    rgb,
    sky,
    spline,
    wall_shader,
    wobble,
)


def draw_street(seed: int, size: int | tuple[int, int] = 256) -> tuple[Array, Array]:
    """A street in perspective; labels are a subset of a 151-class scene set (see STREET_CLASSES).

    Args:
        seed: any non-negative integer; equal seeds give equal pictures.
        size: side of a square, or (height, width).

    Returns:
        image (H, W, 3) uint8 and labels (H, W) uint8 in [0, 151).
    """
    height, width = frame_size(size)
    rng = np.random.default_rng([seed, 0x57EE7])
    noise = Noise(rng)
    canvas = Canvas(height, width, STREET_CLASSES["sky"])
    ids = STREET_CLASSES
    wide = canvas.aspect
    sky(canvas, rng, noise)
    vx, vy = wide * rng.uniform(0.42, 0.58), rng.uniform(0.43, 0.52)  # vanishing point

    ridge_x = np.linspace(-0.1, wide + 0.1, 160)
    if rng.uniform() < 0.5:
        ridge = vy - 0.05 - 0.09 * noise.octaves(ridge_x * 2.5, ridge_x * 0 + 3, 5)
        hills = np.concatenate([np.stack([ridge_x, ridge], 1), [(wide + 0.1, vy + 0.05), (-0.1, vy + 0.05)]])
        canvas.fill(hills, rgb(0.58, 0.25, 0.6), ids["mountain"])
    wood = vy - 0.03 - 0.03 * np.abs(noise.octaves(ridge_x * 9, ridge_x * 0 + 8, 5))
    canvas.fill(
        np.concatenate([np.stack([ridge_x, wood], 1), [(wide + 0.1, vy + 0.05), (-0.1, vy + 0.05)]]),
        rgb(0.30, 0.35, 0.36),
        ids["tree"],
    )
    grass = lambda x, y: rgb(0.26, 0.5, 0.5) * (0.9 + 0.3 * noise.octaves(x * 30, y * 60, 3))[:, None]  # noqa: E731
    canvas.fill(rectangle(-1, vy, wide + 1, 2), grass, ids["grass"])

    def ray(x_bottom: float, t: float) -> tuple[float, float]:
        """Point at depth t on the ray from the vanishing point to (x_bottom, 1); t = 1 is the edge."""
        return vx + (x_bottom - vx) * t, vy + (1 - vy) * t

    road_l, road_r = vx - rng.uniform(0.65, 0.85), vx + rng.uniform(0.65, 0.85)
    walk = rng.uniform(0.28, 0.45)
    pave = lambda x, y: np.array([0.62, 0.60, 0.57]) * (0.95 + 0.12 * noise(x * 50, y * 80))[:, None]  # noqa: E731
    tar = lambda x, y: np.array([0.33, 0.33, 0.35]) * (0.95 + 0.2 * noise.octaves(x * 25, y * 60, 4))[:, None]  # noqa: E731
    far = 1.6
    canvas.fill(np.array([(vx, vy), ray(road_l - walk, far), ray(road_r + walk, far)]), pave, ids["sidewalk"])
    canvas.fill(np.array([(vx, vy), ray(road_l, far), ray(road_r, far)]), tar, ids["road"])
    for k in range(8):
        t0, t1 = 0.1 * 1.45**k, 0.1 * 1.45**k * 1.18
        centre = (road_l + road_r) / 2
        dash = np.array(
            [
                ray(centre - 0.012, t0),
                ray(centre + 0.012, t0),
                ray(centre + 0.012, t1),
                ray(centre - 0.012, t1),
            ]
        )
        canvas.fill(dash, (0.88, 0.87, 0.82))

    # Rows of houses on both sides, far to near.
    for side in (-1, 1):
        line = road_l - walk if side < 0 else road_r + walk
        t = 0.10
        while t < 1.5:
            length = t * rng.uniform(1.22, 1.5)
            gap = rng.uniform() < 0.18
            tall = rng.uniform(0.45, 1.25)
            (xa, ya), (xb, yb) = ray(line, t), ray(line, length)
            top_a, top_b = ya - tall * t, yb - tall * length
            label = ids["house"] if tall < 0.6 else ids["building"]
            base = rgb(rng.choice([0.03, 0.08, 0.11, 0.6]), rng.uniform(0.08, 0.45), rng.uniform(0.45, 0.85))
            if not gap:
                edge = side * 3.0
                front = np.array([(xa, ya), (xb, yb), (xb, top_b), (xa, top_a)])
                canvas.fill(
                    np.array([(xa, ya), (xa + edge, ya), (xa + edge, top_a), (xa, top_a)]),
                    wall_shader(rng, noise, base * 0.8, False),
                    label,
                )
                canvas.fill(front, wall_shader(rng, noise, base, rng.uniform() < 0.3), label)
                storeys, bays = max(2, int(tall * 5)), int(rng.integers(2, 4))
                glass = glass_shader(rng, noise)
                for bay in range(bays):
                    u0, u1 = (bay + 0.25) / bays, (bay + 0.72) / bays
                    for s in range(storeys):
                        quad = []
                        for u, v in ((u0, 0.25), (u1, 0.25), (u1, 0.8), (u0, 0.8)):
                            depth = t + (length - t) * u
                            px, py = ray(line, depth)
                            quad.append((px, py - tall * depth * (s + v) / storeys))
                        bottom = s == 0 and bay == 0
                        canvas.fill(
                            np.array(quad),
                            (0.3, 0.2, 0.15) if bottom else glass,
                            ids["door"] if bottom else ids["windowpane"],
                        )
                if rng.uniform() < 0.5:
                    d = t + (length - t) * 0.55
                    (px, py), (qx, qy) = ray(line, t), ray(line, d)
                    out_a, out_b = ray(line - side * 0.14, t), ray(line - side * 0.14, d)
                    cover = np.array(
                        [
                            (px, py - 0.27 * t),
                            (qx, qy - 0.27 * d),
                            (out_b[0], out_b[1] - 0.21 * d),
                            (out_a[0], out_a[1] - 0.21 * t),
                        ]
                    )
                    canvas.fill(cover, rgb(rng.uniform(), 0.6, 0.7), ids["awning"])
                if rng.uniform() < 0.5:
                    px, py = ray(line - side * 0.04, (t + length) / 2)
                    m = (t + length) / 2
                    canvas.fill(
                        rectangle(px - 0.05 * m, py - 0.5 * m, px + 0.05 * m, py - 0.36 * m),
                        rgb(rng.uniform(), 0.7, 0.8),
                        ids["signboard"],
                    )
            t = length

    def things(kind: str, where: float, t: float) -> None:
        x, y = ray(where, t)
        if kind == "tree":
            h, r = t * rng.uniform(0.55, 0.9), t * rng.uniform(0.13, 0.22)
            canvas.fill(rectangle(x - 0.014 * t, y - h, x + 0.014 * t, y), (0.25, 0.18, 0.13), ids["tree"])
            leaves = wobble(ellipse(x, y - h, r, r * 1.15, steps=120), rng, 0.05 * r * 3, 40)
            green = rgb(rng.uniform(0.2, 0.34), rng.uniform(0.4, 0.7), rng.uniform(0.35, 0.6))
            canvas.fill(
                leaves,
                lambda a, b: (
                    green * (0.85 + 0.45 * noise.octaves(a * 28 / t**0.5, b * 28 / t**0.5, 3) - 0.6 * (b - y + h))[:, None]
                ),
                ids["tree"],
            )
        elif kind in ("car", "van", "truck", "bus"):
            w = t * {"car": 0.26, "van": 0.28, "truck": 0.32, "bus": 0.34}[kind]
            h = t * {"car": 0.20, "van": 0.27, "truck": 0.36, "bus": 0.42}[kind]
            paint = rgb(rng.uniform(), rng.uniform(0.0, 0.8), rng.uniform(0.2, 0.9))
            canvas.fill(ellipse(x, y, w * 0.58, h * 0.08), lambda a, b: painted(canvas, a, b) * 0.5)
            roof = 0.36 if kind == "car" else 0.47
            body = spline(
                [
                    (x - w * 0.5, y - h * 0.08),
                    (x - w * 0.5, y - h * 0.45),
                    (x - w * roof, y - h * 0.56),
                    (x - w * roof * 0.86, y - h * 0.95),
                    (x, y - h),
                    (x + w * roof * 0.86, y - h * 0.95),
                    (x + w * roof, y - h * 0.56),
                    (x + w * 0.5, y - h * 0.45),
                    (x + w * 0.5, y - h * 0.08),
                    (x, y - h * 0.05),
                ],
                steps=6,
            )
            canvas.fill(body, lambda a, b: paint * (1.1 - 0.5 * (b - y + h) / h)[:, None], ids[kind])
            canvas.fill(
                np.array(
                    [
                        (x - w * roof * 0.8, y - h * 0.55),
                        (x - w * roof * 0.7, y - h * 0.9),
                        (x + w * roof * 0.7, y - h * 0.9),
                        (x + w * roof * 0.8, y - h * 0.55),
                    ]
                ),
                (0.2, 0.24, 0.28),
            )
            for s in (-1, 1):
                canvas.fill(
                    rectangle(x + s * w * 0.36 - w * 0.07, y - h * 0.1, x + s * w * 0.36 + w * 0.07, y + h * 0.05),
                    (0.07, 0.07, 0.07),
                    ids[kind],
                )
                canvas.fill(
                    ellipse(x + s * w * 0.38, y - h * 0.34, w * 0.07, h * 0.06),
                    (0.9, 0.25, 0.2) if x > vx else (0.98, 0.95, 0.8),
                )
        elif kind == "person":
            h = t * rng.uniform(0.27, 0.33)
            coat, legs = (
                rgb(rng.uniform(), rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.8)),
                rgb(0.6, 0.4, rng.uniform(0.15, 0.4)),
            )
            for s in (-1, 1):
                stride = rng.uniform(0.02, 0.09)
                leg = np.array(
                    [
                        (x + s * h * 0.01, y - h * 0.5),
                        (x + s * h * 0.1, y - h * 0.5),
                        (x + s * h * (0.05 + stride), y),
                        (x + s * h * (stride - 0.02), y),
                    ]
                )
                canvas.fill(leg, legs, ids["person"])
            torso = spline(
                [
                    (x - h * 0.12, y - h * 0.45),
                    (x - h * 0.14, y - h * 0.8),
                    (x, y - h * 0.86),
                    (x + h * 0.14, y - h * 0.8),
                    (x + h * 0.12, y - h * 0.45),
                ]
            )
            canvas.fill(torso, coat, ids["person"])
            canvas.fill(ellipse(x, y - h * 0.92, h * 0.065, h * 0.085), (0.75, 0.56, 0.45), ids["person"])
        elif kind in ("streetlight", "traffic light", "pole"):
            h = t * rng.uniform(0.6, 0.85)
            canvas.fill(rectangle(x - 0.008 * t, y - h, x + 0.008 * t, y), (0.25, 0.26, 0.27), ids["pole"])
            if kind == "streetlight":
                toward = np.sign(vx - x) * 0.09 * t
                canvas.fill(
                    rectangle(min(x, x + toward), y - h, max(x, x + toward), y - h + 0.012 * t),
                    (0.3, 0.3, 0.3),
                    ids[kind],
                )
                canvas.fill(ellipse(x + toward, y - h + 0.012 * t, 0.03 * t, 0.014 * t), (0.95, 0.93, 0.8), ids[kind])
            elif kind == "traffic light":
                canvas.fill(
                    rectangle(x - 0.026 * t, y - h, x + 0.026 * t, y - h + 0.13 * t),
                    (0.1, 0.1, 0.1),
                    ids[kind],
                )
                for k, c in enumerate(((0.9, 0.15, 0.1), (0.35, 0.3, 0.1), (0.1, 0.3, 0.15))):
                    canvas.fill(ellipse(x, y - h + (0.025 + 0.04 * k) * t, 0.014 * t, 0.014 * t), c)
        elif kind == "bicycle":
            for s in (-1, 1):
                ring = np.concatenate(
                    [
                        ellipse(x + s * 0.05 * t, y - 0.045 * t, 0.045 * t, 0.045 * t),
                        ellipse(x + s * 0.05 * t, y - 0.045 * t, 0.032 * t, 0.032 * t)[::-1],
                    ]
                )
                canvas.fill(ring, (0.08, 0.08, 0.08), ids[kind])
            canvas.fill(
                np.array(
                    [
                        (x - 0.05 * t, y - 0.05 * t),
                        (x - 0.02 * t, y - 0.11 * t),
                        (x + 0.03 * t, y - 0.11 * t),
                        (x, y - 0.05 * t),
                    ]
                ),
                rgb(rng.uniform(), 0.7, 0.7),
                ids[kind],
            )
        elif kind == "ashcan":
            canvas.fill(rectangle(x - 0.03 * t, y - 0.1 * t, x + 0.03 * t, y), (0.2, 0.3, 0.25), ids[kind])
        elif kind == "fence":
            d = t * 1.25
            (xa, ya), (xb, yb) = ray(where, t), ray(where, d)
            canvas.fill(
                np.array([(xa, ya), (xb, yb), (xb, yb - 0.13 * d), (xa, ya - 0.13 * t)]),
                (0.45, 0.4, 0.36),
                ids[kind],
            )
        else:
            bush = wobble(ellipse(x, y - 0.05 * t, 0.10 * t, 0.07 * t, steps=80), rng, 0.012 * t, 25)
            canvas.fill(
                bush,
                lambda a, b: rgb(0.3, 0.6, 0.42) * (0.9 + 0.4 * noise(a * 70, b * 70))[:, None],
                ids["plant"],
            )

    # Small things, far to near, so that the near ones cover the far ones.
    scene = []
    for t in np.sort(rng.uniform(0.16, 1.05, int(rng.integers(16, 26)) + int(10 * (wide - 1)))):
        kind = rng.choice(
            [
                "tree",
                "car",
                "van",
                "truck",
                "bus",
                "person",
                "streetlight",
                "traffic light",
                "pole",
                "bicycle",
                "ashcan",
                "fence",
                "plant",
            ],
            p=[0.12, 0.2, 0.05, 0.03, 0.03, 0.22, 0.08, 0.05, 0.05, 0.05, 0.03, 0.04, 0.05],
        )
        side = rng.choice([-1, 1])
        if kind in ("car", "van", "truck", "bus"):
            where = (road_l + road_r) / 2 + side * (road_r - road_l) * rng.uniform(0.16, 0.4)
        else:
            where = (road_l - walk * rng.uniform(0.1, 0.95)) if side < 0 else (road_r + walk * rng.uniform(0.1, 0.95))
        scene.append((str(kind), float(where), float(t)))
    for kind, where, t in scene:
        things(kind, where, t)
    canvas.blend(np.exp(-(((canvas.y - vy) / 0.12) ** 2)) * 0.22, (0.86, 0.86, 0.86))
    return canvas.finish(rng)
