"""Synthetic pairs per second."""

from itertools import count
from typing import Any

from benchmarks.gpu.context import Context
from nnunet_invariance.synthesis.engine import SynthesisEngine
from nnunet_invariance.synthesis.options import SynthesisOptions


def run(context: Context) -> dict[str, Any]:
    """Pairs per second for batches of 1, 2 and 4, and waits of the host for a batch of 1."""
    options = SynthesisOptions(size=(context.size.synthesis,) * 3)
    engine = SynthesisEngine(options, device=context.device)
    numbers = count(step=8)  # every batch shows other elements
    result: dict[str, Any] = {}
    for batch in (1, 2, 4):

        def make(batch: int = batch) -> None:
            first = next(numbers)
            engine.batch(range(first, first + batch))

        make()
        result[f"batch_{batch}"] = batch / context.seconds(make, context.size.steps)
    waits = context.host_waits(lambda: engine.batch(range(1)))
    return {"pairs_per_second": result, "best": max(result.values()), "host_waits": waits}
