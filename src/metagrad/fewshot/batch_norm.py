"""Batch normalisation of many tasks at once, by hand: few passes over memory, any order of derivative.

With ``c = x − mean``, ``r = (mean(c²) + eps)^−½`` and ``x̂ = r c`` over the n numbers of a channel, it all follows from
one symmetric map ``P v = v − mean(v) − x̂ mean(x̂ v)``:

    value     y  = w x̂ + b
    gradient  gx = w r P gy,  gw = Σ gy x̂,  gb = Σ gy

and the gradient's own derivative is P twice more. Arrays are ``(T, n, C)``: tasks, the numbers of a channel, channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metagrad.fewshot.used_gradients import needs_input_grad


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each task's channels, ``(T, N, C, *)``, over its own batch; scale and shift by ``(T, C)``.

    Fastest where channels are last in memory; the result is laid out so.
    """
    last = x.movedim(2, -1)
    rows = last.reshape(len(x), -1, x.shape[2])
    weight, bias = weight.view_as(weight), bias.view_as(bias)  # no leaves, see ``needs_input_grad``
    return _Norm.apply(rows, weight, bias, eps).view(last.shape).movedim(-1, 2)


class _Norm(torch.autograd.Function):
    """``(x, w, b) -> y``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        c = x - x.mean(1, keepdim=True)
        r = ((c * c).mean(1) + eps).rsqrt_()
        ctx.save_for_backward(x, w, c, r)
        ctx.eps = eps
        return torch.addcmul(b.unsqueeze(1), c, (r * w).unsqueeze(1))

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, w, c, r = ctx.saved_tensors
        return *_Grad.apply(gy, x, w, c, r, ctx.eps), None


class _Grad(torch.autograd.Function):
    """``(gy, x, w) -> gx, gw, gb``; c and r are x's own and count as part of it."""

    @staticmethod
    def forward(
        ctx: Any, gy: Tensor, x: Tensor, w: Tensor, c: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(gy, x, w, c, r)
        ctx.eps = eps
        return _project(gy, w, c, r)

    @staticmethod
    def backward(ctx: Any, hx: Tensor, hw: Tensor, hb: Tensor) -> tuple[Tensor | None, ...]:
        gy, x, w, c, r = ctx.saved_tensors
        needed = needs_input_grad(ctx)
        if torch.is_grad_enabled():  # differentiated a third time: in primitives, which torch can do to any order
            # Of views: gy was computed from x, and that path does not count here.
            at = gy.view_as(gy), x.view_as(x), w.view_as(w)
            gradients = _gradient(*at, ctx.eps)
            inputs = [leaf for leaf, need in zip(at, needed, strict=False) if need]
            parts = iter(torch.autograd.grad(gradients, inputs, (hx, hw, hb), create_graph=True))
            return *(next(parts) if need else None for need in needed[:3]), None, None, None
        one = torch.ones_like(w)
        p_hx, hx_xhat, _ = _project(hx, one, c, r)  # r P hx, Σ hx x̂
        out_gy = p_hx.mul(w.unsqueeze(1)).add_(hb.unsqueeze(1)).addcmul_(c, (hw * r).unsqueeze(1))
        if not any(needed[1:3]):
            return out_gy, None, None, None, None, None
        p_gy, gy_xhat, _ = _project(gy, one, c, r)
        inner = (hx * p_gy).sum(1)  # r ⟨hx, P gy⟩
        wr = w * r / x.shape[1]
        bent = gy * (hw - wr * hx_xhat).unsqueeze(1) - hx * (wr * gy_xhat).unsqueeze(1)
        # The factor r moves with x too: dr = −r² ⟨x̂, dx⟩ / n.
        out_x = _project(bent, one, c, r)[0].addcmul_(c, (-wr * inner * r).unsqueeze(1))
        return out_gy, out_x, inner, None, None, None


def _project(v: Tensor, w: Tensor, c: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``w r P v``, ``Σ v x̂`` and ``Σ v``."""
    total, along = v.sum(1), (v * c).sum(1) * r
    scale, count = w * r, v.shape[1]
    moved = torch.addcmul((-scale * total / count).unsqueeze(1), v, scale.unsqueeze(1))
    return moved.addcmul_(c, (-scale * along * r / count).unsqueeze(1)), along, total


def _gradient(gy: Tensor, x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what ``_Grad`` does, in primitives, from x alone."""
    c = x - x.mean(1, keepdim=True)
    r = torch.rsqrt(c.square().mean(1, keepdim=True) + eps)
    xhat = c * r
    gx = w.unsqueeze(1) * r * (gy - gy.mean(1, keepdim=True) - xhat * (gy * xhat).mean(1, keepdim=True))
    return gx, (gy * xhat).sum(1), gy.sum(1)
