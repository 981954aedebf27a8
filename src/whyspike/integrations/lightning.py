"""Lightning: `Trainer(callbacks=[SpikeRecorder()])` records what `whyspike.watch` records in a loop.

Every batch as the step sees it, its loss, the update, validation in the middle, checkpoints: a stopped and resumed
training goes on in the same record. A replay passes through `training_step`. With Fabric the loop is your own: `watch`.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback

from whyspike import record
from whyspike.feed import Feed, Iterators, going_on
from whyspike.integrations._recorded import Recorded, not_recorded, warn
from whyspike.record import Recorder

if TYPE_CHECKING:
    from whyspike.seams import LossFn

__all__ = ["SpikeRecorder", "watch"]


class SpikeRecorder(Recorded, Callback):
    """Records a training by `Trainer.fit`. It changes nothing in it, and an error of its own ends the recording alone.

    Args:
        path, name, store_batches, max_bytes, closely: as in `whyspike.watch`.
        loss_fn: `loss_fn(module, batch)` returns the scalar loss of one batch, where `training_step` is not it.
    """

    HOW = "give the SpikeRecorder to Trainer(callbacks=[...])"

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
        self._options: dict[str, Any] = {
            "path": path,
            "store_batches": store_batches,
            "max_bytes": max_bytes,
            "closely": closely,
        }
        self._name, self._loss_fn = name, loss_fn
        self._iterators: Iterators | None = None
        self._feed: Feed | None = None
        self._resumed: dict[str, Any] = {}
        self._state: dict[str, Any] = {}  # of the training that has ended
        self._updates = 0
        self._aside = False  # a sanity check or an evaluation is going on
        self.recorder: Recorder | None = None

    # ------------------------------------------------------------------ what Lightning calls

    def state_dict(self) -> dict[str, Any]:
        return self._state if self._feed is None else self._feed.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = dict(state_dict)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._close("cut")
        # The first iterator over the training's loader is made before on_train_start.
        self._iterators = Iterators(lambda loader: self._aside or self._foreign(trainer, loader))

    def _foreign(self, trainer: Any, loader: Any) -> bool:
        """Whether a loader is not the training's; a validation's iterator is made before on_validation_start."""
        combined = getattr(trainer.fit_loop, "_combined_loader", None)
        return self._feed is not None and combined is not None and not any(loader is own for own in combined.flattened)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._aside = True

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        self._aside = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        try:
            self._begin(trainer, pl_module)
        except Exception as error:
            self._close("error")
            warn(not_recorded(error))

    def _begin(self, trainer: Any, module: Any) -> None:
        reason = _closed(trainer, module, self._loss_fn)
        if reason is not None and len(trainer.optimizers) != 1:
            self._close("cut")
            warn(reason)
            return
        if reason is not None:
            warn(reason)
        schedulers = [c.scheduler for c in trainer.lr_scheduler_configs]
        options, at = going_on(self._options, self._resumed)
        self._resumed = {}
        recorder = record.watch(
            module,
            trainer.optimizers[0],
            loss_fn=self._loss_fn or (None if reason else training_loss),
            scheduler=schedulers[0] if len(schedulers) == 1 else None,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            name=self._name or type(module).__name__,
            **options,
        )
        recorder.facts["framework"] = "lightning"
        assert self._iterators is not None
        self._feed = Feed(recorder, self._iterators, **at)
        self.recorder, self._updates = recorder, trainer.global_step

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._feed is not None:
            self._feed.ends(finished=False)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._feed is not None:
            self._feed.drawn(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        feed = self._feed
        if feed is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:
            # Lightning hands back the loss over accumulate_grad_batches.
            feed.loss(loss * trainer.accumulate_grad_batches if trainer.accumulate_grad_batches > 1 else loss)
        if trainer.global_step != self._updates:
            self._updates = trainer.global_step
            feed.updated()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._feed is not None:
            self._feed.logged(trainer.callback_metrics)
            self._feed.ends()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._aside = True
        if self._feed is not None and not trainer.sanity_checking:
            self._feed.enters()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._aside = trainer.sanity_checking
        if self._feed is not None:
            self._feed.leaves()
            if not trainer.sanity_checking:
                self._feed.logged({k: v for k, v in trainer.callback_metrics.items() if k.startswith("val")})

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(type(exception).__name__)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close("end")

    def _close(self, reason: str) -> None:
        feed, iterators, self._feed, self._iterators = self._feed, self._iterators, None, None
        if feed is not None:
            self._state = feed.state
            feed.close(reason)
        elif iterators is not None:
            iterators.close()


def _closed(trainer: Any, module: Any, loss_fn: LossFn | None) -> str | None:
    """What is lost in this training, and how to get it; None where all is there."""
    if len(trainer.optimizers) != 1:
        return (
            f"the module has {len(trainer.optimizers)} optimizers; one is needed. Nothing is recorded: record the loop "
            "of one of them with whyspike.watch(module, optimizer) inside training_step"
        )
    if not module.automatic_optimization and loss_fn is None:
        return (
            f"{type(module).__name__} optimizes by hand, so that a replay through training_step would update twice: "
            "losses, gradients and snapshots are recorded, nothing can be proven; give SpikeRecorder(loss_fn=...)"
        )
    return None


def training_loss(module: torch.nn.Module, batch: Any) -> torch.Tensor:
    """The loss of one batch, as `training_step` gives it; what it logs goes nowhere."""
    pl_module: Any = module
    step = pl_module.training_step
    wanted = [0] if len(inspect.signature(step).parameters) > 1 else []
    trainer = pl_module._trainer
    with _silent(pl_module):
        if trainer is None:
            output = step(batch, *wanted)
        else:
            with trainer.precision_plugin.train_step_context():
                output = step(batch, *wanted)
    return output["loss"] if isinstance(output, Mapping) else output


@contextmanager
def _silent(module: Any) -> Iterator[None]:
    """Inside, `self.log` does nothing: outside of a running loop it raises, and in one it would add to the means."""
    for name in ("log", "log_dict"):
        object.__setattr__(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            module.__dict__.pop(name, None)


def watch(model: Any, optimizer: Any, **options: Any) -> Recorder:
    """`whyspike.watch` for what `fabric.setup(model, optimizer)` returned; the loop is recorded as any other.

    Args:
        model, optimizer: as Fabric gave them.
        options: as in `whyspike.watch`; `loss_fn` is called with Fabric's model, so that precision is as in the loop.
    """
    inner = getattr(model, "_original_module", None) or getattr(model, "_forward_module", model)
    given = options.pop("loss_fn", None)

    def loss_fn(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        if module is not inner:
            return given(module, batch)  # a copy, in float64
        with _backward_allowed(model):
            return given(model, batch)

    precision = getattr(getattr(model, "_strategy", None), "precision", None)
    options = {"scaler": getattr(precision, "scaler", None), **options}
    optimizer = getattr(optimizer, "_optimizer", optimizer)
    return record.watch(inner, optimizer, loss_fn=None if given is None else loss_fn, **options)


@contextmanager
def _backward_allowed(model: Any) -> Iterator[None]:
    """Inside, what the model returns may be given to `backward` without Fabric, as a replay does."""
    own = "_register_backward_hook"
    if not hasattr(model, own):
        yield
        return
    object.__setattr__(model, own, lambda tensor: tensor)
    try:
        yield
    finally:
        model.__dict__.pop(own, None)
