"""Initial value of a linear layer on frozen features: the identity, or a whitening of the training features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metagrad.data import Classes
from metagrad.data.features import FeatureDataset
from metagrad.errors import MetagradError
from metagrad.experiment.pretrained import Pretrained
from metagrad.experiment.sources import Sources
from metagrad.tree import Params

_ROWS = 8192  # at a time: they may live in a file


def require_layer(network: Any, sources: Sources) -> None:
    """Refuse a whitening layer where there is no data set of features.

    Raises
    ------
    MetagradError
        saying what to leave out.
    """
    whitens = isinstance(network, Pretrained) and network.layer == "whitening"
    if whitens and not isinstance(sources.dataset, FeatureDataset):
        raise MetagradError(
            "layer whitening needs a data set whose features are computed once: leave it out for tasks of your own"
        )


def begin_layer(network: Any, sources: Sources, theta: Params) -> None:
    """Set the layer of a pretrained network to the whitening of the training features, in place, if it is chosen."""
    if isinstance(network, Pretrained) and network.layer == "whitening":
        require_layer(network, sources)
        assert sources.dataset is not None
        with torch.no_grad():
            theta["layer.weight"].copy_(whitening(sources.dataset.train))


def whitening(classes: Classes) -> Tensor:
    """Return ``(C + c I)^(-1/2)``, ``(F, F)``, of the covariance C within classes of features of unit length.

    c is the mean of C's diagonal: so few features have no direction that is blown up. The mean of the diagonal of what
    is returned is 1.

    Parameters
    ----------
    classes:
        features ``(N, F)``.

    Examples
    --------
    >>> import torch
    >>> from metagrad.data import Classes
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
    >>> whitening(Classes.from_arrays(features, torch.tensor([0, 0, 1, 1]))).round(decimals=2).abs().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    size = classes.data.shape[1]
    total = torch.zeros(size, size, dtype=torch.float64)
    places = zip(classes.first.tolist(), classes.counts.tolist(), strict=True)
    rows: list[Tensor] = []
    count = waiting = 0
    for first, number in [*places, (0, 0)]:
        if number:
            own = functional.normalize(torch.as_tensor(classes.data[first : first + number]).cpu().float(), dim=-1)
            rows.append(own - own.mean(0))
            waiting += number
        if rows and (waiting >= _ROWS or not number):
            spread = torch.cat(rows)
            total += (spread.T @ spread).double()
            count, waiting, rows = count + waiting, 0, []
    covariance = total / count
    values, vectors = torch.linalg.eigh(covariance + covariance.diagonal().mean() * torch.eye(size, dtype=total.dtype))
    root = (vectors * values.rsqrt()) @ vectors.T
    return (root / root.diagonal().mean()).float()
