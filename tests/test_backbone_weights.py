"""Weights of a pretrained network: from a file, from other packages, and what is refused."""

import hashlib
import importlib.util
import math
import pickle
import sys
import types

import pytest
import torch
from backbone_parts import Harmful, images, normalised, own, saved, stages

from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot.backbones import open_backbone, packages


def test_weights_of_a_file_take_the_place_of_the_networks_own(tmp_path):
    network = stages(3)
    path = saved({key: leaf for key, leaf in network.state_dict().items() if "num_batches" not in key}, tmp_path / "w")
    backbone = own("random", weights=str(path))
    expected = network(normalised(network, images()))
    torch.testing.assert_close(backbone.trunk(images()), expected, rtol=1e-5, atol=1e-6)
    assert (own("random").trunk(images()) - expected).abs().max() > 0.01


def test_a_classifier_head_is_left_out_and_that_is_said(tmp_path):
    state = {**stages(3).state_dict(), "fc.weight": torch.ones(7, 12), "fc.bias": torch.ones(7)}
    with pytest.warns(MetagradWarning, match=r"head is left out: fc.bias \(7,\), fc.weight \(7, 12\)"):
        own("random", weights=saved(state, tmp_path / "w"))


def _without(state):
    del state["stem.0.weight"]


def _reshaped(state):
    state["stem.0.weight"] = torch.zeros(8, 3, 5, 5)


def _unknown(state):
    state["stage3.0.0.weight"] = torch.zeros(12, 12, 3, 3)


def _other_head(state):
    state["fc.weight"] = torch.zeros(7, 13)


def _renamed(state):
    for key in list(state):
        state[f"module.{key}"] = state.pop(key)


def _not_finite(state):
    state["stem.0.weight"][0, 0, 0, 0] = math.nan


def _whole_numbers(state):
    state["stem.0.weight"] = state["stem.0.weight"].to(torch.int64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without, r"it lacks 1 of 25 tensors \(stem.0.weight\): name a whole and unaltered file"),
        (_reshaped, r"has 1 of another shape \(stem.0.weight: \(8, 3, 5, 5\), not \(8, 3, 3, 3\)\)"),
        (_unknown, r"has 1 that are unknown \(stage3.0.0.weight\)"),
        (_other_head, r"has 1 that are unknown \(fc.weight\)"),
        (_renamed, r"lacks 25 of 25 .* has 25 that are unknown .*weights of another architecture"),
        (_not_finite, "stem.0.weight holds numbers that are not finite"),
        (_whole_numbers, "stem.0.weight is of type torch.int64, not torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, said):
    state = {key: leaf.clone() for key, leaf in stages().state_dict().items()}
    change(state)
    with pytest.raises(MetagradError, match=said) as caught:
        own("random", weights=saved(state, tmp_path / "w.safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_a_pickle_is_not_opened_and_how_to_convert_it_is_said(tmp_path, write):
    path = tmp_path / "weights.pth"
    write({"w": Harmful()}, path)
    with pytest.raises(
        MetagradError, match=r"is a pickle, which may run code.*weights_only=True.*weights.safetensors$"
    ):
        own("random", weights=path)


def test_the_conversion_that_is_advised_works(tmp_path):
    import re
    import subprocess

    path = tmp_path / "weights.pth"
    torch.save(stages(3).state_dict(), path)
    with pytest.raises(MetagradError) as caught:
        own("random", weights=path)
    script = re.search(r'python -c "(.*?)"', str(caught.value)).group(1)
    subprocess.run([sys.executable, "-c", script, path, path.with_suffix(".safetensors")], check=True)
    expected = own("random", weights=saved(stages(3).state_dict(), tmp_path / "w"))
    assert own("random", weights=path.with_suffix(".safetensors")).digest == expected.digest


def test_files_that_are_missing_cut_off_or_no_files_are_refused(tmp_path):
    with pytest.raises(MetagradError, match="does not exist: name a safetensors file"):
        own("random", weights=tmp_path / "none")
    with pytest.raises(MetagradError, match="is a folder"):
        own("random", weights=tmp_path)
    path = saved(stages().state_dict(), tmp_path / "w")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MetagradError, match="no safetensors file, or cut off"):
        own("random", weights=path)
    path.write_bytes(b"")
    with pytest.raises(MetagradError, match="no safetensors file, or cut off"):
        own("random", weights=path)


# Other packages


@pytest.mark.parametrize(
    ("name", "package"),
    [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision"), ("hf:a/b", "transformers")],
)
def test_a_package_that_is_not_installed_is_one_line(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MetagradError, match=f"^{name} needs the package {package}: pip install {package}$"):
        open_backbone(name)


def test_a_package_that_is_broken_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator x\\ndoes not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(
        MetagradError, match=r"timm cannot be imported \(RuntimeError: operator x does not exist\): install"
    ):
        open_backbone("timm:resnet18")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    constants = types.SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT="http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.ModuleType("huggingface_hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    seen = []

    def make():
        seen.append(constants.HF_HUB_OFFLINE)
        raise OSError("not in the cache")

    with pytest.raises(MetagradError, match=r"hf:a could not be loaded .*not in the cache.*internet.*weights="):
        packages._weighted("hf:a", lambda: packages._cache_first(make))
    assert seen == [True]
    assert constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(packages, "_answers", lambda address: True)
    with pytest.raises(OSError, match="not in the cache"):
        packages._cache_first(make)
    assert seen == [True, True, False]
    assert packages._cache_first(lambda: 3) == 3


def test_weights_of_torchvision_are_checked_and_run_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def address(content):
        torch.save(content, folder / "new")
        digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
        (folder / "new").rename(folder / f"net-{digest}.pth")
        return f"http://127.0.0.1:9/net-{digest}.pth"

    found = packages._downloaded(address({"w": torch.ones(2)}))
    assert torch.equal(found["w"], torch.ones(2))
    with pytest.raises(pickle.UnpicklingError):
        packages._downloaded(address({"w": Harmful()}))
    damaged = address({"w": torch.zeros(2)})
    file = folder / damaged.rpartition("/")[2]
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(MetagradError, match="is damaged or was altered: delete it"):
        packages._downloaded(damaged)
    file.unlink()
    with pytest.raises(MetagradError, match="cannot be reached: connect to the internet, put that file into"):
        packages._downloaded(damaged)
