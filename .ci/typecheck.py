"""Type check of `make lint`: none in the strict rooms, and elsewhere no more errors than committed in .ci/type_errors.

python .ci/typecheck.py            mypy, strict, over the package (pyproject.toml); status 1 where there are too many
python .ci/typecheck.py --write    write a smaller number down, after errors were mended
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNT = ROOT / ".ci" / "type_errors"
STRICT = (
    "mixsyn_fast/ops/",
    "mixsyn_fast/layers/",
    "mixsyn_fast/accelerate/",
    "mixsyn_fast/region_map.py",
    "mixsyn_fast/latent_map.py",
    "mixsyn_fast/measure/",
    "mixsyn_fast/doctor.py",
    "mixsyn_fast/backend.py",
    "mixsyn_fast/writing.py",
    "mixsyn_fast/reading.py",
    "mixsyn_fast/machine.py",
    "mixsyn_fast/__init__.py",
    "models/stylefusion/",
    "models/losses/",
    "models/augmentation.py",
    "models/stylegan2/pickles.py",
    "models/stylegan2/published.py",
    "models/metrics/",
    "models/pictures/",
    "models/plain.py",
    "models/sheets.py",
    "models/model_file.py",
    "models/data/latents.py",
    "models/data/options.py",
    "models/data/palette.py",
    "models/data/rarity.py",
    "models/data/classes.py",
    "models/data/files.py",
    "models/data/layouts.py",
    "models/clvae/",
    "models/mixsyn/discriminator.py",
    "models/settings.py",
    "models/training/command.py",
    "models/mixsyn/compose.py",
    "models/mixsyn/edit.py",
    "models/mixsyn/diversity.py",
    "mixsyn_fast/cli.py",
    "mixsyn_fast/commands.py",
)


def judge(report: str, allowed: int, *, write: bool = False) -> tuple[int, str]:
    """Return the status and what to say of mypy's report; a smaller number is written down with ``write``."""
    errors = [line for line in report.splitlines() if ": error: " in line]
    strict = [line for line in errors if line.startswith(STRICT)]
    rest = [line for line in errors if line not in strict]
    if strict:
        return 1, "\n".join(strict) + f"\n{len(strict)} type errors where none may be: {', '.join(STRICT)}"
    if len(rest) > allowed:
        return 1, "\n".join(rest) + f"\n{len(rest)} type errors, {allowed} allowed: the number may only fall"
    if len(rest) < allowed and write:
        COUNT.write_text(f"{len(rest)}\n")
    fewer = f"; {allowed} in {COUNT.relative_to(ROOT)}: write it down with --write" if len(rest) < allowed else ""
    return 0, f"types: 0 errors in strict rooms, {len(rest)} elsewhere{'' if write else fewer}"


def main() -> int:
    """Run mypy and judge."""
    done = subprocess.run([sys.executable, "-m", "mypy", "--no-pretty"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in (0, 1):  # 2: mypy itself failed
        print(done.stdout + done.stderr, file=sys.stderr)
        return done.returncode
    status, words = judge(done.stdout, int(COUNT.read_text()), write="--write" in sys.argv[1:])
    print(words)
    return status


if __name__ == "__main__":
    sys.exit(main())
