"""Hugging Face Trainer and Accelerate: what they are to the recorder, with a real tiny transformer."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

transformers = pytest.importorskip("transformers", reason="needs the extra huggingface")
pytest.importorskip("accelerate", reason="needs the extra huggingface")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

from whyspike.cases.grad_accum_normalization import ByLength, sequences  # noqa: E402
from whyspike.firstbad import exact_loss  # noqa: E402
from whyspike.integrations.huggingface import SpikeRecorderCallback, watch  # noqa: E402
from whyspike.readers import read  # noqa: E402
from whyspike.replay import Subject  # noqa: E402

transformers.logging.set_verbosity_error()
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Sentences(Dataset):
    """Token sequences of 4 to 12 of 16 tokens, or those given."""

    def __init__(self, n=75, rows=None):
        draw = torch.Generator().manual_seed(0)
        self.rows = rows or [
            torch.randint(16, (int(torch.randint(4, 13, (), generator=draw)),), generator=draw) for _ in range(n)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i].tolist()}


def padded(rows):
    longest = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([r["input_ids"] + [0] * (longest - len(r["input_ids"])) for r in rows])
    labels = torch.tensor([r["input_ids"] + [-100] * (longest - len(r["input_ids"])) for r in rows])
    return {"input_ids": ids, "labels": labels}


def gpt(vocabulary=16, width=16, dropout=0.1):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=96, n_embd=width, n_layer=1, n_head=2, resid_pdrop=dropout,
        embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def train(folder, callback=None, *, cls=Trainer, resume=None, **arguments):
    settings = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "save_strategy": "no",
        **arguments,
    }
    args = TrainingArguments(
        folder, report_to=[], disable_tqdm=True, use_cpu=True, seed=0, dataloader_pin_memory=False,
        remove_unused_columns=False, **settings,
    )  # fmt: skip
    trainer = cls(
        model=gpt(), args=args, train_dataset=Sentences(), eval_dataset=Sentences(16), data_collator=padded,
        callbacks=[callback] if callback else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def same(a, b):
    return all(
        torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


class MeanOfMeans(Trainer):
    """The loss as it was before num_items_in_batch, and still is in many a compute_loss of one's own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


