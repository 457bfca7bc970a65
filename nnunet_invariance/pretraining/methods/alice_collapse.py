"""Signs of collapse in the diagnostics of Alice, each with its remedy."""

from collections.abc import Mapping


def collapse_warnings(means: Mapping[str, float], guard: str) -> list[str]:
    """Warnings about signs of collapse in the means of an epoch.

    Args:
        guard: the option ``collapse_guard`` of the run; a guard that is in use is not recommended again.

    >>> healthy = {"mean_target_entropy": 0.9, "target_entropy": 0.5, "effective_rank": 9.0}
    >>> collapse_warnings({**healthy, "effective_rank": 1.5}, "center")
    ['collapse: target tokens span 1.5 directions; try --set collapse_guard=sinkhorn']
    """
    remedy = "try --set collapse_guard=sinkhorn"
    if guard == "sinkhorn":
        remedy = "use images that differ more (--images), or a longer run (--epochs)"
    found = []
    if (share := means["mean_target_entropy"]) < 0.05:
        found.append(
            f"collapse: nearly all targets are the same prototype (entropy of the mean target {share:.3f} of log K); "
            f"{remedy}"
        )
    if (share := means["target_entropy"]) > 0.99:
        found.append(
            f"collapse: targets are nearly uniform (target entropy {share:.3f} of log K); lower the teacher's "
            "temperature (--set teacher_temperature=0.04)"
        )
    if (share := means.get("class_target_entropy", 0.0)) > 0.95:
        found.append(
            f"class targets are nearly uniform ({share:.3f} of log K): the inter-volume loss has no effect; use images "
            "that differ more (--images), or disable it (--set weight_inter=0)"
        )
    if (rank := means["effective_rank"]) < 2:
        found.append(f"collapse: target tokens span {rank:.1f} directions; {remedy}")
    return found
