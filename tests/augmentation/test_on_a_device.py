"""Every style intervention on an emulated device."""

import pytest
import torch

from nnunet_invariance.augmentation.interventions import INTERVENTIONS, Domain
from tests.helpers.device_emulator import DEVICE, Emulator, to_device

MOST_WAITS = 0
#: Waits of an intervention whose work depends on values.
ADDITIONAL: dict[str, int] = {}


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention_runs_on_the_device(name):
    intervention = INTERVENTIONS[name]()
    image, labels = torch.randn(2, 1, 8, 8, 8), torch.randint(3, (2, 1, 8, 8, 8))
    parameters = intervention.sample(Domain(tuple(image.shape), 3), torch.Generator().manual_seed(0))
    with Emulator() as emulator:
        styled = intervention.apply(to_device(image), to_device(labels), parameters)
    assert styled.device == DEVICE
    assert styled.values.isfinite().all()
    assert emulator.total <= MOST_WAITS + ADDITIONAL.get(name, 0), emulator.waits
