"""Pretrained networks: a frozen trunk that turns pictures into features, and a top that may train."""

from metagrad.fewshot.backbones.backbone import Backbone, Body
from metagrad.fewshot.backbones.images import to_images
from metagrad.fewshot.backbones.opening import open_backbone

__all__ = ["Backbone", "Body", "open_backbone", "to_images"]
