"""What happens between two steps, as the recorder sees it: evaluations, loaded states, targets, modes left behind.

It looks where it costs a step nothing: around evaluations and between epochs by checksums, at a loaded state when it is
loaded, and otherwise once in a while. What has changed belongs to the step whose update comes next: right before that
update it is settled, kept for the capsules, and marked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from whyspike import frozen, loadwatch
from whyspike.boundary import Boundary, Part
from whyspike.capsule import optimizer_state
from whyspike.checksum import checksums
from whyspike.rngnotes import same_rng
from whyspike.strides import counts

ROOM = 64 << 20  # bytes of new values that are kept for capsules
HELD = 256  # steps for which they are
EVALUATION_SHARE, EVALUATION_FREE_S = 0.02, 0.05  # of the time of evaluations for looking around them
GAP_SHARE, GAP_FREE_S = 0.001, 0.005  # of the training's time for looking between epochs
EVERY_STEP = 8  # changes in a row after which a target moves with every step, as a moving average does
STATISTICS = ("running_mean", "running_var")  # buffers of batch norm; others may be counters
MARKS = 512  # of a target's changes; later ones are thinned

Mark = Callable[[int, str, dict[str, object]], None]


class BoundaryWatch:
    """Watches what lies between the steps of one training.

    Args:
        mark: notes something in the record.
        now: the step that is being built.
        wake: called when something has happened, so that `before_update` is called before the next update.
        adopt: called with another optimizer over the same parameters when it makes its first update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        mark: Mark,
        now: Callable[[], int],
        wake: Callable[[], None],
        adopt: Callable[[Optimizer], None],
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._mark, self._now, self._wake, self._adopt = mark, now, wake, adopt
        self.settled: dict[int, Boundary] = {}  # by the step before whose forward pass it acts
        self._pending = Boundary()
        self._due = True  # the modes of the first update are yet to be read
        self._depth = 0
        self._before: _Fingerprint | None = None
        self._gap: _Fingerprint | None = None
        self._evaluations: list[dict[str, Any]] = []  # data of their marks, to be completed when they are settled
        self._n_draws = 0
        self._spent = {"evaluation": 0.0, "gap": 0.0}
        self._evaluated_s = 0.0
        self._modes: tuple[str, ...] | None = None  # modules in training mode at the last update that was looked at
        self._root = bool(model.training)
        self._optimizer_seen: tuple[int, Any] | None = None
        self._loading: tuple[int, float | None] = (0, None)
        trained = self._parameters(optimizer)
        self._trained = {name for name, p in model.named_parameters() if id(p) in trained}
        self._outside = [(name, p) for name, p in model.named_parameters() if id(p) not in trained]
        self._versions = [p._version for _, p in self._outside]
        self._changes = self._in_a_row = 0
        self._changed_at = -1
        self._sources: dict[str, str] = {}  # of a target's tensors: the trained one that they were a copy of
        self._undo: list[Callable[[], None]] = [loadwatch.listen(self._loaded)]
        self._hook_loading()

    @property
    def wanted(self) -> bool:
        """Whether `before_update` has something to do at the next update."""
        return self._due or bool(self._outside)

    def let_go(self) -> None:
        """Remove what was hooked in."""
        while self._undo:
            self._undo.pop()()

    def _hook_loading(self) -> None:
        pre = self.optimizer.register_load_state_dict_pre_hook(self._before_loading)
        post = self.optimizer.register_load_state_dict_post_hook(self._after_loading)
        self._undo += [pre.remove, post.remove]

    @staticmethod
    def _parameters(optimizer: Optimizer) -> set[int]:
        return {id(p) for group in optimizer.param_groups for p in group["params"]}

    # ------------------------------------------------------------------ an evaluation

    def enters(self) -> None:
        """An evaluation begins."""
        self._depth += 1
        if self._depth == 1:
            allowed = self._spent["evaluation"] <= EVALUATION_FREE_S + EVALUATION_SHARE * self._evaluated_s
            self._before = self._fingerprint("evaluation", rng=True) if allowed else None

    def leaves(self, seconds: float, n_draws: int) -> dict[str, Any] | None:
        """An evaluation has ended; returns the data of its mark, which is completed when the next step is there."""
        self._depth = max(0, self._depth - 1)
        if self._depth:
            return None
        self._evaluated_s += seconds
        data: dict[str, Any] = {"seconds": round(seconds, 6)}
        before, self._before = self._before, None
        if before is not None:
            start = perf_counter()
            parts, found = self._changed_since(before)
            data["changed"] = parts
            if any(name.endswith(STATISTICS) for name in found.buffers):
                data["statistics"] = True
            self._expect(found, n_draws)
            self._spent["evaluation"] += perf_counter() - start
        self._evaluations.append(data)
        self._due = True
        self._wake()
        return data

    def epoch_ends(self, elapsed_s: float) -> None:
        """An epoch has ended: what comes until the next one begins is looked at as a whole."""
        allowed = self._spent["gap"] <= GAP_FREE_S + GAP_SHARE * elapsed_s
        self._gap = self._fingerprint("gap", rng=False) if allowed else None

    def epoch_begins(self) -> None:
        """An epoch begins."""
        gap, self._gap = self._gap, None
        if self._depth:
            return
        if gap is not None:
            start = perf_counter()
            parts, found = self._changed_since(gap, known=self._pending)
            if parts:
                if "optimizer" in parts and not self.optimizer.state:
                    parts.remove("optimizer")
                    self._mark(self._now(), "optimizer-state", {"lost": True})
                if parts:
                    self._mark(self._now(), "boundary", {"changed": parts})
                self._expect(found, 0)
            self._spent["gap"] += perf_counter() - start
        self.look(self._now())
        self._due = True
        self._wake()

    # ------------------------------------------------------------------ a state is loaded

    def _loaded(self, what: Any) -> None:
        """A module was loaded, or an optimizer was made."""
        if isinstance(what, Optimizer):
            if what is not self.optimizer and self._parameters(what) >= self._parameters(self.optimizer):
                self._undo.append(what.register_step_pre_hook(self._other_steps).remove)
            return
        if not isinstance(what, nn.Module) or self._depth:
            return
        prefix = next((name for name, module in self.model.named_modules() if module is what), None)
        if prefix is None:
            return
        start = f"{prefix}." if prefix else ""
        names = [n for n, _ in self.model.named_parameters() if n.startswith(start)]
        trained = [n for n in names if n in self._trained]
        if names and not trained:
            return  # a target: seen by its version counters
        values = {n: p for n, p in self.model.named_parameters() if n in trained}
        buffers = {n: b for n, b in self.model.named_buffers() if n.startswith(start)}
        self._mark(self._now(), "loaded", {"what": f"model{'.' if prefix else ''}{prefix}", "tensors": len(values)})
        self._expect(_kept(weights=values, buffers=buffers), 0)

    def _before_loading(self, optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
        self._loading = self._state_of_optimizer()

    def _after_loading(self, optimizer: Optimizer) -> None:
        try:
            before, after = self._loading, self._state_of_optimizer()
            self._mark(
                self._now(),
                "loaded",
                {"what": "optimizer", "state": [before[0], after[0]], "updates": [before[1], after[1]]},
            )
            self._optimizer_seen = None
            self._expect(Boundary(optimizer=_copied(optimizer_state(optimizer))), 0)
        except Exception:
            return  # never into the user's code

    def _other_steps(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Another optimizer over the same parameters makes an update: from now on it is the one that is watched."""
        if optimizer is self.optimizer:
            return
        try:
            before = self._state_of_optimizer()
            self.optimizer = optimizer
            after = self._state_of_optimizer()
            data = {"what": "optimizer", "state": [before[0], after[0]], "updates": [before[1], after[1]]}
            self._mark(self._now(), "loaded", {**data, "replaced": type(optimizer).__name__})
            self._optimizer_seen = None
            self._expect(Boundary(optimizer=_copied(optimizer_state(optimizer))), 0)
            self._hook_loading()
            self._adopt(optimizer)
        except Exception:
            return  # never into the user's optimizer.step()

    def _state_of_optimizer(self) -> tuple[int, float | None]:
        """Of how many parameters there is a state, and how many updates the first of them has seen."""
        state = self.optimizer.state
        first = next((s for s in state.values() if isinstance(s, dict) and "step" in s), None)
        return len(state), None if first is None else float(first["step"])

    # ------------------------------------------------------------------ once in a while

    def look(self, step: int) -> None:
        """Look at what costs next to nothing: the root's mode, and whether the optimizer still has its state.

        Args:
            step: the next one.
        """
        if self.model.training is not self._root and not self._due:
            self._due = True
            self._wake()
        state, seen = self.optimizer.state, self._optimizer_seen
        first = next(iter(state.values()), None)
        counter = first.get("step") if isinstance(first, dict) else None
        now = (len(state), counter)
        self._optimizer_seen = now
        if seen is None or not seen[0] or (now[1] is seen[1] and now[0] >= seen[0]):
            return
        if not now[0]:
            self._lost(step)
        elif (
            isinstance(counter, torch.Tensor) and isinstance(seen[1], torch.Tensor) and float(counter) < float(seen[1])
        ):
            self._lost(step - int(counter))

    def _lost(self, step: int) -> None:
        """The optimizer has lost its state before this step."""
        self._mark(step, "optimizer-state", {"lost": True})
        change = Boundary(optimizer={"state": {}, "groups": None})
        if step >= self._now():
            self._expect(change, 0)
        else:
            self._keep(step, change)

    def forget(self) -> None:
        """What was seen of the optimizer's state no longer holds: a replay has passed through it."""
        self._optimizer_seen = None

    # ------------------------------------------------------------------ settled

    def before_update(self, step: int, n_draws: int) -> Boundary | None:
        """Right before an update: what has happened since the last one belongs to this step. None for nothing."""
        found = self._pending
        if self._outside:
            found = found.and_then(self._moved_outside(step))
        if self._due:
            self._due = False
            found = self._settle_modes(step, found)
            if found.rng is not None and n_draws != self._n_draws:
                found = found.without("rng")  # a batch was drawn since, and noted with it
        self._pending = Boundary()
        if not found.parts and not found.partial:
            return None
        self._keep(step, found)
        return found

    def _settle_modes(self, step: int, found: Boundary) -> Boundary:
        names = tuple(name for name, module in self.model.named_modules() if module.training)
        before, self._modes, self._root = self._modes, names, bool(self.model.training)
        evaluations, self._evaluations = self._evaluations, []
        if before is None or names == before:
            return found
        left = len(set(before) - set(names))
        data: dict[str, object] = {
            "left_in_eval": left,
            "put_back": len(set(names) - set(before)),
            "modules": _n_modules(self.model),
            "training": self._root,  # of the model itself: a few modules alone may be frozen on purpose
        }
        if evaluations:
            evaluations[-1].update(data)
            evaluations[-1]["changed"] = [*evaluations[-1].get("changed", ()), "modes"]
        else:
            self._mark(step, "modes", data)
        return found.and_then(Boundary(modes=names))

    def _moved_outside(self, step: int) -> Boundary:
        """New values of parameters that the optimizer does not train."""
        versions = [p._version for _, p in self._outside]
        if versions == self._versions:
            return Boundary()
        moved = [pair for pair, new, old in zip(self._outside, versions, self._versions, strict=True) if new != old]
        self._versions = versions
        self._in_a_row = self._in_a_row + 1 if self._changed_at == step - 1 else 1
        self._changed_at = step
        values: dict[str, Any] = dict(moved)
        if self._in_a_row < EVERY_STEP:
            values = self._as_copies(values)
            if counts(self._changes, MARKS):
                copied = sum(isinstance(v, str) for v in values.values())
                self._mark(step, "target", {"tensors": len(moved), "copied": copied})
        elif self._in_a_row == EVERY_STEP:
            self._mark(step, "target", {"tensors": len(moved), "copied": 0, "every_step": True})
        self._changes += 1
        return _kept(target=values)

    def _as_copies(self, values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The values; where a trained parameter has the same bits, its name in place of them."""
        own = {n: p for n, p in self.model.named_parameters() if n in self._trained}
        made: dict[str, Any] = {}
        for name, value in values.items():
            known = self._sources.get(name)
            names = [known] if known in own else [n for n, p in own.items() if p.shape == value.shape]
            source = next((n for n in names if n is not None and torch.equal(own[n], value)), None)
            if source is not None:
                self._sources[name] = source
            made[name] = source or value
        return made

    def _expect(self, change: Boundary, n_draws: int) -> None:
        """Something has changed: it is settled before the next update."""
        self._pending = self._pending.and_then(change)
        self._n_draws = n_draws
        self._due = True
        self._wake()

    def _keep(self, step: int, change: Boundary) -> None:
        settled = self.settled
        before = settled.pop(step, None)
        settled[step] = change if before is None else before.and_then(change)
        total = 0
        for k in sorted(settled, reverse=True):
            total += settled[k].n_bytes()
            if k < step - HELD:
                del settled[k]
            elif total > ROOM:
                settled[k] = Boundary(modes=settled[k].modes, rng=settled[k].rng, partial=True)

    # ------------------------------------------------------------------ before and after

    def _fingerprint(self, kind: str, *, rng: bool) -> _Fingerprint:
        start = perf_counter()
        tensors = self._tensors()
        made = _Fingerprint(
            dict(zip(tensors, checksums(list(tensors.values())), strict=True)),
            self._state_of_optimizer(),
            frozen.rng_state() if rng else None,
        )
        self._spent[kind] += perf_counter() - start
        return made

    def _tensors(self) -> dict[tuple[Part, str], torch.Tensor]:
        found: dict[tuple[Part, str], torch.Tensor] = {
            ("weights", n): p for n, p in self.model.named_parameters() if n in self._trained
        }
        found.update((("buffers", n), b) for n, b in self.model.named_buffers())
        return found

    def _changed_since(self, before: _Fingerprint, known: Boundary | None = None) -> tuple[list[Part], Boundary]:
        """Which parts have changed, and their new values, as far as they can be kept. `known` was seen already."""
        tensors = self._tensors()
        after = dict(zip(tensors, checksums(list(tensors.values())), strict=True))
        changed: dict[Part, dict[str, torch.Tensor]] = {"weights": {}, "buffers": {}}
        for (part, name), value in after.items():
            if value != before.sums.get((part, name)) and not (known is not None and name in getattr(known, part)):
                changed[part][name] = tensors[part, name]
        found = _kept(weights=changed["weights"], buffers=changed["buffers"])
        parts: list[Part] = [part for part in changed if changed[part]]
        if self._state_of_optimizer() != before.optimizer and (known is None or known.optimizer is None):
            found = found.and_then(Boundary(optimizer=_copied(optimizer_state(self.optimizer))))
            self._optimizer_seen = None
            parts.append("optimizer")
        if before.rng is not None:
            now = frozen.rng_state()
            if not same_rng(before.rng, now):
                found = found.and_then(Boundary(rng=now))
                parts.append("rng")
        return parts, found


class _Fingerprint:
    """Checksums of a training's tensors, what its optimizer holds, and the generators."""

    def __init__(
        self,
        sums: Mapping[tuple[Part, str], int | None],
        optimizer: tuple[int, float | None],
        rng: dict[str, Any] | None,
    ) -> None:
        self.sums, self.optimizer, self.rng = sums, optimizer, rng


def _kept(
    *,
    weights: Mapping[str, Any] | None = None,
    buffers: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] | None = None,
) -> Boundary:
    """A boundary with copies of these tensors, unless they are too large to be kept."""
    parts = {"weights": weights or {}, "buffers": buffers or {}, "target": target or {}}
    size = sum(t.numel() * t.element_size() for p in parts.values() for t in p.values() if isinstance(t, torch.Tensor))
    if size > ROOM:
        return Boundary(partial=True)
    return Boundary(**{k: _copied(v) for k, v in parts.items()})


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


def _n_modules(model: nn.Module) -> int:
    return sum(1 for _ in model.modules())
