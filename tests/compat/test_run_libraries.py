"""The rows of benchmarks/run_libraries.py that need other libraries, with tiny widths: they run and pass their gates."""

from __future__ import annotations

import pytest

from benchmarks import run_libraries
from benchmarks.cases import label_source
from benchmarks.run_libraries import LibraryCase
from mixsyn_fast.writing import jsonable

UNET = {"channels": (8, 8), "num_res_blocks": 1, "attention_levels": (False, True), "norm_num_groups": 4}
UNET |= {"num_head_channels": 4, "spade_intermediate_channels": 8}
ROWS = [
    LibraryCase("monai_unet", 16, UNET, 19, "face"),
    LibraryCase("monai_unet_fused", 16, UNET | {"use_flash_attention": True}, 19, "face"),
    LibraryCase("monai_unet_3d", 8, UNET, 6, "volume"),
    LibraryCase("monai_spadenet", 16, {"channels": [8, 8], "is_vae": False, "spade_intermediate_channels": 8}, 19, "face"),
    LibraryCase("movq", 4, {"block_out_channels": (32, 32), "layers_per_block": 1}),
    LibraryCase("cogvideox", 4, {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}),
]


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_a_row(case: LibraryCase) -> None:
    if problem := run_libraries.missing(run_libraries.MODELS[case.model].packages):
        pytest.skip(problem)
    row = run_libraries.run_case(case, label_source(None), run_libraries.parse(["--repeat", "1", "--no-compile"]))
    entries, facts = row["contenders"], row["facts"]
    assert all(entry.timing is not None for entry in entries.values()), entries
    assert facts["layers"] > 0 and 0 < facts["share"] < 1 and len(row["targets"]) == 1
    assert facts["accelerated"] == facts["layers"]
    assert run_libraries.told(jsonable(row)).endswith(f"{facts['accelerated']} of {facts['layers']} layers accelerated")
