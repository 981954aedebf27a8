"""Keras 3: `model.fit(..., callbacks=[SpikeRecorder()])` records what `whyspike.watch` records in a loop.

On the torch backend in full: the true loss of every batch (`logs["loss"]` is a running mean that begins anew with
every epoch), sample ids, gradients, the state of `keras.optimizers`, snapshots, and the replay through the compiled
loss. On JAX and TensorFlow, and under `jit_compile=True`, a training step is one compiled function that nothing can
look into: the losses of the batches and their sizes are recorded, read from the sums behind the running mean.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import atexit
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from whyspike.errors import BadTraining
from whyspike.feed import Feed, Iterators
from whyspike.integrations._recorded import Recorded, around, not_recorded, warn
from whyspike.record import Recorder, watch

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from whyspike.seams import LossFn
    from whyspike.training import Training

__all__ = ["SpikeRecorder", "training"]


class SpikeRecorder(Recorded, keras.callbacks.Callback):
    """Records a training by `fit`. It changes nothing in it, and an error of its own ends the recording alone.

    Args:
        path, name, store_batches, max_bytes, closely: as in `whyspike.watch`.
        loss_fn: `loss_fn(network, batch)` returns the scalar loss of one batch of `fit`, where a `train_step` of your
            own does not go through `compute_loss`; `network(x)` calls the model.
    """

    HOW = "give the SpikeRecorder to model.fit(callbacks=[...])"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        name: str | None = None,
        loss_fn: LossFn | None = None,
        store_batches: bool = True,
        max_bytes: int = 1 << 30,
        closely: bool = False,
    ) -> None:
        super().__init__()
        self._options: dict[str, Any] = {
            "path": path,
            "name": name,
            "store_batches": store_batches,
            "max_bytes": max_bytes,
            "closely": closely,
        }
        self._loss_fn = loss_fn
        self._feed: Feed | None = None
        self._inside: _Inside | None = None
        self._sums = (0.0, 0.0)  # behind the running mean: of loss times samples, and of samples
        self.recorder: Recorder | None = None

    # ------------------------------------------------------------------ what Keras calls

    def on_train_begin(self, logs: Any = None) -> None:
        self._close("cut")
        try:
            self._begin()
        except Exception as error:
            self._close("error")
            warn(not_recorded(error))

    def _begin(self) -> None:
        model: Any = self.model
        name = self._options["name"] or model.name
        reason = _closed(model)
        if reason is None:
            from whyspike.integrations._keras_seams import readable

            self._inside = inside = _Inside(model, self._loss_fn)
            self._feed = feed = Feed(
                watch(inside.network, inside.optimizer, loss_fn=inside.loss_fn, **{**self._options, "name": name}),
                Iterators(lambda loader: feed.evaluating, readable),
            )
            feed.recorder.facts |= {"model": type(model).__name__, "layers": _layers(model)}
            inside.attach(feed)
        else:
            warn(reason)
            with warnings.catch_warnings():  # what watch() says of a model that it cannot look into is said above
                warnings.simplefilter("ignore")
                recorder = watch(model, model.optimizer, **{**self._options, "name": name})
            self._feed = Feed(recorder, Iterators(lambda loader: True))
        self.recorder = self._feed.recorder
        self.recorder.facts["framework"] = f"keras {keras.__version__} on {keras.backend.backend()}"
        atexit.register(self._close, "exit")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._sums = (0.0, 0.0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        feed = self._feed
        if feed is None or not feed.on:
            return
        if self._inside is None:
            before, self._sums = self._sums, _sums(self.model)
            n = self._sums[1] - before[1]
            if n > 0:
                feed.drawn(None, round(n))
                feed.loss((self._sums[0] - before[0]) / n)
                feed.updated()
        feed.logged(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._feed is not None:
            self._feed.logged({k: v for k, v in (logs or {}).items() if k.startswith("val_")})
            self._feed.ends()

    def on_test_begin(self, logs: Any = None) -> None:
        if self._feed is not None and self._inside is None:
            self._feed.enters()

    def on_test_end(self, logs: Any = None) -> None:
        if self._feed is not None and self._inside is None:
            self._feed.leaves()

    def on_train_end(self, logs: Any = None) -> None:
        self._close("end")

    def _close(self, reason: str) -> None:
        feed, inside, self._feed, self._inside = self._feed, self._inside, None, None
        if inside is not None:
            inside.detach()
        if feed is not None:
            feed.close(reason)
            atexit.unregister(self._close)


class _Inside:
    """The inside of a training step on the torch backend: its batch, its loss and its update, on their way."""

    def __init__(self, model: Any, loss_fn: LossFn | None) -> None:
        from whyspike.integrations._keras_seams import Network, compiled_loss, optimizer_of

        self.model = model
        self.network, self.optimizer = Network(model), optimizer_of(model)
        own = type(model).train_step is not keras.Model.train_step
        self.loss_fn = loss_fn or compiled_loss
        self._custom = own and loss_fn is None  # a train_step that may do something else than the compiled loss
        self._losses: list[Any] | None = None  # of the step that is running
        self._step, self._loss = model.train_step, model.compute_loss
        self._evaluate, self._predict = model.evaluate, model.predict
        self._feed: Feed | None = None

    def attach(self, feed: Feed) -> None:
        self._feed = feed
        self.optimizer.attach()
        for name, wrapper in (
            ("train_step", self._train_step),
            ("compute_loss", self._compute_loss),
            ("evaluate", around(lambda: self._feed, self._evaluate)),
            ("predict", around(lambda: self._feed, self._predict)),
        ):
            object.__setattr__(self.model, name, wrapper)

    def detach(self) -> None:
        self.optimizer.detach()
        for name in ("train_step", "compute_loss", "evaluate", "predict"):
            self.model.__dict__.pop(name, None)

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._loss(*args, **kwargs)
        if self._losses is not None:
            self._losses.append(loss)
        return loss

    def _train_step(self, data: Any) -> Any:
        feed = self._feed
        if feed is None or not feed.on:
            return self._step(data)
        self.optimizer.read()
        self.optimizer.made = False
        feed.drawn(data)
        self._losses = losses = []
        try:
            logs = self._step(data)
        finally:
            self._losses = None
        if losses:
            feed.loss(losses[-1])
        if self._custom and not (losses and self.optimizer.made):
            self._custom = False
            name = type(self.model).__name__
            self._give_up(
                f"{name}.train_step does not go through compute_loss and optimizer.apply, so its losses and updates "
                "are not seen; call self.compute_loss(...) and self.optimizer.apply(...) in it, or record the loop "
                "with whyspike.watch"
            )
        elif self.optimizer.made:
            feed.updated()
        return logs

    def _give_up(self, reason: str) -> None:
        if self._feed is not None:
            self._feed.recorder._fail(BadTraining(reason))


def _closed(model: Any) -> str | None:
    """Why a training step cannot be looked into, and what to do about it; None where it can."""
    seen = "only the loss of every batch is recorded, no gradients and no snapshots, so nothing can be proven"
    backend = keras.backend.backend()
    if backend != "torch":
        extra = ""
        if model.steps_per_execution > 1:
            extra = f"; with steps_per_execution={model.steps_per_execution} the mean of so many batches each"
        return (
            f"on the {backend} backend a training step is one compiled function: {seen}{extra}. With "
            "KERAS_BACKEND=torch the same model is recorded in full"
        )
    if model.jit_compile:
        return f"model.compile(jit_compile=True) makes one compiled function of a step: {seen}. Leave jit_compile out"
    return None


def _sums(model: Any) -> tuple[float, float]:
    """What is behind the running mean of the loss: the sum over samples, and their number, since the epoch's start."""
    tracker = model._loss_tracker
    state = (getattr(model, "_jax_state", None) or {}).get("metrics_variables")
    if state is not None:
        names = [v.path for v in model.metrics_variables]
        return tuple(float(state[names.index(v.path)]) for v in (tracker.total, tracker.count))  # type: ignore[return-value]
    return float(tracker.total.numpy()), float(tracker.count.numpy())


def _layers(model: Any) -> list[str]:
    return sorted({type(layer).__name__ for layer in model._flatten_layers()})


def training(model: Any, loader: DataLoader[Any], *, epochs: int) -> Training:
    """A compiled model as a `whyspike.Training`, for `whyspike.prove` and `whyspike.check`.

    Args:
        model: compiled, on the torch backend.
        loader: yields (x, y) or (x, y, sample_weight), as `fit` takes it.
        epochs: how often the loader is gone through.

    Raises:
        BadTraining: another backend, or a model that is not compiled or has no weights yet.
    """
    from whyspike.training import Training

    if keras.backend.backend() != "torch":
        raise BadTraining(
            f"the backend is {keras.backend.backend()}; replays need KERAS_BACKEND=torch in the environment before "
            "keras is imported"
        )
    if not getattr(model, "compiled", False) or not model.built:
        raise BadTraining("the model is not compiled and built: call model.compile(...), and model.build(shape) or fit")
    from whyspike.integrations._keras_seams import Network, compiled_loss, optimizer_of

    return Training(
        model=Network(model), optimizer=optimizer_of(model), loss_fn=compiled_loss, loader=loader, epochs=epochs
    )
