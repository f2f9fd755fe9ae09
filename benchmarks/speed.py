"""Time of one iMAML meta-gradient: metagrad, torch.func by hand, TorchOpt, and the arithmetic alone.

    python benchmarks/speed.py                                # 32 tasks, 5-way 1-shot, 15 queries, 16 + 5 steps
    python benchmarks/speed.py --tasks 16 --filters 32 --queries 5 --inner-steps 5 --lam 0.1 --inner-lr 0.4

Same weights, same episodes (synthetic images), exact Hessian, CG that goes on over negative curvature, equal numbers of
products. Before anything is timed, every contestant's gradient is compared with metagrad's in float64 on two tasks.
TorchOpt joins if it is installed (``pip install torchopt``). The floor is the arithmetic of the convolutions and the
linear layer at this machine's own matrix-product rate. Rows go to ``--csv`` with versions and machine.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit, argmin, tree
from metagrad.cli.allocator import keep_memory
from metagrad.fewshot import FOMAML, IMAML, MAML, Batch, Conv4, Tasks, classification, many, meta_gradient
from metagrad.fewshot.meta import auto_chunk
from metagrad.training.run import versions

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """One meta-gradient: ``tasks`` tasks of ``ways`` classes, ``shots`` and ``queries`` images a class."""

    tasks: int
    ways: int
    shots: int
    queries: int
    filters: int
    inner_steps: int
    inner_lr: float
    lam: float
    cg_steps: int

    def draw(self, tasks: int, dtype: torch.dtype) -> tuple[Conv4, dict[str, Tensor], Tasks]:
        """Return the network, its weights and synthetic episodes, from one seed."""
        g = torch.Generator().manual_seed(0)
        model = Conv4(self.ways, filters=self.filters, generator=g).to(dtype)
        theta = {name: leaf.detach().clone().requires_grad_() for name, leaf in model.named_parameters()}
        prototypes = torch.rand(tasks, self.ways, 1, 28, 28, generator=g, dtype=dtype)

        def batch(per_class: int) -> Batch:
            x = prototypes.repeat_interleave(per_class, 1)
            y = torch.arange(self.ways).repeat_interleave(per_class).expand(tasks, -1)
            return Batch(x + 0.3 * torch.rand(x.shape, generator=g, dtype=dtype), y)

        return model, theta, Tasks(batch(self.shots), batch(self.queries))

    def flop(self) -> float:
        """Return the multiplications and additions of the matrix products, counting a gradient as three forwards."""
        side, forward = 28, 0.0
        for channels in (1, self.filters, self.filters, self.filters):
            side = (side + 1) // 2
            forward += 2.0 * side * side * 9 * channels * self.filters
        forward += 2.0 * self.filters * side * side * self.ways
        support, query = (forward * self.ways * images for images in (self.shots, self.queries))
        # A product with the Hessian is worth two gradients less the first forward: it differentiates one.
        return self.tasks * (support * (3 * (self.inner_steps + 1) + 6 * self.cg_steps) + 3 * query)


def ours(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take metagrad's core with the settings that the others have."""
    for first in range(0, len(tasks), size := auto_chunk(tasks)):
        part = tasks.part(first, min(first + size, len(tasks)))
        solution = argmin(
            classification(model, work.lam),
            tree.expand(theta, len(part)),
            theta,
            part.support,
            solver=GradientDescent(lr=work.inner_lr, steps=work.inner_steps),
            adjoint=Implicit(linear_solver=CG(max_steps=work.cg_steps, tol=0.0, on_negative="continue")),
        )
        outputs = many.outputs(model, solution.value, part.query.x)
        loss = F.cross_entropy(outputs.flatten(0, 1), part.query.y.flatten()) * (len(part) / len(tasks))
        loss.backward()
    return taken(theta)


