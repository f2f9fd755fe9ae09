"""Stored pictures as the images that a backbone takes."""

from __future__ import annotations

import torch
from torch import Tensor

from metagrad.data.features import fit_images
from metagrad.errors import MetagradError


def to_images(pictures: Tensor, size: int) -> Tensor:
    """Return stored pictures as images of a backbone's size.

    Grey becomes three equal channels. Of pictures that are not square, the middle square is taken. Resizing is bicubic
    with antialiasing, as in the decoder of picture files; small pictures are enlarged. All are held in memory at once,
    600 KB each at 224 pixels: pass a few hundred at a time.

    Parameters
    ----------
    pictures:
        uint8, ``(N, C, H, W)`` with 1 or 3 channels, 0 to 255. N may be 0.
    size:
        height and width of the images, in pixels: :attr:`Backbone.image_size`.

    Returns
    -------
    Tensor
        float32, ``(N, 3, size, size)``, 0 to 1, on the device of the pictures.

    Raises
    ------
    MetagradError
        for another type, other axes, another number of channels, or a size below 1.

    Examples
    --------
    >>> import torch
    >>> to_images(torch.full((2, 1, 28, 28), 255, dtype=torch.uint8), 224).shape
    torch.Size([2, 3, 224, 224])
    """
    if not isinstance(pictures, Tensor) or pictures.dtype != torch.uint8:
        found = pictures.dtype if isinstance(pictures, Tensor) else type(pictures).__name__
        raise MetagradError(f"pictures must be a uint8 tensor with values 0 to 255, got {found}")
    if pictures.dim() != 4 or pictures.shape[1] not in (1, 3):
        raise MetagradError(f"pictures must be (N, 1, H, W) or (N, 3, H, W), got {tuple(pictures.shape)}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise MetagradError(f"size must be a whole number of at least 1, got {size!r}")
    high, wide = pictures.shape[2:]
    side = min(high, wide)
    if side == 0:
        raise MetagradError(f"pictures must have pixels, got {tuple(pictures.shape)}")
    top, left = (high - side) // 2, (wide - side) // 2
    images = pictures[:, :, top : top + side, left : left + side].to(torch.float32) / 255
    return fit_images(images, size) if len(images) else images.new_zeros(0, 3, size, size)
