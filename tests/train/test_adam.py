"""The short Adam takes torch's steps to the bit, and its state is torch's."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dpvae.train.adam import FusedAdam


def moved(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], start: int, end: int) -> None:
    for number in range(start, end):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + number)
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.sin(parameter.detach() * (number + 1) + place)
        optimizer.step()


def test_ten_steps_with_a_falling_rate_are_those_of_torch_whoever_takes_the_first_five() -> None:
    start = [nn.Parameter(torch.arange(1.0, 7.0).view(2, 3)), nn.Parameter(torch.ones(4))]
    ends = []
    for first, then in ((0, 0), (1, 1), (0, 1), (1, 0)):
        parameters = copy.deepcopy(start)
        adams = [torch.optim.Adam(parameters, lr=0.1, betas=(0.9, 0.99), fused=True),
                 FusedAdam(parameters, lr=0.1, betas=(0.9, 0.99))]
        moved(adams[first], parameters, 0, 5)
        adams[then].load_state_dict(copy.deepcopy(adams[first].state_dict()))
        moved(adams[then], parameters, 5, 10)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    assert all(torch.equal(ends[0], end) for end in ends)
    assert not torch.isclose(ends[0], torch.cat([parameter.flatten() for parameter in start])).any()
