"""A trained anatomical embedding at work: whole volumes, window by window."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.matching import Embedding, make_embedding
from nnunet_invariance.nnunet.sliding_window import sliding_window
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
        maps = sliding_window(
            lambda window: self.head(self.encoder(window.to(self.device))),
            image,
            self.window,
            cells,
            align=self.head.deepest_cell,
            device=self.device,
        )
        fine, coarse = (F.normalize(m, dim=0) for m in maps)
        return make_embedding(fine, coarse, *cells, shape, self.spacing)
