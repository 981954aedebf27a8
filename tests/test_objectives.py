"""A loss that promises nothing is called so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whyspike.logs.objectives import objective
from whyspike.pipeline import diagnose


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["step", "d_loss", "g_loss"], "adversarial"),
        (["D_A", "G_A", "cycle_A"], "adversarial"),
        (["loss/generator", "loss/discriminator"], "adversarial"),
        (["policy_loss", "value_loss", "entropy_loss"], "reinforcement"),
        (["train/actor_loss", "train/critic_loss"], "reinforcement"),
        (["G_GAN", "G_L1", "D_real", "D_fake"], "adversarial"),  # pix2pix
        (["loss_critic", "loss_gen"], "adversarial"),  # a WGAN
        (["train/policy_gradient_loss", "train/value_loss", "train/loss"], "reinforcement"),  # Stable-Baselines3
        (["losses/qf1_loss", "losses/actor_loss"], "reinforcement"),  # CleanRL, SAC
        (["losses/td_loss", "charts/episodic_return"], "reinforcement"),  # CleanRL, DQN
        (["loss", "reward", "reward_std", "kl"], "reinforcement"),  # TRL, GRPO
        (["loss", "rewards/chosen", "rewards/rejected", "rewards/margins"], None),  # TRL, DPO: pairs that stay
        (["loss", "reward_model_accuracy", "kl_weight"], None),
        (["loss", "kl", "recon"], None),  # a VAE
        (["loss", "entropy", "value"], None),
        (["loss", "val_loss", "grad_norm", "lr"], None),
        (["loss_cls", "loss_bbox", "d"], None),
        (["train/box_loss", "train/cls_loss", "train/dfl_loss"], None),
    ],
)
def test_the_objective_by_the_names_of_its_losses(names: list[str], kind: str | None) -> None:
    found = objective(names)
    assert (found[0] if found else None) == kind


def test_a_spike_of_a_gan_is_expected_and_its_calm_no_proof(tmp_path: Path) -> None:
    loss = np.exp(0.05 * np.random.default_rng(0).standard_normal(400))
    calm = "step,d_loss,g_loss\n" + "\n".join(f"{k},{v},{1 / v}" for k, v in enumerate(loss))
    (tmp_path / "calm.csv").write_text(calm)
    assert "its loss is no measure of progress" in diagnose(tmp_path / "calm.csv").answer.sentence
    loss[300] *= 30
    spiking = "step,d_loss,g_loss\n" + "\n".join(f"{k},{v},{1 / v}" for k, v in enumerate(loss))
    (tmp_path / "spiking.csv").write_text(spiking)
    made = diagnose(tmp_path / "spiking.csv")
    assert (made.answer.status, made.answer.cause) == ("healthy", "nonstationary-objective")
    assert made.verdicts[0].evidence[0].observed == "d_loss, g_loss"


def a_bandit(n: int = 1500) -> str:
    """The log of an agent and its critic on a bandit of four arms whose best one changes now and then."""
    rng = np.random.default_rng(0)
    logits, value, means = np.zeros(4), 0.0, np.array([1.0, 0.2, 0.1, 0.0])
    rows = ["step,policy_loss,value_loss,entropy"]
    for k in range(n):
        if k % 500 == 499:
            means = np.roll(means, 1)
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        arms = rng.choice(4, 64, p=policy)
        reward = means[arms] + 0.1 * rng.standard_normal(64)
        advantage = reward - value
        entropy = -(policy * np.log(policy)).sum()
        rows.append(f"{k},{-(np.log(policy[arms]) * advantage).mean()},{(advantage**2).mean()},{entropy}")
        logits = logits + 0.1 * np.array([((arms == a) - policy[a]) @ advantage for a in range(4)]) / 64
        value += 0.2 * advantage.mean()
    return "\n".join(rows)


def a_regression(n: int = 1500) -> str:
    """The same shape of log from a training whose targets stay: a supervised policy, its entropy logged beside it."""
    rng = np.random.default_rng(0)
    w, truth = np.zeros(4), rng.normal(size=4)
    rows = ["step,loss,entropy"]
    for k in range(n):
        x = rng.normal(size=(64, 4))
        rest = x @ (w - truth) + 0.3 * rng.normal(size=64)
        rows.append(f"{k},{(rest**2).mean()},{1.0 - k / n}")
        w -= 0.02 * x.T @ rest / 64
    return "\n".join(rows)


def test_the_jumps_of_an_agent_are_expected_and_its_supervised_twin_is_not_called_one(tmp_path: Path) -> None:
    (tmp_path / "agent.csv").write_text(a_bandit())
    made = diagnose(tmp_path / "agent.csv", loss="value_loss")
    assert made.events
    assert (made.answer.status, made.answer.cause) == ("healthy", "nonstationary-objective")
    assert "policy and a value function" in made.answer.sentence
    (tmp_path / "twin.csv").write_text(a_regression())
    made = diagnose(tmp_path / "twin.csv")
    assert (made.answer.status, made.answer.cause) == ("healthy", None)
    assert "no measure of progress" not in made.answer.sentence
