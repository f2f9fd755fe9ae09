"""Titles, units and formats of a run's numbers: known keys of ``metrics.jsonl``, and any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A key of ``metrics.jsonl``: its title, unit, factor, and whether its axis may be logarithmic.

    ``more``: a diagnostic, or a number that metagrad does not know; the page folds its figure in.
    """

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0
    log: bool = False
    more: bool = False


_SOLVED = (
    Quantity("grad_norm", "Inner gradient norm: 0 if the inner problems are solved", log=True, more=True),
    Quantity("residual", "Residual of the linear system: 0 if it is solved", log=True, more=True),
    Quantity("min_curvature", "Smallest curvature in the linear solve", more=True),
    Quantity("stopped", "Tasks whose linear solve stopped at negative curvature", "%", 100, more=True),
    Quantity("cpu_seconds", "Processor time", "s", more=True),
    Quantity("seconds", "Time", "s", more=True),
    Quantity("inner_steps", "Inner steps taken", more=True),
    Quantity("max_curvature", "Largest curvature in the linear solve", more=True),
    Quantity("delta", "Error of inner solutions, upper bound (δ)", log=True, more=True),
    Quantity("delta_at_least", "Error of inner solutions, lower bound (δ)", log=True, more=True),
    Quantity("delta_prime", "Error of the linear solve, upper bound (δ′)", log=True, more=True),
    Quantity("delta_prime_at_least", "Error of the linear solve, lower bound (δ′)", log=True, more=True),
)


def metric_of(line: dict[str, Any]) -> str:
    """Return the metric's name in a line of ``metrics.jsonl``, as it is written there; ``"loss"`` where it is the loss.

    Examples
    --------
    >>> metric_of({"step": 10, "val_squared_error": 0.5, "val_ci95": 0.1, "val_loss": 0.5})
    'squared_error'
    >>> metric_of({"step": 10, "loss": 0.5, "accuracy": 0.8, "grad_norm": 0.1})
    'accuracy'
    """
    names = list(line)
    validated = [name.removeprefix("val_") for name in names if name.startswith("val_")]
    if validated:
        return next((name for name in validated if name not in ("ci95", "loss")), "loss")
    if "loss" in line and "grad_norm" in line:
        names = names[names.index("loss") + 1 : names.index("grad_norm")]
        return names[0] if names else "loss"
    return "loss"


def quantities(lines: Sequence[dict[str, Any]]) -> list[Quantity]:
    """Return what can be drawn of these lines: known keys first, then every other key."""
    metrics = dict.fromkeys(metric_of(line) for line in lines)
    known = []
    for name in metrics:
        title = name.replace("_", " ")
        title = title[:1].upper() + title[1:]
        percent = ("%", 100.0) if is_share(name) else ("", 1.0)
        if name != "loss":
            known.append(Quantity(f"val_{name}", f"{title} on validation tasks", *percent))
            known.append(Quantity(name, f"{title} on training tasks", *percent))
    unit = "nats" if "accuracy" in metrics else ""
    losses = [
        Quantity("val_loss", "Query loss on validation tasks", unit),
        Quantity("loss", "Query loss on training tasks", unit),
    ]
    known += [one for one in losses if not _twice(one.key, lines)]
    known += _SOLVED
    keys = {one.key for one in known} | {"step", "val_ci95", "val_loss", "loss"}
    others = dict.fromkeys(key for line in lines for key in line if key not in keys)
    return known + [Quantity(key, key.replace("_", " "), more=True) for key in others]


def _twice(key: str, lines: Sequence[dict[str, Any]]) -> bool:
    """Whether a loss is everywhere the metric itself."""
    prefix = key.removesuffix("loss")
    having = [(line[key], line, metric_of(line)) for line in lines if key in line]
    return all(metric != "loss" and line.get(prefix + metric) == value for value, line, metric in having)


def is_share(metric: str) -> bool:
    """Whether a metric is a fraction, which is printed in per cent."""
    return metric.endswith("accuracy")


def number(metric: str, value: float, digits: int = 3) -> str:
    """Return a metric's value as text: an accuracy in per cent."""
    return f"{100 * value:.1f} %" if is_share(metric) else f"{value:.{digits}g}"


def with_interval(metric: str, value: float, ci95: float, *, places: int = 1) -> str:
    """Return a metric's value with the half width of its 95 % interval; ``places`` decimals for an accuracy.

    Examples
    --------
    >>> with_interval("accuracy", 0.486, 0.0516)
    '48.6 ± 5.2 %'
    >>> with_interval("squared_error", 0.5123, 0.0211)
    '0.5123 ± 0.021'
    """
    if is_share(metric):
        return f"{100 * value:.{places}f} ± {100 * ci95:.{places}f} %"
    return f"{value:.4g} ± {ci95:.2g}"


def chance_of(metric: str, protocol: Mapping[str, Any]) -> float | None:
    """Return the accuracy of guessing; ``None`` for another metric, or where the number of classes is not known."""
    return 1 / protocol["ways"] if is_share(metric) and protocol.get("ways") else None


def metric_of_result(result: dict[str, Any]) -> str:
    """Return the metric of a ``result.json``, in words."""
    return str(result.get("metric", "accuracy")).removeprefix("test_").removeprefix("val_").replace("_", " ")


def gain_text(found: Mapping[str, Any]) -> str:
    """Return in words how much more accurate meta-training is than nearest class means of the frozen features.

    Parameters
    ----------
    found:
        what :func:`metagrad.experiment.class_mean.gained` returned.

    Examples
    --------
    >>> gain_text({"value": 0.61, "gain": 0.123, "gain_ci95": 0.011, "tasks": 600})
    'nearest class mean of the frozen features: 61.0 %; meta-training gained 12.3 ± 1.1 points (same 600 tasks)'
    >>> gain_text({"value": 0.61, "gain": 0.003, "gain_ci95": 0.011, "tasks": 600}).partition("; ")[2]
    'meta-training gained nothing measurable, 0.3 ± 1.1 points (same 600 tasks)'
    """
    points, width = 100 * found["gain"], 100 * found["gain_ci95"]
    if abs(points) <= width:
        gain = f"gained nothing measurable, {points:.1f} ± {width:.1f} points"
    else:
        gain = f"{'gained' if points > 0 else 'lost'} {abs(points):.1f} ± {width:.1f} points"
    baseline = f"nearest class mean of the frozen features: {100 * found['value']:.1f} %"
    return f"{baseline}; meta-training {gain} (same {found['tasks']} tasks)"


def protocol_text(protocol: dict[str, Any]) -> str:
    """Return in words how the tasks of a result were drawn, as far as its protocol records it."""
    words = [f"{protocol['dataset']} {protocol['split']}"]
    if "ways" in protocol:
        words.append(f"{protocol['ways']}-way {protocol['shots']}-shot")
        words.append(f"{protocol['queries']} queries a class")
    if "training" in protocol:
        words.append(f"trained on {protocol['training']}")
    if "variation" in protocol:
        words.append(str(protocol["variation"]))
    if "backbone" in protocol:
        words.append(f"on features of {protocol['backbone']}")
    words.append(f"{protocol['tasks']} tasks{' that share no image' * protocol.get('disjoint', False)}")
    if protocol["transductive"] or "ways" in protocol:
        words.append("transductive" if protocol["transductive"] else "not transductive")
    return ", ".join(words)
