"""Full-resolution features of a pre-trained U-Net, computed by sliding window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.nnunet.sliding_window import sliding_window
from nnunet_invariance.weights.locate import find_shipped, named_weights
from nnunet_invariance.weights.transfer import load_network, load_pretrained
from nnunet_invariance.weights.trusted_architecture import build_trusted, trusted_architecture

METHOD = "anatomix"
EPSILON = 1e-5
#: Supported nnU-Net normalisation schemes of a checkpoint. A checkpoint has no intensity statistics of its dataset, so
#: CT is clipped and then normalised with the statistics of the volume.
ZSCORE = ("ZScoreNormalization", "CTNormalization")
ZERO_TO_ONE = ("RescaleTo01Normalization",)


@dataclass(frozen=True)
class FeatureNetwork:
    """A network in evaluation mode with its window size and the normalisation scheme of its input.

    >>> FeatureNetwork(nn.Identity(), (64, 64, 64), "ZScoreNormalization").patch
    (64, 64, 64)
    """

    network: nn.Module
    patch: tuple[int, ...]
    scheme: str

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Compute normalised features (1, C, z, y, x) of an image (1, 1, z, y, x); see :func:`normalise_features`."""
        kept: list[Tensor] = []
        *_, stage = self.network.get_submodule("decoder.stages").children()
        hook = stage.register_forward_hook(lambda *call: kept.append(call[-1]))
        x = normalise_image(x, self.scheme)

        def finest(window: Tensor) -> list[Tensor]:
            self.network(window)
            return [kept.pop()]

        try:
            return normalise_features(slide(finest, x, self.patch))
        finally:
            hook.remove()


def find_network_file(weights: Path | None) -> Path:
    """Checkpoint of the feature network: ``weights``, else the environment variable, else the shipped weights.

    Raises:
        WeightsNotFoundError: none of these exists.
    """
    if weights:
        return weights
    found = named_weights(None) or find_shipped(METHOD)
    if found is None:
        raise WeightsNotFoundError(
            "No weights of a feature network are named (--weights, NNUNET_INVARIANCE_CHECKPOINT), and none are shipped "
            "with the package. Name a checkpoint, or use --features mind, which needs no network."
        )
    return found.path


def load_feature_network(path: Path, device: torch.device) -> FeatureNetwork:
    """Build the network of a checkpoint of this package and load its weights (the teacher's, if the file has them).

    Raises:
        WeightsNotFoundError: the file does not exist.
        CheckpointCorruptError: the file is damaged.
        WeightsIncompatibleError: the network is not 3-D or has several input channels, its decoder was not pre-trained,
            or its normalisation scheme is not supported.
    """
    checkpoint, branch = load_network(path)
    metadata = checkpoint.metadata
    architecture, schemes = trusted_architecture(checkpoint), metadata["normalization_schemes"]
    wrong = None
    if len(metadata["patch_size"]) != 3:
        wrong = f"a network in {len(metadata['patch_size'])} dimensions", "3"
    elif architecture.input_channels != 1:
        wrong = f"a network for {architecture.input_channels} channels", "one channel"
    elif "decoder" not in metadata["pretrained"]:
        wrong = "a decoder that was not pre-trained", "a pre-trained decoder, because the features are its output"
    elif not schemes or schemes[0] not in (*ZSCORE, *ZERO_TO_ONE):
        wrong = (
            f"the normalisation {schemes[0] if schemes else 'of no channel'}",
            f"one of {', '.join((*ZSCORE, *ZERO_TO_ONE))}",
        )
    if wrong:
        msg = f"{path} cannot provide features for registration: found {wrong[0]}, expected {wrong[1]}. "
        raise WeightsIncompatibleError(f"{msg}Use another checkpoint, or --features mind.")
    network = build_trusted(checkpoint)
    load_pretrained(network, checkpoint, transfer="encoder+decoder", branch=branch)
    patch = tuple(int(n) for n in metadata["patch_size"])
    return FeatureNetwork(network.to(device).eval(), patch, schemes[0])


def normalise_image(x: Tensor, scheme: str) -> Tensor:
    """Normalise a volume to mean 0 and standard deviation 1, or to [0, 1], depending on the scheme."""
    if scheme in ZERO_TO_ONE:
        return (x - x.min()) / (x.max() - x.min())
    return (x - x.mean()) / x.std()


def normalise_features(features: Tensor) -> Tensor:
    """Normalise each channel to mean 0 and standard deviation 1, then each voxel to unit length over the channels."""
    return F.normalize(F.instance_norm(features, eps=EPSILON), dim=1)


def slide(compute: Callable[[Tensor], list[Tensor]], x: Tensor, patch: Sequence[int]) -> Tensor:
    """Features (1, C, *spatial) of an image (1, 1, *spatial); small images are padded at the end to one patch.

    The windows overlap by 0.5; the authors use 0.8, which takes four to ten times as long.
    """
    spatial = x.shape[2:]
    rest = [max(0, p - n) for p, n in zip(patch, spatial, strict=True)]
    x = F.pad(x, [amount for n in reversed(rest) for amount in (0, n)], mode="replicate")
    (features,) = sliding_window(compute, x[0], patch)
    inside = (slice(None), *(slice(n) for n in spatial))
    return features[inside][None]
