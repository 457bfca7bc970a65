"""Multinomial logistic regression on frozen features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.errors import ShapeError


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of raw (not standardised) features.

    Attributes:
        weight: (K, C). bias: (K,).

    >>> LinearProbe(torch.eye(2), torch.tensor([0.0, 1.0]))(torch.tensor([[2.0, 3.0]]))
    tensor([[2., 4.]])
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (N, K) of features (N, C)."""
        return features @ self.weight.T + self.bias


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2: float = 1e-2,
    max_iterations: int = 200,
) -> LinearProbe:
    r"""Minimise :math:`\frac{1}{N} \sum_i CE(W z_i + b, y_i) + \frac{\lambda}{2} \lVert W \rVert^2`.

    :math:`z` are the features, standardised with their mean and standard deviation over the N rows. The returned probe
    takes raw features, because its weights include the standardisation.

    Args:
        features: (N, C). labels: (N,) int64 in [0, num_classes).
        l2: :math:`\lambda`, at least 0.
        max_iterations: maximum number of L-BFGS iterations.

    Raises:
        ShapeError: features and labels differ in length, or a label is out of range.

    >>> features = torch.tensor([[-1.0], [-2.0], [1.0], [3.0]])
    >>> probe = fit_linear_probe(features, torch.tensor([0, 0, 1, 1]), 2)
    >>> probe(features).argmax(1)
    tensor([0, 0, 1, 1])
    """
    if len(features) != len(labels) or features.ndim != 2 or labels.ndim != 1:
        raise ShapeError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}: expected (N, C) and (N,).")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise ShapeError(
            f"expected at least one label, all in [0, {num_classes}); found {labels.unique().tolist()[:10]}."
        )
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    z = (features - mean) / std
    weight = torch.zeros(num_classes, z.shape[1], device=z.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=z.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(z, weight, bias), labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    raw = weight.detach() / std
    return LinearProbe(raw, bias.detach() - raw @ mean)
