"""Pre-trainings whose options are given as on the command line, and one that is stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunet_invariance.pretraining import pretrain, pretrain_without_dataset
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import load_method
from nnunet_invariance.pretraining.engine.settings import parse_settings
from nnunet_invariance.registry import get_method


def typed(method: str, settings: list[str]) -> dict:
    """The typed options of ``field=value`` arguments."""
    parsed = parse_settings(settings, load_method(get_method(method)).options_class)
    return {"options": parsed.method, "loop": parsed.loop}


def run_pretraining(
    method: str, dataset: str, configuration: str, plans: str = "nnUNetPlans", settings=(), **kwargs
) -> Path:
    """As :func:`pretrain`, on the CPU by default."""
    return pretrain(
        method, dataset, configuration, plans, **{"device": "cpu", **typed(method, list(settings)), **kwargs}
    )


def run_preset(method: str, network: str, out: Path, device: str = "cpu", settings=(), **kwargs) -> Path:
    """As :func:`pretrain_without_dataset`."""
    return pretrain_without_dataset(method, network, out, device=device, **typed(method, list(settings)), **kwargs)


@contextmanager
def stopped_after_step(step: int) -> Iterator[None]:
    """Stop the pre-training inside of the block when it has saved the checkpoint of this step."""
    save = Loop.save

    def save_and_stop(loop: Loop, finished: bool = False) -> Path:
        path = save(loop, finished)
        if loop.step == step:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            yield
