"""Panels of what a network sees: the slice through a point, common grey values, and restored cells."""

import io

import matplotlib.image
import pytest
import torch

from nnunet_invariance.pretraining.engine import panels
from nnunet_invariance.pretraining.engine.panels import Panel, draw_panels, restoration
from tests.helpers.methods import small


def test_the_slice_passes_through_the_point_or_the_middle(monkeypatch):
    shown = []
    show = panels.show
    monkeypatch.setattr(
        panels, "show", lambda axis, image, labels, title: shown.append(image) or show(axis, image, labels, title)
    )
    volume = torch.arange(6.0)[:, None, None].expand(2, 6, 4, 5)  # every slice has its index as value
    points = torch.tensor([[0.6, 1.0, 1.0], [9.0, 1.0, 1.0]])
    draw_panels([Panel("marked", volume, points=points), Panel("middle", volume)], "heading")
    assert [image.max().round().item() for image in shown] == [1, 5, 3, 3]
    assert shown[0].shape == (4, 5)


def test_at_most_four_rows_are_drawn_with_their_names():
    volume = torch.rand(9, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    one, nine = (draw_panels([Panel("a", volume[:n], rows=[f"$^{i}" for i in range(n)])], "") for n in (1, 9))
    heights = [matplotlib.image.imread(io.BytesIO(content), format="png").shape[0] for content in (one, nine)]
    assert 3 * heights[0] < heights[1] < 5 * heights[0]


def test_only_hidden_voxels_are_restored():
    image, restored = torch.ones(1, 2, 2, 4, 4), torch.zeros(1, 2, 2, 4, 4)
    hidden = torch.zeros(1, 1, 2, 4, 4, dtype=torch.bool)
    hidden[..., 0] = True
    masked, composed, original = restoration(image * ~hidden, restored, image, hidden)
    assert torch.equal(masked.volumes, composed.volumes)
    assert torch.equal(composed.volumes == 0, hidden[:, 0])
    assert torch.equal(original.volumes, image[:, 0])


@pytest.mark.parametrize("name", ["dense", "sam"])
def test_the_marked_points_of_both_views_are_one_point_of_the_volume(name, monkeypatch):
    """Volumes whose intensity is the coordinate along an axis: the marked voxels have the same intensity."""
    monkeypatch.setattr(f"nnunet_invariance.pretraining.methods.{name}.apply_intensity", lambda image, _: image)
    method, batch = small(name).build().eval(), small(name).batch(0)
    batch["valid"] = torch.ones_like(batch["valid"])
    for axis in range(3):
        coordinate = torch.arange(16.0).view([16 if axis == a else 1 for a in range(3)])
        batch["image"] = coordinate.expand_as(batch["image"]) + 100
        first, second = method.picture(method.make_views(batch, torch.Generator().manual_seed(0)))
        for row in range(len(first.volumes)):
            found = [panel.volumes[row][tuple(panel.points[row].round().long())] for panel in (first, second)]
            assert min(found) > 50  # inside of both views
            assert abs(found[0] - found[1]) < 2  # voxels
