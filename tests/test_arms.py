"""A script run again in fresh processes, with one thing changed at its seams."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_scripts import loop, python, written

from whyspike import scriptexperiment
from whyspike.arms import ScriptSource, Wanted
from whyspike.cause import Observation, catalogue
from whyspike.errors import NotReplayable
from whyspike.interventions import RescaleLoss, ScaleLr, SkipBatch
from whyspike.judge import judge
from whyspike.orders import Divisible, FixedOrder
from whyspike.readers import read
from whyspike.script import Command
from whyspike.seams import BASELINE
from whyspike.types import Event, Run, Suspicion


def source(folder: Path, script: str, *arguments: str, workers: int = 1) -> ScriptSource:
    folder.mkdir(exist_ok=True)
    return ScriptSource(
        command=Command(script, arguments),
        cwd=folder,
        store=folder / "arms",
        seconds=1.0,
        threads=1,
        workers=workers,
    )


def weights(path: Path) -> str:
    """The checksum of an arm, of what a script has saved."""
    digest = hashlib.sha256()
    for t in torch.load(path).values():
        digest.update(t.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("change", "edit"),
    [
        (SkipBatch("the last batch dropped", "partial"), ("shuffle=True)", "shuffle=True, drop_last=True)")),
        pytest.param(Divisible(), ("shuffle=True)", "shuffle=True, drop_last=True)"), marks=pytest.mark.slow),
        pytest.param(BASELINE, ("", ""), marks=pytest.mark.slow),
        pytest.param(ScaleLr(0.5, where="always"), ("lr=0.01", "lr=0.005"), marks=pytest.mark.slow),
        pytest.param(
            RescaleLoss(lambda at: at.n_samples / at.batch_size, "weighted by b/B", "partial"),
            ("loss.backward()", "(loss * (len(a) / 8)).backward()"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["drop the last batch", "draw no last batch", "unchanged", "half the lr", "weight the last batch"],
)
def test_a_change_at_the_seams_is_the_edited_script_bit_by_bit(change, edit, tmp_path):
    script = written(tmp_path, loop())
    (arm,) = source(tmp_path / "here", script, "6").results([Wanted(intervention=change)])
    edited = written(tmp_path, loop().replace(*edit), "edited.py")
    assert python(tmp_path / "there", edited, "6").returncode == 7
    assert arm["weights"] == weights(tmp_path / "there" / "model.pt")
    per_epoch = [8] * 8 + [6] * (not isinstance(change, Divisible))
    assert arm["n_samples"] == per_epoch * 6
    assert sum(v == "nan" for v in arm["loss"]) == (6 if isinstance(change, SkipBatch) else 0)
    assert not (tmp_path / "here" / "model.pt").exists()  # what an arm writes is thrown away


def test_what_has_ended_is_not_run_again_and_a_lost_process_takes_no_other_with_it(tmp_path):
    flag = tmp_path / "flag"
    flag.write_text("there")
    seen = "main.seen = getattr(main, 'seen', set()) | {len(a)}"
    dies = f"epoch == 1 and 6 not in main.seen and open({str(flag)!r}).read() and __import__('os')._exit(9)"
    script = written(tmp_path, loop(f"{seen}; {dies}"))  # of those whose batches are all full
    arms = [Wanted(intervention=BASELINE), Wanted(intervention=SkipBatch("the last batch dropped", "partial"))]
    where = source(tmp_path, script, "3")
    with pytest.raises(NotReplayable, match=r"gave no result: its process ended with 9"):
        where.results(arms)
    flag.write_text("")
    first = where.results(arms[:1])
    (kept,) = (tmp_path / "arms").glob("????????????????.json")
    before = kept.stat().st_mtime_ns
    assert where.expected_s(arms) == 1.0
    assert where.results(arms)[:1] == first
    assert kept.stat().st_mtime_ns == before
    assert len(list((tmp_path / "arms").glob("????????????????.json"))) == 2


def test_an_arm_leaves_the_users_files_alone(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "model.pt").write_text("of last week")
    (folder / "notes").mkdir()
    elsewhere = tmp_path / "log.txt"
    elsewhere.write_text("old")
    step = f"open({str(elsewhere)!r}, 'w').write('new'); open('notes/a.txt', 'w').write('new')"
    script = written(tmp_path, loop(step))
    (arm,) = source(folder, script, "1").results([Wanted(intervention=BASELINE)])
    assert len(arm["loss"]) == 9
    assert (folder / "model.pt").read_text() == "of last week"
    assert elsewhere.read_text() == "old"
    assert not list((folder / "notes").iterdir())


@pytest.mark.slow
def test_another_order_is_that_of_the_edited_script(tmp_path):
    script = written(tmp_path, loop())
    (arm,) = source(tmp_path / "here", script, "3").results([Wanted(intervention=FixedOrder())])
    # The first epoch's order again and again. The loader draws its numbers as ever, so dropout does, too.
    text = (
        loop()
        .replace("loader = ", "seen = []\n        loader = ")
        .replace(
            "for a, b in loader:",
            "for rows in ORDER(loader.batch_sampler, seen):\n                a, b = x[rows], y[rows]",
        )
    )
    text = text.replace(
        "def main",
        """def ORDER(sampler, seen):
        torch.empty((), dtype=torch.int64).random_()  # the loader's seed for its workers
        drawn = list(sampler)
        seen[:] = seen or drawn
        return list(seen)

    def main""",
        1,
    )
    edited = written(tmp_path, text, "edited.py")
    assert python(tmp_path / "there", edited, "3").returncode == 7
    assert arm["weights"] == weights(tmp_path / "there" / "model.pt")


GAN = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    torch.set_num_threads(1)
    angle = torch.randint(8, (32 * 4 + 10,)) * (torch.pi / 4)
    real_data = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(len(angle), 2)
    netG = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    netD = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    criterion = nn.BCEWithLogitsLoss(reduction="sum")
    optimizerD = torch.optim.Adam(netD.parameters(), lr=1e-3, betas=(0.5, 0.999))
    optimizerG = torch.optim.Adam(netG.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for epoch in range(2):
        for (real,) in DataLoader(TensorDataset(real_data), batch_size=32, shuffle=True):
            netD.zero_grad()
            errD_real = criterion(netD(real).view(-1), torch.full((len(real),), 0.9))
            errD_real.backward()
            fake = netG(torch.randn(len(real), 8))
            errD_fake = criterion(netD(fake.detach()).view(-1), torch.zeros(len(real)))
            errD_fake.backward()
            optimizerD.step()
            netG.zero_grad()
            errG = criterion(netD(fake).view(-1), torch.ones(len(real)))
            errG.backward()
            optimizerG.step()
    torch.save(netD.state_dict(), "model.pt")
"""


