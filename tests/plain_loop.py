"""Meta-gradients as a page of plain autograd has them: one task after the other, dense matrices, nothing of ours."""

import copy

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
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return self.model(x)


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
    """Return the dense Hessian, or Gauss-Newton matrix, of the mean cross-entropy in phi."""
    point = flat(phi).detach()
    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda v: F.cross_entropy(net(shaped(v, phi), x), y), point)
    outputs = net(phi, x).detach()
    jacobian = torch.autograd.functional.jacobian(lambda v: net(shaped(v, phi), x), point).flatten(0, 1)
    inner = torch.autograd.functional.hessian(lambda out: F.cross_entropy(out, y), outputs)
    return jacobian.T @ inner.flatten(2).flatten(0, 1) @ jacobian


def gradients(value, theta):
    return torch.autograd.grad(value, list(theta.values()), materialize_grads=True)


def unrolled(net, theta, task, *, lr, steps, head="", graph=True):
    (x, y), (query_x, query_y) = task
    mine = {name: leaf for name, leaf in theta.items() if name.startswith(head)}
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
    v = torch.cat([grad.flatten() for grad in gradients(F.cross_entropy(net(phi, query_x), query_y), phi)])
    matrix = curvature(net, phi, x, y, kind) + lam * torch.eye(len(v), dtype=v.dtype)
    return list(shaped(lam * torch.linalg.solve(matrix, v), theta).values())


def memory_reduced(net, theta, task, *, begin, l2, lr, steps):
    (x, y), (query_x, query_y) = task

    def loss(phi, body):
        return F.cross_entropy(net(body | phi, x), y) + l2 / 2 * sum(leaf.square().sum() for leaf in phi.values())

    start = {name: leaf.detach().clone().requires_grad_() for name, leaf in begin.items()}
    phi = descend(lambda phi: loss(phi, theta), start, lr, steps, graph=False)
    value = F.cross_entropy(net(theta | phi, query_x), query_y)
    direct = gradients(value, theta | phi)
    v = torch.cat([grad.flatten() for grad in direct[len(theta) :]])
    still = {name: leaf.detach() for name, leaf in theta.items()}
    matrix = torch.autograd.functional.hessian(lambda w: loss(shaped(w, phi), still), flat(phi).detach())
    u = torch.linalg.solve(matrix, v)
    inner = torch.autograd.grad(loss(phi, theta), list(phi.values()), create_graph=True)
    mixed = gradients(torch.cat([grad.flatten() for grad in inner]) @ u, theta)
    return [a - b for a, b in zip(direct, mixed, strict=False)]


def features(net, theta, x):
    """Return what the head is given."""
    seen = []
    hook = net.model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(theta, x)
    hook.remove()
    return seen[0]


def protonet(net, theta, task):
    (x, y), (query_x, query_y) = task
    known, asked = features(net, theta, x), features(net, theta, query_x)
    means = torch.stack([known[y == way].mean(0) for way in range(WAYS)])
    return gradients(F.cross_entropy(-torch.cdist(asked, means).square(), query_y), theta)


def r2d2(net, theta, task):
    (x, y), (query_x, query_y) = task
    weights = {name: leaf for name, leaf in theta.items() if not name.startswith(".")}
    known, asked = features(net, weights, x), features(net, weights, query_x)
    gram = known @ known.T + theta[".log_l2"].exp() * torch.eye(len(x), dtype=known.dtype)
    w = known.T @ torch.linalg.solve(gram, F.one_hot(y, WAYS).to(known.dtype))
    return gradients(F.cross_entropy(theta[".log_scale"].exp() * asked @ w, query_y), theta)
