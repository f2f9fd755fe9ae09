"""The classifier as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError("FewShotClassifier needs scikit-learn 1.6 or later: pip install scikit-learn") from error

from metagrad.classifier.given import (
    Pictures,
    Span,
    are_files,
    arrays,
    as_bytes,
    column,
    from_rows,
    require_alike,
    span_of,
)
from metagrad.classifier.learner import Learner
from metagrad.data.decoding import reason
from metagrad.data.reading import Reading
from metagrad.errors import MetagradError, in_short
from metagrad.experiment.pretrained import Pretrained


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Learn classes from a few examples of each, starting from a metagrad run or a pretrained network.

    Pictures may be files (strings or paths), arrays or tensors ``(n, H, W)``, ``(n, H, W, C)`` or ``(n, C, H, W)`` of
    1, 3 or 4 channels, a list of such of their own sizes, or the rows of a matrix: a row whose length is a square
    number, or three times one, is a picture laid out line by line. A column of a data frame will do. All are read as
    files are: what is transparent is paper, and a picture on which nothing is drawn is refused where drawings are
    wanted. Black and white are 0 and 1, or 0 and 255, where the training pictures' numbers are such, else the least and
    the greatest of them.

    Parameters
    ----------
    run:
        run directory, ``"glyphs"``: the model of drawings that comes with metagrad, or ``"photos"``. Default:
        ``"glyphs"``, where no network is given.
    network:
        In place of a run: a pretrained network, by its name (``"efficientnet-lite0"``, ``"timm:resnet18"``) or as a
        :class:`~metagrad.experiment.pretrained.Pretrained`. The rows of a matrix are then features, not pixels, of any
        length and from any source. The network itself is needed only for pictures.
    class_weight:
        weights of the classes: ``"balanced"``, all classes count the same, however many pictures they have; ``None``,
        all pictures count the same; or a weight for each label, 1 for missing ones.

    Attributes
    ----------
    classes_:
        the labels, sorted.
    classifier_:
        the :class:`~metagrad.classifier.artifact.Classifier` behind it: save it for ``metagrad predict``.
    n_features_in_:
        length of a row, where a matrix was given.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from metagrad import FewShotClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> model = FewShotClassifier().fit(X[:50], y[:50])
    >>> model.predict(X[50:53]).shape
    (3,)
    """

    def __init__(
        self,
        run: str | Path | None = None,
        *,
        network: str | Pretrained | None = None,
        class_weight: str | Mapping[Any, float] | None = "balanced",
    ) -> None:
        self.run = run
        self.network = network
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt to the pictures ``X``, or to rows of features, and their labels ``y``.

        Raises
        ------
        TypeError
            if ``run`` is no path, or ``network`` no network.
        ValueError
            for fewer than two classes, labels that are no classes, pictures that are none, or a run and a network.
        """
        self._require_one()
        pictures, form = self._pictures(X, y)
        y = column_or_1d(y, warn=True)
        try:
            check_classification_targets(y)
            classes, index = np.unique(y, return_inverse=True)
        except TypeError as error:
            raise ValueError(f"labels of several kinds have no order ({error}): make all text, or numbers") from error
        if len(pictures) != len(y):
            raise ValueError(f"X has {len(pictures)} pictures, y has {len(y)} labels")
        if len(classes) < 2:
            raise ValueError(f"FewShotClassifier needs two classes at least, y has one class: {classes[0]}")
        learner = self._learner(pictures.shape[1] if form == _FEATURES else None)  # type: ignore[union-attr]
        span = None if form == _FEATURES or are_files(pictures) else span_of(pictures)
        digits = len(str(len(classes)))
        called = [f"{number:0{digits}}" for number in range(len(classes))]  # in the order of the labels, as text too
        weight = _by_name(self.class_weight, classes, called)
        try:
            labels = [called[number] for number in index]
            if form == _FEATURES:
                adapted = learner.adapt_inputs(_rows(pictures), labels, class_weight=weight)
            else:
                adapted = learner.adapt(_images(pictures, learner.reading, span), labels, class_weight=weight)
        except MetagradError as error:
            raise ValueError(str(error)) from error
        # Only now, so that what was fitted before stays whole where this fit fails.
        self.classes_, self.range_, self.form_ = classes, span, form
        said = tuple(str(label) for label in classes)
        self.classifier_ = replace(adapted, classes=said if len(set(said)) == len(said) else adapted.classes)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each picture."""
        check_is_fitted(self)
        return np.asarray(self.classes_)[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class, ``(n, classes)``, in the order of ``classes_``."""
        return self._judged(X)[0]

    def ood_score(self, X: Any) -> np.ndarray:
        """Return how far each picture is from the nearest class, where classes are 1 apart on average."""
        return self._judged(X)[1]

    def _judged(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        pictures, form = self._pictures(X)
        if form == _FEATURES:
            probabilities, ood_score = self.classifier_.classify_inputs(self._of_length(_rows(pictures)))
        elif self.form_ == _FEATURES:
            probabilities, ood_score = self.classifier_.classify_inputs(self._features(pictures))
        else:
            if form != self.form_:
                raise ValueError(f"fitted on {self.form_}, but these are {form}")
            if self.range_ is not None:
                require_alike(pictures, self.range_)
            images = _images(pictures, self.classifier_.reading, self.range_)
            probabilities, ood_score = self.classifier_.classify(images)
        probabilities = probabilities.double()
        return (probabilities / probabilities.sum(1, keepdim=True)).numpy(), ood_score.numpy()

    def _require_one(self) -> None:
        if self.run is not None and self.network is not None:
            raise ValueError("give a run or a network, not both: a run has its own network")
        if not isinstance(self.run, str | Path | None):
            raise TypeError(f'run is a directory or "glyphs", not {self.run!r}')
        if not isinstance(self.network, str | Pretrained | None):
            raise TypeError(f"network is the name of a pretrained network, or a Pretrained, not {self.network!r}")

    def _learner(self, num_features: int | None = None) -> Learner:
        """Return the learner of pictures, or of rows of features of this length."""
        if self.network is None:
            return Learner.of(Path("glyphs" if self.run is None else self.run))
        network = Pretrained(self.network) if isinstance(self.network, str) else self.network
        return Learner.untrained(network) if num_features is None else Learner.on_rows(network, num_features)

    def _of_length(self, rows: torch.Tensor) -> torch.Tensor:
        assert self.classifier_.examples is not None
        length = self.classifier_.examples[0].shape[1]
        if rows.shape[1] != length:
            raise ValueError(f"X has {rows.shape[1]} features, the model was fitted on {length} of each picture")
        return rows

    def _features(self, pictures: Pictures) -> torch.Tensor:
        """Return the network's features of pictures, where a model was fitted on rows."""
        learner = self._learner()
        if learner.inputs != (self.n_features_in_,):
            raise ValueError(
                f"fitted on rows of {self.n_features_in_} features, but the network computes {learner.inputs[0]} "
                "features of these pictures: give rows, or fit on pictures"
            )
        span = None if are_files(pictures) else span_of(pictures)
        return learner.network_inputs(_images(pictures, learner.reading, span))

    def _pictures(self, X: Any, y: Any = "no_validation") -> tuple[Pictures, str]:
        """Check the input; return file names or pictures, and their form."""
        X = column(X)
        if are_files(X):
            return list(X), "files"
        found = arrays(X)
        if found is not None:
            return found, "an array of pictures"
        if self.network is not None:
            if isinstance(y, str):
                return validate_data(self, X, reset=False, dtype=np.float64), _FEATURES
            return validate_data(self, X, y, dtype=np.float64)[0], _FEATURES
        if isinstance(y, str):
            if getattr(self, "form_", _ROWS) != _ROWS:
                raise ValueError(f"fitted on {self.form_}, but these are {_ROWS}")
            return from_rows(validate_data(self, X, reset=False, dtype=np.float64)), _ROWS
        return from_rows(validate_data(self, X, y, dtype=np.float64)[0]), _ROWS

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.network is not None  # else not any: rows are square pictures
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


_ROWS = "rows of a matrix"
_FEATURES = "rows of features"


def _rows(rows: Pictures) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.float32))


