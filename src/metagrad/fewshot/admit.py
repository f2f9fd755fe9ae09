"""Making sure a user's network differentiates correctly before it is trained.

The methods here differentiate a vmapped network twice. Most modules do that rightly and some raise; batch norms that
write running averages are swapped, and the network is measured once.
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from metagrad import torch_modes
from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot import many, module_lock, norms
from metagrad.implicit import Composed, Problem


@torch_modes.recording()
def admit(model: nn.Module, x: Tensor) -> nn.Module:
    """Return a copy of ``model`` that is safe to meta-learn, or say why there is none.

    A batch norm in training mode is swapped for :class:`metagrad.fewshot.norms.BatchNorm` (same parameters, no running
    averages), with a warning that names it; one in eval mode, and every other norm, stays. Then one float64 curvature
    product on ``x`` is taken for two tasks at once and compared with one task at a time.

    Parameters
    ----------
    model:
        any module that maps ``(N, ...)`` to outputs ``(N, ...)``.
    x:
        a few example inputs, ``(N, ...)``; at least 2 where the model normalises over the batch.

    Raises
    ------
    MetagradError
        if a forward pass changes a buffer, if the model does not run under ``vmap`` (dropout does not), or if the
        two products disagree.
    """
    with module_lock.LOCK:
        model = copy.deepcopy(model)
    swapped = _swap_norms(model)
    if swapped:
        warnings.warn(
            f"replaced {', '.join(swapped)} by metagrad's version, which always normalises by the batch at hand and "
            "keeps no running averages; one that is to stay as it was trained goes into eval mode first",
            MetagradWarning,
            stacklevel=2,
        )
    _refuse_changing_buffers(model, x)
    _compare_products(copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x)
    setattr(model, norms.MEASURED_TRANSDUCTIVE, _mixes_examples(model, x))
    return model


def _swap_norms(model: nn.Module) -> list[str]:
    swapped = []
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            replacement = _replacement(child)
            if replacement is not None:
                for key in ("weight", "bias"):
                    setattr(replacement, key, getattr(child, key, None))
                setattr(parent, name, replacement)
                swapped.append(f"{parent_name}.{name}".lstrip(".") + f" ({type(child).__name__})")
    return swapped


def _replacement(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and norms.looks_at_the_batch(module):
        return norms.BatchNorm(module.num_features, eps=module.eps, affine=module.affine)
    return None


def _refuse_changing_buffers(model: nn.Module, x: Tensor) -> None:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        outputs = model(x)
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(x):
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise MetagradError(
            f"the model must return one tensor with a row for each of its {len(x)} inputs, got {got}: wrap it in a "
            "module that does"
        )
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise MetagradError(
            f"the forward pass changes buffer {changed[0]}, which many tasks at once would share: "
            "make the module stateless, or put it in eval mode if it then leaves its buffers alone"
        )


def _mixes_examples(model: nn.Module, x: Tensor) -> bool:
    """Whether the first example's outputs change when the others do."""
    if len(x) < 2:
        return False
    # Whole numbers may be indices, which bear no arithmetic.
    others = x[1:].flip(-1) * 2 if x.is_floating_point() else x[:1].expand_as(x[1:])
    with torch.no_grad():
        return not torch.allclose(model(x)[0], model(torch.cat([x[:1], others]))[0], rtol=1e-4, atol=1e-5)


def _compare_products(model: nn.Module, x: Tensor) -> None:
    """Compare ``H v`` for two tasks at once with one task at a time, in float64."""
    generator = torch.Generator(device=x.device).manual_seed(0)

    def around(leaf: Tensor) -> Tensor:
        noise = torch.randn(2, *leaf.shape, dtype=leaf.dtype, device=leaf.device, generator=generator)
        return leaf.detach() + 0.1 * noise

    objective = Composed(
        outputs=lambda phi, theta, data: module_lock.call(model, phi, data[0]),
        loss=lambda outputs, data: (outputs * data[1]).sum() + outputs.square().sum(),
        outputs_of_tasks=lambda phi, theta, data: many.outputs(model, phi, data[0]),  # the way it will be run
    )
    phi, v = ({name: around(leaf) for name, leaf in model.named_parameters()} for _ in range(2))
    with torch.no_grad():
        weights = torch.randn(2, *model(x).shape, dtype=torch.float64, device=x.device, generator=generator)
    data = (x.expand(2, *x.shape), weights)
    try:
        batched = Problem(objective, {}, data).curvature(phi, "hessian")(v)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:160]
        raise MetagradError(f"the model does not run for several tasks at once (torch.vmap): {reason}") from error
    for task in range(2):
        p = {name: leaf[task].clone().requires_grad_() for name, leaf in phi.items()}
        names = list(p)
        value = objective(p, {}, (x, weights[task]))
        gradient = torch.autograd.grad(value, [p[n] for n in names], create_graph=True, materialize_grads=True)
        inner = sum((g * v[n][task]).sum() for n, g in zip(names, gradient, strict=True))
        alone = torch.autograd.grad(inner, [p[n] for n in names], materialize_grads=True)  # type: ignore[arg-type]
        a = torch.cat([batched[n][task].flatten() for n in names])
        b = torch.cat([g.flatten() for g in alone])
        if not torch.allclose(a, b, rtol=0.0, atol=float(1e-8 * b.norm() + 1e-12)):
            off = float((a - b).norm() / b.norm())
            raise MetagradError(
                f"a module of this model is wrong under vmap: its curvature product is {off:.1e} off "
                "(relative) from one task at a time; replace the module by one written in primitives"
            )
