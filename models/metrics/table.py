"""The table of metrics: one row says all of a metric. Help, tools, reports and plots follow from it.

A *tool* is a network that a metric looks through, read from a file. Its name is that of the command's option for the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from .fid import InceptionFeatures
from .lpips import LPIPS
from .pixels import psnr, rmse, ssim
from .style import StyleDistance

PairMetric = Callable[..., Tensor]
"""(outputs, targets, labels, num_regions, value_range=...) -> (B,) or (B, K), as :func:`.pixels.psnr`."""

TOOLS: Mapping[str, Callable[[str | None], nn.Module]] = {
    "lpips_vgg": lambda file: LPIPS("vgg16", file),
    "lpips_alex": lambda file: LPIPS("alexnet", file),
    "style_vgg": StyleDistance,
    "inception": lambda file: InceptionFeatures(file),
}
"""Name -> (file, or None: where a package brought it) -> network. FileNotFoundError: it is nowhere to be found."""


@dataclass(frozen=True)
class Metric:
    """One row.

    Attributes:
        name: in options, JSON and tables.
        title: for people.
        unit: "" where there is none.
        higher_is_better: which way is better; None: neither, it is shown beside another one.
        of: what is judged. "pair": a picture against its target, so regions can be judged as well. "set": all pictures
            against all targets, whole or per region. "draws": several outputs of one input. "edits": an output before and
            after an edit of one region; a command that has edits computes them, none asks for them by name.
        function: "pair" without a tool: the metric itself; with one, the tool is the metric.
        tool: name in `TOOLS`; None: none, or (draws) the LPIPS that the user chooses.
        asked: name by which a command asks for it, where several scores are computed together; "": its own.
        default: computed unless other metrics are asked for.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    of: Literal["pair", "set", "draws", "edits"]
    function: PairMetric | None = None
    tool: str | None = None
    asked: str = ""
    default: bool = True

    @property
    def heading(self) -> str:
        """Title, unit and an arrow to the better side."""
        unit = f", {self.unit}" if self.unit else ""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.title}{unit}{arrow}"

    @property
    def label(self) -> str:
        """Title and unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    def as_json(self) -> dict[str, Any]:
        """Return what a report says of the metric itself."""
        better = {True: "higher", False: "lower", None: "neither"}[self.higher_is_better]
        return {"title": self.title, "unit": self.unit, "better": better}


METRICS: Mapping[str, Metric] = {
    row.name: row
    for row in (
        Metric("psnr", "PSNR", "dB", True, "pair", psnr),
        Metric("ssim", "SSIM", "", True, "pair", ssim),
        Metric("rmse", "RMSE", "of the value range", False, "pair", rmse),
        Metric("lpips_vgg", "LPIPS (VGG-16)", "", False, "pair", tool="lpips_vgg"),
        Metric("lpips_alex", "LPIPS (AlexNet)", "", False, "pair", tool="lpips_alex"),
        Metric("style", "Style distance (Gram matrices of VGG)", "", False, "pair", tool="style_vgg", default=False),
        Metric("fid", "FID", "", False, "set", tool="inception"),
        Metric("fid_regions", "FID of regions", "", False, "set", tool="inception", default=False),
        Metric("diversity", "Diversity (mean pairwise LPIPS)", "", True, "draws", asked="diversity", default=False),
        Metric("top1", "Top-1 similarity (LPIPS)", "", False, "draws", asked="diversity", default=False),
        Metric("mcsd", "mCSD", "", True, "draws", asked="diversity", default=False),
        Metric("mocd", "mOCD", "", False, "draws", asked="diversity", default=False),
        Metric("locality", "Locality (share of the change inside the region)", "", True, "edits", default=False),
        Metric("region_share", "Share of pixels inside the region", "", None, "edits", default=False),
        Metric("change_inside", "Mean change inside the region", "grey levels", None, "edits", default=False),
        Metric("harmony", "Harmony score of the region", "", True, "edits", default=False),
        Metric("change_outside", "Mean change outside the region", "grey levels", False, "edits", default=False),
    )
}
"""Name -> metric, in the order of tables."""

CHOICES: tuple[str, ...] = tuple(dict.fromkeys(row.asked or row.name for row in METRICS.values() if row.of != "edits"))
"""What a command can be asked for."""

DEFAULT: tuple[str, ...] = tuple(row.name for row in METRICS.values() if row.default)

PIXEL_METRICS: Mapping[str, PairMetric] = {row.name: row.function for row in METRICS.values() if row.function is not None}
"""Those that need no tool."""


class Tools:
    """The metrics that can be computed here; the others with their reasons.

    Args:
        asked: out of `CHOICES`.
        files: tool -> its file; None or absent: found where a package brought it.
        diversity: the tool of metrics of several draws.
        device: where they run.

    Attributes:
        missing: metric asked for -> why it cannot be computed.
        pairs: name -> metric of a picture and its target.
        diversity: LPIPS for several draws, or None.
        inception: features for FID, or None.

    Raises:
        ValueError: a metric that there is not, or a file that holds something else.
        FileNotFoundError: a file that was named is not there.
    """

    def __init__(
        self,
        asked: tuple[str, ...] | list[str],
        files: Mapping[str, str | None] | None = None,
        *,
        diversity: str = "lpips_alex",
        device: Any = "cpu",
    ) -> None:
        unknown = [name for name in asked if name not in CHOICES]
        if unknown or not asked:
            raise ValueError(f"metrics: expected some of {', '.join(CHOICES)}, got {', '.join(unknown) or 'none'}")
        self.missing: dict[str, str] = {}
        self.pairs: dict[str, PairMetric] = {}
        self.diversity: LPIPS | None = None
        self.inception: InceptionFeatures | None = None
        made: dict[str, Any] = {}
        for name in asked:
            row = METRICS[name]
            tool = diversity if row.of == "draws" else row.tool
            if tool is not None and tool not in made:
                given = (files or {}).get(tool)
                try:
                    made[tool] = TOOLS[tool](given).to(device)
                except FileNotFoundError as error:
                    if given is not None:
                        raise
                    self.missing[name] = str(error)
                    continue
            if row.of == "pair":
                self.pairs[name] = row.function or made[str(tool)]
            elif row.of == "set":
                self.inception = made[str(tool)]
            else:
                self.diversity = made[str(tool)]