def by_hand(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Write it as a torch.func user would: vmap over tasks, forward over reverse for the products."""
    theta = {name: leaf.detach() for name, leaf in theta.items()}

    def loss(phi: Gradient, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, phi, (x,)), y)

    def inner(phi: Gradient, x: Tensor, y: Tensor) -> Tensor:
        pull = sum((phi[name] - theta[name]).square().sum() for name in phi)
        return loss(phi, x, y) + 0.5 * work.lam * pull

    support, query = tasks
    slope = vmap(grad(inner))
    phi = {name: leaf.expand(len(tasks), *leaf.shape) for name, leaf in theta.items()}
    for _ in range(work.inner_steps):
        g = slope(phi, *support)
        phi = {name: leaf - work.inner_lr * g[name] for name, leaf in phi.items()}

    def product(v: Gradient) -> Gradient:
        return vmap(lambda p, d, x, y: jvp(lambda q: grad(inner)(q, x, y), (p,), (d,))[1])(phi, v, *support)

    def dot(a: Gradient, b: Gradient) -> Tensor:
        return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0)

    def plus(a: Gradient, scale: Tensor, b: Gradient) -> Gradient:
        return {name: a[name] + scale.view(-1, *[1] * (a[name].dim() - 1)) * b[name] for name in a}

    r = vmap(grad(loss))(phi, *query)
    u, d, rr = {name: torch.zeros_like(leaf) for name, leaf in r.items()}, r, dot(r, r)
    for _ in range(work.cg_steps):
        product_d = product(d)
        alpha = rr / dot(d, product_d)
        u, r = plus(u, alpha, d), plus(r, -alpha, product_d)
        rr_next = dot(r, r)
        d, rr = plus(r, rr_next / rr, d), rr_next
    return {name: work.lam * leaf.mean(0) for name, leaf in u.items()}


def torchopt_imaml(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Use TorchOpt's implicit meta-gradients through its public interface: one task after the other."""
    import torchopt

    for leaf in theta.values():
        leaf.grad = None
    names = list(theta)

    def one_task(support: Batch, query: Batch) -> Tensor:
        def inner(phi: tuple[Tensor, ...], meta: tuple[Tensor, ...]) -> Tensor:
            outputs = functional_call(model, dict(zip(names, phi, strict=True)), (support.x,))
            pull = sum((p - m).square().sum() for p, m in zip(phi, meta, strict=True))
            return F.cross_entropy(outputs, support.y) + 0.5 * work.lam * pull

        @torchopt.diff.implicit.custom_root(
            grad(inner, argnums=0),
            argnums=1,
            solve=torchopt.linear_solve.solve_cg(maxiter=work.cg_steps, rtol=0.0, atol=0.0),
        )
        def solve(phi: tuple[Tensor, ...], meta: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            fixed = tuple(leaf.detach() for leaf in meta)
            for _ in range(work.inner_steps):
                leaves = tuple(leaf.detach().requires_grad_() for leaf in phi)
                with torch.enable_grad():
                    g = torch.autograd.grad(inner(leaves, fixed), leaves)
                phi = tuple(leaf.detach() - work.inner_lr * part for leaf, part in zip(leaves, g, strict=True))
            return phi

        meta = tuple(theta.values())
        phi = solve(tuple(leaf.detach().clone() for leaf in meta), meta)
        return F.cross_entropy(functional_call(model, dict(zip(names, phi, strict=True)), (query.x,)), query.y)

    for task in range(len(tasks)):
        support, query = (Batch(part.x[task], part.y[task]) for part in tasks)
        (one_task(support, query) / len(tasks)).backward()
    return taken(theta)


def taken(theta: Gradient) -> Gradient:
    """Take the gradients off theta."""
    found = {name: leaf.grad for name, leaf in theta.items() if leaf.grad is not None}
    for leaf in theta.values():
        leaf.grad = None
    return found


def matrix_rate() -> float:
    """Return this machine's floating-point operations a second in one matrix product."""
    a = torch.randn(1024, 1024)
    seconds = least(lambda: a @ a, 15)
    return 2 * 1024**3 / seconds


def least(fn: Callable[[], object], repeats: int) -> float:
    """Return the least time of ``repeats`` calls, after one that does not count."""
    fn()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Compare gradients, then times; print a table and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {
        "tasks": 32, "ways": 5, "shots": 1, "queries": 15, "filters": 64, "inner_steps": 16, "inner_lr": 0.1,
        "lam": 2.0, "cg_steps": 5,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", type=Path)
    options = vars(parser.parse_args())
    repeats, path = options.pop("repeats"), options.pop("csv")
    work = Workload(**options)
    keep_memory()

    contestants = {"metagrad, exact Hessian": ours, "torch.func by hand": by_hand}
    if importlib.util.find_spec("torchopt"):
        contestants["TorchOpt"] = torchopt_imaml
    expected = ours(work, *work.draw(2, torch.float64))
    for name, contestant in contestants.items():
        found = contestant(work, *work.draw(2, torch.float64))
        gap = tree.norm({k: (found[k] - expected[k])[None] for k in expected}) / tree.norm(
            {k: v[None] for k, v in expected.items()}
        )
        print(f"gradient of {name}: {gap.item():.1e} from metagrad's (float64, two tasks)")
        if gap > 1e-8:
            raise SystemExit("these gradients are not the same: their times mean nothing")

    model, theta, tasks = work.draw(work.tasks, torch.float32)
    rows = {name: least(lambda c=c: c(work, model, theta, tasks), repeats) for name, c in contestants.items()}
    settings = {"inner_lr": work.inner_lr, "inner_steps": work.inner_steps}
    for name, algorithm in {
        "metagrad, Gauss-Newton": IMAML(lam=work.lam, cg_steps=work.cg_steps, **settings),
        "metagrad, MAML": MAML(**settings),
        "metagrad, first-order MAML": FOMAML(**settings),
    }.items():
        rows[name] = least(lambda a=algorithm: meta_gradient(a, model, theta, tasks), repeats)
        taken(theta)
    rate = matrix_rate()
    rows["arithmetic alone"] = work.flop() / rate
    base = rows["metagrad, exact Hessian"]
    print(f"{torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a matrix product, {work}")
    for name, seconds in rows.items():
        print(f"{name:28s} {seconds:7.3f} s   {seconds / base:5.2f} of metagrad's")
    if path:
        found = versions()
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["contestant", "seconds", *options, *found])
            for name, seconds in rows.items():
                table.writerow([name, f"{seconds:.4f}", *options.values(), *found.values()])


if __name__ == "__main__":
    main()
