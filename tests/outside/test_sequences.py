"""A recurrent and an attention network: meta-gradients beside the same networks written out as functions of a vector.

Cells, attention and norms below are formulas over plain tensors, differentiated by ``torch.func``; matrices are whole.
"""

import pytest
import torch
from referees import distance
from torch import nn
from torch.func import grad, hessian, jacrev
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit
from metagrad.fewshot import IMAML, MAML, Batch, Tasks, meta_gradient

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*does not support several tasks at once")]

TASKS, WAYS, WORDS, LENGTH, WIDTH, HEADS = 2, 3, 7, 5, 4, 2
LAM, LR, STEPS = 3.0, 0.1, 4


class Recurrent(nn.Module):
    """Letters, two LSTM layers both ways, the mean over places."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.lstm = nn.LSTM(WIDTH, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(6, WAYS)

    def forward(self, x):
        return self.head(self.lstm(self.letters(x))[0].mean(1))


class Attentive(nn.Module):
    """Letters and places, two encoder layers that do not look at padding, the mean over places that are none."""

    def __init__(self):
        super().__init__()
        self.letters, self.places = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Parameter(torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 6, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WAYS)

    def forward(self, x):
        there = (x != 0).unsqueeze(-1)
        h = self.encoder(self.letters(x) + self.places, src_key_padding_mask=x == 0)
        return self.head((h * there).sum(1) / there.sum(1))


def letters(p, x):
    """Return the rows of a table whose first row, padding, is never learned."""
    table = p["letters.weight"]
    learned = torch.ones(WORDS, 1, dtype=table.dtype)
    learned[0] = 0
    return (learned * table + (1 - learned) * table.detach())[x]


def one_way(p, h, suffix):
    """Return the states of an LSTM layer, place after place."""
    w, r, b, c = (p[f"lstm.{part}_{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    state, cell, states = h.new_zeros(len(h), 3), h.new_zeros(len(h), 3), []
    for place in h.unbind(1):
        let_in, forget, new, out = (place @ w.T + b + state @ r.T + c).chunk(4, 1)
        cell = forget.sigmoid() * cell + let_in.sigmoid() * new.tanh()
        state = out.sigmoid() * cell.tanh()
        states.append(state)
    return torch.stack(states, 1)


def recurrent(p, x):
    h = letters(p, x)
    for layer in ("l0", "l1"):
        back = one_way(p, h.flip(1), f"{layer}_reverse").flip(1)
        h = torch.cat([one_way(p, h, layer), back], -1)
    return h.mean(1) @ p["head.weight"].T + p["head.bias"]


def normed(p, name, h):
    centred = h - h.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / spread * p[f"{name}.weight"] + p[f"{name}.bias"]


def attended(p, name, h, absent):
    mixed = h @ p[f"{name}.in_proj_weight"].T + p[f"{name}.in_proj_bias"]
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixed.chunk(3, -1))
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    scores = torch.where(absent[:, None, None], -1e30, scores)
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    seen = (weights / weights.sum(-1, keepdim=True)) @ v
    return seen.transpose(1, 2).flatten(2) @ p[f"{name}.out_proj.weight"].T + p[f"{name}.out_proj.bias"]


def attentive(p, x):
    h = letters(p, x) + p["places"]
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        h = h + attended(p, f"{layer}.self_attn", normed(p, f"{layer}.norm1", h), x == 0)
        wide = normed(p, f"{layer}.norm2", h) @ p[f"{layer}.linear1.weight"].T + p[f"{layer}.linear1.bias"]
        wide = 0.5 * wide * (1 + torch.erf(wide / 2**0.5))
        h = h + wide @ p[f"{layer}.linear2.weight"].T + p[f"{layer}.linear2.bias"]
    there = (x != 0).unsqueeze(-1).to(h.dtype)
    return ((h * there).sum(1) / there.sum(1)) @ p["head.weight"].T + p["head.bias"]


NETWORKS = {"recurrent": (Recurrent, recurrent), "attentive": (Attentive, attentive)}


def made(name):
    torch.manual_seed(2)
    kind, function = NETWORKS[name]
    model = kind().double()
    g = torch.Generator().manual_seed(3)
    for leaf in model.parameters():  # norms of weight 1 and bias 0 would hide what they do
        leaf.data += 0.2 * torch.randn(leaf.shape, generator=g, dtype=leaf.dtype)

    def batch(count):
        x = torch.randint(1, WORDS, (TASKS, count, LENGTH), generator=g)
        x[..., -1] *= torch.randint(2, (TASKS, count), generator=g)  # some end in padding
        return Batch(x, torch.randint(WAYS, (TASKS, count), generator=g))

    shapes = {key: leaf.shape for key, leaf in model.named_parameters()}

    def outputs(vector, x):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        return function({key: part.view(shapes[key]) for key, part in zip(shapes, parts, strict=True)}, x)

    return model, Tasks(batch(6), batch(6)), outputs


def one_by_one(tasks):
    for task in range(TASKS):
        yield [(part.x[task], part.y[task]) for part in (tasks.support, tasks.query)]


def found_by(method, model, tasks):
    theta = method.init(model)
    meta_gradient(method, model, theta, tasks)
    return [leaf.grad for leaf in theta.values()], torch.cat([leaf.detach().flatten() for leaf in theta.values()])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_functions_are_the_networks(name):
    model, tasks, outputs = made(name)
    vector = torch.cat([leaf.detach().flatten() for leaf in model.parameters()])
    x = tasks.support.x.flatten(0, 1)
    assert (x == 0).any()
    assert distance([model(x)], [outputs(vector, x)]) < 1e-13


@pytest.mark.parametrize("name", NETWORKS)
def test_maml(name):
    model, tasks, outputs = made(name)
    found, theta = found_by(MAML(inner_lr=LR, inner_steps=STEPS), model, tasks)

    def meta_loss(theta, support, query):
        phi = theta
        for _ in range(STEPS):
            phi = phi - LR * grad(lambda phi: F.cross_entropy(outputs(phi, support[0]), support[1]))(phi)
        return F.cross_entropy(outputs(phi, query[0]), query[1])

    expected = sum(grad(meta_loss)(theta, *task) for task in one_by_one(tasks)) / TASKS
    assert distance(found, [expected]) < 1e-10


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("name", NETWORKS)
def test_imaml(name, kind):
    model, tasks, outputs = made(name)
    cg = CG(max_steps=300, tol=1e-14, on_negative="continue")
    solver, adjoint = GradientDescent(lr=LR, max_steps=STEPS), Implicit(linear_solver=cg, curvature=kind)
    found, theta = found_by(IMAML(lam=LAM, solver=solver, adjoint=adjoint), model, tasks)

    def of_task(support, query):
        def loss(phi, part):
            return F.cross_entropy(outputs(phi, part[0]), part[1])

        phi = theta
        for _ in range(STEPS):
            phi = phi - LR * (grad(loss)(phi, support) + LAM * (phi - theta))
        if kind == "hessian":
            matrix = hessian(loss)(phi, support)
        else:
            jacobian = jacrev(outputs)(phi, support[0]).flatten(0, 1)
            scores = outputs(phi, support[0])
            bend = hessian(lambda out: F.cross_entropy(out.view_as(scores), support[1]))(scores.flatten())
            matrix = jacobian.T @ bend @ jacobian
        system = matrix + LAM * torch.eye(len(phi), dtype=phi.dtype)
        return LAM * torch.linalg.solve(system, grad(loss)(phi, query))

    expected = sum(of_task(*task) for task in one_by_one(tasks)) / TASKS
    assert distance(found, [expected]) < 1e-10
