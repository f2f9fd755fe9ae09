"""``metagrad export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError


@dataclass(frozen=True)
class Export:
    """Write a classifier for programs without metagrad: images in, probabilities out."""

    model: Path = arg(positional=True, metavar="MODEL")
    """The file that metagrad adapt wrote."""
    format: Literal["onnx", "pt2"] = "onnx"
    """onnx: for onnxruntime and others, in any language (needs the packages onnx and onnxscript). pt2: for PyTorch,
    torch.export.load."""
    out: Path | None = arg(None, metavar="FILE")
    """File to write; one that is there is replaced. Default: MODEL with the format as its ending."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """package.module:name of your own code that the classifier names, to say that it may be imported. Once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        out = self.out or self.model.with_name(f"{self.model.stem}.{self.format}")
        if out.is_dir():
            raise MetagradError(f"--out {out} is a folder: name a file")
        from metagrad.classifier.artifact import Classifier
        from metagrad.classifier.export import export
        from metagrad.cli.progress import console
        from metagrad.files import require_apart

        require_apart(out, self.model)
        screen = console()
        classifier = Classifier.load(self.model, code=self.code)
        with screen.status("exporting"):
            export(classifier, out, self.format)
        reading = classifier.reading
        screen.print(
            f"wrote {out} ({out.stat().st_size / 1024:.0f} kB): images float32 (N, {reading.channels}, {reading.size}, "
            f"{reading.size}) in [0, 1] to probabilities of {len(classifier.classes)} classes",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
        return 0
