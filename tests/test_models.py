"""The networks of the literature: their sizes, and what their features keep of an image."""

import pytest
import torch

from metagrad.fewshot import Conv4


@pytest.mark.parametrize(("pools", "side"), [(4, 1), (3, 3), (2, 7), (0, 28)])
def test_features_keep_as_many_places_as_blocks_without_pooling_leave(pools, side):
    model = Conv4(5, filters=4, pooling=True, pools=pools)
    assert model.head.in_features == 4 * side**2
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 5)


def test_a_stroke_in_a_corner_has_its_features_there():
    model = Conv4(5, filters=4, pooling=True, pools=3, norm="layer", generator=torch.Generator().manual_seed(0))
    images = torch.zeros(2, 1, 24, 24)
    images[0, 0, :4, :4] = images[1, 0, -4:, -4:] = 1.0
    with torch.no_grad():
        none, (first, last) = model.body(torch.zeros(1, 1, 24, 24)), model.body(images)
    here, there = ((one - none[0]).abs().view(4, 3, 3).sum(0) for one in (first, last))
    assert here.argmax() == 0
    assert there.argmax() == 8


def test_images_too_small_for_so_many_pools_are_refused():
    Conv4(5, image_size=8, filters=4, pooling=True, pools=3)
    with pytest.raises(ValueError, match="images of 7 pixels are too small to be pooled 3 times: 8 are needed"):
        Conv4(5, image_size=7, filters=4, pooling=True, pools=3)
