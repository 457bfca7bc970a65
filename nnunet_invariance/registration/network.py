"""Features of a pre-trained U-Net at full resolution, by sliding window."""

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
from nnunet_invariance.weights.trusted_architecture import trusted_architecture

METHOD = "anatomix"
EPSILON = 1e-5
#: How the image of a checkpoint was normalised, by nnU-Net's names. A checkpoint holds no intensity statistics of its
#: data set, so CT is scaled by those of the volume, after the window.
ZSCORE = ("ZScoreNormalization", "CTNormalization")
ZERO_TO_ONE = ("RescaleTo01Normalization",)


@dataclass(frozen=True)
class FeatureNetwork:
    """A network in evaluation mode, the size of its window, and the normalisation of its image.

    >>> FeatureNetwork(nn.Identity(), (64, 64, 64), "ZScoreNormalization").patch
    (64, 64, 64)
    """

    network: nn.Module
    patch: tuple[int, ...]
    scheme: str

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Features (1, C, z, y, x) of an image (1, 1, z, y, x), see :func:`normalise_features`."""
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
    """The file named, else that of the environment variable, else that shipped with the package.

    Raises:
        WeightsNotFoundError: there is none.
    """
    if weights:
        return weights
    found = named_weights(None) or find_shipped(METHOD)
    if found is None:
        raise WeightsNotFoundError(
            "No weights of a feature network are named (--weights, NNUNET_INVARIANCE_CHECKPOINT), and none are shipped "
            "with the package. Name a checkpoint, or use --features mind, which needs none."
        )
    return found.path


def load_feature_network(path: Path, device: torch.device) -> FeatureNetwork:
    """Build the network of a checkpoint of ours and fill it; the teacher's weights where the file has them.

    Raises:
        WeightsNotFoundError, CheckpointCorruptError: no such file, or a broken one.
        WeightsIncompatibleError: not 3-D, several input channels, a decoder that was not pre-trained, or a
            normalisation without a rule.
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
        wrong = "a decoder that was not pre-trained", "one that was: features are read behind it"
    elif schemes[0] not in (*ZSCORE, *ZERO_TO_ONE):
        wrong = f"the normalisation {schemes[0]}", f"one of {', '.join((*ZSCORE, *ZERO_TO_ONE))}"
    if wrong:
        msg = f"{path} cannot give features for registration: found {wrong[0]}, expected {wrong[1]}. "
        raise WeightsIncompatibleError(f"{msg}Take another checkpoint, or --features mind.")
    network = architecture.build()
    load_pretrained(network, checkpoint, transfer="encoder+decoder", branch=branch)
    patch = tuple(int(n) for n in metadata["patch_size"])
    return FeatureNetwork(network.to(device).eval(), patch, schemes[0])


def normalise_image(x: Tensor, scheme: str) -> Tensor:
    """The whole volume to mean 0 and deviation 1, or to [0, 1]."""
    if scheme in ZERO_TO_ONE:
        return (x - x.min()) / (x.max() - x.min())
    return (x - x.mean()) / x.std()


def normalise_features(features: Tensor) -> Tensor:
    """Each channel to mean 0 and deviation 1 over the volume, then each voxel to length 1 over its channels."""
    return F.normalize(F.instance_norm(features, eps=EPSILON), dim=1)


def slide(compute: Callable[[Tensor], list[Tensor]], x: Tensor, patch: Sequence[int]) -> Tensor:
    """Features (1, C, *spatial) of an image (1, 1, *spatial) of any size, which is padded at its end to one patch.

    The windows overlap by half; the authors use 0.8, which takes four to ten times as long.
    """
    spatial = x.shape[2:]
    rest = [max(0, p - n) for p, n in zip(patch, spatial, strict=True)]
    x = F.pad(x, [amount for n in reversed(rest) for amount in (0, n)], mode="replicate")
    (features,) = sliding_window(compute, x[0], patch)
    inside = (slice(None), *(slice(n) for n in spatial))
    return features[inside][None]
