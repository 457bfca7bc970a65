"""Small Primus networks of the upstream package, and checkpoint files of them in nnssl's format."""

import torch
from dynamic_network_architectures.architectures import primus as upstream

from tests.helpers.foreign_checkpoints import nnssl_file
from tests.helpers.small_checkpoints import architecture

PATCH = [16, 24, 32]


TINY = (24, 2, 2)


def released_network(patch=PATCH, channels: int = 1) -> torch.nn.Module:
    """The upstream network of this size with random values in every tensor."""
    network = upstream.Primus(
        channels, TINY[0], (8, 8, 8), 1, TINY[1], TINY[2], tuple(patch), scale_attn_inner=True, init_values=0.1
    )
    generator = torch.Generator().manual_seed(4)
    for tensor in network.parameters():
        tensor.data = torch.randn(tensor.shape, generator=generator) * 0.2
    return network.eval()


def write_primus(path, network, patch=PATCH, size="T", state=None, **changes):
    plan = {"arch_class_name": f"Primus{size}", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    keys = {"key_to_encoder": "eva", "key_to_stem": "down_projection", "keys_to_in_proj": ["down_projection.proj"]}
    changes = {"architecture_plans": plan, "pretrain_patch_size": list(patch), "key_to_lpe": "eva.pos_embed", **changes}
    nnssl_file(path, architecture(), network, **{**keys, **changes})
    if state is not None:
        content = torch.load(path, weights_only=False)
        torch.save({**content, "network_weights": state}, path)
    return path
