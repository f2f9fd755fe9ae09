"""Export an adapted network for programs without metagrad."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metagrad.classifier.artifact import Classifier
from metagrad.errors import MetagradError
from metagrad.files import write_atomically

Format = Literal["onnx", "pt2"]


_READ = {
    "strokes": "grey, paper (the median of the border) 0 and the strongest ink 255, whichever is the darker; the "
    "square in whose middle is what is drawn, {fill:.3g} of it in the longer direction; Lanczos to",
    "photograph": "upright, RGB, the largest square in the middle, bicubic to",
}


class _Probabilities(nn.Module):
    """Images ``(N, C, H, W)`` in [0, 1] to probabilities ``(N, classes)``."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.trunk = classifier.trunk or nn.Identity()
        self.network, self.temperature = classifier.network, classifier.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities."""
        return (self.network(self.trunk(images)) / self.temperature).softmax(-1)


def export(classifier: Classifier, path: Path, form: Format) -> None:
    """Write the network, for any batch size, with the metadata needed to use it.

    Input ``images``: float32 ``(N, C, H, W)`` in [0, 1]. Output ``probabilities``: ``(N, classes)``. The file's
    metadata name the classes and say how pictures are read.

    Raises
    ------
    MetagradError
        if the classifier takes no pictures, ``onnx`` is not installed, or the file cannot be written.
    """
    classifier.require_pictures()
    module = _Probabilities(classifier).eval()
    reading = classifier.reading
    example = torch.zeros(2, reading.channels, reading.size, reading.size)
    facts = {
        "classes": json.dumps(classifier.classes, ensure_ascii=False),
        "reading": json.dumps(dataclasses.asdict(reading) | {"channels": reading.channels}),
        "input": f"images: float32 (N, C, H, W) in [0, 1]; {_READ[reading.kind].format(fill=reading.fill)} "
        f"{reading.size}x{reading.size}, / 255",
        "output": "probabilities: float32 (N, classes)",
    }

    def write(temporary: Path) -> None:
        shapes = {"images": {0: torch.export.Dim("N", min=1)}}
        with torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        if form == "pt2":
            made = io.BytesIO()  # torch grumbles at a file of another ending
            torch.export.save(program, made, extra_files={"metagrad.json": json.dumps(facts, ensure_ascii=False)})
            temporary.write_bytes(made.getvalue())
        else:
            _onnx(program, temporary, facts)

    def refused(error: OSError) -> MetagradError:
        return MetagradError(f"cannot write {path} ({error.strerror or error}): choose another --out")

    write_atomically(path, write, refused=refused, follow=True)


def _onnx(program: Any, path: Path, facts: dict[str, str]) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MetagradError(
            "this needs the packages onnx and onnxscript: pip install onnx onnxscript, or use --format pt2"
        ) from error
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, input_names=["images"], output_names=["probabilities"], dynamo=True, verbose=False
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert made is not None
    model = made.model_proto
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):  # there is one that varies, of a name that torch gave
                dim.dim_param = "N"
    for key, value in facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