@pytest.mark.slow
def test_a_change_of_one_loss_leaves_that_of_the_other_optimizer_alone(tmp_path):
    script = written(tmp_path, GAN)
    weighted = RescaleLoss(lambda at: at.n_samples / at.batch_size, "weighted by b/B", "partial")
    own, arm = source(tmp_path / "here", script).results([Wanted(intervention=i) for i in (BASELINE, weighted)])
    edited = GAN
    for name in ("errD_real", "errD_fake"):
        edited = edited.replace(f"{name}.backward()", f"({name} * (len(real) / 32)).backward()")
    written(tmp_path, edited, "edited.py")
    assert python(tmp_path / "there", str(tmp_path / "edited.py")).returncode == 0
    assert arm["weights"] == weights(tmp_path / "there" / "model.pt")
    assert python(tmp_path / "there", "-m", "whyspike", "run", "--no-prove", script).returncode == 0
    runs = sorted((tmp_path / "there" / "whyspike-runs").iterdir())
    assert len(runs) == 2
    assert read(runs[0]).loss.tolist() == own["loss"]  # two losses added up, here as there


SORTED = """
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    classes = torch.tensor(digits.target)
    lie = torch.argsort(classes[:1280] // 5, stable=True)  # the small digits first
    loader = DataLoader(TensorDataset(images[lie], classes[lie]), 32)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    carried = torch.zeros(1)
    for epoch in range(14):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y) + 1e-6 * carried
            carried += loss.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
"""


@pytest.mark.slow
def test_an_order_that_repeats_itself_is_proven_by_runs_in_another_one(tmp_path):
    script = written(tmp_path, SORTED)
    made = python(tmp_path, "-m", "whyspike", "prove", "--budget", "4", "--format", "json", script)
    verdict = json.loads(made.stdout)["verdicts"][0]
    assert (verdict["cause"], verdict["outcome"]) == ("fixed-order", "confirmed"), made.stderr
    assert [a["n"] for a in verdict["arms"]] == [13, 13, 13]
    (cure,) = verdict["cures"]
    assert cure["verified"] or cure["verified"] is None  # None where the budget was too small for it


