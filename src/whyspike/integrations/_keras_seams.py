"""A Keras model on the torch backend, as torch sees it: a network, an optimizer and a loss function.

`keras.optimizers` are not `torch.optim`, and the layers' modes are an argument of their call. `Network` and
`optimizer_of` give the recorder and the replay what they know: parameters and buffers, groups and state, hooks around
an update. The values are Keras' own tensors, nothing is copied, and every update is made by Keras itself.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

# Slots of an optimizer that torch's optimizers have, too; any other keeps its own name.
SLOTS = {
    "momentums": "momentum_buffer",
    "_momentums": "exp_avg",
    "_velocities": "exp_avg_sq",
    "_velocity_hats": "max_exp_avg_sq",
    "_accumulators": "sum",
}
# Hyperparameters by torch's names. betas are apart, because torch has them as a pair.
HYPER = {
    "momentum": "momentum",
    "nesterov": "nesterov",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
    "amsgrad": "amsgrad",
    "rho": "alpha",
}
LIMITS = ("clipnorm", "clipvalue", "global_clipnorm")


class Network(nn.Module):
    """The model: its trainable variables as parameters, all its other ones (also those of dropout) as buffers."""

    keras_model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        object.__setattr__(self, "keras_model", model)  # not as a submodule: each variable is here once
        trainable = {id(v) for v in model.trainable_variables}
        for variable in [*model.variables, *_global_generators()]:
            name = variable.path.replace(".", "_").replace("moving_mean", "running_mean")
            name = name.replace("moving_variance", "running_var")  # as BatchNorm's are called here
            name = name if name not in self._parameters | self._buffers else f"{name}_{len(self._buffers)}"
            if id(variable) in trainable:
                self.register_parameter(name, variable.value)
            else:
                self.register_buffer(name, variable.value)

    def forward(self, x: Any) -> Any:
        model, training = self.keras_model, self.training
        was = model.training
        if was is not training:  # for torch modules inside
            model.train(training)
        try:
            return model(x, training=training) if model._call_has_training_arg else model(x)
        finally:
            if was is not training:
                model.train(was)


def _global_generators() -> Sequence[Any]:
    """The state of keras.random's own generator, if it is in use."""
    from keras.src.backend.common import global_state

    found = global_state.get_global_attribute("global_seed_generator")
    return [] if found is None else [found.state]


