"""Label retrieval: does the nearest voxel of another image, by features, have the same label?"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def label_retrieval(
    queries: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, same_position: bool = False
) -> Tensor:
    """Share of queries whose nearest key by cosine has their label, averaged over the labels; a scalar in [0, 1].

    A label that no key has is not asked for; NaN where none is left.

    Args:
        queries: (N, C) features, with ``labels`` (N,).
        keys: (M, C) features, with ``key_labels`` (M,).
        same_position: key n is query n in another appearance, and must not be what is found (N = M).
    """
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
    same = labels[:, None] == key_labels
    if same_position:
        similarity.fill_diagonal_(-torch.inf)
        same = same.clone().fill_diagonal_(False)
    asked = same.any(1)
    hits = same.gather(1, similarity.argmax(1, keepdim=True))[:, 0][asked].float()
    _, index, counts = labels[asked].unique(return_inverse=True, return_counts=True)
    return hits.new_zeros(len(counts)).index_add_(0, index, hits).div(counts).mean()