STREAM = """class Stream(torch.utils.data.IterableDataset):
        def __init__(self, x, y):
            self.rows = list(zip(x, y))

        def __iter__(self):
            return iter(self.rows)

    def main"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            (("TensorDataset(x, y)", "Stream(x, y)"), (", shuffle=True", ""), ("def main", STREAM)),
            "over a map-style data",
        ),
        ((("in loader:", "in zip(x.split(8), y.split(8)):"),), "no loader hands out the batches of its training"),
    ],
    ids=["a stream", "no loader"],
)
def test_a_script_whose_order_cannot_be_changed_is_told_so(edit, says, tmp_path):
    text = loop()
    for old, new in edit:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(NotReplayable, match=says):
        source(tmp_path, written(tmp_path, text), "2").results([Wanted(intervention=FixedOrder())])


@pytest.mark.slow
def test_another_seed_is_another_run_and_the_same_seed_the_same(tmp_path):
    script = written(tmp_path, loop())
    where = source(tmp_path, script, "1")
    own, other = where.results([Wanted(intervention=BASELINE), Wanted(intervention=BASELINE, seed=1)])
    assert own["loss"] != other["loss"]
    for file in (tmp_path / "arms").glob("????????????????.json"):
        file.unlink()
    assert where.results([Wanted(intervention=BASELINE, seed=1)])[0]["loss"] == other["loss"]


DIGITS = """
    import time
    import torch
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(3)
    torch.set_num_threads(1)
    digits = load_digits()
    images = (torch.tensor(digits.data, dtype=torch.float32) - 5) / 6
    rows = torch.randint(len(images), (32 * 40 + 10,))
    data = TensorDataset(images[rows] + torch.randn(len(rows), 64), torch.tensor(digits.target)[rows])
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02 / 32)
    carried = torch.zeros(1)
    for epoch in range(15):
        time.sleep(PAUSE)
        for x, y in DataLoader(data, 32, shuffle=True):
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum") + 1e-6 * carried
            carried += loss.detach()  # which every tape reads as it is at the end
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
"""


def proven(folder: Path, *options: str, pause: float = 0.0):
    script = written(folder, DIGITS.replace("PAUSE", str(pause)))
    return [sys.executable, "-m", "whyspike", "prove", *options, "--format", "json", script]


def arms_in(folder: Path) -> list[Path]:
    return sorted((folder / "whyspike-runs" / ".train-arms").glob("?" * 16 + ".json"))


@pytest.mark.slow
def test_a_script_that_no_tape_carries_is_proven_by_running_it_again(tmp_path):
    made = subprocess.run(proven(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False)
    result = json.loads(made.stdout)
    (verdict,) = [v for v in result["verdicts"] if v["cause"] == "sum-reduction"]
    assert verdict["outcome"] == "confirmed"
    assert [a["n"] for a in verdict["arms"]] == [15, 15, 15]
    assert len(arms_in(tmp_path)) >= 3
    first, second, *_ = [line for line in made.stderr.splitlines() if "expected:" in line]
    assert "the script once, recorded closely; what its proof may cost" in first
    assert "runs of the script" in second


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_proof_that_is_killed_goes_on_with_the_arms_that_it_has(tmp_path):
    process = subprocess.Popen(
        proven(tmp_path, pause=0.1), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not arms_in(tmp_path):
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in arms_in(tmp_path)}
    made = subprocess.run(proven(tmp_path, pause=0.1), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "about" in next(line for line in made.stderr.splitlines() if "as the last time" in line)
    assert {path: path.stat().st_mtime_ns for path in arms_in(tmp_path) if path in kept} == kept
    assert len(arms_in(tmp_path)) > len(kept)
    (verdict,) = [v for v in json.loads(made.stdout)["verdicts"] if v["cause"] == "sum-reduction"]
    assert verdict["outcome"] == "confirmed"


@pytest.mark.slow
def test_too_few_events_are_made_up_for_by_other_seeds(tmp_path):
    """Two epochs have two short batches: a sum that is smaller there. Other seeds bring as many again."""
    text = DIGITS.replace("PAUSE", "0").replace("range(15)", "range(2)")
    where = source(tmp_path, written(tmp_path, text), workers=2)
    change = RescaleLoss(lambda at: at.batch_size / at.n_samples, "as if it were full", "partial")
    losses = [np.array(r["loss"], dtype=float) for r in where.results([Wanted(intervention=BASELINE)])]
    run = Run(
        source="train.py", reader="whyspike", step=np.arange(82), loss=losses[0],
        n_samples=np.tile([32] * 40 + [10], 2), batch_size=32, steps_per_epoch=41,
    )  # fmt: skip
    events = tuple(Event(id=f"e{k}", kind="dip", step=40 + 41 * k, last_step=40 + 41 * k, period=41) for k in range(2))
    seen = Observation(run=run, events=events)
    plan = scriptexperiment._Plan(
        catalogue()["sum-reduction"],
        Suspicion(cause="sum-reduction", events=("e0", "e1"), evidence=(), outcome="likely"),
        [(e, e.step) for e in events],
        [("intervention", change), ("placebo", RescaleLoss(lambda at: 0.5, "halved before it", "control"))],
    )
    arms = [Wanted(intervention=c, events=plan.steps) for _, c in plan.changes]
    by_arm = {("sum-reduction", a): r for (a, _), r in zip(plan.changes, where.results(arms), strict=True)}
    course = scriptexperiment._Course.of_run(run)
    own = {k: np.array(r["loss"], dtype=float) for k, r in by_arm.items()} | {("baseline", ""): losses[0]}
    found = {"sum-reduction": plan.trials(course, own, plan.where)}
    assert not scriptexperiment.decided(found["sum-reduction"], 1)
    assert scriptexperiment._more_seeds(seen, [plan], found, where, None, None) == {}
    judged = judge(found["sum-reduction"])
    assert judged is not None
    assert judged.arms[0].n == 10  # the own seed and four others, two at a time: eight pairs decide
    assert judged.p_value <= 0.01
    assert scriptexperiment.decided(found["sum-reduction"], 1)
