"""A forward hook that keeps the encoder's features of a forward pass of the whole network."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class EncoderFeatureHook:
    """Keeps the feature maps that the encoder returned in the last forward pass in training mode.

    Create it right after the network is built, because ``torch.compile`` ignores hooks that are registered after the
    first compiled call. The hook stays registered, adds nothing to the network's ``state_dict()`` and does nothing in
    evaluation mode.

    >>> import torch
    >>> class Encoder(nn.Module):
    ...     def forward(self, x: Tensor) -> list[Tensor]:
    ...         return [x, x[..., ::2]]
    >>> encoder = Encoder()
    >>> hook = EncoderFeatureHook(encoder)
    >>> _ = encoder(torch.zeros(1, 1, 8))
    >>> [tuple(feature_map.shape) for feature_map in hook.pop()]
    [(1, 1, 8), (1, 1, 4)]

    Args:
        encoder: returns its feature maps as a sequence, finest first (in nnU-Net, ``return_skips`` is True).
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._skips: Sequence[Tensor] | None = None
        encoder.register_forward_hook(self._keep)

    def _keep(self, encoder: nn.Module, arguments: tuple[Any, ...], skips: Sequence[Tensor]) -> None:
        if encoder.training:
            self._skips = skips

    def pop(self) -> list[Tensor]:
        """The feature maps (B, C_s, *spatial_s), finest first, with their graph; the hook does not keep them.

        Raises:
            RuntimeError: there was no forward pass in training mode since the last call.
        """
        if self._skips is None:
            raise RuntimeError(
                "The feature hook is empty: there was no forward pass in training mode since the last pop()."
            )
        skips, self._skips = self._skips, None
        return list(skips)

    def clear(self) -> None:
        """Release feature maps that were not popped, and their graph."""
        self._skips = None