KINDS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "accumulated, mean of means": {"gradient_accumulation_steps": 2, "cls": MeanOfMeans},
    "bfloat16, evaluated in the middle": {"bf16": True, "eval_strategy": "steps", "eval_steps": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_train_is_bitwise_the_same_and_its_replay_is_bitwise_the_record(kind, tmp_path):
    plain = train(tmp_path, **KINDS[kind])
    spikes = SpikeRecorderCallback(path=tmp_path / "run", closely=True)
    watched = train(tmp_path, spikes, **KINDS[kind])
    assert same(plain, watched)
    run = read(spikes.path)
    accumulated = "accumulated" in kind
    assert run.n_samples.tolist() == ([16] * 4 + [11] if accumulated else [8] * 9 + [3]) * 2
    assert sorted(i for ids in run.sample_ids[: len(run) // 2] for i in ids) == list(range(75))
    assert len(run.signals["gradient_norm"].value)
    assert run.signals["clip_max_norm"].value.tolist() == [1.0] * len(run)
    assert [m.name for m in run.marks].count("evaluation") == (5 if "middle" in kind else 0)
    # The Trainer logs the mean of three steps; the record has each.
    logged = run.signals["log/loss"]
    assert logged.value[0] == pytest.approx(run.loss[:3].mean(), abs=1e-4)
    subject = Subject.of(spikes.recorder, run)
    with subject.kept():
        subject.learn_convention()
        for path in run.capsules:
            replayed = subject.replay(subject.window(subject.capsule(path).steps[0].step))
            assert replayed.noise <= (1e-6 if accumulated else 0.0)
    assert same(plain, watched)
    assert "training_step" not in vars(watched)


def test_group_by_length_is_noted(tmp_path):
    spikes = SpikeRecorderCallback(path=tmp_path / "run")
    train(tmp_path, spikes, train_sampling_strategy="group_by_length", num_train_epochs=1)
    run = read(spikes.path)
    assert run.facts["group_by_length"] is True
    assert sorted(i for ids in run.sample_ids for i in ids) == list(range(75))


def test_a_resumed_training_goes_on_in_the_same_record(tmp_path):
    first = SpikeRecorderCallback(path=tmp_path / "run")
    whole = train(tmp_path, first, save_strategy="steps", save_steps=7)
    state = json.loads((tmp_path / "checkpoint-7" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["SpikeRecorderCallback"]["attributes"]["_going"]["step"] == 7
    before = read(first.path)
    again = SpikeRecorderCallback()
    resumed = train(tmp_path, again, resume=str(tmp_path / "checkpoint-7"))
    assert same(whole, resumed)
    assert again.path == first.path.resolve()
    run = read(again.path)
    assert run.step.tolist() == list(range(20))
    assert run.epoch.tolist() == [0] * 10 + [1] * 10
    assert run.index.tolist() == list(range(10)) * 2
    assert run.loss.tolist() == before.loss.tolist()  # the resumed steps came out the same
    assert "resume-overlap" in {note.id for note in run.notes}


class OwnStep(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs, num_items_in_batch)


def test_a_training_step_of_ones_own_is_recorded_and_said(tmp_path):
    spikes = SpikeRecorderCallback(path=tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="OwnStep has a training_step of its own"):
        train(tmp_path, spikes, cls=OwnStep, num_train_epochs=1)
    assert len(read(spikes.path)) == 10


def test_a_training_step_of_ones_own_can_be_replayed_through_a_loss_fn(tmp_path):
    def loss_fn(model, batch):
        return model(**batch, num_items_in_batch=(batch["labels"] != -100).sum()).loss

    spikes = SpikeRecorderCallback(path=tmp_path / "run", loss_fn=loss_fn, closely=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(tmp_path, spikes, cls=OwnStep, num_train_epochs=1)
    subject = Subject.of(spikes.recorder, read(spikes.path))
    with subject.kept():
        assert subject.replay(subject.window(0)).noise == 0.0


# --------------------------------------------------------------------------- the accumulation bug


class Grouped(Trainer):
    """Micro-batches of one length each, as length-grouped loaders make them."""

    def get_train_dataloader(self):
        n = len(self.train_dataset)
        sampler = ByLength(n - 24, 24, 4, 0)
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=padded))


class GroupedMeanOfMeans(Grouped, MeanOfMeans):
    pass


def accumulate(cls, folder):
    torch.manual_seed(0)
    # A first token that begins every sentence: the second, any of 32, is what a short sentence is judged by.
    rows = [torch.cat([torch.tensor([32]), row]) for row in sequences(1200, 24)]
    args = TrainingArguments(
        folder, report_to=[], disable_tqdm=True, use_cpu=True, seed=0, dataloader_pin_memory=False,
        remove_unused_columns=False, gradient_accumulation_steps=4, num_train_epochs=6, learning_rate=3e-3,
        save_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    spikes = SpikeRecorderCallback(path=folder / "run", closely=True)
    trainer = cls(
        model=gpt(33, 32, 0.0), args=args, train_dataset=Sentences(rows=rows), data_collator=padded, callbacks=[spikes]
    )
    trainer.train()
    return spikes.diagnose(prove=True)


@pytest.mark.slow
def test_the_mean_of_means_makes_the_spikes_and_num_items_in_batch_makes_none(tmp_path):
    made = accumulate(GroupedMeanOfMeans, tmp_path / "sick")
    found = next(v for v in made.verdicts if v.cause == "grad-accum-normalization")
    identity = next(e for e in found.evidence if "without the first" in e.statement and "difference" in e.observed)
    assert float(identity.observed.split()[-1]) < 1e-5
    # The height of each such step follows from the identity; weighted by its tokens it does not spike in the replays.
    assert (made.answer.status, made.answer.cause) == ("explained", "grad-accum-normalization")
    assert found.outcome == "confirmed"
    assert next(a for a in found.arms if a.arm == "intervention").share_removed > 0.8
    made = accumulate(Grouped, tmp_path / "healthy")
    assert made.answer.status == "healthy"


# --------------------------------------------------------------------------- Accelerate


def by_accelerate(path=None):
    """The weights, and the recorder where there is a path to record to."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = gpt(dropout=0.1)  # seeds everything that is drawn
    loader = DataLoader(Sentences(), batch_size=8, shuffle=True, collate_fn=padded)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    model, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)

    def loss_fn(model, batch):
        return model(**batch).loss

    rec = path and watch(accelerator, model, optimizer, loss_fn=loss_fn, scheduler=schedule.scheduler, path=path)
    with rec or nullcontext():
        for _ in range(2):
            for batch in rec.batches(loader) if rec else loader:
                with accelerator.accumulate(model):
                    loss = loss_fn(model, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                if rec:
                    rec.step(loss)
    return accelerator.unwrap_model(model).state_dict(), rec


def test_accelerate(tmp_path):
    plain, _ = by_accelerate()
    watched, rec = by_accelerate(tmp_path / "run")
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    run = read(rec.path)
    assert run.n_samples.tolist() == [16, 16, 16, 16, 11] * 2
    assert sorted(i for ids in run.sample_ids[:5] for i in ids) == list(range(75))
    subject = Subject.of(rec, run)
    with subject.kept():
        assert subject.replay(subject.window(0)).noise == 0.0
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_a_loss_in_float64_is_that_of_a_copy(tmp_path):
    spikes = SpikeRecorderCallback(path=tmp_path / "run")
    trainer = train(tmp_path, spikes, num_train_epochs=1)
    batch = padded([{"input_ids": row.tolist()} for row in Sentences(8).rows])
    trainer.model.eval()
    own = spikes.recorder.loss_fn  # the Trainer's: a sum over the number of tokens that it counts
    exact = exact_loss(trainer.model, own, batch)
    with torch.no_grad():
        assert exact == pytest.approx(own(trainer.model, batch).item(), rel=1e-5)


@pytest.mark.slow
def test_a_compiled_model_is_recorded_and_replayed(tmp_path):
    plain = train(tmp_path, torch_compile=True, torch_compile_backend="eager", num_train_epochs=1)
    spikes = SpikeRecorderCallback(path=tmp_path / "run", closely=True)
    watched = train(tmp_path, spikes, torch_compile=True, torch_compile_backend="eager", num_train_epochs=1)
    assert same(plain, watched)
    run = read(spikes.path)
    assert len(run) == 10
    subject = Subject.of(spikes.recorder, run)
    with subject.kept():
        assert subject.replay(subject.window(0)).noise == 0.0
