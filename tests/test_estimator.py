"""The classifier in scikit-learn's clothes: its own checks, and what people do with estimators."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from strokes import drawings

from metagrad import FewShotClassifier, MetagradError
from metagrad.classifier import estimator
from metagrad.classifier.artifact import Classifier
from metagrad.classifier.export import export
from metagrad.classifier.learner import Learner
from metagrad.experiment.pretrained import Pretrained

# What an estimator of pictures cannot do, and why; docs/howto/own-images.md says it.
EXPECTED = {
    "check_classifiers_train": "its data are clouds of points, which are no pictures: a network that has learned to "
    "see strokes tells few of them apart",
    "check_methods_subset_invariance": "torch sums in another order for another number of pictures: probabilities "
    "differ in the seventh digit",
}
ON_ROWS = {"check_methods_subset_invariance": EXPECTED["check_methods_subset_invariance"]}


@pytest.fixture
def drawn():
    """Give four kinds of drawings, six of each, as arrays, rows and labels."""
    pictures = drawings(4, 6, 7).reshape(24, 56, 56)
    return pictures, np.repeat(["no", "yes", "maybe", "?"], 6)


class Filled(FewShotClassifier):
    """Rows of any length, filled up to square pictures: scikit-learn checks with points of 1 to 20 numbers."""

    def _pictures(self, X, y="no_validation"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimator, "from_rows", self._filled)
            return super()._pictures(X, y)

    @staticmethod
    def _filled(rows):
        side = max(4, math.isqrt(rows.shape[1]) + 1)
        paper = np.full((len(rows), side**2 - rows.shape[1]), -1.0)
        paper[:, -2:] = 1.0  # so that something is drawn on each
        return np.hstack([np.tanh(rows / 10), paper]).reshape(-1, side, side)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


@pytest.mark.slow  # in every run: those on rows of features, below
def test_scikit_learn_s_own_checks(learned):
    results = check_estimator(Filled(str(learned)), expected_failed_checks=EXPECTED, on_skip=None, on_fail="raise")
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    assert len(passed) >= 40
    assert {"check_estimators_pickle", "check_estimators_unfitted", "check_get_params_invariance",
            "check_classifiers_classes"} <= passed  # fmt: skip


def test_forms_of_pictures_give_the_same(learned, drawn, tmp_path):
    pictures, y = drawn
    files = []
    for number, one in enumerate(pictures):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(one).save(files[-1])
    forms = {
        "arrays": pictures,
        "rows": pictures.reshape(24, -1),
        "floats": pictures.astype(np.float64) / 255,
        "whole numbers": pictures.astype(np.int64),
        "colour": np.repeat(pictures[..., None], 3, -1),
        "channels first": np.repeat(pictures[:, None], 3, 1),
        "one channel": pictures[:, None] / np.float32(255),
        "colour in rows": np.repeat(pictures[..., None], 3, -1).reshape(24, -1),
        "opaque": np.concatenate([np.repeat(pictures[..., None], 3, -1), np.full_like(pictures, 255)[..., None]], -1),
        "ink alone": np.stack([*np.zeros((3, *pictures.shape), np.uint8), 255 - pictures], -1),
        "tensors": torch.from_numpy(pictures)[:, None].float() / 255,
        "a list": list(pictures),
        "pictures of Pillow": [Image.fromarray(one).convert("P") for one in pictures],
        "paths": files,
        "names": [str(path) for path in files],
    }
    known, new = np.arange(24) % 6 < 2, np.arange(24) % 6 >= 2

    def part(form, which):
        return [one for one, kept in zip(form, which, strict=True) if kept] if isinstance(form, list) else form[which]

    found = {
        name: FewShotClassifier(learned).fit(part(form, known), y[known]).predict_proba(part(form, new))
        for name, form in forms.items()
    }
    for name, probabilities in found.items():
        np.testing.assert_allclose(probabilities, found["arrays"], atol=1e-5, err_msg=name)
    classes = np.unique(y)
    assert (classes[found["rows"].argmax(1)] == y[new]).mean() > 0.6, (
        "chance is a quarter; the kinds' places tell nothing"
    )


def test_in_pipelines_and_cross_validation(learned, drawn):
    pictures, y = drawn
    model = make_pipeline(FunctionTransformer(lambda x: 255 - x), FewShotClassifier(str(learned)))
    assert cross_val_score(model, pictures.reshape(24, -1), y, cv=3).mean() > 0.7


def test_copies_and_what_is_wrong(learned, drawn):
    pictures, y = drawn
    model = FewShotClassifier(str(learned)).fit(pictures, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(pictures), model.predict_proba(pictures))
    assert clone(model).get_params() == {"run": str(learned), "network": None, "class_weight": "balanced"}
    assert model.ood_score(pictures).shape == (24,)
    assert list(model.classes_) == sorted(set(y))
    with pytest.raises(ValueError, match="one class"):
        FewShotClassifier(str(learned)).fit(pictures[:6], y[:6])
    with pytest.raises(ValueError, match="NaN"):
        model.predict(np.full((1, 56, 56), np.nan))
    with pytest.raises(ValueError, match="24 pictures, y has 23 labels"):
        FewShotClassifier(str(learned)).fit(pictures, y[1:])
    with pytest.raises(Exception, match="is not a metagrad run"):
        FewShotClassifier("nowhere").fit(pictures, y)


def test_without_scikit_learn_it_says_what_it_needs():
    script = "import sys; sys.modules['sklearn'] = None\nimport metagrad\nmetagrad.FewShotClassifier"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install scikit-learn" in done.stderr.splitlines()[-1]


def test_a_fit_that_fails_leaves_the_one_before(learned, drawn):
    pictures, y = drawn
    model = FewShotClassifier(str(learned)).fit(pictures, y)
    before = model.predict_proba(pictures)
    for X, labels in ((pictures, ["z"] * len(y)), (pictures[:, None, None], y), (pictures[:0], [])):
        with pytest.raises(ValueError, match=r"one class|are \(n, H, W\)|no pictures|labels|samples"):
            model.fit(X, labels)
        assert np.array_equal(model.predict_proba(pictures), before)
    with pytest.raises(ValueError, match="fitted on an array of pictures, but these are rows"):
        model.predict(pictures[0])


def test_bits_and_what_is_no_list_of_pictures(learned, drawn):
    pictures, y = drawn
    bits = pictures < 128
    found = FewShotClassifier(learned).fit(bits, y).predict(bits)
    assert (found == FewShotClassifier(learned).fit(bits.astype(float), y).predict(bits.astype(float))).all()
    cases = [
        (FewShotClassifier(learned), ["a.png", None], ["a", "b"], ValueError, "picture 1 is no file name"),
        (FewShotClassifier(learned), "a.png", ["a"], ValueError, r"not one name: \['a.png'\]"),
        (FewShotClassifier(learned), pictures, [y[0], None, *y[2:]], ValueError, "several kinds"),
        (FewShotClassifier(learned), np.ones((2, 4, 200)), ["a", "b"], ValueError, "too long for a drawing"),
        (FewShotClassifier(7), pictures, y, TypeError, 'run is a directory or "glyphs", not 7'),
    ]
    for model, X, labels, kind, says in cases:
        with pytest.raises(kind, match=says):
            model.fit(X, np.array(labels, dtype=object))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read \(it is not a picture"):
        FewShotClassifier().fit([tmp_path / "a.png"] * 2, ["a", "b"])


def test_columns_of_a_data_frame(learned, drawn, tmp_path):
    pandas = pytest.importorskip("pandas")
    pictures, y = drawn
    paths = [str(tmp_path / f"{number}.png") for number in range(24)]
    for one, path in zip(pictures, paths, strict=True):
        Image.fromarray(one).save(path)
    frame = pandas.DataFrame({"path": paths, "kind": y, "pixels": list(pictures)})
    expected = FewShotClassifier(learned).fit(pictures, y).predict_proba(pictures)
    for X in (frame["path"], frame[["path"]], frame["pixels"], pandas.DataFrame(pictures.reshape(24, -1))):
        model = FewShotClassifier(learned).fit(X, frame["kind"])
        np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"3 columns, .* name the one that holds pictures, such as X\['path'\]"):
        FewShotClassifier(learned).fit(frame, y)


def test_pictures_of_their_own_sizes(learned, drawn):
    pictures, y = drawn
    some = [one[:40] if number % 2 else np.repeat(one[..., None], 3, -1) for number, one in enumerate(pictures)]
    assert (FewShotClassifier(learned).fit(some, y).predict(some) == y).mean() > 0.6


def test_what_is_no_picture_is_refused(learned, drawn):
    pictures, y = drawn
    blank = pictures.copy()
    blank[3] = 255
    cases = [
        (np.random.default_rng(0).random((24, 13)), "rows of 13 numbers are no pictures: .*64, 192, 784"),
        (np.random.default_rng(0).random((24, 4)), "rows of 4 numbers are no pictures"),
        (np.zeros((24, 5, 56, 56)), r"\(24, 5, 56, 56\) channels are ambiguous"),
        (np.zeros((24, 3, 56, 3)), "channels are ambiguous"),
        (blank, "picture 3 cannot be read .nothing is drawn on it"),
        ([*pictures[:23], np.full((56, 56), np.nan)], "picture 23 contain NaN"),
        ([*pictures[:23], "a.png"], "picture 23|inhomogeneous|no file name|string"),
    ]
    for X, says in cases:
        with pytest.raises(ValueError, match=says):
            FewShotClassifier(learned).fit(X, y)


@pytest.mark.parametrize(("fitted", "asked"), [(255, 1), (1, 255)])
def test_another_range_than_fitted_on_is_refused(learned, drawn, fitted, asked):
    pictures, y = drawn
    model = FewShotClassifier(learned).fit(pictures / (255 / fitted), y)
    with pytest.raises(ValueError, match=f"from 0 to {fitted}, but these go up to {asked}: scale both"):
        model.predict(pictures / (255 / asked))


def test_weights_by_label(learned, drawn):
    pictures, y = drawn
    number = np.unique(y, return_inverse=True)[1]
    heavy = FewShotClassifier(learned, class_weight={np.int64(0): np.float32(1000)}).fit(pictures, number)
    even = FewShotClassifier(learned).fit(pictures, number)
    assert heavy.predict_proba(pictures)[:, 0].mean() > even.predict_proba(pictures)[:, 0].mean()
    with pytest.raises(ValueError, match="class_weight names 7, which is none of the labels"):
        FewShotClassifier(learned, class_weight={7: 1.0}).fit(pictures, number)


# --- on a pretrained network -------------------------------------------------------------------------------

OWN = "own_backbones:Stages"


def rows_of_features(seed=0, count=30, length=12):
    """Give rows that lie about three directions."""
    g = np.random.default_rng(seed)
    y = np.repeat([2, 0, 1], count // 3)
    return np.random.default_rng(7).normal(size=(3, length))[y] + 0.3 * g.normal(size=(count, length)), y


def colours(seeds):
    """Give photographs of three colours, as arrays, and their names."""
    g = np.random.default_rng(0)
    base = {"red": (200, 60, 40), "green": (50, 190, 70), "blue": (40, 70, 210)}
    shown = [
        (np.array(colour) + g.integers(-30, 31, (20, 20, 3))).clip(0, 255).astype(np.uint8)
        for colour in base.values()
        for _ in range(seeds)
    ]
    return np.stack(shown), np.repeat(list(base), seeds)


@pytest.fixture
def no_network(monkeypatch):
    """Let no pretrained network be opened."""
    monkeypatch.setattr("metagrad.experiment.pretrained.open_backbone", lambda *a, **k: pytest.fail("it was opened"))


def test_scikit_learn_s_own_checks_on_rows_of_features(no_network):
    """Points of 1 to 20 numbers are features as they are: nothing has to be filled up."""
    results = check_estimator(
        FewShotClassifier(network="timm:not_here"), expected_failed_checks=ON_ROWS, on_skip=None, on_fail="raise"
    )
    passed = {result["check_name"] for result in results if result["status"] == "passed"}
    assert len(passed) >= 40
    assert {"check_n_features_in", "check_estimators_pickle", "check_fit2d_1feature"} <= passed


def test_rows_are_features_where_there_is_a_network(no_network, tmp_path):
    X, y = rows_of_features()
    model = FewShotClassifier(network=Pretrained("timm:not_here")).fit(X, y)
    asked, truth = rows_of_features(seed=1)
    assert (model.predict(asked) == truth).mean() > 0.9
    assert model.n_features_in_ == 12
    longer = FewShotClassifier(network="timm:not_here").fit(np.tile(X, 3), y)  # 36, which is no square either
    assert longer.score(np.tile(asked, 3), truth) > 0.9
    square = np.hstack([X, X[:, :4]])  # 16 numbers, no picture of 4 by 4
    assert FewShotClassifier(network="timm:not_here").fit(square, y).form_ == "rows of features"
    again = clone(model)
    assert again.get_params()["network"] == Pretrained("timm:not_here")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(asked), model.predict_proba(asked))
    with pytest.raises(ValueError, match="7 features"):
        model.predict(X[:, :7])
    model.classifier_.save(tmp_path / "rows.model")
    found = Classifier.load(tmp_path / "rows.model")
    x = torch.from_numpy(asked).float()
    torch.testing.assert_close(found.classify_inputs(x)[0], model.classifier_.classify_inputs(x)[0])
    for refused in (found.require_pictures, lambda: export(found, tmp_path / "a.pt2", "pt2")):
        with pytest.raises(MetagradError, match="adapted to rows of 12 features, not to pictures"):
            refused()


def test_pictures_and_rows_of_one_network(monkeypatch, tmp_path):
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path))
    pictures, y = colours(6)
    seen = FewShotClassifier(network=OWN).fit(pictures[::2], y[::2])
    assert seen.score(pictures[1::2], y[1::2]) > 0.9
    learner = Learner.untrained(Pretrained(OWN))
    images = torch.from_numpy(np.stack([learner.reading.pixels(one) for one in pictures]))
    features = learner.network_inputs(images).numpy()
    told = FewShotClassifier(network=OWN).fit(features[::2], y[::2])
    for asked in (features[1::2], pictures[1::2]):  # the lengths agree
        np.testing.assert_allclose(told.predict_proba(asked), seen.predict_proba(pictures[1::2]), atol=1e-4)
    np.testing.assert_allclose(seen.predict_proba(features), told.predict_proba(features), atol=1e-4)
    shorter = FewShotClassifier(network=OWN).fit(features[:, :7], y)
    with pytest.raises(ValueError, match=r"fitted on rows of 7 features, but the network computes 12"):
        shorter.predict(pictures)
    with pytest.raises(ValueError, match="X has 7 features, the model was fitted on 12"):
        seen.predict(features[:, :7])


def test_a_run_or_a_network(learned, drawn):
    pictures, y = drawn
    for run in (str(learned), "glyphs"):
        with pytest.raises(ValueError, match="a run or a network, not both"):
            FewShotClassifier(run, network=OWN).fit(pictures, y)
    with pytest.raises(TypeError, match="network is the name of a pretrained network"):
        FewShotClassifier(network=3).fit(pictures, y)
    with pytest.raises(MetagradError, match="body nothing"):
        FewShotClassifier(network=Pretrained(OWN, body="all")).fit(pictures, y)
