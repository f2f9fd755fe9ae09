"""iMAML with JAXopt: ``custom_root`` around gradient descent, its CG for the adjoint, compiled by jax.jit.

The network is written again in jax, with the same weights. What a careful user would choose on CPU, measured on one
core with 64 filters (jax 0.10.2): one task after the other, not ``vmap`` over tasks (0.33 s a task against 0.62); the
steps unrolled, not in ``fori_loop``, where XLA's convolutions and their gradients take seven times as long (0.33 s a
task against 0.71). JAXopt's CG is such a loop, and takes one product more than it is asked for: it applies the Hessian
to its start, zero. Weights and images are converted at every call, some megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from metagrad.fewshot import Conv4, Tasks
from metagrad.fewshot.norms import BatchNorm
from workload import Gradient, Workload

NAME, NEEDS, FORM = "JAXopt", "jaxopt", "imaml"


def gradient(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Convert, add up the tasks' gradients in a compiled function, convert back."""
    import jax

    jax.config.update("jax_enable_x64", True)  # float64 where it is given; float32 stays float32
    eps = next(module.eps for module in model.modules() if isinstance(module, BatchNorm))
    weights = {name: jax.numpy.asarray(leaf.detach().numpy()) for name, leaf in theta.items()}
    total = jax.tree.map(jax.numpy.zeros_like, weights)
    for task in range(len(tasks)):
        data = ((part.x[task].numpy(), part.y[task].numpy()) for part in tasks)
        total = adder(work, eps)(total, weights, *data)
    return {name: torch.from_numpy(np.array(leaf)) / len(tasks) for name, leaf in total.items()}


@cache  # jax compiles once a function: a new one at every call would be compiled at every call
def adder(work: Workload, eps: float) -> Callable[..., dict[str, Any]]:
    """Return the compiled function of a sum, weights, support and query set that adds the task's gradient."""
    import jax
    import jaxopt
    from jax import numpy as jnp

    def loss(phi: dict[str, Any], x: Any, y: Any) -> Any:
        for index in range(4):
            x = jax.lax.conv_general_dilated(x, phi[f"body.{3 * index}.weight"], (2, 2), ((1, 1), (1, 1)))
            centred = x - x.mean((0, 2, 3), keepdims=True)
            x = centred * jax.lax.rsqrt(jnp.square(centred).mean((0, 2, 3), keepdims=True) + eps)
            scale, shift = (phi[f"body.{3 * index + 1}.{key}"][:, None, None] for key in ("weight", "bias"))
            x = jax.nn.relu(x * scale + shift)
        scores = x.reshape(len(x), -1) @ phi["head.weight"].T + phi["head.bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(scores), y[:, None], 1).mean()

    def inner(phi: dict[str, Any], theta: dict[str, Any], x: Any, y: Any) -> Any:
        pull = sum(jnp.square(phi[name] - theta[name]).sum() for name in phi)
        return loss(phi, x, y) + 0.5 * work.lam * pull

    slope = jax.grad(inner)

    def solve_cg(product: Any, b: Any) -> Any:
        return jaxopt.linear_solve.solve_cg(product, b, maxiter=work.cg_steps, tol=0.0)

    @jaxopt.implicit_diff.custom_root(slope, solve=solve_cg)
    def solve(phi: dict[str, Any], theta: dict[str, Any], x: Any, y: Any) -> dict[str, Any]:
        for _ in range(work.inner_steps):
            phi = jax.tree.map(lambda p, g: p - work.inner_lr * g, phi, slope(phi, theta, x, y))
        return phi

    def query_loss(theta: dict[str, Any], support: Any, query: Any) -> Any:
        return loss(solve(theta, theta, *support), *query)

    @jax.jit
    def add(total: dict[str, Any], theta: dict[str, Any], support: Any, query: Any) -> dict[str, Any]:
        return jax.tree.map(jnp.add, total, jax.grad(query_loss)(theta, support, query))

    return add
