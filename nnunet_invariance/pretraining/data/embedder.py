"""A trained anatomical embedding at work: whole volumes, window by window."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor, nn

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.matching import Embedding, make_embedding
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.methods.sam import SAM, padded_size
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.trusted_architecture import trusted_architecture


class Embedder:
    """Embeds preprocessed volumes in windows of the size the network was trained on, overlapping by half.

    Args:
        encoder: yields skips; head: of this encoder.
        window: size in voxels, a multiple of the head's deepest cell.
        spacing: mm per voxel.
    """

    def __init__(
        self, encoder: nn.Module, head: EmbeddingHead, window: Sequence[int], spacing: Sequence[float], device: str
    ) -> None:
        self.encoder, self.head = encoder.to(device).eval(), head.to(device).eval()
        self.window, self.spacing, self.device = tuple(window), tuple(spacing), torch.device(device)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Embedder":
        """The embedding of a checkpoint of ``pretrain sam``.

        Raises:
            WeightsIncompatibleError: the checkpoint is of another method. WeightsNotFoundError, CheckpointCorruptError
        """
        checkpoint = load_checkpoint(path, ("network", "heads"))
        metadata = checkpoint.metadata
        if metadata["method"] != SAM.name:
            msg = f"{path} was pre-trained with {metadata['method']!r}, which embeds no places; expected 'sam'. "
            raise WeightsIncompatibleError(msg + "Run `nnunet-invariance pretrain sam` for these plans.")
        network = trusted_architecture(checkpoint).build()
        heads = checkpoint.section("heads")
        features = len(heads["fine.smooth.bias"])
        head = EmbeddingHead(network.encoder.output_channels, network.encoder.strides, features)
        restore_module(network, checkpoint.section("network"))
        restore_module(head, heads)
        window = padded_size(tuple(metadata["patch_size"]), head.deepest_cell)
        return cls(network.encoder, head, window, metadata["spacing"], device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray | Tensor) -> Embedding:
        """Embed a volume (C, *shape) of any size; padding embeds nothing.

        Windows are joined by the mean of their unit vectors, weighed as nnU-Net weighs its windows.
        """
        image = torch.as_tensor(np.asarray(image), dtype=torch.float32)
        shape, cells = tuple(image.shape[1:]), (self.head.fine_cell, self.head.coarse_cell)
        padded = padded_size(tuple(map(max, shape, self.window)), self.head.deepest_cell)
        image = F.pad(image, [p for n, m in zip(shape[::-1], padded[::-1], strict=True) for p in (0, m - n)])
        maps = [torch.zeros(self.head.fine.smooth.out_channels, *_grid(padded, c), device=self.device) for c in cells]
        gaussian = compute_gaussian(self.window, dtype=torch.float32, device=self.device)[None, None]
        weights = [F.avg_pool3d(gaussian, c)[0] for c in cells]
        for low in self._starts(padded):
            part = image[(slice(None), *(slice(a, a + w) for a, w in zip(low, self.window, strict=True)))]
            found = self.head(self.encoder(part[None].to(self.device)))
            for whole, window, weight, cell in zip(maps, found, weights, cells, strict=True):
                place = (slice(a // c, a // c + n) for a, c, n in zip(low, cell, window.shape[2:], strict=True))
                whole[(slice(None), *place)] += window[0] * weight
        fine, coarse = (F.normalize(m, dim=0) for m in maps)
        return make_embedding(fine, coarse, *cells, shape, self.spacing)

    def _starts(self, padded: Sequence[int]) -> list[tuple[int, ...]]:
        """First voxels of the windows, on whole cells of the deepest stage."""
        steps = compute_steps_for_sliding_window(tuple(padded), self.window, 0.5)
        return list(
            itertools.product(
                *({s // c * c for s in axis} for axis, c in zip(steps, self.head.deepest_cell, strict=True))
            )
        )


def _grid(size: Sequence[int], cell: Sequence[int]) -> tuple[int, ...]:
    return tuple(n // c for n, c in zip(size, cell, strict=True))
