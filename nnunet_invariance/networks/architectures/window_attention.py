"""Shifted-window self-attention in 3-D (Swin, arXiv 2103.14030), as in Alice's backbone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.regularization import DropPath
from torch import Tensor, nn

AXES = (1, 2, 3)  # of (B, D, H, W, C)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window: (window^3, window^3), in [0, (2 window - 1)^3)."""
    positions = torch.cartesian_prod(*[torch.arange(window)] * 3)
    offsets = positions[:, None] - positions[None] + window - 1
    side = 2 * window - 1
    return (offsets * torch.tensor([side * side, side, 1])).sum(-1)


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, D, H, W, C) with sides that are multiples of ``window`` to (B * windows, window^3, C)."""
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)


def from_windows(windows: Tensor, window: int, size: Sequence[int]) -> Tensor:
    """The inverse of :func:`to_windows`, to (B, *size, C)."""
    grid = [n // window for n in size]
    x = windows.view(-1, *grid, window, window, window, windows.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def regions(size: tuple[int, ...], window: int, shift: int, device: torch.device) -> Tensor:
    """Attention mask: (windows, 1, window^3, window^3) bool, or (1, 1, 1, 1) if all positions attend to each other.

    A position attends only to its own region, because a shifted window at the border contains positions from opposite
    ends of the map. The padding that fills the last window is a region of its own.
    """
    padded = [-(-n // window) * window for n in size]
    if padded == list(size) and not shift:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    label = torch.zeros(1, *padded, 1, dtype=torch.long, device=device)
    for axis, (n, whole) in enumerate(zip(size, padded, strict=True), start=1):
        position = torch.arange(whole, device=device)
        inside = (position < n).long()
        rolled = torch.roll(inside, -shift)
        wrapped = (position >= whole - shift).long() if shift else torch.zeros_like(position)
        code = (2 * rolled + wrapped).view([-1 if a == axis else 1 for a in range(5)])
        label = label * 4 + code
    labels = to_windows(label, window)[..., 0]
    return (labels[:, :, None] == labels[:, None, :]).unsqueeze(1)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias per head and offset.

    The index of the bias is a buffer that is saved with the weights, because Alice's release was trained with one in
    which different offsets share a row.

    >>> x = torch.rand(3, 8, 16)  # 3 windows of 2^3 positions
    >>> WindowAttention(16, heads=2, window=2)(x, torch.ones(1, 1, 1, 1, dtype=torch.bool)).shape
    torch.Size([3, 8, 16])
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(
            nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 3, heads), std=0.02)
        )
        self.register_buffer("relative_position_index", relative_position_index(window))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Shape: x (B * windows, N, C), allowed as from :func:`regions`; returns x's shape."""
        windows, n = len(allowed), x.shape[1]
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unflatten(1, (-1, windows))
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(n, n, self.heads).permute(2, 0, 1).to(q.dtype)
        mask = torch.where(allowed, bias, -torch.inf)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.flatten(0, 1).transpose(1, 2).flatten(2))


class WindowBlock(nn.Module):
    """Pre-norm block: window attention, then an MLP of four times the width, both with a residual and drop path.

    >>> WindowBlock(16, heads=2, window=2, shifted=True, drop_path=0.0)(torch.rand(1, 4, 4, 6, 16)).shape
    torch.Size([1, 4, 4, 6, 16])

    Args:
        window: side in positions.
        shifted: move the windows by half their side if the map is larger than one window on every axis.
    """

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, 4 * channels), "fc2": nn.Linear(4 * channels, channels)})
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to the same shape."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))

    def _attend(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[1:4])
        shift = self.window // 2 if self.shifted and min(size) > self.window else 0
        missing = [-n % self.window for n in size]
        padded = F.pad(x, (0, 0, 0, missing[2], 0, missing[1], 0, missing[0]))
        whole = padded.shape[1:4]
        moved = padded.roll((-shift,) * 3, AXES) if shift else padded
        allowed = regions(size, self.window, shift, x.device)
        windows = self.attn(to_windows(moved, self.window), allowed)
        y = from_windows(windows, self.window, whole)
        y = y.roll((shift,) * 3, AXES) if shift else y
        return y[:, : size[0], : size[1], : size[2]]
