"""Which gradients a backward pass uses.

``ctx.needs_input_grad`` of a custom function says which inputs require a gradient, not which of their gradients this
pass uses. It may use few: J v, as the transpose of a graph of Jᵀ w, needs the derivative in w alone, and computing
those in the weights too would make a product with the Gauss-Newton matrix half as expensive again.
"""

from __future__ import annotations

from typing import Any

import torch

_LEAF = "torch::autograd::AccumulateGrad"
# Not public, but torch's own hooks on several gradients call it; without it we compute every gradient.
_will_run = getattr(torch._C, "_will_engine_execute_node", None)


def needs_input_grad(ctx: Any) -> tuple[bool, ...]:
    """Return, for each tensor given to the custom function whose backward is running, whether its gradient is used.

    These tensors come first among the function's inputs. For leaf tensors PyTorch cannot tell, so leaves that require a
    gradient count as used; pass ``x.view_as(x)`` to get an exact answer.
    """
    if _will_run is None:
        return tuple(ctx.needs_input_grad)
    return tuple(
        wanted and node is not None and (node.name() == _LEAF or _will_run(node))
        for wanted, (node, _) in zip(ctx.needs_input_grad, ctx.next_functions, strict=False)
    )
