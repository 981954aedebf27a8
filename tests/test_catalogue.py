"""The catalogue: every file of the two folders is found, named after itself, and explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import whyspike.cases
import whyspike.causes
from whyspike import catalogue_docs
from whyspike.case import cases, find_case
from whyspike.cause import SECTIONS, catalogue, find
from whyspike.errors import UnknownCase, UnknownCause
from whyspike.ids import family_of


def names_in(package) -> set[str]:
    files = Path(package.__path__[0]).glob("*.py")
    return {file.stem.replace("_", "-") for file in files if not file.stem.startswith("_")}


CAUSES = sorted(names_in(whyspike.causes))


def test_every_file_is_a_cause_and_every_stable_cause_has_its_case():
    assert set(CAUSES) == set(catalogue())
    assert names_in(whyspike.cases) == set(cases())
    shown = {case.cause for case in cases().values()}
    stable = {name for name in CAUSES if find(name).status == "stable"}
    assert stable <= shown <= set(CAUSES)
    assert all(find_case(name).cause == name for name in shown)


@pytest.mark.parametrize("name", [n for n in CAUSES if find(n).status == "preview" and not find(n).harmless])
def test_a_preview_says_why_it_is_one(name):
    assert "preview" in find(name).section("How we test it")


@pytest.mark.parametrize("name", CAUSES)
def test_a_cause_is_explained(name):
    cause = find(name)
    assert cause.id == name
    for section in SECTIONS:
        assert cause.section(section), f"{name} does not say: {section}"
    assert cause.title
    assert not cause.title.endswith(".")
    assert len(cause.summary) <= 120
    assert len(name.split("-")) <= 4
    assert cause.family in ("order", "scale", "optimizer", "data", "numerics", "network", "control")


@pytest.mark.parametrize("name", CAUSES)
def test_a_page_tells_every_section_once(name):
    page = catalogue_docs.page(find(name))
    for section in SECTIONS:
        assert page.count(f"## {section}\n") == 1
    shown = catalogue_docs.case_of(find(name))
    assert shown or find(name).status == "preview"
    assert (f"whyspike demo {shown}`" in page) == (shown is not None)


def test_aliases_lead_to_one_cause_and_hide_none():
    aliases = [alias for cause in catalogue().values() for alias in cause.aliases]
    assert len(aliases) == len(set(aliases))
    assert set(aliases).isdisjoint(catalogue())


@pytest.mark.parametrize("name", sorted(names_in(whyspike.cases)))
def test_a_case_names_causes_that_exist(name):
    case = find_case(name)
    assert case.name == name
    assert case.words
    assert case.cause in catalogue()
    for cause in case.also_true:  # it may be true, and its cause not built yet
        assert family_of(cause)
    assert case.cause not in case.also_true


def test_what_is_unknown_is_said():
    with pytest.raises(UnknownCause, match="whyspike list"):
        find("zzz")
    with pytest.raises(UnknownCase, match="demo --list"):
        find_case("zzz")


def test_the_generated_pages_are_up_to_date():
    for path, text in (catalogue_docs.pages() | catalogue_docs.schemas()).items():
        assert path.is_file(), f"{path.name} is missing: ./dev docs"
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: ./dev docs"
    pages = {path.name for path in catalogue_docs.pages()}
    assert {path.name for path in catalogue_docs.FOLDER.glob("*.md")} == pages


def test_the_index_links_every_cause():
    linked = re.findall(r"\]\(([a-z0-9-]+)\.md\)", catalogue_docs.index())
    assert sorted(linked) == CAUSES


def test_every_cause_has_a_canonical_id_and_its_family():
    for cause in catalogue().values():
        assert family_of(cause.id) == cause.family
