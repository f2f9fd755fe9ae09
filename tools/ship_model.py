"""Put a run's learning into the package: the weights it was tested with, its options, its calibration.

    metagrad train glyphs --meta-steps 2000 --val-every 200 --val-tasks 400 --run runs/glyphs
    python tools/ship_model.py runs/glyphs
    python benchmarks/handwriting.py --data-dir data      # its calibration on drawings by hand

Left out is what only --resume needs: Adam's moments, the metrics.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

HOME = Path(__file__).parents[1] / "src" / "metagrad" / "classifier" / "models"


def main(run: Path) -> None:
    """Copy it."""
    target = HOME / run.name
    target.mkdir(parents=True, exist_ok=True)
    with safe_open(run / "best.safetensors", framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("adam/")}  # noqa: SIM118
        metadata = file.metadata()
    facts = json.loads(metadata["facts"])
    metadata["facts"] = json.dumps({**facts, "window": []})
    save_file(kept, target / "best.safetensors", metadata=metadata)
    record = json.loads((run / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name in ("calibration.json", "result.json"):
        shutil.copy(run / name, target / name)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1024:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
