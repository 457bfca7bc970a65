"""Label retrieval: whether the voxel with the most similar feature has the same label."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def label_retrieval(
    queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, same_position: bool = False
) -> Tensor:
    """Fraction of queries whose nearest key by cosine similarity has their label, averaged over the labels.

    Queries whose label no key has are left out. The result is a scalar in [0, 1], or NaN if no query is left.
    Similarities are computed in float32, also under autocast.

    Args:
        queries: (N, C) features.
        labels: (N,) labels of the queries.
        keys: (M, C) features.
        key_labels: (M,) labels of the keys.
        same_position: whether key n is query n in another appearance (N = M); such a key is never the nearest one.

    >>> features, labels = torch.eye(3), torch.tensor([0, 0, 1])
    >>> label_retrieval(features, labels, features, labels)
    tensor(1.)
    """
    with torch.autocast(queries.device.type, enabled=False):
        similarity = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
    same = labels[:, None] == key_labels
    if same_position:
        similarity.fill_diagonal_(-torch.inf)
        same = same.clone().fill_diagonal_(False)
    valid = same.any(1)
    hits = same.gather(1, similarity.argmax(1, keepdim=True))[:, 0][valid].float()
    _, index, counts = labels[valid].unique(return_inverse=True, return_counts=True)
    return hits.new_zeros(len(counts)).index_add_(0, index, hits).div(counts).mean()
