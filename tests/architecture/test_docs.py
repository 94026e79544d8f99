from __future__ import annotations

import ast
import doctest
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import suites

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
SPECIFICATION = [
    f"{part}{i}"
    for part, size in (("C", 10), ("A", 42), ("B", 45), ("D", 9))
    for i in range(1, size + 1)
]
UNBUILT = ("not yet", "for people")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


class Row(NamedTuple):
    id: str
    text: str
    module: str
    test: str
    benchmark: str
    status: str

    @property
    def built(self) -> bool:
        return self.status not in UNBUILT


def _rows() -> list[Row]:
    lines = (ROOT / "docs/spec-map.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return [Row(*c) for c in cells if re.fullmatch(r"[A-Z]\d+", c[0])]


def _named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_specification_map_has_every_line_once_in_order() -> None:
    ids = [row.id for row in _rows()]
    assert Counter(ids) == Counter(SPECIFICATION)
    assert ids == SPECIFICATION


def test_specification_map_states_a_known_status_and_says_what_is_missing() -> None:
    assert not [
        (row.id, row.status)
        for row in _rows()
        if row.status not in ("works", *UNBUILT) and not re.fullmatch(r"partly: \S.+", row.status)
    ]


def test_what_works_names_a_module_and_a_test_or_benchmark() -> None:
    rows = [row for row in _rows() if row.built]
    assert rows
    assert not [row.id for row in rows if not _named(row.module)]
    assert not [
        row.id
        for row in rows
        if row.status == "works" and not (_named(row.test) or _named(row.benchmark))
    ]


def test_what_is_not_built_names_no_test_or_benchmark() -> None:
    rows = [row for row in _rows() if not row.built]
    assert not [row.id for row in rows if _named(row.test) or _named(row.benchmark)]


def test_specification_map_names_modules_and_tests_that_exist() -> None:
    missing = []
    for row in _rows():
        for named in _named(row.module) + _named(row.test):
            path, _, function = named.partition("::")
            place = ROOT / path
            if not place.exists() or (function and function not in _functions(place)):
                missing.append((row.id, named))
        missing += [(row.id, t) for t in _named(row.test) if not t.startswith("tests/")]
    assert not missing


def _functions(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}


def test_specification_map_names_benchmarks_that_exist() -> None:
    assert not [
        (row.id, name) for row in _rows() for name in _named(row.benchmark) if name not in suites()
    ]


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(path.read_text()), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
    return {
        s if not slugs[:i].count(s) else f"{s}-{slugs[:i].count(s)}" for i, s in enumerate(slugs)
    }


def _links(path: Path) -> Iterator[str]:
    prose = re.sub(r"`[^`\n]*`", "", _prose(path.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target) and "NNNN" not in target:
            yield target


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_inside_the_project_resolve(path: Path) -> None:
    broken = []
    for target in _links(path):
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        if not place.exists() or (anchor and anchor not in _anchors(place)):
            broken.append(target)
    assert not broken


def test_every_document_is_reached_from_the_index() -> None:
    reached, waiting = set(), [ROOT / "docs/index.md", ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = (t.partition("#")[0] for t in _links(page))
        waiting += [p for t in targets if t and (p := (page.parent / t).resolve()).is_file()]
    assert not [_name(p) for p in DOCUMENTS if p not in reached]


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if ">>> " in p.read_text()], ids=_name)
def test_examples_in_documents_give_what_they_show(path: Path) -> None:
    done = doctest.testfile(str(path), module_relative=False)
    assert done.attempted
    assert not done.failed


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    from raypipe.config import Settings

    text = (ROOT / "docs/reference/settings.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert documented == set(Settings.model_fields)


def test_every_dependency_says_why() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.split(r"[<>=~!; ]", d)[0] for d in declared}
    text = (ROOT / "docs/adr/0005-dependencies.md").read_text().partition("## Not used")[0]
    explained = set(re.findall(r"`([a-z][a-z0-9,\[\]-]+)`(?=[:,])", text))
    assert names == explained


def test_decision_records_are_numbered_without_gaps_and_indexed() -> None:
    index = (ROOT / "docs/adr/index.md").read_text()
    records = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert [int(r.name[:4]) for r in records] == list(range(1, len(records) + 1))
    for record in records:
        lines = record.read_text().splitlines()
        assert f"]({record.name})" in index
        assert lines[0].startswith(f"# {record.name[:4]}. ")
        assert re.match(
            r"Status: (proposed|accepted|replaced by .+) · Date: \d{4}-\d\d-\d\d", lines[2]
        )


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {
        (_name(path), target)
        for path in DOCUMENTS
        for target in re.findall(r"(?:^\$ |`|: )make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert used
    assert not {(path, target) for path, target in used if target not in targets}


def test_verbs_in_documents_exist() -> None:
    verbs = {p.stem for p in (ROOT / "raypipe/cli").glob("[a-z]*.py")}
    used = {
        (_name(path), verb)
        for path in DOCUMENTS
        for verb in re.findall(r"(?:`|\$ |/bin/)raypipe ([a-z-]+)", path.read_text())
    }
    assert used
    assert not {(path, verb) for path, verb in used if verb not in verbs}


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_request_in_the_documents_is_a_valid_event(page: str) -> None:
    from features.payments import project

    found = re.search(r"-d '(\{.*?\})'$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert found
    body = json.loads(re.sub(r"'\"\$\(date \+%s\)000\"'", "1790000000000", found[1]))
    fields = {f.name: f for f in project.decision_event.client_fields}
    assert not set(body) - set(fields)
    assert not {n for n, f in fields.items() if f.required} - set(body)
    assert body["channel"] in fields["channel"].choices


def test_the_domain_in_the_readme_is_a_project_in_at_most_40_lines() -> None:
    from raypipe.project import Project

    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    assert len(found[1].strip().splitlines()) <= 40
    scope: dict[str, object] = {}
    exec(compile(found[1], "README.md", "exec"), scope)
    assert isinstance(scope["project"], Project)
    assert "accounts_per_login" in scope["project"].feature_names