def compiled_loss(network: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that `model.compile` names, of one batch of `fit`: (x, y) or (x, y, sample_weight)."""
    model: Any = network.keras_model
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    with _kept(model.metrics_variables):  # a loss of several outputs keeps running means
        predicted = network(x)
        return model._compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weight, training=network.training)


@contextmanager
def _kept(variables: Sequence[Any]) -> Iterator[None]:
    values = [v.value for v in variables]
    before = [v.detach().clone() for v in values]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, kept in zip(values, before, strict=True):
                value.copy_(kept)


class _Rows(Dataset[Any]):
    """What Keras makes of arrays, sample by sample: its own dataset has no length and hands out whole batches."""

    def __init__(self, inner: Any, n: int) -> None:
        self._inner, self._n = inner, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> Any:
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: list[int]) -> list[Any]:
        batch = self._inner.__getitems__(rows)
        return [keras.tree.map_structure(lambda t, k=k: t[k], batch) for k in range(len(rows))]


def _stacked(items: Sequence[Any]) -> Any:
    return keras.tree.map_structure(lambda *rows: torch.stack(rows), *items)


def readable(loader: Any) -> Any:
    """A loader that Keras made of arrays, as an ordinary one over the same sampler; any other as it is."""
    dataset, sampler = loader.dataset, loader.batch_sampler
    if type(dataset).__name__ != "ArrayDataset" or not hasattr(dataset, "array"):
        return loader
    order = sampler
    while hasattr(order, "sampler"):
        order = order.sampler
    return DataLoader(_Rows(dataset, len(order)), batch_sampler=sampler, collate_fn=_stacked)


def optimizer_of(model: Any) -> KerasOptimizer:
    """The model's optimizer, in a class of the name that it has in Keras."""
    return type(type(model.optimizer).__name__, (KerasOptimizer,), {})(model)


class KerasOptimizer(Optimizer):
    """A keras optimizer with the groups, the state and the hooks of a torch optimizer.

    While `attached()`, `optimizer.apply` of Keras passes through `step()`, so that its hooks are called. In a replay
    `step()` hands the gradients to Keras, with the hyperparameters that the group has by then.
    """

    def __init__(self, model: Any) -> None:
        self.keras = keras_optimizer = model.optimizer
        self.inner = getattr(keras_optimizer, "inner_optimizer", keras_optimizer)  # of a LossScaleOptimizer
        self.variables = list(model.trainable_variables)
        if not keras_optimizer.built:
            keras_optimizer.build(self.variables)
        self._apply = keras_optimizer.apply
        self._given: tuple[Any, Any] | None = None
        self.made = False  # an update, since it was last set to False
        defaults = self._hyper()
        super().__init__([{"params": [v.value for v in self.variables], **defaults}], defaults)
        self._slots()

    def _hyper(self) -> dict[str, Any]:
        inner = self.inner
        found: dict[str, Any] = {"lr": self._lr()}
        found |= {torchs: getattr(inner, name) for name, torchs in HYPER.items() if hasattr(inner, name)}
        if hasattr(inner, "beta_1"):
            found["betas"] = (inner.beta_1, getattr(inner, "beta_2", 0.0))
        found |= {name: getattr(inner, name) for name in LIMITS if getattr(inner, name, None) is not None}
        return found

    def _lr(self) -> float:
        return float(self.inner.learning_rate)

    def _slots(self) -> None:
        """The state: for every parameter its slots, and the counter of updates. All of them Keras' own tensors."""
        parameters = self.param_groups[0]["params"]
        count = len(parameters)
        seen = {id(self.inner._iterations), id(getattr(self.inner, "_learning_rate", None))}
        for p in parameters:
            self.state[p]["step"] = self.inner._iterations.value
        for name, value in vars(self.inner).items():
            if isinstance(value, list | tuple) and len(value) == count and name != "_trainable_variables":
                for p, slot in zip(parameters, value, strict=True):
                    if isinstance(slot, keras.Variable) and id(slot) not in seen:
                        self.state[p][SLOTS.get(name, name.strip("_"))] = slot.value
                        seen.add(id(slot))
        for variable in self.keras.variables:
            if id(variable) not in seen and parameters:  # of a LossScaleOptimizer
                self.state[parameters[0]][variable.path.replace("/", ".")] = variable.value

    # ------------------------------------------------------------------ live

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, Keras' updates are seen."""
        self.attach()
        try:
            yield
        finally:
            self.detach()

    def attach(self) -> None:
        object.__setattr__(self.keras, "apply", self._live)

    def detach(self) -> None:
        self.keras.__dict__.pop("apply", None)

    def read(self) -> None:
        """Look the learning rate up: a schedule or a callback may have changed it."""
        group, lr = self.param_groups[0], self._lr()
        if group["lr"] != lr:
            group["lr"] = lr

    def _live(self, grads: Any, trainable_variables: Any = None) -> None:
        every = self.inner.gradient_accumulation_steps
        if every and (int(self.inner._iterations.value) + 1) % every:
            self._apply(grads, trainable_variables)  # no update yet
            return
        self._given = (grads, trainable_variables)
        self.made = True
        try:
            self.step()
        finally:
            self._given = None

    # ------------------------------------------------------------------ the update

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make the update: live with the gradients that Keras gave, in a replay with those of the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._given is not None:
            grads, variables = self._given
            self._given = None
            self._apply(grads, variables)
        else:
            scale = float(self.keras.scale_loss(torch.ones(())))
            every = self.inner.gradient_accumulation_steps
            if every:  # the micro-batches are one gradient already: it comes with the last of them
                scale *= every
                self.inner._iterations.assign_add(every - 1)
            grads = [v.value.grad for v in self.variables]
            if scale != 1.0:  # Keras divides by it
                grads = [g if g is None else g * scale for g in grads]
            with self._with_hyper():
                self._apply(grads, self.variables)
        return loss

    @contextmanager
    def _with_hyper(self) -> Iterator[None]:
        """Inside, Keras' hyperparameters are those of the group."""
        inner, group = self.inner, self.param_groups[0]
        wanted = {name: group[torchs] for name, torchs in HYPER.items() if torchs in group}
        if "betas" in group:
            wanted |= {"beta_1": group["betas"][0], "beta_2": group["betas"][1]}
        wanted |= {name: group[name] for name in LIMITS if name in group}
        kept = {k: getattr(inner, k) for k, v in wanted.items() if getattr(inner, k, v) != v}
        for name in kept:
            object.__setattr__(inner, name, wanted[name])
        other = group["lr"] != self._lr()
        if other:
            lr = torch.tensor(group["lr"], dtype=torch.float32, device=self.param_groups[0]["params"][0].device)
            object.__setattr__(inner, "_get_current_learning_rate", lambda: lr)
        try:
            yield
        finally:
            if other:
                inner.__dict__.pop("_get_current_learning_rate", None)
            for name, value in kept.items():
                object.__setattr__(inner, name, value)
