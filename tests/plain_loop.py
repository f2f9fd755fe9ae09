"""Meta-gradients as a page of plain autograd has them: one task after the other, nothing of ours."""

import copy
import sys
from unittest import mock

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WAYS = 3


class Plain:
    """A copy of a network that takes its weights as an argument; what several places share goes into all of them."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)
        names = {id(leaf): name for name, leaf in self.model.named_parameters()}
        self.slots = [
            (module, key, names[id(leaf)], leaf.detach())
            for module in self.model.modules()
            for key, leaf in module._parameters.items()
            if leaf is not None
        ]

    def __call__(self, params, x):
        for module, key, name, own in self.slots:
            module._parameters[key] = params.get(name, own)
            if isinstance(module, torch.nn.RNNBase):
                module._flat_weights = [module._parameters[name] for name in module._flat_weights_names]
        for module in self.model.modules():
            if isinstance(module, torch.nn.modules.dropout._DropoutNd | torch.nn.RReLU):
                module.eval()
            if isinstance(module, torch.nn.MultiheadAttention | torch.nn.RNNBase):
                module.dropout = 0.0
            hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
            if "SpectralNorm" in [type(module).__name__.strip("_"), *hooks]:
                module.training = False  # its singular vectors stay as they are
        torch.backends.mha.set_fastpath_enabled(False)  # which it is where nothing asks for a gradient: other numbers
        with (
            sdpa_kernel(SDPBackend.MATH),  # the fused kernels have no second derivative
            mock.patch.object(torch, "_weight_norm", weight_norm),  # torch's has a wrong one
            mock.patch.object(sys.modules["torch.nn.utils.weight_norm"], "_weight_norm", weight_norm),
            mock.patch.object(F, "embedding_bag", embedding_bag),  # and here none
            mock.patch.object(F, "hardsigmoid", lambda x: (x / 6 + 0.5).clamp(0, 1)),  # and here none
            mock.patch.object(torch.utils.checkpoint, "checkpoint", lambda module, x, **how: module(x)),
        ):
            return self.model(x)


def weight_norm(v, g, dim=0):
    return g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)


def embedding_bag(ids, weight, *args, **kwargs):
    """Return the mean or sum of the rows of each example, or the greatest numbers, one example after the other."""
    greatest = "max" in args
    padding = args[-1]
    found = []
    for row in ids:
        kept = weight[row[row != padding] if padding is not None else row]
        reduce = kept.amax if greatest else kept.sum if "sum" in args else kept.mean
        found.append(reduce(0) if len(kept) else weight.new_zeros(weight.shape[1]))
    return torch.stack(found)


def descend(loss, phi, lr, steps, *, graph):
    for _ in range(steps):
        grads = torch.autograd.grad(loss(phi), list(phi.values()), create_graph=graph)
        phi = {name: leaf - lr * grad for (name, leaf), grad in zip(phi.items(), grads, strict=True)}
        phi = phi if graph else {name: leaf.detach().requires_grad_() for name, leaf in phi.items()}
    return phi


def flat(params):
    return torch.cat([leaf.flatten() for leaf in params.values()])


def shaped(vector, like):
    parts = vector.split([leaf.numel() for leaf in like.values()])
    return {name: part.view(leaf.shape) for part, (name, leaf) in zip(parts, like.items(), strict=True)}


def curvature(net, phi, x, y, kind):
    """Return the product with the Hessian, or Gauss-Newton matrix, of the mean cross-entropy in phi."""
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in phi.items()}
    outputs = net(leaves, x)
    if kind == "hessian":
        first = gradients(F.cross_entropy(outputs, y), leaves, create_graph=True)
        return lambda v: joined(gradients(joined(first) @ v, leaves, retain_graph=True))
    rows = [joined(gradients(value, leaves, retain_graph=True)) for value in outputs.flatten()]
    inner = torch.autograd.functional.hessian(lambda out: F.cross_entropy(out.view_as(outputs), y), outputs.flatten())
    jacobian = torch.stack(rows)
    return lambda v: jacobian.T @ (inner @ (jacobian @ v))


def solved(product, b):
    """Return ``A⁻¹ b`` by conjugate gradients."""
    x, r = torch.zeros_like(b), b
    d = r
    while r.norm() > 1e-13 * b.norm():
        after = product(d)
        step = (r @ r) / (d @ after)
        x, left = x + step * d, r - step * after
        d, r = left + (left @ left) / (r @ r) * d, left
    return x


def joined(parts):
    return torch.cat([part.flatten() for part in parts])


def gradients(value, theta, **how):
    return torch.autograd.grad(value, list(theta.values()), materialize_grads=True, **how)


def unrolled(net, theta, task, *, lr, steps, mine=lambda name: True, graph=True):
    (x, y), (query_x, query_y) = task
    mine = {name: leaf for name, leaf in theta.items() if mine(name)}
    start = mine if graph else {name: leaf.detach().requires_grad_() for name, leaf in mine.items()}
    phi = descend(lambda phi: F.cross_entropy(net(theta | phi, x), y), start, lr, steps, graph=graph)
    if graph:
        return gradients(F.cross_entropy(net(theta | phi, query_x), query_y), theta)
    return gradients(F.cross_entropy(net(phi, query_x), query_y), phi)  # first-order: d phi / d theta = 1


def reptile(net, theta, task, *, lr, steps):
    (x, y), _ = task
    start = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
    phi = descend(lambda phi: F.cross_entropy(net(phi, x), y), start, lr, steps, graph=False)
    return [(theta[name] - phi[name]).detach() for name in theta]


def imaml(net, theta, task, *, lam, lr, steps, kind):
    (x, y), (query_x, query_y) = task

    def loss(phi):
        pull = sum((phi[name] - theta[name].detach()).square().sum() for name in phi)
        return F.cross_entropy(net(phi, x), y) + lam / 2 * pull

    phi = descend(loss, {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}, lr, steps, graph=False)
    v = joined(gradients(F.cross_entropy(net(phi, query_x), query_y), phi))
    product = curvature(net, phi, x, y, kind)
    return list(shaped(lam * solved(lambda d: product(d) + lam * d, v), theta).values())


def memory_reduced(net, theta, task, *, begin, l2, lr, steps):
    (x, y), (query_x, query_y) = task

    def loss(phi, body):
        return F.cross_entropy(net(body | phi, x), y) + l2 / 2 * sum(leaf.square().sum() for leaf in phi.values())

    start = {name: leaf.detach().clone().requires_grad_() for name, leaf in begin.items()}
    phi = descend(lambda phi: loss(phi, theta), start, lr, steps, graph=False)
    value = F.cross_entropy(net(theta | phi, query_x), query_y)
    direct = gradients(value, theta | phi)
    v = joined(direct[len(theta) :])
    still = {name: leaf.detach() for name, leaf in theta.items()}
    matrix = torch.autograd.functional.hessian(lambda w: loss(shaped(w, phi), still), flat(phi).detach())
    u = torch.linalg.solve(matrix, v)
    inner = torch.autograd.grad(loss(phi, theta), list(phi.values()), create_graph=True)
    mixed = gradients(joined(inner) @ u, theta)
    return [a - b for a, b in zip(direct, mixed, strict=False)]


def itd_bio(net, theta, task, *, begin, l2, lr, steps):
    (x, y), (query_x, query_y) = task

    def loss(phi):
        return F.cross_entropy(net(theta | phi, x), y) + l2 / 2 * sum(leaf.square().sum() for leaf in phi.values())

    start = {name: leaf.detach().clone().requires_grad_() for name, leaf in begin.items()}
    phi = descend(loss, start, lr, steps, graph=True)
    return gradients(F.cross_entropy(net(theta | phi, query_x), query_y), theta)


def features(net, theta, x):
    """Return what the head is given."""
    seen = []
    hook = net.model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(theta, x)
    hook.remove()
    return seen[0].flatten(1)


def protonet(net, theta, task):
    (x, y), (query_x, query_y) = task
    known, asked = features(net, theta, x), features(net, theta, query_x)
    means = torch.stack([known[y == way].mean(0) for way in range(WAYS)])
    return gradients(F.cross_entropy(-torch.cdist(asked, means).square(), query_y), theta)


def r2d2(net, theta, task):
    (x, y), (query_x, query_y) = task
    weights = {name: leaf for name, leaf in theta.items() if not name.startswith(".")}
    known, asked = features(net, weights, x), features(net, weights, query_x)
    gram = known @ known.T + theta[".log_l2"].exp() * torch.eye(len(y), dtype=known.dtype)
    w = known.T @ torch.linalg.solve(gram, F.one_hot(y, WAYS).to(known.dtype))
    return gradients(F.cross_entropy(theta[".log_scale"].exp() * asked @ w, query_y), theta)
