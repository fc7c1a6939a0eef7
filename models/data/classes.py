"""Class names of the label sets, in the order of their ids, and which of them a horizontal flip exchanges."""

from __future__ import annotations

from collections.abc import Sequence


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


FACADE_CLASSES = _names("background, facade, window, door, cornice, sill, balcony, blind, deco, molding, pillar, shop")
"""CMP Facade: ids 1 to 12."""

FACE_CLASSES = _names(
    """background, skin, nose, eye_g, l_eye, r_eye, l_brow, r_brow, l_ear, r_ear, mouth, u_lip, l_lip, hair, hat, ear_r,
    neck_l, neck, cloth"""
)
"""CelebAMask-HQ: 19 classes."""

STREET_CLASSES = {
    "other": 0,
    "building": 2,
    "sky": 3,
    "tree": 5,
    "road": 7,
    "windowpane": 9,
    "grass": 10,
    "sidewalk": 12,
    "person": 13,
    "door": 15,
    "mountain": 17,
    "plant": 18,
    "car": 21,
    "house": 26,
    "fence": 33,
    "signboard": 44,
    "bus": 81,
    "truck": 84,
    "awning": 87,
    "streetlight": 88,
    "pole": 94,
    "van": 103,
    "bicycle": 128,
    "traffic light": 137,
    "ashcan": 139,
}
"""A few of the 151 ids of a scene-parsing label set (0 = everything else): what drawn streets have."""

LAPA = _names(
    "background, skin, left_eyebrow, right_eyebrow, left_eye, right_eye, nose, upper_lip, inner_mouth, lower_lip, hair"
)
"""LaPa and Helen: 11 classes."""

COCO_STUFF = _names(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
    umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
    baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana,
    apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror,
    dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster,
    sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush, banner,
    blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
    clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
    floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill,
    house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
    plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other,
    skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree,
    vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
    waterdrops, window-blind, window-other, wood"""
)
"""COCO-Stuff: the 182 classes of its stuff-and-thing maps; id = published category number - 1."""

ADE20K = _names(
    """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
    screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
    stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
    chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister, escalator,
    ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool,
    stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave,
    pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan,
    fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"""
)
"""ADE20K (scene parsing benchmark): the 150 classes of ids 1 to 150."""

CITYSCAPES = _names(
    """unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, sidewalk, parking,
    rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light, traffic sign,
    vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, train, motorcycle, bicycle, license plate"""
)
"""Cityscapes label ids 0 to 33, and the licence plate as 34."""

CITYSCAPES_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label id of each of the 19 evaluated classes."""

GTA5 = (*(CITYSCAPES[i] for i in CITYSCAPES_TRAIN_IDS), "others")
"""GTA-5 as used for synthesis: Cityscapes' 19 evaluated classes and "others"."""

DEEPFASHION = _names(
    """background, skin, class_2, pants, top, class_5, neckwear, hair, face, dress, headwear, class_11, class_12, class_13,
    class_14, class_15"""
)
"""DeepFashion In-shop parsing, 16 ids. Names without a number were checked against pictures; ids 2, 5 and 11 to 15 (among
skirt, leggings, outer, bag, eyeglass, belt, footwear) were not, and keep a number."""

DEEPFASHION_COLOURS = (
    (0, 0, 0), (144, 238, 144), (245, 222, 179), (211, 211, 211), (255, 250, 250), (220, 220, 220), (50, 205, 50),
    (255, 0, 0), (16, 78, 139), (255, 250, 205), (127, 255, 212), (255, 255, 0), (70, 130, 180), (255, 140, 0), (0, 100, 0),
    (250, 235, 215),
)  # fmt: skip
"""RGB of each DeepFashion id in the published colour maps."""

CAMVID = _names("sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist, unlabelled")
"""CamVid in its usual 11 classes, and 11 = unlabelled."""

CAMVID_COLOURS = {
    "sky": ((128, 128, 128),),
    "building": ((0, 128, 64), (128, 0, 0), (64, 192, 0), (64, 0, 64), (192, 0, 128)),  # bridge building wall tunnel archway
    "pole": ((192, 192, 128), (0, 0, 64)),  # column, traffic cone
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # road, lane markings
    "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # sidewalk, parking block, shoulder
    "tree": ((128, 128, 0), (192, 192, 0)),  # tree, other vegetation
    "sign": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # sign, text, traffic light
    "fence": ((64, 64, 128),),
    "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),  # SUV, truck or bus, train, other
    "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # adult, child, cart, animal
    "bicyclist": ((0, 128, 192), (192, 0, 192)),  # bicyclist, motorcycle
    "unlabelled": ((0, 0, 0),),
}
"""RGB of CamVid's 32 original classes, by the class of :data:`CAMVID` that they belong to."""

CCP = _names(
    """null, accessories, bag, belt, blazer, blouse, bodysuit, boots, bra, bracelet, cape, cardigan, clogs, coat, dress,
    earrings, flats, glasses, gloves, hair, hat, heels, hoodie, intimate, jacket, jeans, jumper, leggings, loafers, necklace,
    panties, pants, pumps, purse, ring, romper, sandals, scarf, shirt, shoes, shorts, skin, skirt, sneakers, socks,
    stockings, suit, sunglasses, sweater, sweatshirt, swimwear, t-shirt, tie, tights, top, vest, wallet, watch, wedges"""
)
"""Clothing Co-Parsing: 59 classes."""


def are_streets(classes: Sequence[str]) -> bool:
    """Say whether classes are those of street scenes: roads, and nothing but classes of Cityscapes, GTA-5 or CamVid.

    Args:
        classes: names by id; one more for pixels that are unknown does not matter.
    """
    found = set(classes) - {"unknown"}
    return "road" in found and any(found <= set(names) for names in (CITYSCAPES, GTA5, CAMVID))


def left_right_pairs(classes: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Find the classes that a horizontal flip exchanges: equal names but for "l_" and "r_", or "left" and "right".

    Args:
        classes: names by id.

    Returns:
        Pairs of ids (left, right). "l_lip", the lower lip, has no "r_lip" and so no partner.
    """
    index = {name: i for i, name in enumerate(classes)}
    pairs = []
    for name, left in index.items():
        for ours, theirs in (("l_", "r_"), ("left", "right")):
            if name.startswith(ours) and theirs + name.removeprefix(ours) in index:
                pairs.append((left, index[theirs + name.removeprefix(ours)]))
    return tuple(pairs)
