from __future__ import annotations

import pytest
import torch
from torch import nn

from hsee_ray.models.strided import SparedConv2d, spare_strided_convolutions


@pytest.mark.parametrize(("channels", "side"), [(4, 16), (8, 16), (8, 64), (8, 63), (12, 80)])
def test_a_spared_convolution_gives_values_and_gradients_of_the_strided_one(channels: int, side: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 16, 1, stride=2)).to(memory_format=torch.channels_last)
    spare_strided_convolutions(network)
    assert type(network[0]) is SparedConv2d
    weight, bias = network[0].parameters()
    x = torch.randn(8, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()

    given = network(x)
    # Not by the strided convolution itself: at these sizes it ends the process.
    wanted = torch.einsum("bchw,oc->bohw", x[..., ::2, ::2], weight[:, :, 0, 0]) + bias.view(-1, 1, 1)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)
    upstream = torch.randn(given.shape)
    gradients = torch.autograd.grad(given, (x, weight, bias), upstream)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(wanted, (x, weight, bias), upstream), rtol=1e-3, atol=1e-2
    )


def test_other_convolutions_stay_as_they_are() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 16, 3, stride=2), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 32, 1, stride=2), nn.Conv2d(8, 8, 1, 2, 1)
    )
    spare_strided_convolutions(network)
    assert all(type(each) is nn.Conv2d for each in network)
