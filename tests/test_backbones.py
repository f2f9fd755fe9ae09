"""Pretrained networks as a frozen trunk and a top: features, cuts, digests, and what is refused."""

import warnings

import numpy as np
import own_backbones
import pytest
import torch
from backbone_parts import BODIES, images, normalised, own, saved, stages
from PIL import Image
from torch import nn

from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot.backbones import open_backbone, to_images
from metagrad.named_code import NotNamedError

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
