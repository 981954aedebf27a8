"""What a training minimises, by the names of its losses: two players, or a policy that makes its own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from whyspike.logs.roles import words

PLAYERS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "adversarial": (
        frozenset({"d", "dis", "disc", "discriminator", "netd"}),
        frozenset({"g", "gen", "generator", "netg"}),
    ),
    "reinforcement": (frozenset({"policy", "actor", "pg"}), frozenset({"value", "critic", "vf", "entropy", "q"})),
}  # fmt: skip


def objective(names: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """`adversarial` or `reinforcement`, with the losses that say so; None where nothing does.

    A name counts when it is the player's alone (`D_A`) or that of its loss (`loss/generator`).
    """
    split = {name: words(name).split() for name in names}
    for kind, (first, second) in PLAYERS.items():
        one, other = ([n for n, parts in split.items() if _plays(parts, side)] for side in (first, second))
        if one and other:
            return kind, (*one, *other)
    return None


def _plays(parts: list[str], side: frozenset[str]) -> bool:
    named = [p for p in parts if p in side]
    rest = [p for p in parts if p not in side and p not in ("loss", "train", "total", "step", "errd", "errg")]
    return bool(named) and ("loss" in parts or all(len(p) == 1 for p in rest))
