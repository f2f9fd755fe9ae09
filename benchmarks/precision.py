"""What fewer digits in the products do to a meta-gradient, on real Omniglot tasks: relative error against float64.

    python benchmarks/precision.py --run runs/imaml     # weights of a run; without it, fresh ones

TF32 is emulated, and needs no GPU: both factors of every convolution and matrix product are rounded to TF32's 11 bits,
and summed in float32, as tensor cores do. bf16 is rounded likewise (8 bits), and taken as ``metagrad train --precision
bf16`` takes it (autocast, which rounds outputs too). Times are not taken: they are a GPU's, ``gpu.py`` takes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inner import Scene, add_options, scene, write
from metagrad.experiment.precision import precision_context
from metagrad.fewshot import FOMAML, IMAML, MAML, Algorithm, MemoryReduced, meta_gradient
from workload import gap, taken

_ATEN = torch.ops.aten
_PRODUCTS = (
    _ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.baddbmm, _ATEN.convolution, _ATEN.convolution_backward,
)  # fmt: skip
METHODS: dict[str, Algorithm] = {
    "iMAML": IMAML(),
    "iMAML as published": IMAML.published(),
    "MAML, 1 step": MAML(inner_lr=0.4, inner_steps=1),
    "first-order MAML, 1 step": FOMAML(inner_lr=0.4, inner_steps=1),
    "memory-reduced": MemoryReduced(),
}


class Rounded(TorchDispatchMode):
    """Rounds the float32 factors of all products to so many bits, the leading one counted."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.dropped = 24 - bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the arguments where ``func`` is a product."""
        if func.overloadpacket in _PRODUCTS:
            args = [self._round(arg) if isinstance(arg, Tensor) and arg.dtype == torch.float32 else arg for arg in args]
        return func(*args, **(kwargs or {}))

    def _round(self, x: Tensor) -> Tensor:
        """Round to nearest, ties to even, on the bits themselves."""
        whole = x.view(torch.int32)
        half = (1 << (self.dropped - 1)) - 1 + ((whole >> self.dropped) & 1)
        return ((whole + half) >> self.dropped << self.dropped).view(torch.float32)


SETTINGS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "float32": nullcontext,
    "TF32, emulated": lambda: Rounded(11),
    "bf16 factors, emulated": lambda: Rounded(8),
    "bf16 autocast": lambda: precision_context("bf16", torch.device("cpu")),
}


@dataclass(frozen=True)
class Row:
    """Error of one method's gradient at one setting, and the cosine of the angle."""

    method: str
    precision: str
    error: float
    cosine: float


def measure(real: Scene, methods: Mapping[str, Algorithm] = METHODS) -> list[Row]:
    """Compare every method's gradient at every setting with its own in float64."""
    rows = []
    for name, method in methods.items():
        exact = _gradient(real.cast("ReLU", torch.float64), method)
        for setting, context in SETTINGS.items():
            with context():
                found = _gradient(real, method)
            found = {key: leaf.double() for key, leaf in found.items()}
            a, b = (torch.cat([part[key].flatten() for key in exact]) for part in (found, exact))
            rows.append(Row(name, setting, gap(found, exact), float(a @ b / (a.norm() * b.norm()))))
            print(f"{name:26} {setting:24} error {rows[-1].error:.1e}  cosine {rows[-1].cosine:.4f}", flush=True)
    return rows


def _gradient(real: Scene, method: Algorithm) -> dict[str, Tensor]:
    own = method.init(real.model)
    with torch.no_grad():
        for name, leaf in own.items():
            leaf.copy_(real.theta[name])
    meta_gradient(method, real.model, own, real.tasks)
    return taken(own)


def main() -> None:
    """Measure and print; write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--csv", type=Path, help="where to write the rows")
    options = parser.parse_args()
    rows = measure(scene(options))
    if options.csv:
        write(options.csv, rows, {"weights": str(options.run or "fresh"), "tasks": options.tasks})


if __name__ == "__main__":
    main()
