"""With how many digits a network's products are taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metagrad.training.config import Precision


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Take matrix products and convolutions on ``device`` with ``precision`` for a while.

    ``"float32"`` switches off the TF32 that torch has on for convolutions. Weights, sums, losses and everything of the
    solvers stay in float32 whatever it is.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        # No cache of cast weights: inner steps change them in place.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
