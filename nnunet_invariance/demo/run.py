"""The demos, and what is the same for all: a folder, an environment, and one page at the end."""

import importlib
import logging
from pathlib import Path

logger = logging.getLogger(__name__)

#: Module of each method's demo, with ``run(demo)`` (does the steps), ``STEPS`` (their number), ``draw(demo)`` (returns
#: the ``Page``) and ``NEXT_STEPS`` (commands for other data). Only names, so that the command's help imports no torch.
DEMOS = {method: f"nnunet_invariance.demo.{method}" for method in ("alice", "anatomix", "icmseg", "puir")}


def run_demo(method: str, out: Path) -> Path:
    """Run the demo of a method in ``out`` and return its page; an old demo in there is replaced.

    Raises:
        OutputError: ``out`` contains files that no demo has made.
        ComparisonError: a command failed; names its log.
    """
    from nnunet_invariance.demo.folder import empty, environment
    from nnunet_invariance.demo.next_steps import OWN_DATASET
    from nnunet_invariance.demo.page import write_page
    from nnunet_invariance.demo.steps import Demo

    module = importlib.import_module(DEMOS[method])
    out = out.resolve()
    empty(out)
    with environment(out):
        demo = Demo(out, total=module.STEPS + 1)
        module.run(demo)
        with demo.step("drawing the page"):
            page = write_page(out, module.draw(demo), demo.steps, module.NEXT_STEPS)
    minutes, seconds = divmod(round(sum(step.seconds for step in demo.steps)), 60)
    logger.info("done in %d min %d s: %s", minutes, seconds, page)
    logger.info("\nNow your data, in nnUNet_raw/%s:\n  %s", OWN_DATASET, "\n  ".join(module.NEXT_STEPS))
    return page
