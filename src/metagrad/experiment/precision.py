"""The precision of a network's products."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metagrad.experiment.experiment import Precision


@contextmanager
def precision_context(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions on ``device`` with ``precision`` inside a ``with`` block.

    ``"float32"`` switches off the TF32 that torch uses for convolutions by default. Weights, sums, losses and all that
    solvers compute stay in float32.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    onednn = bool(torch.backends.mkldnn.enabled)
    if precision == "bf16" and device.type == "cpu":
        _onednn(False)
    try:
        # No cache of cast weights: inner steps change them in place.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        if bool(torch.backends.mkldnn.enabled) != onednn:
            _onednn(onednn)


def _onednn(enabled: bool) -> None:
    """Let oneDNN compute, or not.

    On an EPYC with avx512_bf16 its bf16 convolution gives, now and then, a weight gradient that is not a number (seen
    with two channels, torch 2.13.0: 8 of 12 tries, none without it), as if it read uninitialised memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no Intel GPU
        torch.backends.mkldnn.set_flags(enabled)
