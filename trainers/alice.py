"""Fine-tuning of a network that was pre-trained with Alice (arXiv 2302.05615)."""

from nnunet_invariance.trainers.dense_contrast import DenseContrastTrainer


class AliceTrainer(DenseContrastTrainer):
    """Alice's network, with patch-wise InfoNCE between two intensity views of each patch (arXiv 2411.05223).

    >>> AliceTrainer.method, AliceTrainer.options_class().temperature
    ('alice', 0.2)
    """

    method = "alice"
