"""A recorder at the seams of a training that has never heard of it.

For every optimizer there is one recorder. Its loss is what `backward` was called on since the last update of any
optimizer, all of it added up, for that is what the update goes along; in a GAN the losses so stay apart. Batches are
those of the loader that is iterated over with gradients and outside of an evaluation.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike.holders import belonging_to, living, network_of
from whyspike.hooks import Begin, Hooks, Seams
from whyspike.passes import Pass
from whyspike.record import DISABLE, Recorder, watch
from whyspike.script import OURS
from whyspike.scriptpasses import Evaluated, ScriptPass
from whyspike.scripttapes import ScriptTapes

TORCH = os.path.dirname(torch.__file__) + os.sep
HOOKING = Optimizer.profile_hook_step.__code__.co_filename  # whose `wrapper` calls the hooks of an update
MOST = 4  # recorders: more optimizers than that are parts of one training
NAMES = 4096  # places in the code whose loss has a name
NAMED = 256  # updates in which the losses are asked for their names; later the names say nothing new


class Watched:
    """One optimizer of the script, its recorder, and the names of the losses that it follows."""

    def __init__(self, optimizer: Optimizer, recorder: Recorder) -> None:
        self.optimizer, self.recorder = optimizer, recorder
        self.names: set[str] = set()
        self.losses: list[Any] = []  # of the latest update; see ScriptWatch._latest
        self.evaluation: Any = None  # the context of the one that is under way

    @property
    def loss(self) -> Any:
        """The loss of the latest update: all of them added up."""
        losses = self.losses
        return losses[0] if len(losses) == 1 else torch.stack([x.reshape(()) for x in losses]).sum()


class ScriptWatch(Seams):
    """Records what passes the hooks.

    Args:
        folder: gives the run folder of the n-th recorder.
        loss: follow the updates along the loss of this name in the script alone.
        closely: as of `watch`.
        facts: what else the headers say.
        stop: updates of the first training after which the script is ended; None for all of it.
    """

    __slots__ = ("_alone", "_latest", "_off", "_ours", "_pending", "updates")  # as in Recorder; the rest in a dict

    def __init__(
        self,
        folder: Callable[[int], Path],
        *,
        name: str,
        loss: str | None = None,
        closely: bool = False,
        facts: dict[str, object] | None = None,
        stop: int | None = None,
    ) -> None:
        self.watched: list[Watched] = []
        self.names: set[str] = set()  # of all losses that were seen
        self.taping = ScriptTapes(every=closely)
        self.enough = False  # the script was ended by `stop`
        self.updates = self.passes = self.forks = 0
        self.error: Exception | None = None
        self._folder, self._name, self._loss, self._closely = folder, name, loss, closely
        self._facts, self.stop = facts or {}, stop
        self.taping.probed = stop is not None  # a run that is soon ended needs no live probe
        self._by_optimizer: dict[int, Watched] = {}
        self._hooks: Hooks | None = None
        # The one training, as long as its steps are appended and nothing more: its updates are not announced.
        self._alone: Watched | None = None
        self._made: list[weakref.ref[Optimizer]] = []
        self._pending: list[torch.Tensor] = []  # losses since the last update, as the script computed them
        self._pending_names: set[str] = set()
        self._latest: list[Any] = []  # those of the last update; of an ordinary one the number
        self._latest_names: set[str] = set()
        self._unscaled: tuple[Any, torch.Tensor] | None = None
        self._in_scaler = False
        self._late: list[Watched] = []  # updates whose step ends with the scaler's update()
        self._name_at: dict[tuple[int, int], tuple[Any, str | None]] = {}  # with the code, so that its id stays its own
        self._name_now: str | None = None  # of the loss that backward was called on last
        self._pass: weakref.ref[Pass] | None = None
        self._loader: weakref.ref[Any] | None = None
        self._ours = 0  # what passes now is not the script's
        self.waits = closely
        self._before = 0  # losses that waited when the update began
        self._updating: Optimizer | None = None  # the one whose update was announced last
        self._inner = 0  # updates inside of it that have not ended: `super().step()`, where torch calls hooks for both
        self._nests = False  # there have been such
        self._off = os.environ.get(DISABLE, "").lower() not in ("", "0", "false")

    # ------------------------------------------------------------------ which trainings there are

    def forked(self) -> None:
        self.forks += 1

    def hooked(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def made(self, optimizer: Optimizer) -> None:
        self._made.append(weakref.ref(optimizer))
        self.look_closer()

    def look_closer(self) -> None:
        """The next update is not one that is only appended, nor is the next batch handed out without a look."""
        if self._alone is not None:
            self._alone.recorder._catch_up()
            self._alone.recorder._handout.stop()
        self._alone = None
        if self._hooks is not None:
            self._hooks.announce(True)

    def _watch(self, optimizer: Optimizer) -> Watched | None:
        """A recorder for this optimizer; None where there are too many, or another one has the same parameters."""
        if len(self.watched) >= MOST or self._off:
            return None
        from torch.optim.lr_scheduler import LRScheduler

        model = network_of(optimizer)
        scalers = [s for s in living(torch.amp.GradScaler) if s.is_enabled()]
        with self._own():
            recorder = watch(
                model,
                optimizer,
                scheduler=belonging_to(optimizer, LRScheduler),
                scaler=scalers[0] if len(scalers) == 1 else None,
                path=self._folder(len(self.watched)),
                name=self._name,
                closely=self._closely,
            )
        recorder.facts |= self._facts | ({"beside": True} if self.watched else {})
        found = self._by_optimizer[id(optimizer)] = Watched(optimizer, recorder)
        self.watched.append(found)
        self.look_closer()
        return found

    @contextmanager
    def _own(self) -> Iterator[None]:
        self._ours += 1
        try:
            yield
        finally:
            self._ours -= 1

    def _of(self, optimizer: Optimizer) -> Watched | None:
        found = self._by_optimizer.get(id(optimizer))
        if found is not None:
            return found
        for one in self.watched:  # a fresh optimizer over the same parameters goes on with the record
            if one.recorder.optimizer is optimizer:
                self._by_optimizer = {k: w for k, w in self._by_optimizer.items() if w is not one}
                self._by_optimizer[id(optimizer)] = one
                one.optimizer = optimizer
                return one
        return None

    # ------------------------------------------------------------------ batches

    def draws(self, loader: Any, begin: Begin) -> Iterator[Any]:
        if self._ours or self._off:
            return begin(loader)
        self.passes += 1
        try:
            evaluation = self._is_evaluation(loader)
            if not evaluation or self._loader is not None:
                self.taping.cancel()
            if not evaluation and not self.watched:
                # In the order in which they were made: of a GAN the first is as good as the second.
                for optimizer in [o for r in self._made if (o := r()) is not None][:1]:
                    self._watch(optimizer)
        except Exception as error:
            self._fail(error)
            return begin(loader)
        if not self.watched:
            return begin(loader)
        one = self.watched[0]
        if evaluation:
            return Evaluated(self, begin(loader)) if not torch.is_grad_enabled() else begin(loader)
        self._training(one)
        made = ScriptPass(self, loader, begin)
        self._pass, self._loader = weakref.ref(made), weakref.ref(loader)
        return made.drawn()

    def _is_evaluation(self, loader: Any) -> bool:
        """Whether what is drawn now is not what is trained on."""
        if not torch.is_grad_enabled() or any(w.evaluation for w in self.watched):
            return True
        last = None if self._pass is None else self._pass()
        if last is None or last.ended:
            return False
        # A second loader beside the one that is under way: it is drawn from inside of the loop.
        return self._loader is None or self._loader() is not loader

    # ------------------------------------------------------------------ losses and updates

    def scaled(self, loss: torch.Tensor, scaled: torch.Tensor) -> None:
        self.look_closer()
        self._unscaled = (weakref.ref(scaled), loss)

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        if self._ours or self._off:
            return loss
        try:
            if self._alone is not None and loss.numel() == 1:
                # The first one as it is: detaching costs as much as the rest, and the update, which ends it, is near.
                self._pending.append(loss.detach() if self._pending else loss)
            else:
                self._new_loss(loss)
        except Exception as error:
            self._fail(error)
        return loss

    @property
    def _names_wanted(self) -> bool:
        """Whether losses are asked for their names."""
        return self.updates < NAMED or len(self.watched) > 1 or self._loss is not None

    def _new_loss(self, loss: torch.Tensor) -> None:
        own, name = loss, None
        if self._unscaled is not None:
            if self._unscaled[0]() is loss:
                own = self._unscaled[1]
            self._unscaled = None
        if self._names_wanted:
            name = self._name_now = self._name_of(own, loss)
        if self.taping.busy and self.watched:
            self.taping.ended(own, self.watched[0].recorder)
        if own.numel() == 1 and (self._loss is None or name == self._loss):
            self._pending.append(own.detach())
            if name is not None:
                self._pending_names.add(name)

    def after_backward(self) -> None:
        if self._ours or self._off or not self.watched:
            return
        try:
            self._wait()
        except Exception as error:
            self._fail(error)

    def _wait(self) -> None:
        """The next batch may come from no loader, as none has so far."""
        recorder = self.watched[0].recorder
        if recorder.loader is None:
            self.taping.wait(recorder)

    def _name_of(self, *losses: torch.Tensor) -> str | None:
        """The name that the script has for one of the losses at the place where it calls backward."""
        frame = sys._getframe(3)
        while frame is not None and frame.f_code.co_filename.startswith((OURS, TORCH)):
            frame = frame.f_back
        if frame is None:
            return None
        code = frame.f_code
        place = (id(code), frame.f_lasti)  # a hash of the code itself reads all of it
        known = self._name_at.get(place)
        if known is None:
            if len(self._name_at) >= NAMES:
                return None
            found = (k for k, v in frame.f_locals.items() if any(v is loss for loss in losses))
            known = self._name_at[place] = (code, next(found, None))
            if known[1] is not None:
                self.names.add(known[1])
        return known[1]

    def before_update(self, optimizer: Optimizer, *call: Any) -> None:
        if self._ours or self._off:
            return
        try:
            if self._updating is optimizer and _is_inside_itself(optimizer):
                self._inner, self._nests = self._inner + 1, True
                return
            self._updating, self._inner = optimizer, 0
            self._before = len(self._pending)
            if self.taping.busy and self._loader is None:
                self.taping.cancel()  # what was waited for was another micro-batch
            one = self._by_optimizer.get(id(optimizer)) or self._of(optimizer)
            if one is None and self._pending and not self._follows(optimizer):
                one = self._watch(optimizer)
            if one is not None:
                if one.evaluation is not None:
                    self._training(one)
                if one is not self.watched[0]:  # the batches of the first: one pass, one keeper of batches
                    draws = self.watched[0].recorder._draws
                    one.recorder._draws = [(None, None, *draw[2:]) for draw in draws]
        except Exception as error:
            self._fail(error)

    def _follows(self, optimizer: Optimizer) -> bool:
        """Whether it goes on with the parameters of one that is watched: that one's recorder will take it over."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return any(
            own >= {id(p) for group in one.recorder.optimizer.param_groups for p in group["params"]}
            for one in self.watched
        )

    def after_update(self, optimizer: Optimizer, *call: Any) -> None:
        if self._ours or self._off:
            return
        self.updates += 1
        one = self._alone
        try:
            if one is not None and one.optimizer is optimizer and len(self._pending) == 1:
                loss, recorder = self._pending.pop(), one.recorder
                value = loss.item() if loss.is_cpu else loss.detach()
                self._latest = [value]
                handout = recorder._handout
                if (
                    len(handout.noted) == len(handout.losses) + 1
                    and not recorder._draws
                    and type(value) is float
                    and value <= recorder._alarm
                    and optimizer.param_groups[0]["lr"] is recorder._lr0
                    and monotonic() < recorder._flush_at
                ):
                    handout.losses.append(value)  # the recorder reads it later
                    return
                self._ours = 1  # as `_own`, which costs as much as the rest
                try:
                    recorder.step(value)
                finally:
                    self._ours = 0
                return
            if self._inner and self._updating is optimizer:
                self._inner -= 1
                return
            if one is not None:
                self._unannounced(optimizer, *call)
            # A closure is called inside of the update, maybe many times: the first time counts, as in its result.
            del self._pending[self._before + 1 :]
            self._updated(optimizer)
            if self.watched and self._hooks is not None and self._nothing_else():
                self._alone = self.watched[0]
                self._hooks.announce(False)
        except Exception as error:
            self._fail(error)

    def _unannounced(self, optimizer: Optimizer, args: Any = (), kwargs: Any = None) -> None:
        """The update that has ended is no ordinary one: see to what is otherwise done before it, as far as it can."""
        alone = self._alone
        self.look_closer()
        if alone is None or alone.optimizer is not optimizer:
            self.before_update(optimizer)
        elif (args[1] if len(args) > 1 else (kwargs or {}).get("closure")) is not None:
            self._before = 0
        else:
            self._before = len(self._pending)

    def _nothing_else(self) -> bool:
        """Whether from here on a step of the one training is appended to its record, and nothing else is due."""
        taping, closer = self.taping, self._closely or self.stop is not None
        scaled = self._unscaled is not None or self._in_scaler
        looks = self._names_wanted or taping.busy or not taping.probed or self.watched[0].evaluation is not None
        others = sum(made() is not None for made in self._made) > 1  # one of them may yet make its first update
        return not (closer or scaled or looks or others or self._nests)

    def _updated(self, optimizer: Optimizer) -> None:
        if self._pending:
            self._latest, self._pending = self._pending, []
            self._latest_names, self._pending_names = self._pending_names, set()
        one = self._of(optimizer)
        if one is None or not self._latest:
            return
        one.losses = self._latest
        one.names |= self._latest_names
        if self._in_scaler:
            self._late.append(one)
        else:
            self._step(one)

    def _step(self, one: Watched) -> None:
        with self._own():
            one.recorder.step(one.loss)
            if not self.taping.probed and one is self.watched[0]:
                make = self.taping.probe_of(one.recorder)
                if make is not None:
                    one.recorder.begin_probe(make)
            if self._closely and one is self.watched[0]:
                self._wait()
        if self.stop is not None and one is self.watched[0] and one.recorder._step >= self.stop:
            self.enough = True
            raise SystemExit(0)

    def scaler_steps(self, optimizer: Optimizer) -> None:
        self.look_closer()
        self._in_scaler = True
        self._count = self.updates

    def scaler_stepped(self, optimizer: Optimizer) -> None:
        self._in_scaler = False
        if self.updates == self._count and not (self._ours or self._off):  # it left the update out
            with suppress(Exception):
                inner = getattr(optimizer, "optimizer", optimizer)  # a framework's wrapper
                self._in_scaler = True
                self._updated(inner)
            self._in_scaler = False

    def scaler_updated(self, scaler: Any) -> None:
        late, self._late = self._late, []
        for one in late:
            try:
                self._step(one)
            except Exception as error:
                self._fail(error)

    # ------------------------------------------------------------------ evaluations

    def mode(self, module: nn.Module, training: bool) -> None:
        if self._ours or self._off:
            return
        for one in self.watched:
            if module is one.recorder.model:
                if training:
                    self._training(one)
                elif one.recorder._step and one.evaluation is None:
                    self._evaluation(one)

    def _evaluation(self, one: Watched) -> None:
        self.look_closer()
        one.recorder._look_closer()
        with self._own(), suppress(Exception):
            made = one.recorder.evaluating()
            made.__enter__()
            one.evaluation = made

    def _training(self, one: Watched) -> None:
        """What comes now is training: an evaluation is over."""
        if one.evaluation is not None:
            made, one.evaluation = one.evaluation, None
            with self._own(), suppress(Exception):
                made.__exit__(None, None, None)

    # ------------------------------------------------------------------ the end

    def finish(self, reason: str) -> None:
        """The script has ended: close the records."""
        with suppress(Exception):
            self.taping.cancel()
        with self._own():
            for one in self.watched:
                self._training(one)
                if one is self.watched[0]:
                    if self.taping.untaped:
                        one.recorder.learned["untaped"] = self.taping.untaped
                    one.recorder.loss_fn = self.taping.loss_fn(one.recorder._micro_per_step)
                one.recorder._close(reason)
        self._pending, self._latest = [], []

    def _fail(self, error: Exception) -> None:
        """Look at nothing more; the training goes on."""
        self._off, self.error = True, error
        self.finish("error")


def _is_inside_itself(optimizer: Optimizer) -> bool:
    """Whether what is announced is a part of an update of the same optimizer, which is being made."""
    frame, found = sys._getframe(1), 0
    while frame is not None and found < 2:
        if frame.f_code.co_filename == HOOKING and frame.f_code.co_name == "wrapper":
            found += next(iter(frame.f_locals.get("args", ())), None) is optimizer
        frame = frame.f_back
    return found == 2
