"""Hugging Face: `trainer.add_callback(SpikeRecorderCallback())` records what `whyspike.watch` records in a loop.

A callback of the Trainer sees neither batches nor losses; this one finds the Trainer that calls it and looks at its
`training_step` and `evaluate` on their way. A replay passes through `compute_loss`, with the `num_items_in_batch` that
the step had. A resumed training goes on in the same record. With Accelerate the loop is your own: `watch`.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from whyspike.feed import Feed, Iterators, going_on, mean_loss
from whyspike.integrations._recorded import Recorded, around, not_recorded, warn
from whyspike.record import Recorder
from whyspike.record import watch as plain_watch

if TYPE_CHECKING:
    from whyspike.seams import LossFn

__all__ = ["SpikeRecorderCallback", "watch"]

ITEMS = "items_of_the_step"  # in a stored micro-batch: its share of num_items_in_batch, spread over its samples


class SpikeRecorderCallback(Recorded, TrainerCallback, ExportableState):
    """Records a training by `Trainer.train`. It changes nothing in it; an error of its own ends the recording alone.

    Args:
        trainer: only needed where the Trainer that calls the callback cannot be found by itself.
        path, name, store_batches, max_bytes, closely: as in `whyspike.watch`.
        loss_fn: `loss_fn(model, batch)` returns the scalar loss of one batch, where `compute_loss` is not it.
    """

    HOW = "trainer.add_callback(...) before trainer.train()"

    def __init__(
        self,
        trainer: Trainer | None = None,
        *,
        path: str | Path | None = None,
        name: str | None = None,
        loss_fn: LossFn | None = None,
        store_batches: bool = True,
        max_bytes: int = 1 << 30,
        closely: bool = False,
    ) -> None:
        self._trainer: Any = trainer
        self._options: dict[str, Any] = {
            "path": path,
            "store_batches": store_batches,
            "max_bytes": max_bytes,
            "closely": closely,
        }
        self._name, self._loss_fn = name, loss_fn
        self._feed: Feed | None = None
        self._originals: dict[str, Any] = {}
        self._going: dict[str, Any] = {}  # what a checkpoint holds
        self.recorder: Recorder | None = None

    # ------------------------------------------------------------------ what the Trainer calls

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"_going": self._going if self._feed is None else self._feed.state}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close("cut")
        try:
            self._begin(state, kwargs)
        except Exception as error:
            self._close("error")
            warn(not_recorded(error))

    def _begin(self, state: Any, given: Mapping[str, Any]) -> None:
        trainer = self._trainer or _caller(self)
        if trainer is None:
            warn(
                "the Trainer that calls SpikeRecorderCallback was not found, so nothing is recorded: write "
                "SpikeRecorderCallback(trainer)"
            )
            return
        loss_fn = self._loss_fn
        if loss_fn is None:
            loss_fn = _loss_of(trainer)
            if type(trainer).training_step is not Trainer.training_step:
                warn(
                    f"{type(trainer).__name__} has a training_step of its own: it is recorded, but a replay passes "
                    "through compute_loss alone; where the two differ nothing can be proven: give "
                    "SpikeRecorderCallback(loss_fn=...)"
                )
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        scheduler = given.get("lr_scheduler")
        stored = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        stored = stored[-1] if isinstance(stored, list) else stored
        going = ((stored or {}).get("attributes") or {}).get("_going") or (self._going if state.global_step else {})
        options, at = going_on(self._options, going)
        recorder = plain_watch(
            trainer.model,
            optimizer,
            loss_fn=loss_fn,
            scheduler=getattr(scheduler, "scheduler", scheduler),
            scaler=trainer.accelerator.scaler,
            name=self._name or type(trainer.model).__name__,
            **options,
        )
        recorder.facts["framework"] = "transformers"
        recorder.facts["group_by_length"] = "LengthGrouped" in type(trainer._get_train_sampler()).__name__
        self._feed = feed = Feed(recorder, Iterators(lambda loader: feed.evaluating), **at)
        self.recorder = recorder
        self._originals = {"trainer": trainer, "training_step": trainer.training_step}
        trainer.training_step = self._training_step
        for name in ("evaluate", "predict"):
            self._originals[name] = getattr(trainer, name)
            setattr(trainer, name, around(lambda: self._feed, getattr(trainer, name)))
        atexit.register(self._close, "exit")

    def _training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        feed, trainer, original = self._feed, self._originals["trainer"], self._originals["training_step"]
        if feed is None or not feed.on:
            return original(model, inputs, *args, **kwargs)
        micro = int(getattr(trainer, "current_gradient_accumulation_steps", 1) or 1)
        items = args[0] if args else kwargs.get("num_items_in_batch")
        feed.drawn(inputs if micro == 1 or items is None else _with_items(inputs, items, micro))
        loss = original(model, inputs, *args, **kwargs)
        feed.loss(loss.detach() * micro if micro > 1 else loss)  # the Trainer has divided it
        return loss

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._feed is not None:
            self._feed.ends(finished=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._feed is not None:
            self._feed.updated()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._feed is not None:
            self._feed.ends()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._feed is not None:
            self._feed.logged(logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close("end")

    def _close(self, reason: str) -> None:
        feed, originals, self._feed, self._originals = self._feed, self._originals, None, {}
        trainer = originals.pop("trainer", None)
        for name in originals:
            trainer.__dict__.pop(name, None)
        if feed is not None:
            self._going = feed.state
            feed.close(reason)
            atexit.unregister(self._close)


def _caller(callback: SpikeRecorderCallback) -> Any:
    """The Trainer whose callback this is: it is the `self` of one of the frames that call us."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
        frame = frame.f_back
    return None


