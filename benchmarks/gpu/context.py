"""Where an acceptance run measures, and at what size."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """Sizes of everything that a phase makes: voxels, features, and numbers of repetitions.

    Attributes:
        patch, small: side of the patch for measurements, and of the patch for short trainings.
        volume: side of the stored cases.
        features: of the stages of the U-Net, the finest first.
        synthesis: side of a synthetic volume.
        steps: timed steps. curve: steps of a training curve. workers: processes of a data loader.
        tests: arguments of pytest that choose the contract tests. trainers: names; empty: all trainers.
    """

    patch: int
    small: int
    volume: int
    features: tuple[int, ...]
    synthesis: int
    steps: int
    curve: int
    workers: int
    tests: tuple[str, ...]
    trainers: tuple[str, ...] = ()


#: Tests that run on the device and need no data set, whose images a machine without SimpleITK could not write.
CONTRACTS = (
    "tests/losses", "tests/augmentation", "tests/synthesis", "tests/pretraining/test_method_contract.py",
    "-k", "uses_device",
)  # fmt: skip
FULL = Size(128, 64, 280, (32, 64, 128, 256, 320, 320), 128, 20, 60, 12, CONTRACTS)
SHORT = ("tests/augmentation/on_device/test_transforms.py", "-k", "brightness and uses_device")
TINY = Size(16, 16, 24, (4, 8, 8), 32, 1, 4, 0, SHORT, ("ICMSegTrainer", "PUIRTrainer"))
SIZES = {"full": FULL, "tiny": TINY}


@dataclass(frozen=True)
class Context:
    """The device, the size, and a folder that all phases of a run share."""

    device: torch.device
    size: Size
    work: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU of NVIDIA."""
        return self.device.type == "cuda"

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Mean wall seconds of a call, the work of the device included."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self.synchronise()
        return (time.perf_counter() - start) / repeats

    def compare(
        self, calls: dict[str, Callable[[], object]], rounds: int = 5, warm_up: int = 3
    ) -> dict[str, list[float]]:
        """Seconds of each call in rounds in which the calls take turns, so that their ratios can be published."""
        for call in calls.values():
            self.seconds(call, warm_up if self.on_gpu else 1)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds if self.on_gpu else 1):
            for name, call in calls.items():
                taken[name].append(self.seconds(call, max(1, self.size.steps // rounds)))
        return taken

    def host_waits(self, call: Callable[[], object]) -> int | None:
        """Number of times that a call waits for the GPU; None on another device."""
        if not self.on_gpu:
            call()
            return None
        self.synchronise()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in found)


def peak_memory(context: Context) -> dict[str, Any]:
    """Peak gigabytes of the device's memory so far; nothing on a CPU."""
    return {"peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if context.on_gpu else {}
