"""nnU-Net's augmentation on the device."""

from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.micro.augmentation import LABELS, patches, pipeline_of
from nnunet_invariance.augmentation.on_device import device_form


def run(context: Context) -> dict[str, Any]:
    """Milliseconds per batch of two patches, with one view and with two, and waits of the host."""
    result: dict[str, Any] = {}
    for views, name in ((1, "one_view"), (2, "two_views")):
        transforms, enlarged = pipeline_of("3d", (context.size.patch,) * 3, views)
        form = device_form(transforms, LABELS)
        image, labels = (part.to(context.device) for part in patches(2, enlarged))
        generator = torch.Generator().manual_seed(0)

        def augment(form: Any = form, image: Any = image, labels: Any = labels, generator: Any = generator) -> None:
            form(image, labels, generator)

        augment()
        # A batch's time depends on which transforms happen, so many batches are averaged.
        seconds = context.seconds(augment, context.size.steps * (5 if context.on_gpu else 1))
        result[name] = {"milliseconds": seconds * 1000, "host_waits": context.host_waits(augment)}
    return result
