"""One step of each trainer on two gloo ranks, and on one rank with the joined batch and the same random choices."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_invariance.common.precision import Precision
from nnunet_invariance.trainers import channel_dropout, puir
from tests.helpers.tiny_trainers import make_trainer, values

CPU = torch.device("cpu")
#: A small step in which every auxiliary loss has its full weight.
OPTIONS = {
    "precision": "fp32", "seed": 1, "aux_ramp": 0.0, "warmup": 0.0, "num_positions": 32, "prior": 4,
    "equivariance_probability": 1.0, "aux_weight": 0.5, "style_views": "pair", "feature_dropout": 0.0,
}  # fmt: skip
#: Whatever chooses at random in a step: methods of the trainer, and functions of two modules.
METHODS = ("sample_positions", "style_view")
FUNCTIONS = ((puir, "drop_modalities"), (puir, "sample_symmetries"), (channel_dropout, "drop_modalities"))


def move_to_cpu(trainer: Any) -> Any:
    """A trainer that is not initialised yet, on the CPU: with a process group, nnU-Net chooses CUDA."""
    trainer.device, trainer.grad_scaler, trainer.precision = CPU, None, Precision.choose("fp32", CPU)
    return trainer


def start_trainer(dataset: Any, name: str) -> Any:
    """A trainer on the CPU before its first step; with DDP if there is a process group."""
    trainer = move_to_cpu(make_trainer(dataset, name, **OPTIONS))
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def step(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Losses and gradients of a step that changes no weight."""
    trainer.optimizer.step = lambda: None
    losses = trainer.train_step(copy.deepcopy(batch))
    modules = [trainer.plain_network, *([trainer.aux] if hasattr(trainer, "aux") else [])]
    parameters = [parameter for module in modules for parameter in module.parameters()]
    # DDP gives zeros to a parameter that no loss depends on, such as the head of an output whose weight is 0
    gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    return {"losses": {key: float(value) for key, value in losses.items()}, "gradient": torch.cat(gradients)}


@contextmanager
def random_choices(trainer: Any, replayed: list[Any] | None = None) -> Iterator[list[Any]]:
    """Record the results of everything that chooses at random, or replay them in the same order."""
    recorded: list[Any] = []

    def wrap(choose):
        def wrapped(*args, **kwargs):
            result = replayed.pop(0) if replayed is not None else choose(*args, **kwargs)
            recorded.append(result if isinstance(result, Tensor) else tuple(result))
            return result

        return wrapped

    with ExitStack() as stack:
        places = [(trainer, name) for name in METHODS if hasattr(trainer, name)] + list(FUNCTIONS)
        for place, name in places:
            stack.enter_context(mock.patch.object(place, name, wrap(getattr(place, name))))
        yield recorded


def join(parts: list[Any]) -> Any:
    """Concatenate what the ranks have: tensors, lists of tensors or of names, and tuples."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, list | tuple) and all(isinstance(item, Tensor) for item in first):
        return type(first)(map(torch.cat, zip(*parts, strict=True)))
    return [item for part in parts for item in part]


def use_gloo() -> None:
    """Let nnU-Net's trainers train on the CPU in a process group, for which nnU-Net chooses CUDA."""
    torch.cuda.is_bf16_supported = lambda **_: True
    nnunet.DDP = lambda network, device_ids: DistributedDataParallel(network)


def steps(rank: int, work: list[tuple[Any, str]]) -> dict[str, Any]:
    """What one step of every trainer on one rank saw and did."""
    use_gloo()
    found = {}
    for dataset, name in work:
        trainer = start_trainer(dataset, name)
        batch = next(trainer.dataloader_train)
        with random_choices(trainer) as chosen:
            result = step(trainer, batch)
        batch = {key: batch[key] for key in ("data", "target", "keys")}
        found[name] = {**result, "chosen": chosen, "batch": {**batch, "keys": list(map(str, batch["keys"]))}}
    return found


def train(rank: int, dataset: Any, name: str) -> list[dict[str, torch.Tensor]]:
    """Weights of the network and of the auxiliary modules after one epoch on one rank."""
    use_gloo()
    trainer = start_trainer(dataset, name)
    trainer.num_epochs = 1
    trainer.run_training()
    return [values(trainer.plain_network), values(trainer.aux)]


def on_the_joined_batch(dataset: Any, name: str, ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The step of one rank on the batches of all ranks."""
    trainer = start_trainer(dataset, name)
    batch = {key: join([rank["batch"][key] for rank in ranks]) for key in ranks[0]["batch"]}
    chosen = [join(list(parts)) for parts in zip(*(rank["chosen"] for rank in ranks), strict=True)]
    with random_choices(trainer, chosen):
        return step(trainer, batch)
