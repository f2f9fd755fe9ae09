"""Other people's packages that are asked for the same number: where they are found, how far two answers are apart."""

import importlib.util
import os

import pytest
import torch


def referee(name):
    """Return the package, or skip the test with how to have it."""
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install 'metagrad[referees]'")


def jax_in_double():
    """Return jax in float64 throughout; XLA would optimise for seconds what runs for milliseconds."""
    level = "--xla_backend_optimization_level=0"
    if level not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {level}"  # read when jax first compiles
    jax = referee("jax")
    jax.config.update("jax_enable_x64", True)
    return jax


def joined(parts):
    """Return tensors, arrays or a dictionary of them as one vector of float64."""
    parts = parts.values() if isinstance(parts, dict) else parts
    return torch.cat([torch.as_tensor(part).detach().flatten().double() for part in parts])


def distance(found, expected):
    """Return the relative distance of two nests of the same order."""
    found, expected = joined(found), joined(expected)
    assert expected.norm() > 1e-6, "nothing to compare"
    return ((found - expected).norm() / expected.norm()).item()


class Operators:
    """Names that torchvision's wheel for CUDA registers and asks for; nothing here calls them."""

    library = None

    @classmethod
    def named(cls):
        if cls.library is None:
            cls.library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                cls.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def imported(name):
    """Return the package; next to a torch for CPUs alone, torchvision's wheel for CUDA needs a hand."""
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            Operators.named()
    return referee(name)
