"""An adapted network taken away: the same scores, an image by itself, any number of classes."""

import pytest
import torch
from torch import nn
from toyruns import own

from metagrad.classifier.network import for_ways, fused, logits_and_features, standalone
from metagrad.errors import MetagradError
from metagrad.experiment.config import TrainConfig
from metagrad.experiment.format1 import method_of
from metagrad.fewshot import MLP, Batch, Conv4, ResNet12
from metagrad.fewshot.head import with_last_layer

METHODS = ("imaml", "maml", "meta-sgd", "fomaml", "reptile", "anil", "boil", "itd-bio", "memory-reduced", "protonet",
           "r2d2")  # fmt: skip


def task(ways, shots, channels=1, size=16, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(1, ways * shots, channels, size, size, generator=g, dtype=torch.float64)
    return Batch(x, torch.arange(ways).repeat_interleave(shots)[None])


def adapted(name, model, support):
    """Return the adapted network, the method's own outputs for other images, and those images."""
    method = with_last_layer(method_of(TrainConfig(method=name, **own(name)).resolved("glyphs")), model)
    theta = method.init(model)
    with torch.no_grad():
        solution = method.adapt(model, theta, support)
        weights = {key: leaf[0] for key, leaf in method.weights(model, theta, solution).items()}
        expected = method.predict(model, theta, solution, support.x)[0]
    return standalone(model, weights, support.x[0]), expected


NETWORKS = {
    "conv4": lambda g: Conv4(3, image_size=16, filters=4, generator=g),
    "conv4-pool, group": lambda g: Conv4(3, image_size=16, filters=4, pooling=True, norm="group", generator=g),
    "resnet12": lambda g: ResNet12(3, channels=1, filters=4, generator=g),
    "mlp": lambda g: MLP((256, 8, 3), generator=g),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", METHODS)
def test_the_network_scores_the_support_as_the_method_does(name, network):
    """There the batch's statistics are the support's, so the two must agree."""
    model, support = NETWORKS[network](torch.Generator().manual_seed(1)).double(), task(3, 2)
    plain, expected = adapted(name, model, support)
    found = plain(support.x[0])
    same = [(scores - scores.mean(1, keepdim=True)) for scores in (found, expected)]
    torch.testing.assert_close(same[0], same[1], rtol=1e-8, atol=1e-8)


def test_an_image_is_looked_at_by_itself():
    model = Conv4(3, image_size=16, filters=4, generator=torch.Generator().manual_seed(1)).double()
    plain, _ = adapted("imaml", model, task(3, 1))
    others = task(3, 4, seed=5).x[0]
    together = plain(others)
    alone = torch.cat([plain(image[None]) for image in others])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain(torch.cat([others[:1], 100 * others[1:]]))[0], together[0], rtol=1e-12, atol=0)
    assert not any(leaf.requires_grad for leaf in plain.parameters())
    assert {type(module).__module__.split(".")[0] for module in plain.modules() if not list(module.children())} == {
        "torch"
    }


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ways", [2, 7])
def test_other_numbers_of_classes(name, ways):
    model = Conv4(3, image_size=16, filters=4, generator=torch.Generator().manual_seed(1))
    other = Conv4(ways, image_size=16, filters=4, generator=torch.Generator().manual_seed(2))
    options = {"learn_lam": "parameter"} if name == "imaml" else {}
    method = method_of(TrainConfig(method=name, **own(name), **options).resolved("glyphs"))
    theta = for_ways(method.init(model), method.init(other))
    if "head.weight" in theta:
        assert torch.equal(theta["head.weight"], model.head.weight.mean(0).expand(ways, -1))
    if name == "imaml":
        assert theta[".log_lam/head.weight"].shape == other.head.weight.shape
    support = Batch(task(ways, 2).x.float(), task(ways, 2).y)
    with torch.no_grad():
        solution = method.adapt(other, theta, support)
        weights = {key: leaf[0] for key, leaf in method.weights(other, theta, solution).items()}
    assert standalone(other, weights, support.x[0])(support.x[0]).shape == (2 * ways, ways)


def test_another_network_is_refused():
    one, two = ({"a": torch.zeros(3, 2)}, {"b": torch.zeros(3, 2)})
    with pytest.raises(MetagradError, match="another network or method"):
        for_ways(one, two)
    with pytest.raises(MetagradError, match=r"a has shape \(3, 2\) in place of \(3, 4\)"):
        for_ways(one, {"a": torch.zeros(3, 4)})


def test_the_model_is_left_as_it_was():
    model = Conv4(3, image_size=16, filters=4)
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    standalone(model, {name: leaf + 1 for name, leaf in model.named_parameters()}, torch.rand(4, 1, 16, 16))
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("made", [Conv4(4, channels=3, image_size=32, filters=8, pooling=True),
                                  Conv4(4, channels=3, image_size=32, filters=8),
                                  ResNet12(4, channels=3, filters=4)], ids=["pool", "stride", "resnet"])  # fmt: skip
def test_the_quick_network_says_the_same(made):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 32, 32, generator=g)
    weights = {
        name: leaf.detach() + 0.1 * torch.randn(leaf.shape, generator=g) for name, leaf in made.named_parameters()
    }
    network = standalone(made, weights, x)
    fast = fused(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules()), "nothing was gained"
    for a, b in zip(logits_and_features(fast, x), logits_and_features(network, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), "the first one is left as it was"
