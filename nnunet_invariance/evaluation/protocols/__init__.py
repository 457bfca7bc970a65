"""Which cases, arms and weights a comparison has: one module per protocol, and what the protocols share."""

__all__ = [
    "arms",
    "cases",
    "checkpoints",
    "cross_modality",
    "few_shot",
    "missing_modality",
    "pretrainings",
    "protocol",
    "splits",
]
