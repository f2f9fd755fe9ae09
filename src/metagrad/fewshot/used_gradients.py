"""Which gradients a backward pass is really asked for.

``ctx.needs_input_grad`` of a custom function says which inputs have a history, not which of them this pass is about.
A pass may be about few: J v, as the transpose of a graph of Jᵀ w, asks for the derivative in w alone, and computing
those in the weights too would make a product with the Gauss-Newton matrix half as dear again.
"""

from __future__ import annotations

from typing import Any

import torch

_LEAF = "torch::autograd::AccumulateGrad"
# Not public, but what torch's own hooks on several gradients ask; without it everything is computed.
_will_run = getattr(torch._C, "_will_engine_execute_node", None)


def needed(ctx: Any) -> tuple[bool, ...]:
    """Return, for each tensor given to the custom function whose backward is running, whether its gradient is used.

    Tensors that matter are to come first among the function's inputs. torch does not answer for leaves: those that ask
    for a gradient count as used, and who wants to know hands over a view.
    """
    if _will_run is None:
        return tuple(ctx.needs_input_grad)
    return tuple(
        wanted and node is not None and (node.name() == _LEAF or _will_run(node))
        for wanted, (node, _) in zip(ctx.needs_input_grad, ctx.next_functions, strict=False)
    )
