"""The hyperparameters are read quickly where only the lr has changed; what is read is what a whole reading gives."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from whyspike.hyper import Hyperparameters, hyperparameters, without_lr

CHANGES = st.sampled_from(
    ["lr", "lr of one", "betas", "weight decay", "lr tensor", "eps in place", "new key", "group", ""]
)


@settings(deadline=None)
@given(st.lists(CHANGES, max_size=12))
def test_a_quick_reading_is_a_whole_one(changes: list[str]) -> None:
    layers = [nn.Linear(2, 2) for _ in range(3)]
    optimizer = torch.optim.Adam([{"params": layer.parameters()} for layer in layers[:2]], lr=0.1)
    read, before = Hyperparameters(), None
    for k, change in enumerate(["", *changes]):
        groups: list[dict[str, Any]] = optimizer.param_groups
        if change == "lr":
            for group in groups:
                group["lr"] = 0.1 / (k + 1)
        elif change == "lr of one":
            groups[-1]["lr"] = 0.2 / (k + 1)
        elif change == "betas":
            groups[0]["betas"] = (0.9 - 0.01 * k, 0.999)
        elif change == "weight decay":
            groups[-1]["weight_decay"] = 0.01 * k
        elif change == "lr tensor":
            groups[0]["lr"] = torch.tensor(0.1 * k)
        elif change == "eps in place":
            if isinstance(groups[0]["eps"], torch.Tensor):
                groups[0]["eps"] += 1e-8
            else:
                groups[0]["eps"] = torch.tensor(1e-8)
        elif change == "new key":
            groups[0][f"key {k}"] = k
        elif change == "group" and len(groups) < 3:
            optimizer.add_param_group({"params": layers[2].parameters()})
        now = hyperparameters(optimizer)
        changed = read.read(optimizer)
        assert read.now == now
        assert changed == (without_lr(before) != without_lr(now))
        before = now
