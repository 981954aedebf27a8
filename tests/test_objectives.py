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
