"""What a person or a program gets to see, as text. `WHYSPIKE_UPDATE_SNAPSHOTS=1 pytest` accepts new snapshots."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_examples import EXAMPLES, explained, healthy, hostile, unexplained

from whyspike import form, reports
from whyspike.errors import UnreadableRun, WhySpikeError
from whyspike.reports import _words as words
from whyspike.reports import json as document
from whyspike.reports import markdown, terminal
from whyspike.types import Arm, Cure, Event, Finding, Note, Preflight

SNAPSHOTS = Path(__file__).parent / "snapshots"
SCHEMAS = Path(__file__).parents[1] / "docs" / "schema"
SUFFIX = {"full": "txt", "concise": "concise.txt", "markdown": "md", "github": "github.txt", "json": "json"}


def check_snapshot(name: str, text: str) -> None:
    path = SNAPSHOTS / name
    if os.environ.get("WHYSPIKE_UPDATE_SNAPSHOTS") == "1":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------- the whole text


@pytest.mark.parametrize("format", SUFFIX)
@pytest.mark.parametrize("name", ["explained", "healthy", "unexplained", "cannot-say"])
def test_the_whole_text(name: str, format: str):
    check_snapshot(f"{name}.{SUFFIX[format]}", reports.render(EXAMPLES[name](), format))


def test_formats_are_the_files_of_the_folder():
    assert set(reports.FORMATS) == {"full", "concise", "json", "markdown", "github", "html"}


def test_an_unknown_format_names_the_others():
    with pytest.raises(WhySpikeError, match=r"there is no format 'yaml'; choose one of .*markdown"):
        reports.render(healthy(), "yaml")


# ------------------------------------------------------------------------------- terminal


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_is_wider_than_the_terminal(name: str, width: int):
    lines = terminal.render(EXAMPLES[name](), width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_the_first_line_stands_alone():
    first = terminal.render(explained()).splitlines()[0]
    assert first == "confirmed[double-averaged-loss]: the loss is divided by the batch size twice"


def test_a_harmless_cause_is_healthy_and_still_named():
    made = explained()
    noise = replace(made.verdicts[0], cause="batch-size-noise", harm="none", cures=())
    answer = replace(made.answer, status="healthy", cause="batch-size-noise", harm="none")
    text = terminal.render(replace(made, answer=answer, verdicts=(noise,)))
    assert text.startswith("healthy[batch-size-noise]: ")
    assert "spikes on the last batch of an epoch" in text


@pytest.mark.parametrize(
    ("framework", "shown"), [("keras 3.15.1 on torch", "keras"), ("lightning", "torch"), (None, "")]
)
def test_code_is_that_of_the_framework_which_trained(framework: str | None, shown: str):
    made = explained()
    assert made.record is not None
    record = replace(made.record, facts={**made.record.facts, **({"framework": framework} if framework else {})})
    made = replace(made, record=record)
    codes = [list(c.code) for c in made.verdicts[0].cures]
    assert any({"torch", "keras"} <= set(names) for names in codes)
    expected = [[shown] if shown in names else ["torch"] if shown else names for names in codes]
    for name in ("torch", "keras"):
        count = sum(names.count(name) for names in expected)
        assert terminal.render(made).count(f"|  {name}: ") == count
        assert markdown.render(made).count(f"\n# {name}\n") == count
        assert f'"{name}"' in made.to_json()  # which keeps all of them


def test_colours_change_nothing_but_colours():
    made = explained()
    coloured = terminal.render(made, color=True)
    assert "\x1b[" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == terminal.render(made).splitlines()


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("1", False)])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    screen = Screen()
    terminal.show(explained(), screen)
    assert ("\x1b[" in screen.getvalue()) is coloured


def test_a_file_gets_plain_text():
    file = io.StringIO()
    terminal.show(explained(), file)
    assert file.getvalue() == terminal.render(explained()) + "\n"


def test_a_stream_of_ascii_is_not_a_reason_to_fail():
    made = replace(healthy(), answer=replace(healthy().answer, sentence="Schritt für Schritt → ruhig"))
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    terminal.show(made, stream)
    stream.flush()
    assert raw.getvalue().startswith(b"healthy: Schritt f?r Schritt ? ruhig\n")


@pytest.mark.parametrize("format", ["full", "concise", "markdown", "github"])
def test_a_name_from_a_log_cannot_steer_a_terminal(format: str):
    text = reports.render(hostile(), format)
    assert not [c for c in text if c != "\n" and not c.isprintable()]


def test_str_of_a_diagnosis_is_the_full_text():
    assert str(healthy()) == terminal.render(healthy())


# ------------------------------------------------------------------------------- GitHub and Markdown


def test_github_lines_are_commands_and_nothing_else():
    for name, example in EXAMPLES.items():
        lines = reports.render(example(), "github").splitlines()
        assert lines, name
        assert all(re.match(r"::(warning|notice) title=[^:,]+::[^\r\n]+$", line) for line in lines), name
    assert "::notice title=whyspike%3A healthy::" in reports.render(healthy(), "github")


def test_github_escapes_percent():
    made = replace(healthy(), answer=replace(healthy().answer, sentence="3 % of 100%0A::error::x"))
    assert "3 %25 of 100%250A::error::x" in reports.render(made, "github")


def test_markdown_lets_no_html_through():
    text = reports.render(hostile(), "markdown")
    outside = re.sub(r"^(`{3,})python\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "torch" in text
    assert not re.search(r"(?<!\\)[<>]", outside)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {5, 6}


# ------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_document_follows_its_schema(name: str):
    text = document.render(EXAMPLES[name]())
    jsonschema.Draft202012Validator(document.schema()).validate(json.loads(text))


def test_the_fields_are_the_contract():
    made = json.loads(document.render(explained()))
    verdict, event = made["verdicts"][0], made["events"][0]
    assert list(made) == ["schema_version", "run", "answer", "events", "verdicts"]
    assert list(made["run"]) == ["source", "reader", "steps", "steps_per_epoch", "signals", "notes"]
    assert list(made["answer"]) == ["status", "cause", "harm", "sentence"]
    assert list(event) == [
        *("id", "kind", "step", "last_step", "period", "reported", "state", "attribution", "sample_ids")
    ]
    assert list(event["attribution"]) == ["scale", "weights", "data", "interval"]
    assert list(verdict) == ["cause", "outcome", "harm", "events", "evidence", "arms", "cures", "reason"]
    assert list(verdict["evidence"][0]) == ["statement", "observed", "expected", "p_value"]
    assert list(verdict["arms"][0]) == ["arm", "words", "n", "excess", "share_removed", "interval"]
    assert list(verdict["cures"][0]) == ["words", "code", "applicability", "verified", "numbers"]


@pytest.mark.parametrize("name", ["explained", "healthy", "unexplained", "cannot-say"])
def test_what_was_written_can_be_read(name: str):
    made = EXAMPLES[name]()
    back = document.load(document.render(made))
    assert back == made  # record, trials and missing do not compare: they are not in the document
    assert back.record is None
    assert back.trials == ()


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_document_alone_can_be_shown(example: str):
    back = document.load(document.render(EXAMPLES[example]()))
    for name in reports.FORMATS:
        assert reports.render(back, name)


@settings(deadline=None, max_examples=60)
@given(
    x=st.one_of(st.none(), st.floats()),
    excess=st.lists(st.floats(), max_size=4),
    interval=st.one_of(st.none(), st.tuples(st.floats(), st.floats())),
)
def test_no_number_breaks_a_report(x: float | None, excess: list[float], interval: tuple[float, float] | None):
    made = explained()
    arms = (
        Arm(arm="baseline", words="as it was", n=len(excess), excess=tuple(excess)),
        Arm(arm="intervention", words="w", n=len(excess), excess=tuple(excess), share_removed=x, interval=interval),
    )
    cure = Cure(words="w", code={"torch": ""}, applicability="manual", numbers=None if x is None else {"loss": x})
    event = Event(id="e1", kind="spike", step=65, last_step=70, reported=x, state=x)
    verdict = replace(made.verdicts[0], arms=arms, cures=(cure,), events=("e1",))
    made = replace(made, events=(event,), verdicts=(verdict,), record=None, trials=())
    for name in reports.FORMATS:
        assert reports.render(made, name)
    text = document.render(made)
    jsonschema.Draft202012Validator(document.schema()).validate(json.loads(text))
    read = document.load(text).verdicts[0].arms[0].excess
    assert [v if math.isfinite(v) else None for v in excess] == [v if math.isfinite(v) else None for v in read]


def test_numpy_numbers_are_numbers():
    made = replace(healthy(), events=(Event(id="e1", kind="dip", step=np.int64(3), last_step=4, state=np.float64(2)),))
    event = json.loads(document.render(made))["events"][0]
    assert (event["step"], event["state"]) == (3, 2.0)


def test_several_runs_and_a_check_follow_their_schemas():
    many = document.render_many([explained(), healthy()], {"differs": ["batch_size"]})
    jsonschema.Draft202012Validator(document.schema("diagnoses")).validate(json.loads(many))
    finding = Finding(cause="double-averaged-loss", text="t", observed="-1", expected="0", cure="divide once")
    check = document.render_preflight(Preflight(findings=(finding,), notes=(Note(id="small-last-batch", text="2"),)))
    jsonschema.Draft202012Validator(document.schema("check")).validate(json.loads(check))
    assert list(json.loads(check)) == ["schema_version", "findings", "notes"]


def test_a_schema_refuses_what_is_not_in_it():
    made = json.loads(document.render(explained()))
    made["verdicts"][0]["outcome"] = "surely"
    with pytest.raises(jsonschema.ValidationError, match="surely"):
        jsonschema.validate(made, document.schema())
    del made["verdicts"][0]["outcome"]
    with pytest.raises(jsonschema.ValidationError, match="'outcome' is a required property"):
        jsonschema.validate(made, document.schema())


@pytest.mark.parametrize("name", document.DOCUMENTS)
def test_the_published_schema_is_the_one_of_the_types(name: str):
    published = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert published == document.schema(name), "write it anew: python -m whyspike.reports.json"
    jsonschema.Draft202012Validator.check_schema(published)


def test_the_command_writes_the_schemas(tmp_path: Path):
    command = [sys.executable, "-m", "whyspike.reports.json", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    for path in SCHEMAS.glob("*.json"):
        assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is not a diagnosis of whyspike"),
        ("[1, 2]", "the text is not a diagnosis of whyspike"),
        ('{"schema_version": 1}', "the text is not a diagnosis of whyspike"),
        ('{"schema_version": 2}', "a diagnosis of schema_version 2 was given; this version reads 1"),
    ],
)
def test_a_foreign_text_is_refused_with_a_sentence(text: str, message: str):
    with pytest.raises(UnreadableRun, match=message):
        document.load(text)


# ------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (0.987, "99 %"),
        (0.9999, "100 %"),
        (0.997, "99.7 %"),
        (1.0, "100 %"),
        (0.003, "0.3 %"),
        (0.0, "0 %"),
        (-0.2, "-20 %"),
    ],
)
def test_a_share_is_not_rounded_to_all_or_nothing(x: float, said: str):
    assert form.percent(x) == said


@pytest.mark.parametrize(
    ("x", "said"), [(0.0, "0"), (61.64, "61.6"), (0.00012345, "0.000123"), (12345.6, "12,346"), (3e9, "3e+09")]
)
def test_numbers_have_three_digits(x: float, said: str):
    assert form.number(x) == said


def events(*steps: int) -> tuple[Event, ...]:
    return tuple(Event(id=f"e{s}", kind="spike", step=s, last_step=s + 2, reported=3.0) for s in steps)


@pytest.mark.parametrize(
    ("epoch", "steps", "said"),
    [
        (33, (65, 98, 131), "once per epoch (every 33 steps), on the last step of an epoch"),
        (33, (66, 99, 132), "once per epoch (every 33 steps), on the first step of an epoch"),
        (33, (65, 131, 164), "on the last step of an epoch"),
        (None, (10, 60, 110), "every 50 steps"),
        (None, (10, 60), None),
        (33, (10, 61, 109), None),
        (33, (70,), None),
        (33, (65,), "on the last step of an epoch"),
    ],
)
def test_how_events_come_back(epoch: int | None, steps: tuple[int, ...], said: str | None):
    made = unexplained()
    made = replace(made, run=replace(made.run, steps_per_epoch=epoch))
    assert words.rhythm(made, events(*steps)) == said


def test_a_periodic_event_is_one_event_that_comes_back():
    made = explained()
    event = Event(id="e1", kind="periodic", step=65, last_step=362, period=33, reported=15.9, state=8.9)
    made = replace(made, events=(event,), verdicts=(replace(made.verdicts[0], events=("e1",)),))
    third = terminal.render(made, width=200).splitlines()[2]
    assert third == (
        "  --> a spike that comes 10 times in 396 steps, once per epoch (every 33 steps), on the last step of an "
        "epoch; first at step 65"
    )


def test_events_that_the_answer_does_not_explain_are_named():
    made = explained()
    other = Event(id="e99", kind="level-shift", step=200, last_step=230, reported=2.1)
    made = replace(made, events=(*made.events, other))
    said = "level shift at steps 200 to 230, logged 2.1 x, in the network not known"
    assert f"unexplained[e99]: {said}" in terminal.render(made)
    assert said in reports.render(made, "markdown")
    assert "Not explained by it" in reports.render(made, "html")


def test_evidence_that_does_not_fit_beside_is_set_below():
    made = explained()
    wide, narrow = terminal.render(made, width=100), terminal.render(made, width=70)
    assert "spikes on the last batch of an epoch    10 of 10  3 % by chance" in wide
    assert "   |  - spikes on the last batch of an epoch" in narrow
    assert "observed 10 of 10; expected 3 % by chance; p = 6.5e-16" in narrow


def test_the_deciding_arms_come_first():
    deciding, others = words.ordered(explained().verdicts[0])
    assert [a.arm for a in deciding] == ["baseline", "intervention", "placebo"]
    assert [a.words for a in others] == ["gradients clipped at .1"]
    assert words.means((*deciding, *others)) == ["61.6", "0.8", "60.5", "3.1"]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (None, None),
        ({}, None),
        ({"seeds": 3.0}, None),
        ({"seeds": 1.0, "loss_before": 2.0, "loss_after": 0.5}, "1 seed: loss 2 -> 0.5"),
        ({"loss_before": 2.0, "height": 3.0}, "height 3"),
    ],
)
def test_numbers_of_a_cure_are_said_before_and_after(numbers: dict[str, float] | None, said: str | None):
    assert words.numbers(Cure(words="w", code={}, applicability="safe", numbers=numbers)) == said


def test_the_first_sentence_is_told_from_the_rest():
    made = explained()
    text = "The loss spikes 2.5 times (b/B, i.e. 1/16). It hurts. So much."
    made = replace(made, answer=replace(made.answer, sentence=text))
    assert words.first_sentence(made) == ("The loss spikes 2.5 times (b/B, i.e. 1/16).", "It hurts. So much.")


def test_a_cause_that_is_not_in_the_catalogue_is_still_reported():
    made = explained()
    verdict = replace(made.verdicts[0], cause="cosmic-rays")
    made = replace(made, answer=replace(made.answer, cause="cosmic-rays"), verdicts=(verdict,))
    assert terminal.render(made).startswith("confirmed[cosmic-rays]: The loss is averaged over the batch")


def test_reports_are_loaded_one_by_one():
    code = (
        "import sys, whyspike.reports as r; r.FORMATS;"
        "assert not {'rich', 'jinja2', 'msgspec', 'numpy', 'torch'} & set(sys.modules);"
        "import whyspike.reports.terminal, whyspike.reports.html;"
        "assert not {'jinja2', 'torch', 'scipy', 'polars', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_experiment_says_what_its_numbers_count() -> None:
    """Whole epochs are judged by the height of their pattern, an event by its area."""
    from whyspike.reports import _words
    from whyspike.types import Verdict

    def unit(cause: str) -> str:
        return _words.unit(Verdict(cause=cause, outcome="confirmed", harm="none", events=("e1",)))

    assert "nats" in unit("epochal-sawtooth")
    assert "log-loss x steps" in unit("small-last-batch")
    assert _words.unit(None) == unit("a cause of another package")


def test_a_probe_that_is_measured_now_and_then_is_drawn_as_a_line() -> None:
    from whyspike.reports._pictures import _bridged

    nan = float("nan")
    assert _bridged([nan, 1.0, nan, 3.0, nan])[1:4] == [1.0, 2.0, 3.0]
    assert str(_bridged([nan, 1.0, nan, 3.0, nan])[0]) == "nan"
    assert _bridged([1.0, 2.0]) == [1.0, 2.0]
