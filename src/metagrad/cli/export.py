"""``metagrad export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError


@dataclass(frozen=True)
class Export:
    """Export a classifier for programs without metagrad: images in, probabilities out."""

    model: Path = arg(positional=True, metavar="MODEL")
    """The file that metagrad adapt wrote."""
    format: Literal["onnx", "pt2"] = "onnx"
    """Format of the file: onnx for onnxruntime and others, in any language (needs the packages onnx and onnxscript);
    pt2 for PyTorch's torch.export.load."""
    out: Path | None = arg(None, metavar="FILE")
    """File to write; an existing one is replaced. Default: MODEL with the format as its ending."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Allow the import of your own code that the classifier names, as package.module:name. Give it once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        out = self.out or self.model.with_name(f"{self.model.stem}.{self.format}")
        if out.is_dir():
            raise MetagradError(f"--out {out} is a folder: give a file")
        from metagrad.classifier.artifact import Classifier
        from metagrad.classifier.export import export
        from metagrad.cli.progress import Screen
        from metagrad.files import require_apart

        require_apart(out, self.model)
        screen = Screen()
        classifier = Classifier.load(self.model, code=self.code)
        with screen.status("exporting"):
            export(classifier, out, self.format)
        reading = classifier.reading
        screen.write_line(
            f"wrote {out} ({out.stat().st_size / 1024:.0f} kB): takes images, float32 (N, {reading.channels}, "
            f"{reading.size}, {reading.size}) in [0, 1], and returns probabilities (N, {len(classifier.classes)})"
        )
        return 0
