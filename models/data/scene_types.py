"""Types of things in scenes that sets with vocabularies of their own share: COCO-Stuff, ADE20K, Cityscapes, GTA-5, CamVid.

A model that carries styles across arbitrary scenes (MSCA) learns from few pictures of any one set; in these types several
sets are one (docs/training.md, --merge scenes with --also).
"""

from __future__ import annotations

from collections.abc import Sequence

_WORDS = {
    "sky": "sky, sky-other, clouds, fog",
    "building": """building, house, skyscraper, tower, hovel, grandstand, bridge, pier, booth, building-other,
        structural-other, roof, tunnel, fireplace, stage, tent, awning, canopy""",
    "wall": "wall, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, wood, metal",
    "window": "windowpane, window, window-other, blind, window-blind, mirror, mirror-stuff, glass",
    "door": "door, screen door, door-stuff",
    "ceiling": "ceiling, ceiling-other, ceiling-tile",
    "floor": "floor, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, rug, carpet, mat",
    "road": "road, runway, dirt track, railroad, rail track, parking",
    "pavement": "pavement, sidewalk, path, platform, stairs, stairway, step, escalator",
    "ground": "earth, sand, land, field, dirt, gravel, ground, ground-other, mud, playingfield, straw, solid-other",
    "grass": "grass, moss, terrain",
    "tree": "tree, palm, plant, flower, bush, branch, leaves, vegetation, plant-other, potted plant",
    "mountain": "mountain, hill, rock, stone",
    "snow": "snow",
    "water": "water, sea, river, lake, waterfall, swimming pool, fountain, water-other, waterdrops",
    "furniture": """bed, cabinet, table, chair, sofa, shelf, armchair, seat, desk, wardrobe, chest of drawers, counter, sink,
        bathtub, refrigerator, case, pool table, bookcase, coffee table, toilet, bench, countertop, stove, kitchen island,
        swivel chair, bar, ottoman, buffet, stool, cradle, oven, dishwasher, washer, couch, dining table, cupboard,
        desk-stuff, furniture-other, base""",
    "cloth": """curtain, cushion, pillow, towel, apparel, blanket, bag, flag, hat, backpack, shoe, handbag, tie, suitcase,
        cloth, clothes, napkin, net, textile-other, umbrella""",
    "fence": "fence, railing, bannister, guard rail, cage",
    "pole": "pole, polegroup, column, streetlight, traffic light",
    "sign": """sign, signboard, painting, poster, trade name, bulletin board, traffic sign, street sign, stop sign, banner,
        license plate""",
    "person": "person, pedestrian, rider, bicyclist",
    "animal": "animal, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "vehicle": "car, bus, truck, van, boat, ship, airplane, train, caravan, trailer, tank",
    "bicycle": "bicycle, minibike, motorcycle",
    "object": """lamp, box, vase, book, computer, arcade machine, light, chandelier, television, bottle, conveyer belt,
        plaything, barrel, basket, ball, food, microwave, pot, screen, sculpture, hood, sconce, tray, ashcan, fan,
        crt screen, plate, monitor, shower, radiator, clock, fire hydrant, parking meter, eye glasses, frisbee, skis,
        snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, wine glass, cup,
        fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
        tv, laptop, mouse, remote, keyboard, cell phone, toaster, blender, scissors, teddy bear, hair drier, toothbrush,
        hair brush, cardboard, food-other, fruit, paper, plastic, salad, vegetable, dynamic, static""",
    "unknown": "unknown, unlabelled, unlabeled, others, ego vehicle, rectification border, out of roi",
}

SCENE_TYPES = tuple(_WORDS)
"""The types by id."""

_TYPE = {" ".join(word.split()): name for name, words in _WORDS.items() for word in words.split(",")}


def scene_members(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return which classes of a vocabulary make up every type: none, where it has nothing of a type.

    Raises:
        KeyError: a class that none of the sets has.
    """
    return {name: tuple(each for each in classes if _TYPE[each] == name) for name in SCENE_TYPES}
