"""What a model and its calibration say when they are cut, altered, old or of another kind."""

import ast
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import adapt
from safetensors import safe_open
from safetensors.torch import save_file
from toyruns import config

from metagrad import MetagradError, strict_json, tensorfile
from metagrad.classifier.artifact import Classifier
from metagrad.classifier.calibration import CALIBRATION
from metagrad.classifier.learner import Learner
from metagrad.cli.main import main


def test_the_file_says_when_it_is_not_whole(learned, pictures, capsys):
    adapt(learned)
    whole = (pictures / "my.model").read_bytes()
    assert len(whole) < 3 * sum(leaf.numel() * 4 for leaf in Learner.of(learned).theta.values()) + 20_000
    broken = {"cut": whole[: len(whole) // 2], "empty": b"", "weights": whole[:-4] + b"\0\0\0\1",
              "names": whole.replace(b"kind 3", b"kind 5", 1)}  # fmt: skip
    for name, content in broken.items():
        (pictures / name).write_bytes(content)
        capsys.readouterr()
        assert main(["predict", name, "new"]) == 2
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert ("altered since" in err) == (name in ("weights", "names"))
    shutil.copy(learned / "best.safetensors", "other")
    assert main(["predict", "other", "new"]) == 2
    assert "other weights, and no facts of metagrad's" in capsys.readouterr().err


@pytest.mark.parametrize("number", [1, 2])
def test_models_of_older_formats_are_read(learned, pictures, number):
    """Format 2 called prototypes landmarks and the threshold strange; format 1 had a run's flat options, too."""
    adapt(learned)
    with safe_open("my.model", framework="pt") as file:
        facts = json.loads(file.metadata()["metagrad"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["landmarks"] = tensors.pop("prototypes")
    facts["strange"], facts["format"] = facts.pop("ood_threshold"), number
    assert facts.pop("trunk") is None
    if number == 1:
        assert facts.pop("network")["filters"] == 8
        facts["config"] = dataclasses.asdict(config(filters=8))
    _written("old.model", tensors, facts)
    now, old = Classifier.load(Path("my.model")), Classifier.load(Path("old.model"))
    assert old.ood_threshold == now.ood_threshold
    assert old.network_config == now.network_config
    images = torch.randint(0, 256, (5, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for one, other in zip(old.classify(images), now.classify(images), strict=True):
        assert torch.equal(one, other)
    old.save("new.model")
    assert b"landmarks" not in Path("new.model").read_bytes()
    facts["format"] = 3
    _written("mixed.model", tensors, facts)
    with pytest.raises(MetagradError, match="is damaged, or was written by another version"):
        Classifier.load(Path("mixed.model"))


def _written(path, tensors, facts):
    """Write an adapted model with a digest that is right, whatever is in it."""
    text = json.dumps(facts)
    save_file(tensors, path, metadata={"metagrad": text, "digest": tensorfile.digest_of(text, tensors)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, f: f.update(format=4), "has format 4, this metagrad reads 1 to 3"),
        (lambda t, f: f.update(classes=7), "invalid classes"),
        (lambda t, f: f.update(classes=["a", "a", "b", "c"]), "invalid classes"),
        (lambda t, f: f.update(classes=["a", "b"]), "has shape"),
        (lambda t, f: f["network"].update(filters=10**6), "has shape"),  # 10 TB, were it built
        (lambda t, f: f["network"].update(filters="8"), "Conv4Config.filters must be a whole number"),
        (lambda t, f: f.update(temperature=0), "invalid temperature"),
        (lambda t, f: f.update(temperature="1"), "invalid temperature"),
        (lambda t, f: f.update(ood_threshold=float("nan")), "invalid ood_threshold"),
        (lambda t, f: f.update(spread=None), "invalid spread"),
        (lambda t, f: f["reading"].update(kind="x"), "invalid reading"),
        (lambda t, f: f["reading"].update(size=28.5), "invalid reading"),
        (lambda t, f: f["reading"].update(fill=0), "invalid reading"),
        (lambda t, f: f.pop("facts"), "'facts'"),
        (lambda t, f: t.pop("network/head.bias"), "head.bias is missing"),
        (lambda t, f: t.update({"network/extra": torch.zeros(1)}), "extra is missing, or one too many"),
        (lambda t, f: t.update({"network/head.bias": torch.zeros(1)}), "head.bias has shape"),
        (lambda t, f: t["network/head.weight"][0].fill_(float("nan")), "not finite"),
        (lambda t, f: t.update(prototypes=torch.zeros(4, 3)), "prototypes has shape"),
        (lambda t, f: t.update(prototypes=torch.zeros(3, 3)), "prototypes has shape"),
    ],
)
def test_a_model_of_another_kind_is_refused(learned, pictures, capsys, change, says):
    adapt(learned)
    with safe_open("my.model", framework="pt") as file:
        facts = json.loads(file.metadata()["metagrad"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    _written("same.model", tensors, facts)
    assert main(["predict", "same.model", "new"]) == 0
    change(tensors, facts)
    _written("my.model", tensors, facts)
    capsys.readouterr()
    for words in (["predict", "my.model", "new"], ["export", "my.model", "--format", "pt2"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert says in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", '{"sizes": 0}', "\xff", "sizes=[]", "sizes=[{}]", "sizes='x'", "temperature=0", "ece='x'",
     "ood_threshold=-1", "auroc='x'", "shots=7", "pixels=3", "pixels={'mean': [1, 2]}", "accuracy=None"],
)  # fmt: skip
def test_a_damaged_calibration_is_named(learned, pictures, capsys, text):
    shutil.copytree(learned, "run")
    path = pictures / "run" / CALIBRATION
    name, equals, value = text.partition("=")
    if equals:
        facts = json.loads(path.read_text())
        within = facts if name in facts else facts["sizes"][-1]
        assert name in within
        within[name] = ast.literal_eval(value)
        text = json.dumps(strict_json.signed(facts))
    path.write_text(text, encoding="latin-1")
    for words in (["adapt", "run", "known", "--out", "my.model"], ["report", "run"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert "calibration.json is damaged" in err
        assert "writes a new one" in err
        assert len(err.splitlines()) == 1
