"""The loop of both trainings: accelerate for devices and mixed precision, a state to continue from, folders at once."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.non_finite import MAX_NON_FINITE_STEPS
from nnunet_invariance.diffusion.noise import named_generator
from nnunet_invariance.diffusion.objective import Batch, SliceSampler
from nnunet_invariance.diffusion.packages import Accelerator
from nnunet_invariance.errors import NonFiniteLossError, OptionError, OutputError, StyleFolderError
from nnunet_invariance.weights.foreign import open_foreign

#: Left in the folder of a finished network; what it was trained with.
RECORD = "training.json"
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainingOptions:
    """How a training runs.

    Attributes:
        steps: of the optimiser.
        batch_size: on one device, in one pass.
        accumulate: passes a step.
        drop_prompt: share of samples that see an empty prompt, which guidance needs at generation.
        amp: "no", "fp16" or "bf16".
        save_every: steps between two states to continue from.

    Raises:
        OptionError: a value is out of range.
    """

    steps: int
    learning_rate: float
    batch_size: int = 1
    accumulate: int = 1
    drop_prompt: float = 0.0
    amp: str = "no"
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{_flag(name)} is {getattr(self, name)}; expected at least 1.")
        if not self.learning_rate > 0:
            raise OptionError(f"--learning-rate is {self.learning_rate}; expected more than 0.")
        if not 0 <= self.drop_prompt <= 1:
            raise OptionError(f"--drop-prompt is {self.drop_prompt}; expected a share from 0 to 1.")
        if self.amp not in DTYPES:
            raise OptionError(f"--amp is {self.amp!r}; expected one of {', '.join(DTYPES)}.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_accelerator(options: TrainingOptions, device: str) -> Accelerator:
    """The device, or all that ``accelerate launch`` or ``torchrun`` have given this run.

    Raises:
        OptionError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("-device cuda: not available on this machine. Add -device cpu (for tiny models).")
    return Accelerator(mixed_precision=options.amp, gradient_accumulation_steps=options.accumulate, cpu=device == "cpu")


def place(network: nn.Module, device: torch.device, amp: str) -> None:
    """Move a frozen network to the device, in the numbers of mixed precision."""
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
    """Train ``model`` and leave it in the folder ``target``, which appears when it is whole.

    Everything random in a pass depends on seed, pass and rank alone, so that a continued run is the one that was not
    interrupted; bit by bit on the CPU.

    Args:
        record: what else the network depends on; a state of another record is not continued.
        resume: continue from the last state; a finished network is left as it is.

    Raises:
        OutputError: the network or a state is there already and ``resume`` is not set, or a file cannot be written.
        StyleFolderError: the state belongs to other settings, or there is none.
        NonFiniteLossError
    """
    state_file = target.with_name(f"{target.name}_training.pt")
    record = {**record, "options": dataclasses.asdict(options)}
    if _is_finished(target, state_file, resume):
        return target
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, betas=(0.9, 0.999), weight_decay=1e-2)
    first = _restore(state_file, model, optimizer, accelerator, record) if resume else 0
    model, optimizer = accelerator.prepare(model, optimizer)
    show = tqdm(
        range(first, options.steps), initial=first, total=options.steps, desc=target.name, unit="step",
        disable=None if accelerator.is_main_process else True,
    )  # fmt: skip
    bad = 0
    for step in show:
        loss = _step(model, loss_of, sampler, options, accelerator, optimizer, step)
        bad = 0 if math.isfinite(loss) else bad + 1
        if bad == MAX_NON_FINITE_STEPS:
            msg = f"{target.name}: the loss was not finite in {bad} steps up to {step + 1}. "
            raise NonFiniteLossError(f"{msg}Take a smaller --learning-rate or --amp bf16 and continue with --c.")
        show.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if (step + 1) % options.save_every == 0 and step + 1 < options.steps and accelerator.is_main_process:
            _save(state_file, model, optimizer, accelerator, record, step + 1)
    if accelerator.is_main_process:
        write_network(accelerator.unwrap_model(model), target, record)
        state_file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return target


def _step(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    sampler: SliceSampler,
    options: TrainingOptions,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> float:
    """One step of the optimiser; the mean loss of its passes on this device."""
    losses = []
    for part in range(options.accumulate):
        names = (options.seed, accelerator.process_index, step, part)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = loss_of(model, sampler.draw(options.batch_size, named_generator(*names)))
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
        raise OutputError(f"{there[0]} is there already. Continue with --c, or move {target} and {state_file} away.")
    if resume and not there:
        raise StyleFolderError(f"--c: there is nothing to continue, {state_file} does not exist. Start without --c.")
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
    """Fill model and optimiser from a state; how many steps it has done."""
    state = open_foreign(path)
    before, now = json.loads(state["record"]), json.loads(json.dumps(record))
    if before != now:
        changed = [key for key in now if before.get(key) != now[key]]
        words = ", ".join(f"{key}: was {before.get(key)}, is {now[key]}" for key in changed)
        raise StyleFolderError(f"--c: {path} cannot be continued: {words}. Restore it, or start anew without --c.")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return state["step"]


def write_network(network: nn.Module, target: Path, record: dict[str, Any]) -> None:
    """``save_pretrained`` and the record into a folder that appears when it is whole.

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


def read_record(folder: Path) -> dict[str, Any]:
    """What a finished network was trained with."""
    return json.loads((folder / RECORD).read_text())
