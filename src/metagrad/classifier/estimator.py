"""The classifier as a scikit-learn estimator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError("FewShotClassifier needs scikit-learn 1.6 or later: pip install scikit-learn") from error

from metagrad.classifier.learner import Learner
from metagrad.data.pictures import reason
from metagrad.data.reading import Blank, Reading
from metagrad.errors import MetagradError


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Learn classes from a few examples of each, with what a metagrad run has learned.

    Pictures may be files (strings or paths), arrays ``(n, H, W)`` or ``(n, H, W, 3)``, or the rows of a matrix: a row
    whose length is a square number, or three times one, is a picture laid out row by row; any other is filled up with
    the least value to such a one. Numbers are scaled so that the least and the greatest of the training pictures are
    black and white.

    Parameters
    ----------
    run:
        run directory, or ``"glyphs"``: the model of drawn characters that comes with metagrad.

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

    def __init__(self, run: str | Path = "glyphs") -> None:
        self.run = run

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt to the pictures ``X`` and their labels ``y``.

        Raises
        ------
        TypeError
            if ``run`` is no path.
        ValueError
            for fewer than two classes, labels that are no classes, or pictures that are none.
        """
        if not isinstance(self.run, str | Path):
            raise TypeError(f'run is a directory or "glyphs", not {self.run!r}')
        pictures = self._pictures(X, y)
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
        learner = Learner.of(Path(self.run))
        span = None if _is_files(pictures) else (float(np.min(pictures)), float(np.max(pictures)))
        digits = len(str(len(classes)))
        names = [f"{number:0{digits}}" for number in index]  # in the order of the labels, as text too
        try:
            images = _images(pictures, learner.reading, span)
            adapted = learner.adapt(images, names)
        except MetagradError as error:
            raise ValueError(str(error)) from error
        # Only now, so that what was fitted before stays whole where this fit fails.
        self.classes_, self.range_, self.form_ = classes, span, _form(pictures)
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

    def strangeness(self, X: Any) -> np.ndarray:
        """Return how far each picture is from the nearest class, where classes are 1 apart on average."""
        return self._judged(X)[1]

    def _judged(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        pictures = self._pictures(X)
        if _form(pictures) != self.form_:
            raise ValueError(f"fitted on {self.form_}, asked about {_form(pictures)}")
        images = _images(pictures, self.classifier_.reading, self.range_)
        probabilities, strangeness = self.classifier_.judge(images)
        probabilities = probabilities.double()
        return (probabilities / probabilities.sum(1, keepdim=True)).numpy(), strangeness.numpy()

    def _pictures(self, X: Any, y: Any = "no_validation") -> Any:
        """Check what was given; return file names, or an array of pictures."""
        if _is_files(X):
            return list(X)
        found = np.asarray(X) if not hasattr(X, "sparse") else X
        if isinstance(found, np.ndarray) and found.ndim in (3, 4) and found.dtype.kind in "buif":
            if not np.isfinite(found).all():
                raise ValueError("the pictures contain NaN or infinite numbers")
            if found.ndim == 4 and found.shape[-1] not in (3, 4):
                raise ValueError(f"pictures are (n, H, W) or (n, H, W, 3), these are {found.shape}")
            if not found.size:
                raise ValueError(f"there are no pictures: {found.shape}")
            return found.astype(np.uint8) if found.dtype.kind == "b" else found
        if isinstance(y, str):
            return validate_data(self, X, reset=False, dtype=np.float64)
        return validate_data(self, X, y, dtype=np.float64)[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _form(pictures: Any) -> str:
    """Say what pictures were given as."""
    if _is_files(pictures):
        return "files"
    return "rows of a matrix" if pictures.ndim == 2 else "an array of pictures"


def _images(pictures: Any, reading: Reading, span: tuple[float, float] | None) -> torch.Tensor:
    if span is None:
        return torch.from_numpy(np.stack([_read(Path(path), reading) for path in pictures]))
    least, most = span
    scaled = ((pictures - least) / max(most - least, 1e-300) * 255).clip(0, 255).round().astype(np.uint8)
    return torch.from_numpy(np.stack([_picture(one, reading) for one in scaled]))


def _read(path: Path, reading: Reading) -> np.ndarray:
    data = path.read_bytes()
    try:
        return reading(data)
    except Exception as error:  # Pillow lets through whatever its parsers raise on a damaged file
        raise ValueError(f"{path} cannot be read ({reason(error)})") from error


def _is_files(pictures: Any) -> bool:
    if isinstance(pictures, str | Path):
        raise ValueError(f"give a list of pictures, not one name: [{str(pictures)!r}]")
    if not (isinstance(pictures, Sequence | np.ndarray) and len(pictures) > 0 and isinstance(pictures[0], str | Path)):
        return False
    for number, one in enumerate(pictures):
        if not isinstance(one, str | Path):
            raise ValueError(f"picture {number} is no file name but {one!r}")
    return True


def _picture(one: np.ndarray, reading: Reading) -> np.ndarray:
    if one.ndim == 1:
        channels = 3 if math.isqrt(len(one) // 3) ** 2 * 3 == len(one) and reading.kind == "photograph" else 1
        side = math.isqrt(math.ceil(len(one) / channels) - 1) + 1
        filled = np.zeros(side * side * channels, np.uint8)
        filled[: len(one)] = one
        one = filled.reshape((side, side, 3) if channels == 3 else (side, side))
    try:
        return reading.picture(Image.fromarray(one).convert("RGB"))
    except Blank:  # as good a picture as any here
        return np.zeros((reading.channels, reading.size, reading.size), np.uint8)
