"""Reading the encoder's features out of a forward pass of the whole network."""

from collections.abc import Sequence

from torch import Tensor, nn


class EncoderFeatureHook:
    """Keeps the skip connections that the encoder returned in the last forward pass in training mode.

    One forward hook, registered for good: ``torch.compile`` sees the hooks that stand before the first compiled call
    and silently ignores later ones, so the tap is attached right after the network was built. It adds nothing to the
    network's ``state_dict()`` and is off in evaluation mode.

    Args:
        encoder: returns its feature maps as a sequence, finest first (nnU-Net: ``return_skips`` is True).
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._skips: Sequence[Tensor] | None = None
        encoder.register_forward_hook(self._keep)

    def _keep(self, encoder: nn.Module, arguments: tuple, skips: Sequence[Tensor]) -> None:
        if encoder.training:
            self._skips = skips

    def pop(self) -> list[Tensor]:
        """The feature maps (B, C_s, *spatial_s), finest first, with their graph; the tap lets go of them.

        Raises:
            RuntimeError: there was no forward pass in training mode since the last call.
        """
        if self._skips is None:
            raise RuntimeError("The encoder tap is empty: no forward pass in training mode since it was last taken.")
        skips, self._skips = self._skips, None
        return list(skips)

    def clear(self) -> None:
        """Let go of feature maps that nobody took, and of the graph behind them."""
        self._skips = None
