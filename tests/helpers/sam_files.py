"""A checkpoint with the tensor names of the released SAM weights."""

import torch

from nnunet_invariance.networks.architectures.resnet3d import ResNet3d
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead
from nnunet_invariance.weights.importers.sam import HEADS


def released_state():
    """The 138 tensors of a released file with random values; the importer lists the names."""
    torch.manual_seed(0)
    encoder = ResNet3d(1)
    head = EmbeddingHead(encoder.output_channels, encoder.strides)
    state = {f"backbone.{name}": tensor for name, tensor in encoder.state_dict().items()}
    norms = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    state |= {f"{name}num_batches_tracked": torch.tensor(20_000) for name in norms}
    theirs = {own: name for name, own in HEADS.items()}
    for name, tensor in head.state_dict().items():
        prefix = next(own for own in theirs if name.startswith(own))
        state[theirs[prefix] + name.removeprefix(prefix)] = tensor
    assert len(state) == 138
    return state