def _with_items(inputs: Mapping[str, Any], items: Any, micro: int) -> dict[str, Any]:
    """A micro-batch that knows its share of the step's items: the sum over its rows is items / micro."""
    rows = next(int(v.shape[0]) for v in inputs.values() if isinstance(v, torch.Tensor) and v.ndim)
    share = float(items) / micro / rows
    return {**inputs, ITEMS: torch.full((rows,), share, dtype=torch.float64)}


def _loss_of(trainer: Any) -> LossFn:
    """The Trainer's loss of one batch; over the items of its whole step where that had several micro-batches."""

    def compute_loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        inputs = dict(batch)
        shares = inputs.pop(ITEMS, None)
        items = trainer._get_num_items_in_batch([inputs], trainer.args.device)
        if shares is not None and items is not None:
            total = float(shares.sum())
            whole = round(total)
            items = torch.tensor(whole if abs(total - whole) < 1e-6 * max(1.0, total) else total)
            items = items.to(trainer.args.device)
        with trainer.compute_loss_context_manager():
            inputs = trainer._prepare_inputs(inputs)
            prepared = trainer.model_wrapped if model is trainer.model else model  # a copy, in float64
            return trainer.compute_loss(prepared, inputs, num_items_in_batch=items)

    return compute_loss


# --------------------------------------------------------------------------- Accelerate


class _Synchronized(Recorder):
    """A recorder whose `step` may be called for every micro-batch: the update is where gradients are synchronized."""

    def __init__(self, accelerator: Any, model: Any, optimizer: Any, **options: Any) -> None:
        self._accelerator, self._micro_losses = accelerator, []
        super().__init__(model, optimizer, **options)

    def step(self, loss: Any) -> None:
        self._micro_losses.append(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        if self._accelerator.sync_gradients:
            losses, self._micro_losses = self._micro_losses, []
            super().step(mean_loss(losses))


def watch(accelerator: Any, model: Any, optimizer: Any, **options: Any) -> Recorder:
    """`whyspike.watch` for what `accelerator.prepare` returned; the loop is recorded as any other.

    Call `rec.step(loss)` at the end of every pass of the loop, also inside `accelerator.accumulate(model)`.

    Args:
        model, optimizer: as Accelerate gave them.
        options: as in `whyspike.watch`; `loss_fn` is called with the prepared model.
    """
    given = options.pop("loss_fn", None)
    inner = accelerator.unwrap_model(model, keep_fp32_wrapper=True)

    def loss_fn(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        return given(model if module is inner else module, batch)  # else a copy, in float64

    return _Synchronized(
        accelerator,
        inner,
        getattr(optimizer, "optimizer", optimizer),
        loss_fn=None if given is None else loss_fn,
        scaler=accelerator.scaler,
        **options,
    )
