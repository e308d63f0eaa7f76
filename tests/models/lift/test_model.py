import torch

from taillift.models.lift.model import Normalise
from tests.support.towers import PIXELS


def test_pixels_are_normalised_channel_by_channel() -> None:
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    normalised = Normalise(mean, std)(PIXELS)
    expected = (PIXELS.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert torch.allclose(normalised.double(), expected.permute(0, 3, 1, 2), atol=1e-5)
