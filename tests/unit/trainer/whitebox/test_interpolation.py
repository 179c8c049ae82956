import math

import torch

from hkdpipe.trainer.whitebox.interpolation import linear, spherical

WEIGHTS = torch.tensor([0.0, 0.25, 0.5, 1.0])


def test_spherical_interpolation_turns_by_equal_angles() -> None:
    """In the plane of two vectors of length 2, 90 degrees apart, and of a third that is 120 degrees off."""
    for degrees in (90.0, 120.0):
        angle = math.radians(degrees)
        one = torch.tensor([[2.0, 0.0]])
        other = torch.tensor([[2 * math.cos(angle), 2 * math.sin(angle)]])
        turned = [[[2 * math.cos(w * angle), 2 * math.sin(w * angle)]] for w in WEIGHTS.tolist()]
        torch.testing.assert_close(spherical(one, other, WEIGHTS), torch.tensor(turned))


def test_what_lies_between_noises_is_as_large_as_they_are() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 8, 8)
    other *= one.norm() / other.norm()
    between = spherical(one, other, WEIGHTS)
    torch.testing.assert_close(between.flatten(1).norm(dim=1), one.norm().expand(4))
    assert (linear(one, other, WEIGHTS)[2].norm() < 0.9 * one.norm()).all()


def test_interpolation_begins_and_ends_at_what_is_given() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 8, 8)
    for between in (linear, spherical):
        found = between(one, other, WEIGHTS)
        torch.testing.assert_close(found[0], one)
        torch.testing.assert_close(found[-1], other)
    torch.testing.assert_close(linear(one, other, WEIGHTS)[1], 0.75 * one + 0.25 * other)
