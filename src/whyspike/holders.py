"""Which module an optimizer trains, and what else in the process belongs to it: found among the living objects.

A script hands over parameters, not modules. Whoever holds all of them is the network; nothing is called on an object
that is looked at, for a lazy proxy might come to life.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer


class Loose(nn.Module):
    """Modules and tensors that one optimizer trains and no module holds all of."""

    def __init__(self, modules: list[nn.Module], tensors: list[Any]) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            self.add_module(str(number), module)
        self.__dict__["tensors"] = tensors

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        """Those of the modules, then the tensors as `loose.0`, `loose.1`, …"""
        yield from super().named_parameters(*args, **kwargs)
        yield from ((f"loose.{k}", t) for k, t in enumerate(self.__dict__["tensors"]))


def living(kind: type) -> list[Any]:
    """Every living object of a type or of one that derives from it."""
    return [o for o in gc.get_objects() if issubclass(type(o), kind)]


def network_of(optimizer: Optimizer) -> nn.Module:
    """The module that holds what the optimizer trains: the smallest that holds all of it, else one made of several."""
    trained = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    held: list[tuple[int, int, nn.Module, set[int]]] = []
    for module in living(nn.Module):
        if issubclass(type(module), Loose):
            continue
        own = {id(p) for p in _parameters(module)}
        if own & trained.keys():
            held.append((len(own), sum(1 for _ in module.modules()), module, own))
    whole = [(n, size, module) for n, size, module, own in held if trained.keys() <= own]
    if whole:
        return min(whole, key=lambda found: found[:2])[2]
    rest, chosen = set(trained), []
    # The largest first, and nothing that lies in one of them.
    for _, _, module, own in sorted(held, key=lambda found: (-len(found[3] & trained.keys()), found[0], found[1])):
        if own & rest and not any(module is inner for top in chosen for inner in top.modules()):
            chosen.append(module)
            rest -= own
    return Loose(chosen, [trained[k] for k in trained if k in rest])


def _parameters(module: nn.Module) -> list[Parameter]:
    try:
        return list(module.parameters())
    except Exception:  # a module that is not made completely
        return []


def belonging_to(optimizer: Optimizer, kind: type) -> Any:
    """The living object of this type whose `optimizer` is this one; None without any. A wrapper's inner ones last."""
    found = [o for o in living(kind) if getattr(o, "optimizer", None) is optimizer]
    inner = {id(s) for o in found for s in getattr(o, "_schedulers", ()) or ()}
    return next((o for o in found if id(o) not in inner), None)
