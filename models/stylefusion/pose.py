"""Other layouts of an image: global codes of inner nodes, the codes of all regions as they are (Fig. 12, 22 to 26).

mixsyn-fast stylefusion pose --sheet sheet.png                        the shipped model: layouts of some images
mixsyn-fast stylefusion pose --image 3 --node all --seed 20 --count 6 --out poses --sheet sheet.png
mixsyn-fast stylefusion pose --image codes --sheet sheet.png          a folder of files of codes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mixsyn_fast.progress import progress

from ..pictures.options import ModelOptions, check_outputs, check_png, open_model, write_image, write_sheet
from ..settings import at_least
from ..sheets import contact_sheet
from .model import StyleFusion
from .pictures import cell, save_codes, source, words_of


@dataclass(frozen=True)
class Options(ModelOptions):
    """Options of the command."""

    image: tuple[str, ...] = ("0", "1", "2")  # images to lay out anew: seeds, files of codes, folders of such
    node: str | None = None  # inner node whose global code is changed; none: the root, the layout of the whole image
    seed: int = 10  # of the first layout
    count: int = 5  # number of layouts
    out: Path = Path("poses")  # folder of the results, which are called <image>_<seed>.png
    codes_out: Path | None = None  # folder to write the codes of every result to (safetensors)
    sheet: Path | None = None  # also write a contact sheet: a row an image, a column a layout (PNG)

    def __post_init__(self) -> None:
        """Check what nothing needs to be opened for."""
        super().__post_init__()
        at_least(self, seed=0, count=1)
        check_png(self, "sheet")
        if not self.image or len(set(self.image)) != len(self.image):
            raise ValueError(f"image: expected different images, at least one, got {', '.join(self.image) or 'none'}")


def main(options: Options) -> int:
    """Run the command; 0, or ValueError, OSError, ImportError for what the user can mend."""
    seeds = [options.seed + i for i in range(options.count)]
    words = words_of(options.image, "image")
    names = {(image, seed): f"{Path(image).stem}_{seed}" for image in words for seed in seeds}
    images = {key: options.out / f"{name}.png" for key, name in names.items()}
    codes_out = {key: options.codes_out / f"{name}.safetensors" for key, name in names.items() if options.codes_out}
    if len(set(names.values())) < len(names):
        raise ValueError(f"image: expected files of different names, for the results go by them; got {', '.join(words)}")
    files = {f"out: {path.name}": path for path in images.values()}
    files |= {f"codes_out: {path.name}": path for path in codes_out.values()}
    check_outputs({**files, "sheet": options.sheet}, [word for word in words if not word.isdigit()])
    fusion = open_model(StyleFusion, options.model, options.device)
    node = options.node or fusion.tree.root
    if node not in fusion.tree.tree:
        raise ValueError(f"node: expected inner nodes among {', '.join(fusion.tree.tree)}, got {node!r}")
    given = {image: source(fusion, image, "image") for image in words}
    with progress("laying out"):
        made = {(image, seed): fusion.pose(given[image], {node: seed}) for image in words for seed in seeds}
        layouts = [cell(fusion, fusion.generate(seed).image, f"layout of seed {seed}") for seed in seeds]
        own = [fusion.generate(codes=given[image]).image for image in words]
    for key, each in made.items():
        write_image(each.image, images[key])
        if key in codes_out:
            save_codes(fusion, each.codes, codes_out[key])
    if options.sheet:
        blank = cell(fusion, 0 * own[0] + 255, f"global code of {node}")
        rows = [[blank, *layouts]]
        for image, picture in zip(words, own, strict=True):
            row = [cell(fusion, picture, f"image {Path(image).name}")]
            rows.append([*row, *(cell(fusion, made[image, seed].image, "") for seed in seeds)])
        write_sheet(contact_sheet(rows), options.sheet)
    return 0
