"""From a folder of pictures to labels: ``metagrad adapt`` and ``predict``."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import adapt, rows_of
from PIL import Image, ImageDraw
from strokes import dataset, drawings
from toyruns import experiment, train

import metagrad
from metagrad import MetagradError
from metagrad.classifier.artifact import Classifier
from metagrad.classifier.calibration import CALIBRATION
from metagrad.classifier.learner import Learner
from metagrad.classifier.left_out import HeadAlone
from metagrad.classifier.support import read_support
from metagrad.cli.main import main
from metagrad.data.reading import Reading
from metagrad.experiment.run import Run


def test_new_classes_are_learned_and_told(learned, pictures, capsys):
    assert adapt(learned) == 0
    said = capsys.readouterr().out
    assert "4 classes, 2 pictures each" in said
    assert "leave-one-out accuracy: " in said
    assert "; 8 pictures; 95 %" in said
    assert "look unlike" not in said
    rows = rows_of(capsys, "my.model", "new")
    assert len(rows) == 16
    right = [row["picture"].split("/")[1] == row["class"] for row in rows]
    assert sum(right) >= 10, "chance is 4, with a place on the page that tells nothing"
    for row in rows:
        probabilities = [float(row[f"kind {kind} ё"]) for kind in range(4)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert max(probabilities) == float(row["probability"])


def test_nothing_that_is_read_is_replaced(learned, pictures, capsys):
    shutil.copytree(learned, "run")
    shutil.make_archive("known", "zip", "known")
    adapt(learned)
    places = [
        ("adapt", "run", "known", "--out", "run/best.safetensors"),
        ("adapt", "run", "known.zip", "--out", "known.zip"),
        ("adapt", "run", "known", "--out", "known/kind 0 ё/0.png"),
        ("report", "run", "--out", "run/config.json"),
        ("export", "my.model", "--format", "pt2", "--out", "my.model"),
    ]
    for words in places:
        before = Path(words[-1]).read_bytes()
        assert main(list(words)) == 2
        assert "would replace" in capsys.readouterr().err
        assert Path(words[-1]).read_bytes() == before
    assert main(["adapt", "run", "known", "--out", "run/mine.model"]) == 0
    assert main(["adapt", "run", "known", "--out", "known/my.model"]) == 0
    assert main(["adapt", "run", "known", "--out", "known/my.model"]) == 0, "a model is not read from there"
    assert main(["adapt", "run", "known", "--out", "run/mine.model"]) == 0, "a model beside a run may be made anew"


def test_a_link_stays_and_a_name_that_is_no_text_is_refused(learned, pictures, capsys):
    Path("link.model").symlink_to("deep/real.model")
    assert adapt(learned, out="link.model") == 0
    assert Path("link.model").is_symlink()
    assert Classifier.load(Path("deep/real.model")).classes
    Path("link.model").rename("bad\udcff.model")
    for words in (["adapt", str(learned), "known", "--out", "new\udcff.model"], ["predict", "bad\udcff.model", "new"],
                  ["train", "glyphs", "--run", "run\udcff"]):  # fmt: skip
        capsys.readouterr()
        assert main(words) == 2
        assert "is not text in UTF-8" in capsys.readouterr().err
    assert not Path("new\udcff.model").exists()
    assert not Path("run\udcff").exists()


def test_what_is_left_out_is_said(learned, pictures, capsys):
    (pictures / "known" / "kind h").mkdir()
    (pictures / "known" / "kind h" / "1.heic").write_bytes(b"x")
    Image.new("L", (9, 9)).save(pictures / "known" / "loose.png")
    (pictures / "known" / "kind e").mkdir()
    (pictures / "known" / "kind z").mkdir()
    (pictures / "known" / "kind z" / "inner\n\x1b[2J.zip").write_bytes(b"x")
    assert adapt(learned) == 0
    said = capsys.readouterr().out
    assert "2 files of other kinds, or in no class folder (kind h/1.heic; loose.png); save HEIC and" in said
    assert "no class was made of kind e; kind h: no picture in it" in said
    assert "did not open 1 file" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda at: shutil.rmtree(at / "known"), "does not exist"),
        (lambda at: [shutil.rmtree(at / "known" / f"kind {k} ё") for k in (1, 2, 3)], "at least two"),
        (
            lambda at: [path.write_bytes(b"") for path in (at / "known" / "kind 1 ё").iterdir()],
            "no picture that can be",
        ),
        (lambda at: shutil.copy(at / "known/kind 0 ё/0.png", at / "known/kind 1 ё/9.png"), "two classes"),
        (lambda at: (shutil.rmtree(at / "known"), (at / "known").mkdir()), "no pictures in class folders"),
    ],
)
def test_what_cannot_be_learned_from_is_named(learned, pictures, capsys, change, says):
    change(pictures)
    assert adapt(learned) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (pictures / "my.model").exists()


def test_odd_pictures_and_names(learned, pictures, capsys):
    """A picture that repeats, one that is broken, another size, names that are formulas."""
    shutil.copy("known/kind 0 ё/0.png", "known/kind 0 ё/same.png")
    (pictures / "known/kind 0 ё/broken.png").write_bytes(b"not a picture")
    (pictures / "known/kind 0 ё").rename(pictures / "known/=1+1")
    Image.open("known/kind 1 ё/0.png").resize((200, 90)).convert("RGB").save("known/kind 1 ё/wide.jpg")
    shutil.copytree("known/kind 2 ё", "known/KIND 1 ё")
    shutil.rmtree("known/kind 2 ё")
    assert adapt(learned) == 0
    said = capsys.readouterr().out
    assert "skipped 1" in said
    assert "left out 1" in said
    assert "'KIND 1 ё' and 'kind 1 ё' are two classes with nearly the same name" in said
    rows = rows_of(capsys, "my.model", "new")
    assert "'=1+1" in rows[0]
    assert {row["class"] for row in rows} <= {"'=1+1", "kind 1 ё", "KIND 1 ё", "kind 3 ё"}
    (pictures / "new" / "broken.png").write_bytes(b"no")
    capsys.readouterr()
    assert main(["predict", "my.model", "new"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 16
    assert "broken.png cannot be read" in said.err
    assert main(["predict", "my.model", "new/broken.png"]) == 2


def test_pictures_unlike_those_of_training_are_said(learned, pictures, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (6, 60, 60, 3), dtype=np.uint8)
    for number, one in enumerate(noise):
        (pictures / "noise" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(pictures / "noise" / str(number % 2) / f"{number}.png")
    assert adapt(learned, known="noise") == 0
    said = capsys.readouterr().out
    assert "look unlike the training pictures, omniglot" in said
    assert "chance 50 %)" in said
    assert "not clearly better than chance" in said
    for number in range(6):  # a sky, a meadow and something in it, sharp enough for strokes
        y = np.linspace(0, 1, 60)[:, None, None]
        image = np.where(y < 0.5, [90, 150, 230], [60, 140, 40]) * np.ones((60, 60, 1))
        image[20 + 3 * number : 40, 25:35] = [200, 40, 30]
        (pictures / "meadow" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.astype(np.uint8)).save(pictures / "meadow" / str(number % 2) / f"{number}.png")
    assert adapt(learned, known="meadow") == 0
    assert re.search(r"look like photographs.* differ by \d{2,3} of 255", capsys.readouterr().out)
    for some in sorted(Path("known").glob("*/*.png")):  # in blue ink, on yellow paper
        grey = np.asarray(Image.open(some))[..., None] / 255.0
        Image.fromarray((grey * [255, 240, 200] + (1 - grey) * [20, 30, 160]).astype(np.uint8)).save(some)
    assert adapt(learned) == 0
    assert "photographs" not in capsys.readouterr().out


def test_without_calibration(learned, pictures, capsys):
    shutil.copytree(learned, "run")
    (pictures / "run" / CALIBRATION).unlink()
    assert main(["adapt", "run", "known", "--out", "my.model"]) == 0
    assert "not calibrated" in capsys.readouterr().out
    assert main(["predict", "my.model", "new", "--reject"]) == 2
    assert main(["predict", "my.model", "new"]) == 0
    assert Classifier.load(pictures / "my.model").temperature == 1


def test_every_method_adapts(tmp_path):
    images = 255 - torch.from_numpy(drawings(4, 4, 3))[:, :, ::2, ::2].flatten(0, 1)[:, None]
    labels = [f"k{i // 4}" for i in range(16)]
    for method in ("reptile", "boil", "memory-reduced", "r2d2", "protonet"):
        options = {"inner_steps": None} if method in ("r2d2", "protonet") else {}
        made = experiment(method=method, meta_steps=4, val_every=2, filters=8, test_tasks=4, **options)
        folder = tmp_path / method
        with Run.create(folder, made, made.tasks.of(dataset())) as run:
            train(run, dataset())
        classifier = Learner.of(folder).adapt(images, labels)
        classifier.save(folder / "m")
        again = Classifier.load(folder / "m")
        for a, b in zip(classifier.classify(images), again.classify(images), strict=True):
            assert torch.equal(a, b)
        learner = Learner.of(folder)
        assert learner.leave_one_out(learner.network_inputs(images), labels).as_json()["images"] == 16


def test_leaving_out_says_about_what_new_pictures_say(learned):
    """Of a class that alone lacked a picture it would say far less; a class of one picture is never left out."""
    learner, several = Learner.of(learned), []
    for seed in range(6):
        drawn = 255 - torch.from_numpy(drawings(5, 10, 20 + seed))[:, :, ::2, ::2]
        few, more = drawn[:, :2].flatten(0, 1)[:, None], drawn[:, 2:].flatten(0, 1)[:, None]
        labels = [f"k{i // 2}" for i in range(10)]
        x = learner.network_inputs(few)
        left = learner.leave_one_out(x, labels).as_json()
        assert left["images"] == 10
        classifier = learner.adapt(few, labels)
        truth = torch.arange(5).repeat_interleave(8)
        several.append((left["accuracy"], float((classifier.classify(more)[0].argmax(-1) == truth).float().mean())))
    said, so = torch.tensor(several).mean(0).tolist()
    assert so - 0.25 < said <= so + 0.1, "a picture less of each class is worth something"
    assert learner.leave_one_out(x[:3], labels[:3]).as_json()["images"] == 2
    assert learner.leave_one_out(x[::2], labels[::2]) is None


@pytest.mark.parametrize("method", ["anil", "itd-bio", "memory-reduced", "protonet", "r2d2"])
@pytest.mark.parametrize("ways", [3, 4])
def test_left_out_by_the_head_alone_is_left_out_by_the_whole(tmp_path, method, ways):
    """Without batch statistics, which are those of all pictures there, the two are the same."""
    options = {"inner_steps": None} if method in ("r2d2", "protonet") else {}
    if method == "memory-reduced":  # five CG steps a Newton step magnify what rounding differs in
        options = {"inner_solver": "gd"}
    made = experiment(method=method, norm="group", meta_steps=4, val_every=2, filters=8, test_tasks=4, **options)
    with Run.create(tmp_path / "run", made, made.tasks.of(dataset())) as run:
        train(run, dataset())
    learner = Learner.of(tmp_path / "run")
    images = 255 - torch.from_numpy(drawings(ways, 3, 3))[:, :, ::2, ::2].flatten(0, 1)[:, None]
    y = torch.arange(ways).repeat_interleave(3)
    out = torch.arange(len(y)) % 3 == 1
    x = learner.network_inputs(images)
    ((network, _),) = learner.solved(x[~out][None], y[~out][None], ways)
    whole = network(x[out])
    found = HeadAlone.of(learner, x, y, ways).logits(~out, y[~out], out)
    # ProtoNet's networks leave out what all classes share.
    torch.testing.assert_close(found - found.mean(1, keepdim=True), whole - whole.mean(1, keepdim=True),
                               rtol=1e-3, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_exported_networks_say_the_same_without_metagrad(learned, pictures, capsys, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    adapt(learned)
    assert main(["export", "my.model", "--format", form]) == 0
    assert f"wrote my.{form}" in capsys.readouterr().out
    classifier = Classifier.load(pictures / "my.model")
    images = torch.randint(0, 256, (5, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected, x = classifier.classify(images)[0], images.float() / 255
    if form == "onnx":
        session = runtime.InferenceSession(pictures / "my.onnx")
        found = [torch.from_numpy(session.run(None, {"images": some.numpy()})[0]) for some in (x, x[:1])]
        facts = session.get_modelmeta().custom_metadata_map
    else:
        extra = {"metagrad.json": ""}
        program = torch.export.load(pictures / "my.pt2", extra_files=extra).module()
        found, facts = [program(some) for some in (x, x[:1])], json.loads(extra["metagrad.json"])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], expected[:1], rtol=0, atol=1e-5)
    assert json.loads(facts["classes"]) == list(classifier.classes)
    reading = json.loads(facts["reading"])
    assert reading == {"kind": "strokes", "size": 28, "fill": classifier.reading.fill, "channels": 1}
    assert "0.667 of it in the longer direction" in facts["input"]
    assert main(["export", "nowhere"]) == 2
    assert main(["export", "my.model", "--format", form, "--out", "new"]) == 2


def test_the_model_that_comes_along(pictures, capsys):
    """Nothing was trained, nothing is downloaded: a run on letters and handwriting."""
    assert main(["adapt", "glyphs", "known", "--out", "my.model"]) == 0
    assert "the network is glyphs, trained on drawings by protonet" in capsys.readouterr().out
    rows = rows_of(capsys, "my.model", "new")
    assert sum(row["picture"].split("/")[1] == row["class"] for row in rows) >= 13
    shipped = Path(metagrad.__file__).parent / "classifier" / "models"
    assert sum(path.stat().st_size for path in shipped.rglob("*")) < 2_000_000


def page(top, size=4, left=20):
    found = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(found).rectangle((left, top, left + 10 * size, top + size), fill=0)
    return found


def test_drawings_that_differ_in_place_or_size_alone_are_two(tmp_path):
    drawn = {"hyphen/0": page(48), "hyphen/1": page(48, left=30), "underscore/0": page(88), "dash/0": page(45, size=6)}
    for name, one in drawn.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        one.save(tmp_path / "set" / f"{name}.png")
    drawn["hyphen/0"].save(tmp_path / "set" / "hyphen" / "again.bmp")
    reading = Reading.of("glyphs", None)
    found = read_support(tmp_path / "set", reading, most=100)
    assert sorted(found.labels) == ["dash", "hyphen", "hyphen", "underscore"]
    said = " ".join(found.notes)
    assert "left out 1 that duplicate another of their class" in said
    assert "cannot tell these pictures of two classes apart" in said
    drawn["hyphen/0"].save(tmp_path / "set" / "underscore" / "1.gif")
    with pytest.raises(MetagradError, match=r"hyphen/.* and underscore/1.gif are the same picture in two classes"):
        read_support(tmp_path / "set", reading, most=100)


def test_days_in_a_class_folder_are_of_the_class(pictures):
    (pictures / "known" / "kind 0 ё" / "monday").mkdir()
    (pictures / "new" / "kind 0 ё" / "2.png").rename(pictures / "known" / "kind 0 ё" / "monday" / "2.png")
    found = read_support(pictures / "known", Reading.of("glyphs", None), most=100)
    assert len(set(found.labels)) == 4
    assert any("'kind 0 ё/monday' is of 'kind 0 ё'" in note for note in found.notes)
