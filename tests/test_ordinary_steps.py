"""Under `whyspike run` an ordinary update is not announced, once the training is known: checked against one where all
updates always are, on scripts that stop being ordinary after that."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from whyspike.readers.runfolder import read

BEGIN = """
    import sys
    from pathlib import Path

    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from whyspike.hooks import Hooks
    from whyspike.scriptwatch import ScriptWatch

    class Slow(ScriptWatch):
        def _nothing_else(self):
            return False

    kind = {"quick": ScriptWatch, "slow": Slow}[sys.argv[1]]
    here = Path(sys.argv[1])
    watch = kind(lambda number: here / f"run-{number}", name="one")
    hooks = Hooks(watch)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(196, 4), torch.randn(196, 1)
    model, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    was_alone, unseen, other, step = 0, 0, None, 0

    def loss_of(a, b):
        return (model(a) - b).pow(2).mean()

    for epoch in range(16):
        for a, b in loader:
            step += 1
            late = step > 300
            was_alone += watch._alone is not None
            unseen += bool(watch.watched and watch.watched[0].recorder._handout.noted)
"""
ORDINARY = """
            optimizer.zero_grad()
            loss_of(a, b).backward()
            optimizer.step()
"""
CLOSURE = """
            def closure():
                optimizer.zero_grad()
                loss = loss_of(a, b)
                loss.backward()
                return loss
"""
END = """
    watch.finish("end")
    print(was_alone, unseen, watch.error)
"""
SCRIPTS = {
    "ordinary": ORDINARY,
    "closure": CLOSURE
    + """
            if late:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
    """,
    "closure called several times": CLOSURE
    + """
            if late:
                if other is None:
                    other = optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=3)
                optimizer.step(closure=closure)
            else:
                closure()
                optimizer.step()
    """,
    "second optimizer": ORDINARY
    + """
            if late:
                if other is None:
                    other = torch.optim.Adam(head.parameters())
                other.zero_grad()
                (head(a) - b).abs().mean().backward()
                other.step()
    """,
    "another optimizer of the same parameters": """
            if step == 301:
                optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    """
    + ORDINARY,
    "accumulation": """
            if not late or step % 2:
                optimizer.zero_grad()
            loss_of(a, b).backward()
            if not late or not step % 2:
                optimizer.step()
    """,
    "two losses": """
            optimizer.zero_grad()
            loss_of(a, b).backward()
            if late:
                model[0].weight.pow(2).sum().backward()
            optimizer.step()
    """,
    "an update without a loss": ORDINARY
    + """
            if late and step % 3 == 0:
                optimizer.step()
    """,
    "evaluation": ORDINARY
    + """
            if late and step % 20 == 0:
                model.eval()
                with torch.no_grad():
                    sum(loss_of(c, d).item() for c, d in DataLoader(TensorDataset(x[:40], y[:40]), batch_size=20))
                model.train()
    """,
    "batches that are left out": """
            if late and step % 7 == 0:
                continue
    """
    + ORDINARY,
    "epochs that are cut": ORDINARY
    + """
            if late and step % 20 == 0:
                break
    """,
    "a pass that is given up for another one": ORDINARY
    + """
            if late and step % 30 == 0:
                other = iter(loader)
                c, d = next(other)
                optimizer.zero_grad()
                loss_of(c, d).backward()
                optimizer.step()
    """,
    "clipping": """
            optimizer.zero_grad()
            loss_of(a, b).backward()
            if late:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    """,
    "logged by the script's own hand": ORDINARY
    + """
            if late and step % 9 == 0:
                watch.watched[0].recorder.log(mine=step)
    """,
    "scheduler": """
            optimizer.param_groups[0]["lr"] = 0.01 if not late else 0.01 / step
    """
    + ORDINARY,
    "scaler": """
            if late:
                if other is None:
                    other = torch.amp.GradScaler("cpu", init_scale=2.0**10)
                optimizer.zero_grad()
                other.scale(loss_of(a, b)).backward()
                other.step(optimizer)
                other.update()
            else:
                optimizer.zero_grad()
                loss_of(a, b).backward()
                optimizer.step()
    """,
    "a loss of several values": """
            optimizer.zero_grad()
            if late:
                (model(a) - b).pow(2).backward(torch.ones_like(b))
                (model(a) * 0).sum().backward()
            else:
                loss_of(a, b).backward()
            optimizer.step()
    """,
}


def recorded(folder: Path, how: str, body: str) -> tuple[int, int, list[Path]]:
    """How many steps passed unannounced, how many with a batch that was handed out without a look, and the folders."""
    path = folder / "train.py"
    path.write_text(textwrap.dedent(BEGIN + body + END))
    done = subprocess.run([sys.executable, str(path), how], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone, unseen, error = done.stdout.split(maxsplit=2)
    assert error.strip() == "None", error
    return int(alone), int(unseen), sorted((folder / how).iterdir())


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_update_that_is_not_announced_is_recorded_as_one_that_is(name: str, tmp_path: Path) -> None:
    alone, unseen, quick = recorded(tmp_path, "quick", SCRIPTS[name])
    *none, slow = recorded(tmp_path, "slow", SCRIPTS[name])
    assert alone > 40
    assert unseen > 30
    assert none == [0, 0]
    assert [p.name for p in quick] == [p.name for p in slow]
    for one, other in zip(quick, slow, strict=True):
        a, b = read(one), read(other)
        for column in ("step", "loss", "epoch", "index", "n_samples", "lr"):
            np.testing.assert_array_equal(getattr(a, column), getattr(b, column), err_msg=column)
        assert [i.tolist() for i in a.sample_ids or ()] == [i.tolist() for i in b.sample_ids or ()]
        told = [[(m.step, m.name) for m in run.marks if m.name != "stride"] for run in (a, b)]
        assert told[0] == told[1]


PROJECTED = """
            if step == 1:
                class Projected(torch.optim.SGD):
                    def step(self, closure=None):
                        made = super().step(closure)
                        with torch.no_grad():
                            model[0].weight.clamp_(-2, 2)
                        return made

                optimizer = Projected(model.parameters(), lr=0.01)
