"""One training in five frameworks: plain torch, Lightning, the Hugging Face Trainer, Accelerate and Keras.

What is trained is a case's own: its network, its loss, its optimizer, its data. In Keras it is written again in Keras'
layers, losses and optimizers. Every function here trains in its framework's own loop, with that framework's recorder
or without one.
"""

# The extras are not in the environment that types are checked in.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

import whyspike
from whyspike.cases.grad_accum_normalization import IGNORED
from whyspike.seams import LossFn
from whyspike.types import Diagnosis

NAMES = ("input_ids", "labels", "more")  # of a batch's columns, where a framework wants names


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is trained, without a loop.

    Args:
        seed: of what the framework draws itself.
        by_tokens: under accumulation: whether every token of a step counts the same. None: a loss without tokens.
        own_order: whether the loader's order is part of what is trained; else a framework makes its own loader.
        keras: builds a compiled Keras model of the same; called with the learning rate.
        keras_batch: a batch as (x, y) of that model.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: LossFn
    loader: DataLoader[Any]
    epochs: int
    seed: int
    accumulate: int = 1
    by_tokens: bool | None = None
    own_order: bool = False
    keras: Callable[[Any], Any] | None = None
    keras_batch: Callable[[Any], Any] = tuple  # type: ignore[assignment]

    @property
    def counted(self) -> bool:
        """Whether the micro-batches of a step must know each other."""
        return self.accumulate > 1 and bool(self.by_tokens)

    def as_one(self) -> Parts:
        """The same with the micro-batches of a step as one batch: in it every token counts the same."""
        loader = DataLoader(
            self.loader.dataset,
            batch_sampler=Joined(self.loader.batch_sampler, self.accumulate),
            collate_fn=self.loader.collate_fn,
        )
        return replace(self, loader=loader, accumulate=1)


class Joined(Sampler[list[int]]):
    """So many batches of a sampler as one."""

    def __init__(self, batches: Any, n: int) -> None:
        self.batches, self.n = batches, n

    def __len__(self) -> int:
        return len(self.batches) // self.n

    def __iter__(self) -> Iterator[list[int]]:
        held: list[list[int]] = []
        for rows in self.batches:
            held.append(rows)
            if len(held) == self.n:
                yield [row for batch in held for row in batch]
                held = []


def tokens(batch: Any) -> int:
    return int((batch[1] != IGNORED).sum())


# --------------------------------------------------------------------------- loops of one's own


class Unwatched:
    """What a recorder is to a loop, where nothing is recorded."""

    def __enter__(self) -> Unwatched:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def batches(self, loader: Any) -> Any:
        return loader

    def step(self, loss: Any) -> None:
        pass


def plain(parts: Parts, path: Path | None, closely: bool) -> Any:
    model, optimizer = parts.net, parts.optimizer
    recorder: Any = Unwatched()
    if path is not None:
        recorder = whyspike.watch(model, optimizer, loss_fn=parts.loss_fn, path=path, closely=closely)
    with recorder as rec:
        for _ in range(parts.epochs):
            for window in windows(rec.batches(parts.loader), parts.accumulate):
                counts = [tokens(b) if parts.by_tokens else 1 for b in window]
                optimizer.zero_grad()
                total = torch.zeros(())
                for one, n in zip(window, counts, strict=True):
                    loss = parts.loss_fn(model, one)
                    loss = loss * (n / sum(counts)) if len(window) > 1 else loss
                    loss.backward()
                    total = total + loss.detach() if len(window) > 1 else loss.detach()
                optimizer.step()
                rec.step(total)
    return recorder


def accelerate(parts: Parts, path: Path | None, closely: bool) -> Any:
    from accelerate import Accelerator

    from whyspike.integrations.huggingface import watch

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts.accumulate)
    model, optimizer, loader = accelerator.prepare(parts.net, parts.optimizer, parts.loader)
    k = parts.accumulate
    recorder: Any = Unwatched()
    if path is not None:
        recorder = watch(accelerator, model, optimizer, loss_fn=parts.loss_fn, path=path, closely=closely)
    with recorder as rec:
        for _ in range(parts.epochs):
            if not parts.counted:
                for batch in rec.batches(loader):
                    with accelerator.accumulate(model):
                        loss = parts.loss_fn(model, batch)
                        accelerator.backward(loss)
                        optimizer.step()
                        optimizer.zero_grad()
                    rec.step(loss)
                continue
            # As its guide has it for tokens: drawn ahead, without accumulate(), which would take the end of the loader
            # for the end of a window at each of the last micro-batches.
            for window in windows(rec.batches(loader), k):
                n = sum(map(tokens, window))
                shares = []
                for one in window:
                    share = parts.loss_fn(model, one) * (tokens(one) / n)
                    accelerator.backward(share * k)  # it divides by the number of micro-batches
                    shares.append(share.detach())
                optimizer.step()
                optimizer.zero_grad()
                rec.step(torch.stack(shares).sum())
    return recorder


def windows(batches: Any, k: int) -> Iterator[list[Any]]:
    held: list[Any] = []
    for batch in batches:
        held.append(batch)
        if len(held) == k:
            yield held
            held = []
    if held:
        yield held


# --------------------------------------------------------------------------- trainers


