"""Put a run's learning into the package: the weights it was tested with, its options, its calibration.

    metagrad train drawings ... --run runs/drawings       # RESULTS.md has the whole command
    python tools/ship_model.py runs/drawings glyphs
    python benchmarks/handwriting.py --data-dir data      # its calibration on drawings by hand

Left out is what only --resume needs, and where the data lay.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from metagrad import strict_json

HOME = Path(__file__).parents[1] / "src" / "metagrad" / "classifier" / "models"


def main(run: Path, name: str) -> None:
    """Copy it."""
    target = HOME / name
    target.mkdir(parents=True, exist_ok=True)
    record = strict_json.read(run / "config.json")
    record["data"].pop("data_dir", None)
    (target / "config.json").write_text(json.dumps(strict_json.signed(record), indent=2) + "\n", encoding="utf-8")
    for file in ("best.safetensors", "calibration.json", "result.json"):
        shutil.copy(run / file, target / file)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1024:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
