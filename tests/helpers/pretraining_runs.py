"""Pre-trainings whose options are given as on the command line."""

from pathlib import Path

from nnunet_invariance.pretraining import pretrain, pretrain_without_dataset
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