def _by_name(class_weight: Any, classes: np.ndarray, called: list[str]) -> Any:
    """Return weights by the names that the classes have while adapting; what is no dictionary as it is."""
    if not isinstance(class_weight, Mapping):
        return class_weight
    names = dict(zip(classes.tolist(), called, strict=True))
    found = {}
    for label, weight in class_weight.items():
        own = label.item() if isinstance(label, np.generic) else label
        if own not in names:
            raise ValueError(f"class_weight names {in_short(repr(own), 100)}, which is none of the labels")
        found[names[own]] = weight.item() if isinstance(weight, np.generic) else weight
    return found


def _images(pictures: Pictures, reading: Reading, span: Span | None) -> torch.Tensor:
    """Read pictures, all by one reader."""
    if span is None:
        return torch.from_numpy(np.stack([_read(Path(path), reading) for path in pictures]))
    found = []
    for number, one in enumerate(pictures):
        try:
            found.append(reading.pixels(as_bytes(one, span)))
        except ValueError as error:
            raise ValueError(f"picture {number} cannot be read ({reason(error)})") from error
    return torch.from_numpy(np.stack(found))


def _read(path: Path, reading: Reading) -> np.ndarray:
    data = path.read_bytes()
    try:
        return reading(data)
    except Exception as error:  # Pillow lets through whatever its parsers raise on a damaged file
        raise ValueError(f"{path} cannot be read ({reason(error)})") from error