"""
FAILS = """
            if step in (200, 350):
                try:
                    optimizer.step(lambda: 1 / 0)  # no update comes of it
                except ZeroDivisionError:
                    pass
"""


@pytest.mark.parametrize("body", [ORDINARY, CLOSURE + "            optimizer.step(closure)", FAILS + ORDINARY])
def test_an_update_inside_of_an_update_is_a_part_of_it(body: str, tmp_path: Path) -> None:
    """Torch calls the hooks of both, where the class of `super()` was used before."""
    *_, plain = recorded(tmp_path, "slow", body)
    alone, _, nested = recorded(tmp_path, "quick", PROJECTED + body)
    a, b = (read(folder) for (folder,) in (plain, nested))
    assert alone == 0
    assert len(b) == 16 * 25
    np.testing.assert_array_equal(a.loss, b.loss)


def test_what_a_loader_raises_is_raised_where_python_raises_it_and_the_pass_goes_on(tmp_path: Path) -> None:
    def loop(watched: bool) -> list[object]:
        watching = "Hooks(watch)" if watched else "None"
        body = """
            import torch, traceback
            from torch.utils.data import DataLoader, Dataset
            from whyspike.hooks import Hooks
            from whyspike.scriptwatch import ScriptWatch

            watch = ScriptWatch(lambda number: "run", name="one")
            hooks = WATCHING

            class Data(Dataset):
                def __len__(self):
                    return 4000

                def __getitem__(self, i):
                    if i % 400 == 303:
                        raise ValueError(i)
                    return torch.full((2,), float(i))

            torch.set_num_threads(1)
            torch.manual_seed(0)
            model = torch.nn.Linear(2, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
            batches, seen, unseen = iter(DataLoader(Data(), batch_size=8)), [], 0
            assert len(batches) == 500 and batches._sampler_iter is not None
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                except ValueError as error:
                    seen.append((str(error), [f.name for f in traceback.extract_tb(error.__traceback__)]))
                    continue
                unseen += bool(watch.watched and watch.watched[0].recorder._handout.noted)
                loss = model(batch).pow(2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen.append(batch.tolist())
            assert next(batches, "ended") == "ended"
            watch.finish("end")
            print(repr(seen))
            print(unseen, watch.error, watch.watched and watch.watched[0].recorder._step)
        """
        folder = tmp_path / str(watched)
        folder.mkdir()
        (folder / "train.py").write_text(textwrap.dedent(body).replace("WATCHING", watching))
        done = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    plain, ours = loop(False), loop(True)
    assert ours[0] == plain[0]
    unseen, error, steps = str(ours[1]).split()
    assert int(unseen) > 100
    assert (error, steps) == ("None", "490")
    drawn = [[int(row[0]) for row in batch] for batch in ast.literal_eval(str(plain[0])) if isinstance(batch, list)]
    assert [ids.tolist() for ids in read(tmp_path / "True" / "run").sample_ids or ()] == drawn
