"""What a training minimises, by the names of its losses: two players, or a policy that makes its own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from whyspike.logs.roles import words

PLAYERS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "adversarial": (
        frozenset({"d", "dis", "disc", "discriminator", "netd", "critic", "discloss"}),
        frozenset({"g", "gen", "generator", "netg", "aeloss"}),
    ),
    "reinforcement": (
        frozenset({"policy", "actor", "pg"}),
        frozenset({"value", "critic", "vf", "entropy", "q", "qf", "qf1", "td"}),
    ),
}  # fmt: skip
OF_A_LOSS = frozenset({"loss", "losses", "train", "total", "step", "errd", "errg", "real", "fake", "gan", "l1", "adv"})
# What an agent earns, as gym's monitors, Stable-Baselines3, CleanRL and RLlib call it. A reward alone is also what DPO
# makes of fixed pairs; beside a divergence from the policy of before it is of an agent's own samples (PPO, GRPO).
EARNED = (
    "ep rew mean", "episodic return", "episode reward", "episode return", "episode reward mean", "mean episode reward",
    "average return", "mean reward",
)  # fmt: skip


def objective(names: Iterable[str]) -> tuple[str, tuple[str, ...]] | None:
    """`adversarial` or `reinforcement`, with the losses that say so; None where nothing does.

    A name counts when it is the player's alone (`D_A`) or that of its loss (`loss/generator`).
    """
    split = {name: words(name).split() for name in names}
    for kind, (first, second) in PLAYERS.items():
        one, other = ([n for n, parts in split.items() if _plays(parts, side)] for side in (first, second))
        if one and other:
            return kind, (*one, *other)
    earned = [name for name, parts in split.items() if " ".join(parts).endswith(EARNED)]
    if not earned and any(parts[-1:] == ["kl"] for parts in split.values()):
        earned = [name for name, parts in split.items() if parts[-1:] == ["reward"]]
    return ("reinforcement", tuple(earned)) if earned else None


def _plays(parts: list[str], side: frozenset[str]) -> bool:
    named = [p for p in parts if p in side]
    rest = [p for p in parts if p not in side and p not in OF_A_LOSS]
    return bool(named) and ("loss" in parts or all(len(p) == 1 for p in rest))
