"""Fitted Q iteration on a small random Markov decision process; the target network is copied every 150 steps.

200 states of 16 features, 4 actions, three possible successors of each; the transitions are drawn once. The temporal
difference is measured against a target network that stands still for 150 steps and is then replaced by the trained one:
the loss jumps, and falls again as the network follows. That is how the method works. In the twin the target moves a
little after every step instead.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from whyspike.case import PLAIN, Case, Loop, Vary

if TYPE_CHECKING:
    from whyspike.record import Recorder

STATES, ACTIONS, FEATURES = 200, 4, 16
BATCH, STEPS, EVERY, DISCOUNT, TAU = 64, 1800, 150, 0.99, 0.01
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@cache
def transitions(n: int, seed: int = 0) -> TensorDataset:
    """Transitions: features of the state (n, 16), action (n,), reward (n,), features of the next state (n, 16)."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(STATES, FEATURES, generator=draw)
    successors = torch.randint(STATES, (STATES, ACTIONS, 3), generator=draw)
    rewards = torch.randn(STATES, ACTIONS, generator=draw) + 1
    state = torch.randint(STATES, (n,), generator=draw)
    action = torch.randint(ACTIONS, (n,), generator=draw)
    following = successors[state, action, torch.randint(3, (n,), generator=draw)]
    reward = rewards[state, action] + 0.1 * torch.randn(n, generator=draw)
    return TensorDataset(features[state], action, reward, features[following])


class Values(nn.Module):
    """The value of every action, (B, 4), for states (B, 16); and the target, which the optimizer does not train."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.online = nn.Sequential(
            nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, ACTIONS)
        )
        self.target = copy.deepcopy(self.online).requires_grad_(requires_grad=False)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.online(state)


def temporal_difference(model: Values, batch: Batch) -> torch.Tensor:
    state, action, reward, following = batch
    with torch.no_grad():
        wanted = reward + DISCOUNT * model.target(following).amax(1)
    return F.mse_loss(model(state).gather(1, action[:, None])[:, 0], wanted)


def loop(seed: int, vary: Vary, *, copies: bool) -> Loop:
    torch.manual_seed(seed)
    model = Values(vary.of(64, vary.width, 16))
    optimizer = torch.optim.Adam(model.online.parameters(), lr=1e-3 * vary.lr)
    size = vary.of(BATCH, vary.batch_size, 16)
    data = transitions(size * vary.of(400, vary.n, 200))
    loader = DataLoader(data, batch_size=size, shuffle=True, generator=torch.Generator().manual_seed(seed))

    def body(rec: Recorder) -> None:
        step = 0
        while step < STEPS:
            for batch in rec.batches(loader):
                loss = temporal_difference(model, batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rec.step(loss)
                step += 1
                if copies and step % EVERY == 0:
                    model.target.load_state_dict(model.online.state_dict())
                if not copies:
                    with torch.no_grad():
                        for old, new in zip(model.target.parameters(), model.online.parameters(), strict=True):
                            old.lerp_(new, TAU)

    return Loop(model=model, optimizer=optimizer, loss_fn=temporal_difference, body=body)  # type: ignore[arg-type]


def sick(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, copies=True)


def healthy(seed: int = 0, vary: Vary = PLAIN) -> Loop:
    return loop(seed, vary, copies=False)


CASE = Case(
    words="fitted Q iteration on a small random decision process; the target network is copied every 150 steps",
    cause="target-update",
    sick=sick,
    healthy=healthy,
)
