"""metagrad: meta-learning with implicit gradients.

The names below are imported on first use, so that the command line answers ``--help`` without loading torch.
"""

from __future__ import annotations

from metagrad.version import VERSION

TYPE_CHECKING = False  # typing's takes 10 ms, in which Ctrl-C would end the command in a traceback
if TYPE_CHECKING:
    from typing import Any

    from metagrad import report as report
    from metagrad.allocator import keep_memory as keep_memory
    from metagrad.classifier.estimator import FewShotClassifier as FewShotClassifier
    from metagrad.errors import DivergedError as DivergedError
    from metagrad.errors import MetagradError as MetagradError
    from metagrad.errors import MetagradWarning as MetagradWarning
    from metagrad.errors import NotFiniteError as NotFiniteError
    from metagrad.experiment import Budget as Budget
    from metagrad.experiment import Compute as Compute
    from metagrad.experiment import Conv4Config as Conv4Config
    from metagrad.experiment import Episodes as Episodes
    from metagrad.experiment import Experiment as Experiment
    from metagrad.experiment import MLPConfig as MLPConfig
    from metagrad.experiment import Outer as Outer
    from metagrad.experiment import ResNet12Config as ResNet12Config
    from metagrad.experiment import Run as Run
    from metagrad.experiment import TaskSet as TaskSet
    from metagrad.experiment import train as train
    from metagrad.implicit import CG as CG
    from metagrad.implicit import LBFGS as LBFGS
    from metagrad.implicit import MINRES as MINRES
    from metagrad.implicit import Adam as Adam
    from metagrad.implicit import Composed as Composed
    from metagrad.implicit import Dense as Dense
    from metagrad.implicit import FirstOrder as FirstOrder
    from metagrad.implicit import FixedPoint as FixedPoint
    from metagrad.implicit import GradientDescent as GradientDescent
    from metagrad.implicit import HessianFree as HessianFree
    from metagrad.implicit import Implicit as Implicit
    from metagrad.implicit import Nesterov as Nesterov
    from metagrad.implicit import Neumann as Neumann
    from metagrad.implicit import Proximal as Proximal
    from metagrad.implicit import Solution as Solution
    from metagrad.implicit import TorchOptimizer as TorchOptimizer
    from metagrad.implicit import Unroll as Unroll
    from metagrad.implicit import Woodbury as Woodbury
    from metagrad.implicit import argmin as argmin
    from metagrad.implicit import attach as attach
    from metagrad.implicit import check_meta_gradient as check_meta_gradient

__version__ = VERSION

_HOMES = {
    **dict.fromkeys(("DivergedError", "MetagradError", "MetagradWarning", "NotFiniteError"), "metagrad.errors"),
    **dict.fromkeys(
        (
            "Adam",
            "CG",
            "Composed",
            "Dense",
            "FirstOrder",
            "FixedPoint",
            "GradientDescent",
            "HessianFree",
            "Implicit",
            "LBFGS",
            "MINRES",
            "Neumann",
            "Nesterov",
            "Proximal",
            "Solution",
            "TorchOptimizer",
            "Unroll",
            "Woodbury",
            "argmin",
            "attach",
            "check_meta_gradient",
        ),
        "metagrad.implicit",
    ),
    **dict.fromkeys(
        (
            "Budget",
            "Compute",
            "Conv4Config",
            "Episodes",
            "Experiment",
            "MLPConfig",
            "Outer",
            "Pretrained",
            "ResNet12Config",
            "Run",
            "TaskSet",
            "train",
        ),
        "metagrad.experiment",
    ),
    "FewShotClassifier": "metagrad.classifier.estimator",
    "keep_memory": "metagrad.allocator",
}

_PACKAGES = ("classifier", "data", "experiment", "fewshot", "implicit", "report", "tree")  # as metagrad.report, too


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "__all__":
        return ["__version__", *(one for one in _HOMES if one != "FewShotClassifier" or _has_scikit_learn())]
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        from importlib import import_module

        return import_module(f"metagrad.{name}")
    raise AttributeError(f"module 'metagrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))


def _has_scikit_learn() -> bool:
    """Whether what ``FewShotClassifier`` needs is installed: without it, ``from metagrad import *`` leaves it out."""
    from importlib.util import find_spec

    try:
        return find_spec("sklearn") is not None
    except ImportError:
        return False
