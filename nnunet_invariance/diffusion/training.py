"""The training loop of DreamBooth and ControlNet: devices and mixed precision by accelerate, and a state to resume."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.non_finite import MAX_NON_FINITE_STEPS
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.diffusion.noise import named_generator
from nnunet_invariance.diffusion.objective import Batch, SliceSampler
from nnunet_invariance.diffusion.options import TrainingOptions
from nnunet_invariance.diffusion.packages import Accelerator
from nnunet_invariance.diffusion.record import RECORD, fixed, running_record, start_record
from nnunet_invariance.errors import NonFiniteLossError, OptionError, OutputError, StyleFolderError
from nnunet_invariance.weights.foreign import open_foreign

logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make_accelerator(options: TrainingOptions, device: str) -> Accelerator:
    """An accelerator on the device, or on all devices that ``accelerate launch`` or ``torchrun`` gave this run.

    Raises:
        OptionError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("-device cuda: not available on this machine. Add -device cpu (for tiny models).")
    return Accelerator(
        mixed_precision=options.amp, gradient_accumulation_steps=options.grad_accum_steps, cpu=device == "cpu"
    )


def to_device(network: nn.Module, device: torch.device, amp: str) -> None:
    """Move a frozen network to the device, in the dtype of mixed precision."""
    network.to(device)
    if amp != "no":
        network.to(DTYPES[amp])


def fit(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    sampler: SliceSampler,
    options: TrainingOptions,
    accelerator: Accelerator,
    target: Path,
    record: dict[str, Any],
    resume: bool = False,
) -> Path:
    """Train ``model`` and write it to the folder ``target``, which appears only when it is complete.

    All random numbers of a pass depend on seed, pass and rank only, so that a resumed run equals an uninterrupted one;
    bit by bit on the CPU.

    Args:
        record: the settings of :func:`new_record`; a state with others that the network depends on is not resumed.
        resume: continue from the last state; a finished network is kept.

    Raises:
        OutputError: the network or a state exists and ``resume`` is not set, or a file cannot be written.
        StyleFolderError: the state has other settings, or there is none.
        NonFiniteLossError: the loss was not finite in several consecutive steps.
    """
    state_file = target.with_name(f"{target.name}_training.pt")
    if _is_finished(target, state_file, resume):
        return target
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2)
    first = _restore(state_file, model, optimizer, accelerator, record) if resume and state_file.is_file() else 0
    if accelerator.is_main_process:
        record = start_record(target, record, resume)
    model, optimizer = accelerator.prepare(model, optimizer)
    show = Progress(
        range(first, options.steps), initial=first, total=options.steps, desc=target.name, unit="step",
        shown=accelerator.is_main_process,
    )  # fmt: skip
    check_finite = _FiniteCheck(target.name)
    for step in show:
        loss = _step(model, loss_of, sampler, options, accelerator, optimizer, step)
        check_finite(loss, step)
        show.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if (step + 1) % options.save_every == 0 and step + 1 < options.steps and accelerator.is_main_process:
            _save(state_file, model, optimizer, accelerator, record, step + 1)
    if accelerator.is_main_process:
        write_network(accelerator.unwrap_model(model), target, record)
        for file in (state_file, running_record(target)):
            file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return target


class _FiniteCheck:
    """Raises an error after several consecutive losses that are not finite."""

    def __init__(self, name: str) -> None:
        self.name, self.bad = name, 0

    def __call__(self, loss: float, step: int) -> None:
        self.bad = 0 if math.isfinite(loss) else self.bad + 1
        if self.bad == MAX_NON_FINITE_STEPS:
            msg = f"{self.name}: the loss was not finite in {self.bad} steps up to {step + 1}. "
            raise NonFiniteLossError(f"{msg}Start anew with a smaller --learning-rate or --amp bf16.")


def _step(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    sampler: SliceSampler,
    options: TrainingOptions,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> float:
    """Make one step of the optimiser; returns the mean loss of its passes on this device."""
    losses = []
    for part in range(options.grad_accum_steps):
        names = (options.seed, accelerator.process_index, step, part)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = loss_of(model, sampler.sample(options.batch_size, named_generator(*names)))
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def _is_finished(target: Path, state_file: Path, resume: bool) -> bool:
    there = [path for path in (target / "config.json", state_file) if path.is_file()]
    if there and not resume:
        raise OutputError(f"{there[0]} exists. Continue with --c, or move {target} and {state_file} away.")
    if resume and not there:
        if not running_record(target).is_file():
            msg = f"--c: there is nothing to continue, {state_file} does not exist. Start without --c."
            raise StyleFolderError(msg)
        logger.warning("the training of %s ended before it saved a state; it starts from the beginning", target)
    return (target / "config.json").is_file()


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    record: dict[str, Any],
    step: int,
) -> None:
    state = {
        "step": step,
        "record": json.dumps(record),
        "model": accelerator.unwrap_model(model).state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler and accelerator.scaler.state_dict(),
    }
    atomic_write(path, lambda file: torch.save(state, file))


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, record: dict[str, Any]
) -> int:
    """Load model and optimiser from a state; returns its number of steps."""
    state = open_foreign(path)
    before, now = (fixed(settings) for settings in (json.loads(state["record"]), json.loads(json.dumps(record))))
    if before != now:
        changed = [key for key in now if before.get(key) != now[key]]
        words = ", ".join(f"{key}: was {before.get(key)}, is {now[key]}" for key in changed)
        raise StyleFolderError(f"--c: {path} cannot be continued: {words}. Restore it, or start again without --c.")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["step"]


def write_network(network: Any, target: Path, record: dict[str, Any]) -> None:
    """Write ``save_pretrained`` and the record to a folder that appears only when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        network.save_pretrained(temporary, safe_serialization=True)
        (temporary / RECORD).write_text(json.dumps(record, indent=1))
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        msg = (
            f"{target} could not be written: {error.strerror or error}. Check the space and permissions of its folder."
        )
        raise OutputError(msg) from error
