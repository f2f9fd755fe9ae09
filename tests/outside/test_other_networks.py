"""Networks of torchvision, timm and transformers, small and with random weights: gradients beside a plain loop."""

import copy
from itertools import product

import plain_loop
import pytest
import torch
from plain_loop import WAYS, Plain
from referees import distance, imported
from torch import nn

from metagrad import CG, GradientDescent, Implicit
from metagrad.fewshot import IMAML, MAML, Batch, Tasks, check_network, meta_gradient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:batch norms in training mode", "ignore:.*does not support several tasks at once"
    ),
]

TASKS, SHOTS, WORDS = 2, 2, 20
LAM, LR, STEPS = 8.0, 0.02, 2


def images(count):
    return torch.randn(count, 3, 16, 16)


def larger_images(count):
    return torch.randn(count, 3, 32, 32)


def words(count):
    return torch.randint(WORDS, (count, 6))


class Logits(nn.Module):
    """A model of transformers as one that returns a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(input_ids=x).logits


def resnet():
    models = imported("torchvision").models
    model = models.resnet.ResNet(models.resnet.BasicBlock, [1, 0, 0, 0], num_classes=WAYS)
    model.layer2, model.layer3, model.layer4, model.fc = *(nn.Identity() for _ in range(3)), nn.Linear(64, WAYS)
    return model


def resnet_in_eval_mode():
    model = resnet()
    with torch.no_grad():
        model(images(8))
    return model.eval()


def vision_transformer():
    models = imported("torchvision").models
    model = models.VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=WAYS)
    nn.init.normal_(model.heads.head.weight)
    return model


def convnext():
    kind = imported("timm").models.convnext.ConvNeXt
    return kind(num_classes=WAYS, depths=(1, 1, 1, 1), dims=(4, 8, 8, 16), patch_size=2)


def mixer():
    return imported("timm").models.mlp_mixer.MlpMixer(WAYS, 16, 3, 8, num_blocks=2, embed_dim=8)


def distilled_transformer():
    kind = imported("timm").models.vision_transformer.VisionTransformer
    return kind(16, 8, num_classes=WAYS, embed_dim=8, depth=2, num_heads=2, qk_norm=True, init_values=0.5)


def bert():
    transformers = imported("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(vocab_size=WORDS, max_position_embeddings=8, num_labels=WAYS, **sizes)
    return Logits(transformers.BertForSequenceClassification(config))


def gpt2():
    transformers = imported("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=2, n_head=2, num_labels=WAYS, pad_token_id=WORDS - 1
    )
    return Logits(transformers.GPT2ForSequenceClassification(config))


def llama():
    transformers = imported("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        max_position_embeddings=8,
        num_labels=WAYS,
        pad_token_id=WORDS - 1,
        num_key_value_heads=1,
        **sizes,
    )
    return Logits(transformers.LlamaForSequenceClassification(config))


NETWORKS = {
    "torchvision resnet": (resnet, images),
    "torchvision resnet in eval mode": (resnet_in_eval_mode, images),
    "torchvision vision transformer": (vision_transformer, images),
    "timm convnext": (convnext, larger_images),
    "timm mixer": (mixer, images),
    "timm vision transformer": (distilled_transformer, images),
    "transformers bert": (bert, words),
    "transformers gpt2": (gpt2, words),
    "transformers llama": (llama, words),
}

# Llama's norms compute in float32 whatever they are given: two orders of the same sums differ by that.
ROUGH = {("transformers llama", "imaml"): 1e-4, ("transformers llama", "imaml, gauss-newton"): 1e-4}

DESCENT = GradientDescent(lr=LR, max_steps=STEPS)
SOLVER = CG(max_steps=400, tol=1e-13, on_negative="continue")
METHODS = {
    "maml": (MAML(inner_lr=LR, inner_steps=STEPS), lambda *of: plain_loop.unrolled(*of, lr=LR, steps=STEPS)),
    "imaml": (
        IMAML(lam=LAM, solver=DESCENT, adjoint=Implicit(linear_solver=SOLVER)),
        lambda *of: plain_loop.imaml(*of, lam=LAM, lr=LR, steps=STEPS, kind="hessian"),
    ),
    "imaml, gauss-newton": (
        IMAML(lam=LAM, solver=DESCENT, adjoint=Implicit(linear_solver=SOLVER, curvature="gauss_newton")),
        lambda *of: plain_loop.imaml(*of, lam=LAM, lr=LR, steps=STEPS, kind="gauss_newton"),
    ),
}


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


# At random weights its Hessian has eigenvalues of −180: conjugate gradients get nowhere, in either program.
INDEFINITE = ("timm convnext", "imaml")


@pytest.mark.parametrize(("network", "method"), [pair for pair in product(NETWORKS, METHODS) if pair != INDEFINITE])
def test_the_meta_gradient_is_that_of_a_plain_loop(network, method):
    make, draw = NETWORKS[network]
    model = make()

    def batch():
        y = torch.arange(WAYS).repeat(SHOTS).expand(TASKS, -1)
        return Batch(torch.stack([draw(WAYS * SHOTS) for _ in range(TASKS)]), y)

    tasks, (algorithm, expected) = Tasks(batch(), batch()), METHODS[method]
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    # Some have their dropout in functions, where the plain loop does not find it: it is given them in eval mode.
    still = copy.deepcopy(model).eval() if network.startswith("transformers") else model
    theta, net = algorithm.init(model), Plain(still)
    meta_gradient(algorithm, model, theta, tasks)
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in theta.items()}
    total = 0.0
    for task in range(TASKS):
        parts = [(part.x[task], part.y[task]) for part in (tasks.support, tasks.query)]
        total = total + torch.cat([grad.flatten() for grad in expected(net, leaves, parts)]) / TASKS
    assert distance([leaf.grad for leaf in theta.values()], [total]) < ROUGH.get((network, method), 1e-10)
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items()), "the model was changed"


@pytest.mark.parametrize("network", NETWORKS)
def test_check_network_finds_no_fault(network):
    make, draw = NETWORKS[network]
    assert check_network(make(), draw(4)).error < 1e-10
