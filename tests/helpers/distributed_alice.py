"""The same small Alice model and the same views in every process of test_distributed."""

import torch

from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.alice import Alice, AliceOptions
from tests.helpers.planned_networks import architecture

#: The form with CASA, class tokens and centers, as in the authors' code.
AUTHORS_FORM = {
    "casa": "residual",
    "target_tokens": "decoder",
    "collapse_guard": "center",
    "weight_inter": 1.0,
    "teacher_temperature": 0.01,
    "teacher_temperature_start": 0.008,
}


def build(seed: int = 0, **changes: object) -> Alice:
    """Alice without dropout, so that only the data of the ranks differ."""
    torch.manual_seed(seed)
    planned: Architecture = architecture()
    options = AliceOptions(**{"head_width": 16, "num_prototypes": 16, **changes})
    alice = Alice(Setup(planned, (16, 16, 16), (1.0, 1.0, 1.0), 4, False, ()), options).train()
    for module in alice.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return alice


def views() -> dict[str, torch.Tensor]:
    """Four crops, Q1 Q2 K1 K2, with padding in two of them."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 1, 16, 16, 16, generator=generator)
    valid = torch.ones(4, 1, 16, 16, 16, dtype=torch.bool)
    valid[0, :, :5] = False
    valid[3, :, :, 9:] = False
    with torch.no_grad():
        return build().make_views(
            {"image": image * valid, "valid": valid, "score": torch.tensor([1.0, 0.1])}, generator
        )
