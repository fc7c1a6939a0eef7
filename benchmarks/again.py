"""How every file of benchmarks/results is made, and the one command that makes them again.

    python -m benchmarks.again                   lists the files: machine, commit, minutes, command
    python -m benchmarks.again --uncommitted     measures again what says that it was measured with uncommitted changes
    python -m benchmarks.again FILE.json ...     measures these again

The machine should have nothing else to do. Label maps and pictures come from $MIXSYN_FAST_DATA (celebamask_hq/val,
samples/ade20k, cmp_facade). Afterwards `make measured` writes the documents anew.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from . import schema
from .timing import machine_line

ROOT = Path(__file__).resolve().parents[1]
_HALF = (
    "--seconds 0.5 --repeat 9 --modes forward,backward --cases "
    "'bias[^/]*/1x(128|256)x.*channels_last|attention_pair/k16/n128|roi_pool/.*k151/4x64|"
    "roi_pool/mean/k19/1x512|latent_blend|region_norm/table/batch/1x(128|256|512|1024x16)|label_patterns/face/1x256'"
)
_AS_ONE_MACHINE = (
    "--no-published --no-compile --no-float64 --no-memory --repeat 5 --seconds 8 --cases '(sean|spade|clade)/k.*/b1/forward'"
)
_FACADES = "--data $MIXSYN_FAST_DATA/cmp_facade --size 128"

# run folders of models/clvae/README.md, trained anew by who measures again
_JUDGED = " ".join(f"{n}=runs/{n}" for n in ("full", "no_class", "no_layer", "L1", "L3", "spade_vae", "shipped"))

# of models/msca/README.md
_TABLE_1 = " ".join(f"{n}=runs/msca/{n}" for n in ("full", "gap", "labels", "no_fm", "no_global", "spade_vae"))

# run folders of models/harmonized/README.md; FID: --inception FILE
_HARMONIZED = " ".join(f"{n}=runs/harmonized/{n}" for n in ("full", "sean", "no_attention"))
_HARMONIZED_ABLATIONS = ("full", "no_softmax", "no_attention", "no_multi_scale", "sean")

# of models/stylefusion/README.md
_ABLATIONS = ("no_global", "no_stage1", "no_stage2", "no_stage3")

# file -> (minutes on two cores, commands without their --out); variables of the environment are filled in
FILES: dict[str, tuple[float, *tuple[str, ...]]] = {
    "accelerate_cpu.json": (5, "run_accelerate --seconds 6 --repeat 15"),
    "clvae_cpu.json": (
        14,
        "run_clvae levels --repeat 3",
        "run_clvae pooling --repeat 9",
    ),
    "clvae_quality.json": (
        20,
        f"run_clvae_quality --data $MIXSYN_FAST_DATA/cmp_facade --material 6 {_JUDGED}",  # FID: --inception FILE
    ),
    "clvae_step_cpu.json": (4, "run_clvae step --classes 19,151 --repeat 3 --seconds 45"),
    "clvae_edit_cpu.json": (1, "run_clvae edit --repeat 15"),
    "clvae_cpu_avx2.json": (1, "run_clvae pooling --repeat 9 --cpu avx2"),
    "harmonized_cpu.json": (
        4,
        "run_harmonized step --repeat 3",
        "run_harmonized edit --repeat 9",
        "run_harmonized pooling --repeat 5",
        "run_harmonized attention --repeat 9",
        "run_harmonized codes --repeat 9",
        "run_harmonized step --shipped --repeat 3",
        "run_harmonized edit --shipped --repeat 9",
        "run_harmonized codes --shipped --repeat 15",
    ),
    "harmonized_quality.json": (
        30,
        f"run_harmonized_quality --kind procedural_lit_faces --limit 40 --harmony runs/harmony {_HARMONIZED}",
    ),
    "harmonized_quality_photographs.json": (
        8,
        "run_harmonized_quality --data $MIXSYN_FAST_DATA/celebamask_hq --limit 40 --harmony runs/harmonized/harmony "
        "full=runs/harmonized/faces_full sean=runs/harmonized/faces_sean",
    ),
    "harmonized_quality_ablations.json": (
        10,
        "run_harmonized_quality --data $MIXSYN_FAST_DATA/celebamask_hq --limit 40 --tasks reconstruction,transfer "
        "--harmony runs/harmonized/harmony "  # FID: --inception FILE
        + " ".join(f"{name}=runs/harmonized/small_{name}" for name in _HARMONIZED_ABLATIONS),
    ),
    "harmonized_quality_samples.json": (
        5,
        "run_harmonized_quality --data $MIXSYN_FAST_DATA/celebamask_hq --limit 40 --tasks samples "  # FID: --inception FILE
        "style=runs/harmonized/small_style flow=runs/harmonized/small_flow image=runs/harmonized/small_image "
        "kl=runs/harmonized/small_kl",
    ),
    "harmonized_quality_shipped.json": (
        3,
        "run_harmonized_quality --kind procedural_lit_faces --limit 24 --styles 4 --harmony runs/harmony shipped=runs/three",
    ),
    "libraries_cpu.json": (8, "run_libraries --repeat 7 --seconds 60 --no-compile"),  # after `make build/compat/.installed`
    "mixsyn_cpu.json": (9, "run_mixsyn --data $MIXSYN_FAST_DATA/cmp_facade --sizes 256 --repeat 5"),
    "mixsyn_quality_drift.json": (2, "run_mixsyn_drift --data $MIXSYN_FAST_DATA/cmp_facade"),
    "mixsyn_quality.json": (
        6,
        "run_mixsyn_quality judge best=runs/best weights_painted=runs/weights_painted --data $MIXSYN_FAST_DATA/cmp_facade "
        "--lpips auto",  # FID: --inception FILE
    ),
    "mixsyn_quality_ablations.json": (
        40,
        "run_mixsyn_quality ablations --data $MIXSYN_FAST_DATA/cmp_facade --steps 300 --runs runs/mixsyn_ablations "
        "--lpips auto --sheet runs/mixsyn_ablations.png -- --size 64 --validate-images 8",  # FID: --inception FILE
    ),
    "mixsyn_quality_causes.json": (
        65,
        "run_mixsyn_quality causes --data $MIXSYN_FAST_DATA/cmp_facade --steps 200 --runs runs/mixsyn_causes "
        "--lpips auto --sheet runs/mixsyn_causes.png -- --size 64 --validate-images 8",  # FID: --inception FILE
    ),
    "mixsyn_quality_staged.json": (
        3,
        "run_mixsyn_quality judge shipped=facades.safetensors staged=staged.safetensors "
        "--data $MIXSYN_FAST_DATA/cmp_facade --lpips auto",  # FID: --inception FILE
    ),
    "mixsyn_training_cpu.json": (7, f"run_training --model mixsyn {_FACADES} --batch-size 4"),
    "msca_cpu.json": (
        6,
        "run_msca forward --repeat 5 --seconds 60",
        "run_msca keep --repeat 5",
        "run_msca step --repeat 3 --seconds 60",
        "run_msca maps --repeat 3 --seconds 20",
        "run_msca exemplar --repeat 5 --seconds 30",
    ),
    "msca_quality.json": (
        10,
        f"run_msca_quality --data $MIXSYN_FAST_DATA/cmp_facade --limit 40 --skip-absent {_TABLE_1}",  # FID: --inception FILE
    ),
    "msca_quality_scenes.json": (
        4,
        "run_msca_quality --data $MIXSYN_FAST_DATA/camvid --limit 40 --skip-absent scenes=runs/msca/scenes",
    ),
    "models_cpu.json": (9, "run_models --repeat 5 --seconds 30 --cases '^(sean/k19/b[14]|spade/k151/b1)/forward'"),
    "models_cpu_avx2.json": (2, f"run_models --cpu avx2 {_AS_ONE_MACHINE}"),
    "models_cpu_avx512.json": (1, f"run_models {_AS_ONE_MACHINE}"),
    "models_cpu_more.json": (
        3,
        "run_models --no-published --no-compile --repeat 5 --seconds 20 "
        "--cases '^(sean_image/k19/b1|spade/k151/b4|clade/k151/b[14])/forward'",
    ),
    "models_cpu_training.json": (
        4,
        "run_models --no-published --no-compile --repeat 3 --seconds 30 --cases '^(sean|spade|clade)/.*/b1/training'",
    ),
    "ops_cpu.json": (13, "run_ops --seconds 1.5 --repeat 11"),
    "ops_cpu_all_layouts.json": (
        4,
        "run_ops --all --no-compile --modes forward,backward --seconds 0.5 --repeat 9 --cases '^region_norm/'",
    ),
    "ops_cpu_avx2.json": (
        3,
        "run_ops --cpu avx2 --modes forward,backward --seconds 0.8 --repeat 9 "
        "--cases '^(?!.*(fusion_hierarchy/faces/b16|label_patterns/(street|face/4|face/1x(128|512))))'",
    ),
    "ops_cpu_avx2_bfloat16.json": (1.5, f"run_ops --cpu avx2 --no-compile --dtype bfloat16 {_HALF}"),
    "ops_cpu_avx2_float16.json": (1.5, f"run_ops --cpu avx2 --no-compile --dtype float16 {_HALF}"),
    "ops_cpu_baseline.json": (1.5, f"run_ops --cpu baseline {_HALF}"),
    "ops_cpu_bfloat16.json": (1.5, f"run_ops --no-compile --dtype bfloat16 {_HALF}"),
    "ops_cpu_float16.json": (1.5, f"run_ops --no-compile --dtype float16 {_HALF}"),
    "ops_cpu_group_silu.json": (
        4,
        "run_ops --all --modes forward,backward --seconds 1 --repeat 15 --cases region_norm/silu",
    ),
    "ops_cpu_pooling.json": (1, "run_ops --no-compile --modes forward,backward --seconds 0.8 --repeat 9 --cases roi_pool"),
    "plot_ops_cpu.json": (2, "plot_ops"),
    "stylefusion_cpu.json": (6, "run_stylefusion --repeat 9", "run_stylefusion step --repeat 3"),
    "stylefusion_quality.json": (
        4,
        "run_stylefusion_quality --count 500 facades=models/stylefusion/weights/facades.safetensors "
        "faces=models/stylefusion/weights/faces.safetensors ablations=runs/fus_faces_full --region ablations=face,bg_hair "
        + " ".join(f"--compare ablations:{name}=runs/fus_faces_{name}" for name in _ABLATIONS),
    ),
    "stylegan2_cpu.json": (6, "run_stylegan2 --repeat 7 --seconds 60"),
    "stylegan2_cpu_avx2.json": (3, "run_stylegan2 --modes forward --repeat 7 --seconds 60 --cpu avx2"),
    "stylegan2_quality_facades.json": (8, "run_stylegan2_quality --domain facades --count 1000 facades=runs/gan_facades2"),
    "stylegan2_quality_faces.json": (10, "run_stylegan2_quality --domain faces --count 1000 faces=runs/gan_faces"),
    "training_cpu.json": (
        20,
        f"run_training --model sean {_FACADES} --batch-size 16 --generator.ngf 64",
        f"run_training --model sean {_FACADES} --batch-size 8 --generator.ngf 32",
    ),
    "winners_cpu.json": (2, "winners --seconds 0.4"),
    "winners_cpu_avx2.json": (2, "winners --seconds 0.4 --cpu avx2"),
    "winners_cpu_baseline.json": (2, "winners --seconds 0.4 --cpu baseline"),
}
_FOLDERS = {"plot_ops", "winners"}  # commands that know their files' names, and make more than one


def command(text: str, name: str) -> list[str]:
    """Return the arguments of a process that makes the file `name`."""
    module, *words = shlex.split(os.path.expandvars(text))
    out = [] if module in _FOLDERS else ["--out", str((schema.RESULTS / name).relative_to(ROOT))]
    return [sys.executable, "-m", f"benchmarks.{module}", *words, *out]


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.again", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE.json")
    parser.add_argument("--uncommitted", action="store_true", help="the files that say uncommitted changes")
    options = parser.parse_args(arguments)
    there = schema.committed()
    wanted = list(options.files)
    if options.uncommitted:
        wanted += [name for name, result in there.items() if result["machine"]["uncommitted_changes"] and name not in wanted]
    unknown = [name for name in wanted if name not in FILES]
    if unknown:
        print(f"{unknown[0]}: expected one of {', '.join(FILES)}", file=sys.stderr)
        return 2
    if not options.files and not options.uncommitted:
        for name, (minutes, *commands) in FILES.items():
            print(f"{name}: about {minutes:g} min; {machine_line(there[name]['machine']) if name in there else 'not there'}")
            print("".join(f"    python -m benchmarks.{text}\n" for text in commands), end="")
        return 0
    if wanted and not os.environ.get("MIXSYN_FAST_DATA"):
        print("MIXSYN_FAST_DATA: expected the folder of the real label maps, got nothing", file=sys.stderr)
        return 2
    print(f"{len(wanted)} files, about {sum(FILES[name][0] for name in wanted):g} minutes", flush=True)
    for name in wanted:
        for text in FILES[name][1:]:
            print(f"python -m benchmarks.{text}", flush=True)
            if subprocess.call(command(str(text), name), cwd=ROOT) not in (
                0,
                1,
            ):  # 1: a row is lost, which the documents say
                return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
