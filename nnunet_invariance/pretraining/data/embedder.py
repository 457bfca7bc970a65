"""Anatomical embeddings of whole volumes by sliding window."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import NonFiniteEmbeddingError, WeightsIncompatibleError
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.networks.matching import Embedding, make_embedding
from nnunet_invariance.nnunet.sliding_window import sliding_window
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.methods.sam import SAM, padded_size
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.trusted_architecture import build_trusted, malformed

#: Tensor whose length is the number of features of the embedding.
WIDTH = "fine.smooth.bias"


class Embedder:
    """Embeds preprocessed volumes in windows of the size that the network was trained on, which overlap by half.

    Args:
        encoder: returns its feature maps, finest first.
        head: of this encoder.
        window: size in voxels, a multiple of the head's deepest cell.
        spacing: mm per voxel.
        device: of the network and of the embeddings.

    >>> from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    >>> encoder = PlainConvEncoder(1, 2, (4, 8), nn.Conv3d, 3, (1, 2), 1, return_skips=True)
    >>> head = EmbeddingHead(encoder.output_channels, encoder.strides, features=8)
    >>> embed = Embedder(encoder, head, window=(8, 8, 8), spacing=(1.0, 1.0, 1.0), device="cpu")
    >>> embed(torch.zeros(1, 10, 8, 8)).fine.shape
    torch.Size([8, 5, 4, 4])
    """

    def __init__(
        self, encoder: nn.Module, head: EmbeddingHead, window: Sequence[int], spacing: Sequence[float], device: str
    ) -> None:
        self.encoder, self.head = encoder.to(device).eval(), head.to(device).eval()
        self.window, self.spacing, self.device = tuple(window), tuple(spacing), torch.device(device)

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> "Embedder":
        """Load the network and the head from a checkpoint of ``pretrain sam``.

        Raises:
            WeightsNotFoundError: there is no such file.
            CheckpointCorruptError: the file is damaged.
            WeightsIncompatibleError: the checkpoint is of another method.
        """
        checkpoint = load_checkpoint(path, ("network", "heads"))
        metadata = checkpoint.metadata
        if metadata["method"] != SAM.name:
            msg = f"{path} was pre-trained with {metadata['method']!r}, which has no anatomical embedding; expected "
            raise WeightsIncompatibleError(f"{msg}'sam'. Run `nnunet-invariance pretrain sam` for these plans.")
        network = build_trusted(checkpoint)
        heads = checkpoint.section("heads")
        try:
            head = EmbeddingHead(network.encoder.output_channels, network.encoder.strides, len(heads[WIDTH]))
            restore_module(network, checkpoint.section("network"))
            restore_module(head, heads)
            window = padded_size(tuple(metadata["patch_size"]), head.deepest_cell)
            spacing = tuple(metadata["spacing"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            what = f"its tensors are not those of the embedding that its metadata describe ({error})"
            raise malformed(path, what, "a checkpoint as `pretrain sam` writes it") from error
        return cls(network.encoder, head, window, spacing, device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray | Tensor) -> Embedding:
        r"""Embed a volume (C, \*shape) of any size.

        The volume is padded to whole windows; the padding is cut off the result. Overlapping windows are joined by the
        mean of their unit vectors, with the weights that nnU-Net gives to its windows.

        Raises:
            NonFiniteEmbeddingError: the volume, or its embedding, contains NaN or infinity.
        """
        image = torch.as_tensor(np.asarray(image), dtype=torch.float32)
        shape, cells = tuple(image.shape[1:]), (self.head.fine_cell, self.head.coarse_cell)
        self._check_finite("volume", image, "Preprocess the volume again, or remove it.")
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
        for name, feature_map in zip(("fine", "coarse"), maps, strict=True):
            self._check_finite(
                f"{name} embedding", feature_map, "The weights are not usable; repeat `nnunet-invariance pretrain sam`."
            )
        fine, coarse = (F.normalize(m, dim=0) for m in maps)
        return make_embedding(fine, coarse, *cells, shape, self.spacing)

    @staticmethod
    def _check_finite(name: str, tensor: Tensor, remedy: str) -> None:
        invalid = int((~torch.isfinite(tensor)).sum())
        if invalid:
            raise NonFiniteEmbeddingError(
                f"The {name} of shape {tuple(tensor.shape)} has {invalid} of {tensor.numel()} values that are NaN or "
                f"infinite; expected finite values. {remedy}"
            )
