"""The one pre-training loop: device, AMP, DDP, schedule, log, checkpoint, resume. Methods only say views and losses."""

import logging
import signal
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from nnunet_invariance.common.distributed import DistributedContext
from nnunet_invariance.errors import NonFiniteLossError
from nnunet_invariance.pretraining.engine.history import Row, write_metrics
from nnunet_invariance.pretraining.engine.method import Method, StepOutput, average
from nnunet_invariance.pretraining.engine.schedule import LoopOptions, learning_rate, should_stop_early
from nnunet_invariance.pretraining.engine.state import (
    module_tensors,
    optimizer_state,
    restore_module,
    restore_optimizer,
    restore_rng,
    rng_tensors,
)
from nnunet_invariance.weights.checkpoint import Checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

LATEST, FINAL = "checkpoint_latest.safetensors", "checkpoint_final.safetensors"
PATIENCE = 5  # steps with a non-finite loss in a row that end the run


def make_optimizer(method: Method, options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW over all trained parameters in two groups: with and without weight decay."""
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    decayed = {name for name, p in trained.items() if p.ndim > 1 and not name.endswith(method.without_decay)}
    groups = [
        {"params": [p for name, p in trained.items() if name in decayed], "weight_decay": options.weight_decay},
        {"params": [p for name, p in trained.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr)


def _leave_signals_to_the_main_process(worker: int) -> None:
    # a terminal or a scheduler signals all processes at once; the main one still needs its workers for the last step
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT); its state is saved."""


class Loop:
    """One run. ``metadata`` are the fields that stay the same in every checkpoint (see docs/architecture.md)."""

    def __init__(
        self, method: Method, options: LoopOptions, ranks: DistributedContext, folder: Path, metadata: dict[str, Any]
    ) -> None:
        self.options, self.ranks, self.folder, self.metadata = options, ranks, folder, metadata
        self.method = method.to(ranks.device).train()
        if options.compile:
            self.method.compile()
        self.module: torch.nn.Module = self.method
        if ranks.world > 1:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            self.module = DistributedDataParallel(self.method, device_ids=ids, broadcast_buffers=False)
        self.trained = [p for p in self.method.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.method, options)
        self.scaler = torch.amp.GradScaler("cuda") if ranks.device.type == "cuda" else None
        self.generator = torch.Generator(ranks.device)
        self.step = 0
        self.history: list[Row] = []
        self.sums: dict[str, float] = {}  # of the epoch under way
        self.skipped = 0
        self.recent_bad: deque[list[str]] = deque(maxlen=PATIENCE)
        self.stop_requested = False

    # ---- state -------------------------------------------------------------------------------------------------

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where ``checkpoint`` stands."""
        restore_module(self.method.network, checkpoint.section("network"))
        if self.method.teacher is not None:
            restore_module(self.method.teacher, checkpoint.section("teacher"))
        restore_module(self.method.heads, checkpoint.section("heads"))
        progress = checkpoint.metadata["progress"]
        restore_optimizer(self.optimizer, checkpoint.section("optimizer"), progress["optimizer"])
        if self.scaler is not None and progress["scaler"]:
            self.scaler.load_state_dict(progress["scaler"])
        self.step, self.history = checkpoint.metadata["step"], progress["history"]
        self.sums, self.skipped = progress["sums"], progress["skipped"]
        self._rng = checkpoint.section("rng")
        logger.info("continuing at step %d of %d", self.step, self.options.steps)

    def save(self, finished: bool = False) -> Path:
        """Write the state; the finished checkpoint leaves out what only continuing needs."""
        tensors = module_tensors("network", self.method.network) | module_tensors("heads", self.method.heads)
        if self.method.teacher is not None:
            tensors |= module_tensors("teacher", self.method.teacher)
        progress: dict[str, Any] = {"history": self.history, "skipped": self.skipped}
        if not finished:
            more, rest = optimizer_state(self.optimizer)
            tensors |= more | rng_tensors()
            progress |= {"optimizer": rest, "sums": self.sums}
            progress["scaler"] = self.scaler.state_dict() if self.scaler is not None else None
        metadata = {**self.metadata, "step": self.step, "finished": finished, "progress": progress}
        path = self.folder / (FINAL if finished else LATEST)
        save_checkpoint(path, tensors, metadata)
        return path

    # ---- run ---------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Train to the end and return the path of the finished checkpoint.

        Raises:
            NonFiniteLossError: five steps in a row; the checkpoint from before them stays.
            Stopped: after SIGTERM or SIGINT, once the step is finished and saved.
        """
        batches_a_step = self.options.grad_accum_steps
        dataset = self.method.dataset(self.options.steps * batches_a_step, self.options.seed, self.ranks.rank)
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=range(self.step * batches_a_step, self.options.steps * batches_a_step),
            num_workers=self.options.workers,
            generator=torch.Generator(),  # or the loader would draw from the global one, once a start
            pin_memory=self.ranks.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_main_process,
        )
        batches = iter(loader)
        if self.step:
            restore_rng(self._rng)
        handlers = {s: signal.signal(s, self._request_stop) for s in (signal.SIGTERM, signal.SIGINT)}
        bar = tqdm(
            total=self.options.steps,
            initial=self.step,
            desc=self.method.name,
            unit="it",
            disable=None if self.ranks.first else True,
        )
        try:
            self._run_epochs(batches, bar)
        finally:
            bar.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        path = self.folder / FINAL
        if self.ranks.first:
            self.save(finished=True)
            for old in self.folder.glob("checkpoint_latest*.safetensors"):
                old.unlink()
        self.ranks.barrier()
        return path

    def _run_epochs(self, batches: Any, bar: tqdm) -> None:
        started, first_step = time.perf_counter(), self.step
        while self.step < self.options.steps and not should_stop_early(self.history, self.options):
            self._train_step([next(batches) for _ in range(self.options.grad_accum_steps)], bar)
            if self.step % self.options.iterations == 0:
                self._end_epoch(time.perf_counter() - started, self.step - first_step)
                started, first_step = time.perf_counter(), self.step
            stop, _ = self.ranks.all_reduce_max(float(self.stop_requested), 0.0)
            if stop:
                if self.ranks.first:
                    self.save()
                msg = f"stopped at step {self.step} of {self.options.steps}; the state is saved, continue with --c"
                raise Stopped(msg)

    def _train_step(self, batches: list[dict[str, Any]], bar: tqdm) -> None:
        options = self.options
        progress = self.step / options.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, options)
        self.optimizer.zero_grad(set_to_none=True)
        outputs: list[StepOutput] = []
        totals: list[torch.Tensor] = []
        keys = [key for batch in batches for key in batch.pop("keys", [])]
        for number, batch in enumerate(batches):
            waits = number + 1 < len(batches) and isinstance(self.module, DistributedDataParallel)
            with self.module.no_sync() if waits else nullcontext():
                output, loss = self._forward(batch, self.step * len(batches) + number, progress)
                (bad,) = self.ranks.all_reduce_max(float(not torch.isfinite(loss)))
                if bad:
                    break
                loss = loss / len(batches)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            outputs.append(output)
            totals.append(loss.detach())
        self.step += 1
        bar.update()
        if len(outputs) < len(batches):
            self._skip(keys)
            return
        self.recent_bad.clear()
        self._optimize()
        output = average(outputs)
        self.method.after_step(output, progress)
        values = {"loss": sum(totals), **output.losses, **output.diagnostics}
        # one copy from the device for all values
        numbers = dict(zip(values, torch.stack([v.detach().float() for v in values.values()]).tolist(), strict=True))
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["count"] = self.sums.get("count", 0) + 1
        bar.set_postfix({n: f"{numbers[n]:.3f}" for n in ("loss", *output.losses)}, refresh=False)

    def _forward(self, batch: dict[str, Any], number: int, progress: float) -> tuple[StepOutput, torch.Tensor]:
        """What the method makes of one batch, and its weighted loss."""
        options, device = self.options, self.ranks.device
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        # every batch has seeds of its own, so a continued run draws what the uninterrupted one would, on every rank
        seed = (options.seed * options.steps * options.grad_accum_steps + number) * self.ranks.world + self.ranks.rank
        self.generator.manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        views = self.method.make_views(batch, self.generator)
        with self._precision():
            output = self.module(views, progress)
            return output, sum(self.method.loss_weights[name] * value for name, value in output.losses.items())

    def _precision(self) -> AbstractContextManager:
        return torch.autocast("cuda") if self.ranks.device.type == "cuda" else nullcontext()

    def _optimize(self) -> None:
        if self.scaler is None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.options.grad_clip_norm)
            self.optimizer.step()
            return
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.trained, self.options.grad_clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _skip(self, keys: list[str]) -> None:
        self.skipped += 1
        self.recent_bad.append(keys)
        logger.warning("step %d skipped: the loss is not finite; cases: %s", self.step, ", ".join(keys))
        if len(self.recent_bad) == PATIENCE:
            cases = sorted({k for step in self.recent_bad for k in step})
            msg = (
                f"The loss was not finite in {PATIENCE} steps in a row, up to step {self.step}. Cases in them: "
                f"{', '.join(cases)}. {self.folder / LATEST} holds the last good state where one was written. "
                "Look at these cases, or lower the learning rate (--set lr=...), then continue with --c."
            )
            raise NonFiniteLossError(msg)

    def _end_epoch(self, seconds: float, steps: int) -> None:
        count = self.sums.pop("count", 0)
        means = {name: total / count for name, total in self.sums.items()} if count else {}
        self.sums = {}
        self.method.eval()
        with torch.no_grad(), self._precision():
            means |= self.method.evaluate()
        self.method.train()
        row: Row = {"epoch": self.step // self.options.iterations, "step": self.step, **means}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "skipped": self.skipped}
        row |= {"seconds": round(seconds, 3), "iterations_per_second": steps / seconds}
        if not count:
            return
        self.history.append(row)
        for warning in self.method.warnings(means):
            logger.warning("epoch %d: %s", row["epoch"], warning)
        if self.ranks.first:
            parts = "  ".join(f"{n} {v:.4f}" for n, v in means.items())
            logger.info(
                "epoch %d/%d  %s  %.2f it/s", row["epoch"], self.options.epochs, parts, row["iterations_per_second"]
            )
            write_metrics(self.folder, self.history)
            self.save()
        self.ranks.barrier()

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        logger.warning("%s received: finishing this step, then saving", signal.Signals(number).name)