def lightning(parts: Parts, path: Path | None, closely: bool) -> Any:
    import lightning as L

    from whyspike.integrations.lightning import SpikeRecorder

    parts = parts.as_one() if parts.counted else parts  # Lightning's own loop knows nothing of tokens

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = parts.net

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = parts.loss_fn(self.net, batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return parts.optimizer

    spikes = SpikeRecorder(path, closely=closely) if path else None
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=parts.epochs,
        accumulate_grad_batches=parts.accumulate,
        callbacks=[spikes] if spikes else [],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), parts.loader)
    return spikes


class Model(nn.Module):
    """What a Trainer wants: called with the columns of a batch by name, the loss among what it returns."""

    def __init__(self, net: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.net, self.loss_fn = net, loss_fn

    def forward(self, input_ids: Any, labels: Any, more: Any = None) -> dict[str, Any]:
        batch = (input_ids, labels) if more is None else (input_ids, labels, more)
        return {"loss": self.loss_fn(self.net, batch)}


class Counting(Model):
    """One that divides by the tokens of the whole step, which the Trainer tells it."""

    accepts_loss_kwargs = True  # or a forward with **kwargs: else the Trainer keeps the count to itself

    def forward(self, input_ids: Any, labels: Any, num_items_in_batch: Any = None) -> dict[str, Any]:  # type: ignore[override]
        loss = self.loss_fn(self.net, (input_ids, labels))
        n = (labels != IGNORED).sum()
        return {"loss": loss if num_items_in_batch is None else loss * n / num_items_in_batch}


def trainer(parts: Parts, path: Path | None, closely: bool) -> Any:
    import transformers
    from transformers import Trainer, TrainingArguments

    from whyspike.integrations.huggingface import SpikeRecorderCallback

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    collate = parts.loader.collate_fn

    def named(rows: Any) -> dict[str, Any]:
        return dict(zip(NAMES, collate(rows), strict=False))

    class Ordered(Trainer):
        """With the loader of the training."""

        def get_train_dataloader(self) -> Any:
            own = parts.loader
            how = {"batch_sampler": own.batch_sampler, "collate_fn": named}
            return self.accelerator.prepare(DataLoader(own.dataset, **how))  # type: ignore[arg-type]

    args = TrainingArguments(
        tempfile.gettempdir(), report_to=[], disable_tqdm=True, use_cpu=True, seed=parts.seed,
        dataloader_pin_memory=False, remove_unused_columns=False, save_strategy="no", logging_steps=50,
        lr_scheduler_type="constant", max_grad_norm=0.0, num_train_epochs=parts.epochs,
        per_device_train_batch_size=parts.loader.batch_size or 1, gradient_accumulation_steps=parts.accumulate,
    )  # fmt: skip
    spikes = SpikeRecorderCallback(path=path, closely=closely) if path else None
    made = (Ordered if parts.own_order else Trainer)(
        model=(Counting if parts.counted else Model)(parts.net, parts.loss_fn),
        args=args, train_dataset=parts.loader.dataset, data_collator=named, callbacks=[spikes] if spikes else [],
        optimizers=(parts.optimizer, None),
    )  # fmt: skip
    made.train()
    return spikes


def keras_fit(parts: Parts, path: Path | None, closely: bool) -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    from whyspike.integrations.keras import SpikeRecorder

    parts = parts.as_one() if parts.counted else parts  # an optimizer of Keras accumulates means, and knows no tokens
    assert parts.keras is not None
    group = parts.optimizer.param_groups[0]
    keras.utils.set_random_seed(parts.seed)
    model = parts.keras(optimizer_like(group, parts.accumulate))
    own, collate = parts.loader, parts.loader.collate_fn

    def pairs(rows: Any) -> Any:
        return parts.keras_batch(collate(rows))

    if parts.own_order:
        loader = DataLoader(own.dataset, batch_sampler=own.batch_sampler, collate_fn=pairs)
    else:
        draw = torch.Generator().manual_seed(parts.seed)
        loader = DataLoader(own.dataset, batch_size=own.batch_size, shuffle=True, generator=draw, collate_fn=pairs)
    spikes = SpikeRecorder(path, closely=closely) if path else None
    model.fit(loader, epochs=parts.epochs, shuffle=False, verbose=0, callbacks=[spikes] if spikes else [])
    return spikes


def optimizer_like(group: dict[str, Any], accumulate: int) -> Any:
    """The optimizer of torch, in Keras."""
    import keras

    every = accumulate if accumulate > 1 else None
    if "betas" in group:
        first, second = group["betas"]
        return keras.optimizers.Adam(
            group["lr"], beta_1=first, beta_2=second, epsilon=group["eps"], gradient_accumulation_steps=every
        )
    return keras.optimizers.SGD(group["lr"], momentum=float(group["momentum"]), gradient_accumulation_steps=every)


Fit = Callable[[Parts, Path | None, bool], Any]  # (what, the run folder or None, closely) → the recorder or None

FRAMEWORKS: dict[str, Fit] = {
    "torch": plain,
    "lightning": lightning,
    "huggingface": trainer,
    "accelerate": accelerate,
    "keras": keras_fit,
}


def diagnosed(framework: str, parts: Parts, folder: Path) -> Diagnosis:
    """Train it there, on one thread, recorded closely as `prove` does it, and diagnose it with its proof."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the frameworks: loaders without workers, no logger
            return FRAMEWORKS[framework](parts, folder / "run", True).diagnose(prove=True)
    finally:
        torch.set_num_threads(threads)
