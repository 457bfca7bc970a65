"""Every form of InfoNCE in one module, for tests on one process and on two."""

import torch

from nnunet_invariance.losses.info_nce import PatchInfoNCE, SupervisedInfoNCE


def batch(maps=3, rows=6, features=5, labels=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(maps, rows, features, generator=generator, dtype=dtype)
    return z, torch.randint(labels, (maps, rows), generator=generator)


def two_views():
    """Both views of three samples, their labels, and the valid mask."""
    z, labels = batch(maps=6, rows=5, features=6)
    valid = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    return z[:3], z[3:], labels[:3], valid


def nothing_on_the_second_rank(valid):
    counts = torch.full_like(valid, len(valid) > 1)  # it has sample 2 alone
    counts[2:] = False
    return counts


PATCH = [
    PatchInfoNCE(0.2),
    PatchInfoNCE(0.2, "within_image", "supcon"),
    PatchInfoNCE(0.2, "same_position"),
    PatchInfoNCE(0.2, "all_positions", "exclude_same_class"),
]


SUPERVISED = [
    SupervisedInfoNCE(0.33),
    SupervisedInfoNCE(0.33, "across", "across", "inverse", "inverse"),
    SupervisedInfoNCE(0.33, "across", "within", "inverse_sqrt", "inverse_sqrt"),
    SupervisedInfoNCE(0.33, "within", "across", "inverse", "inverse_sqrt"),
]


class AllForms(torch.nn.Module):
    """Every form of the loss, each after its own projection."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        count = len(PATCH) + len(SUPERVISED) + 1
        self.heads = torch.nn.ModuleList(torch.nn.Linear(6, 4, bias=False).double() for _ in range(count))

    def forward(self, first, second, labels, valid):
        heads = iter(self.heads)
        losses = [form(head(first), head(second), valid, labels) for form, head in zip(PATCH, heads, strict=False)]
        for form, head in zip(SUPERVISED, heads, strict=False):
            losses.append(form(head(torch.cat((first, second), 1)), labels.repeat(1, 2), valid.repeat(1, 2)))
        head = self.heads[-1]
        losses.append(PatchInfoNCE()(head(first), head(second), nothing_on_the_second_rank(valid)))
        return torch.stack(losses)
