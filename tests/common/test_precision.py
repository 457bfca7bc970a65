"""The choice of a precision, and what a bfloat16 step has in common with a float32 step."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_invariance.common import precision
from nnunet_invariance.common.precision import Float32Loss, Precision
from nnunet_invariance.errors import OptionError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "expected"),
    [(CPU, True, "fp32"), (CUDA, True, "bf16"), (CUDA, False, "fp16"), (MPS, True, "fp32")],
)
def test_auto_is_half_precision_on_cuda_only(monkeypatch, device, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: object())
    chosen = Precision.choose("auto", device)
    assert chosen.name == expected
    assert (chosen.make_scaler() is not None) == (expected == "fp16")


@pytest.mark.parametrize(("device", "name"), [(CPU, "fp16"), (MPS, "bf16"), (CUDA, "bf16")])
def test_a_precision_that_the_device_lacks_is_refused(monkeypatch, device, name):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(OptionError, match=rf"'precision' is '{name}', but the device {device} supports fp32.*auto"):
        Precision.choose(name, device)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_an_autocast_inside_that_names_no_dtype_keeps_the_precision(name):
    """nnU-Net's validation opens one of its own on CUDA, whose default would be float16."""
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with warnings.catch_warnings(), Precision.choose(name, CPU).autocast():
        warnings.simplefilter("ignore")  # "float32 is not supported", which holds for the CPU only
        with torch.autocast("cpu"):
            assert layer(x).dtype == precision.DTYPES[name]


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_segmentation_loss_is_computed_in_float32(name):
    seen = []

    class Loss(nn.Module):
        def forward(self, logits, target):
            seen.extend((part.dtype, (part.flatten(1) @ part.flatten(1).T).dtype) for part in logits)
            return sum(F.cross_entropy(part, target) for part in logits)

    logits = [torch.randn(2, 3, 4, dtype=precision.DTYPES[name], requires_grad=True) for _ in range(2)]
    target = torch.zeros(2, 4, dtype=torch.long)
    with Precision.choose(name, CPU).autocast():
        loss = Float32Loss(Loss())(logits, target)
    torch.testing.assert_close(loss, sum(F.cross_entropy(part.float(), target) for part in logits))
    assert seen == [(torch.float32, torch.float32)] * 2
    loss.backward()
    assert logits[0].grad.dtype == logits[0].dtype
