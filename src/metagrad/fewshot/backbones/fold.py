"""Batch norms of a frozen network, put into the convolutions before them: the same numbers in fewer passes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold(network: nn.Module) -> None:
    """Put each batch norm that directly follows a convolution in an ``nn.Sequential`` into it, in place.

    The network is in eval mode. A module that stands in several places, or has hooks, stays as it is.
    """
    places = Counter(id(child) for module in network.modules() for child in module._modules.values())
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        children = list(module._modules)
        for first, second in pairwise(children):
            conv, norm = module._modules[first], module._modules[second]
            if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
                continue
            plain = all(
                places[id(one)] == 1 and not (one._forward_hooks or one._forward_pre_hooks) for one in (conv, norm)
            )
            if plain and norm.running_mean is not None and not norm.training:
                module._modules[first] = fuse_conv_bn_eval(conv, norm)
                module._modules[second] = nn.Identity()
