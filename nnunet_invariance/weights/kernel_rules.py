"""Rules that bring a pre-trained kernel into the shape that another network needs."""

from typing import NamedTuple

from torch import Tensor


class AdaptedKernel(NamedTuple):
    """A kernel in the shape of the network, and the rules that changed it, in words."""

    value: Tensor
    rule: str


def adapt_kernel(
    kernel: Tensor, shape: tuple[int, ...], *, takes_image: bool = False, transposed: bool = False
) -> AdaptedKernel | None:
    """Change the input channels and the number of taps of a kernel; None if no rule leads to ``shape``.

    Input channels C to C' of the layer that takes the image: ``w'[o, c] = sum_i w[o, i] / C'``, which gives the same
    output when all C' channels are identical. Taps of a convolution on one axis: k to 1 by the sum over the taps, which
    gives the same output when the input is constant along the axis; 1 to k (odd) with the tap in the centre, which is
    the same function. Taps of a transposed convolution, whose stride is its number of taps: k to 1 by the mean over the
    taps, 1 to k by repetition, so that the mean output along the axis stays the same.

    Args:
        kernel: (O, C, *taps), or (C, O, *taps) if ``transposed``.
        shape: shape of the kernel in the network.
        takes_image: whether the layer takes the image, so that its input channels may differ.

    >>> import torch
    >>> adapt_kernel(torch.ones(4, 1, 3, 3, 3), (4, 2, 1, 3, 3), takes_image=True).rule
    'input channels 1 -> 2; kernel axis 0: 3 -> 1, sum over the taps'
    """
    if kernel.ndim != len(shape) or kernel.ndim < 3:
        return None
    rules = []
    if takes_image and kernel.shape[1] != shape[1]:
        rules.append(f"input channels {kernel.shape[1]} -> {shape[1]}")
        kernel = _adapt_inputs(kernel, shape[1])
    for axis in range(2, kernel.ndim):
        if kernel.shape[axis] == shape[axis]:
            continue
        change = f"kernel axis {axis - 2}: {kernel.shape[axis]} -> {shape[axis]}"
        adapted = (_adapt_upsampling if transposed else _adapt_taps)(kernel, axis, shape[axis])
        if adapted is None:
            return None
        kernel = adapted.value
        rules.append(f"{change}, {adapted.rule}")
    return AdaptedKernel(kernel, "; ".join(rules)) if tuple(kernel.shape) == shape else None


def _adapt_inputs(kernel: Tensor, channels: int) -> Tensor:
    """(O, C, *taps) to (O, channels, *taps)."""
    share = kernel.sum(1, keepdim=True) / channels
    return share.expand(-1, channels, *kernel.shape[2:]).contiguous()


def _adapt_taps(kernel: Tensor, axis: int, taps: int) -> AdaptedKernel | None:
    if taps == 1:
        return AdaptedKernel(kernel.sum(axis, keepdim=True), "sum over the taps")
    if kernel.shape[axis] != 1 or taps % 2 == 0:
        return None
    shape = list(kernel.shape)
    shape[axis] = taps
    wide = kernel.new_zeros(shape)
    wide.narrow(axis, taps // 2, 1).copy_(kernel)
    return AdaptedKernel(wide, "in the centre")


def _adapt_upsampling(kernel: Tensor, axis: int, taps: int) -> AdaptedKernel | None:
    if taps == 1:
        return AdaptedKernel(kernel.mean(axis, keepdim=True), "mean over the taps")
    if kernel.shape[axis] != 1:
        return None
    return AdaptedKernel(kernel.repeat_interleave(taps, axis), "repeated")
