"""The contract that every style intervention keeps; a test class inherits it and names the intervention."""

from typing import Any, ClassVar

import pytest
import torch

from nnunet_invariance.augmentation.interventions import Domain, Intervention
from nnunet_invariance.errors import ShapeError

SHAPES = [(2, 2, 16, 20), (2, 1, 6, 16, 12), (1, 3, 8, 8, 8)]


def generator(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


class InterventionContract:
    """Subclass it with a name that starts with ``Test`` and set :attr:`intervention`.

    Attributes:
        noise: whether the result has noise that each device makes for itself.
    """

    intervention: ClassVar[Intervention[Any]]
    noise: ClassVar[bool] = False

    @pytest.fixture(params=SHAPES, ids=str)
    def shape(self, request: pytest.FixtureRequest) -> tuple[int, ...]:
        """2-D and 3-D, with one and several channels."""
        return request.param

    def scene(
        self, shape: tuple[int, ...], device: torch.device, classes: int = 3
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A random image and random labels."""
        image = torch.randn(shape, generator=generator(1)) * 2 + 1
        labels = torch.randint(classes, (shape[0], 1, *shape[2:]), generator=generator(2))
        return image.to(device), labels.to(device)

    def test_the_same_generator_gives_the_same_result(self, shape, device):
        image, labels = self.scene(shape, device)
        first, second, other = (self.intervention(image, labels, generator=generator(seed)) for seed in (3, 3, 4))
        assert torch.equal(first, second)
        assert not torch.allclose(first, other)
        torch.manual_seed(5)
        third = self.intervention(image, labels)
        torch.manual_seed(5)
        assert torch.equal(third, self.intervention(image, labels))

    def test_apply_is_deterministic_for_given_parameters(self, shape, device):
        image, labels = self.scene(shape, device)
        params = self.intervention.sample(Domain(shape, 3, coarse=(0,)), generator())
        torch.manual_seed(0)
        first = self.intervention.apply(image, labels, params)
        torch.manual_seed(1)
        assert torch.equal(first, self.intervention.apply(image, labels, params))

    def test_a_device_gives_the_values_of_the_cpu(self, shape, device):
        """But for a few voxels next to a threshold."""
        if self.noise:
            return
        image, labels = self.scene(shape, torch.device("cpu"))
        params = self.intervention.sample(Domain(shape, 3), generator())
        expected = self.intervention.apply(image, labels, params)
        styled = self.intervention.apply(image.to(device), labels.to(device), params).cpu()
        assert torch.isclose(styled, expected, rtol=1e-4, atol=1e-4).float().mean() > 0.99

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_shape_dtype_and_device_are_kept(self, shape, dtype, device):
        image, labels = self.scene(shape, device)
        styled = self.intervention(image.to(dtype), labels, generator=generator())
        assert styled.shape == image.shape
        assert styled.dtype == dtype
        assert styled.device == image.device
        assert styled.isfinite().all()

    def test_half_precision_is_computed_in_float32(self, shape, device):
        image, labels = self.scene(shape, device)
        half = image.half()
        expected = self.intervention(half.float(), labels, generator=generator())
        assert torch.equal(self.intervention(half, labels, generator=generator()), expected.half())
        with torch.autocast(device.type, torch.bfloat16):
            assert torch.equal(self.intervention(half.float(), labels, generator=generator()), expected)

    def test_the_inputs_are_not_changed_and_no_gradient_flows(self, shape, device):
        image, labels = self.scene(shape, device)
        image.requires_grad_()
        before, seen = image.detach().clone(), labels.clone()
        assert not self.intervention(image, labels, generator=generator()).requires_grad
        assert torch.equal(image, before)
        assert torch.equal(labels, seen)

    def test_labels_are_read_only_where_it_says_so(self, shape, device):
        image, labels = self.scene(shape, device)
        params = self.intervention.sample(Domain(shape, 3), generator())
        styled = self.intervention.apply(image, labels, params)
        other = self.intervention.apply(image, labels.flip(-1).roll(1, -1), params)
        assert torch.equal(styled, other) != self.intervention.reads_labels
        if self.intervention.reads_labels:
            with pytest.raises(ShapeError, match="labels is None"):
                self.intervention(image)
        else:
            assert torch.equal(self.intervention.apply(image, None, params), styled)

    def test_padding_is_untouched(self, shape, device):
        image, labels = self.scene(shape, device)
        valid = torch.ones(image.shape[0], 1, *shape[2:], dtype=torch.bool, device=device)
        valid[..., :3] = False
        styled = self.intervention(image, labels, generator=generator(), valid_mask=valid)
        assert torch.equal(styled[..., :3], image[..., :3])
        free = self.intervention(image, labels, generator=generator())
        assert torch.equal(styled[..., 3:], free[..., 3:])

    @pytest.mark.parametrize("value", [0.0, 3.0, -1000.0])
    def test_constant_images_and_missing_labels_stay_finite(self, shape, value, device):
        image, labels = torch.full(shape, value, device=device), torch.zeros(shape[0], 1, *shape[2:], device=device)
        for seed in range(5):
            assert self.intervention(image, labels, generator=generator(seed)).isfinite().all()
            params = self.intervention.sample(Domain(shape, 4), generator(seed))
            assert self.intervention.apply(image, labels.long(), params).isfinite().all()

    def test_samples_do_not_mix(self, device):
        shape = (2, 1, 6, 6, 6)
        image, labels = self.scene(shape, device)
        changed = image.clone()
        changed[1] *= -3
        params = self.intervention.sample(Domain(shape, 3), generator(2))
        first, second = (self.intervention.apply(x, labels, params) for x in (image, changed))
        assert torch.equal(first[0], second[0])

    def test_wrong_shapes_are_errors(self, device):
        image, labels = self.scene((2, 1, 8, 8), device)
        with pytest.raises(ShapeError, match=r"\(8, 8\); expected \(batch, channels"):
            self.intervention(image[0, 0], labels)
        with pytest.raises(ShapeError, match=r"labels have shape \(2, 1, 8, 4\); expected \(2, 1, 8, 8\)"):
            self.intervention(image, labels[..., :4])
