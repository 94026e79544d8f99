from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("raypipe", "features", "training", "serving")  # a layer may import those before it
ENGINE_NEVER = {"ray", "feast", "mlflow", "httpx", "requests", "aiohttp", "starlette", "fastapi"}
HEAVY = {"ray", "feast", "mlflow", "pandas", "sklearn", "optuna", "xgboost", "lightgbm"}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(p): p for layer in LAYERS for p in sorted((ROOT / layer).rglob("*.py"))}
ENGINE = [
    m
    for m in MODULES
    if m.split(".")[0] == "raypipe" and not m.startswith(("raypipe.runtime", "raypipe.client"))
]
CLIENT = [m for m in MODULES if m.startswith("raypipe.client")]


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    at_start: bool
    """Whether it runs when the module is imported (not in a function, not only for types)."""


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, is_package: bool) -> None:
        self.package = module.split(".") if is_package else module.split(".")[:-1]
        self.found: list[Import] = []
        self._late = 0

    def _deeper(self, node: ast.AST) -> None:
        self._late += 1
        self.generic_visit(node)
        self._late -= 1

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._deeper(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._deeper(node)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            self._deeper(node)
        else:
            self.generic_visit(node)

    def _add(self, target: str, line: int) -> None:
        self.found.append(Import(target, line, not self._late))

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._add(name.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package[: len(self.package) - node.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        for name in node.names:
            whole = f"{base}.{name.name}"
            self._add(whole if whole in MODULES else base, node.lineno)


def _imports(module: str) -> list[Import]:
    path = MODULES[module]
    finder = _Finder(module, path.name == "__init__.py")
    finder.visit(ast.parse(path.read_text()))
    return finder.found


def _offences(modules: list[str], forbidden: set[str]) -> Iterator[str]:
    for module in modules:
        for found in _imports(module):
            if found.target.split(".")[0] in forbidden:
                yield f"{MODULES[module].relative_to(ROOT)}:{found.line} imports {found.target}"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_those_below_it_not_even_inside_functions(layer: str) -> None:
    above = {*LAYERS[LAYERS.index(layer) + 1 :], "benchmarks", "tests"}
    assert not list(_offences([m for m in MODULES if m.split(".")[0] == layer], above))


def test_the_engine_outside_runtime_knows_no_ray_feast_or_http() -> None:
    assert ENGINE
    assert not list(_offences(ENGINE, ENGINE_NEVER))


def test_the_client_speaks_http_and_is_used_by_nothing_of_the_engine() -> None:
    assert CLIENT
    assert not list(_offences(CLIENT, ENGINE_NEVER - {"httpx"}))
    users = [m for m in ENGINE if any(i.target.startswith("raypipe.client") for i in _imports(m))]
    assert users == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {m: {i.target for i in _imports(m) if i.at_start} & set(MODULES) for m in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" <- ".join(e.args[1]))


def test_importing_the_engine_loads_nothing_heavy() -> None:
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1].split(','): importlib.import_module(name)\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, ",".join(m for m in ENGINE if "__main__" not in m)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert sorted(HEAVY & set(run.stdout.split())) == []


def test_no_folder_is_an_empty_stub() -> None:
    packages = {p.parent for p in MODULES.values() if p.name == "__init__.py"}
    assert not [
        str(folder.relative_to(ROOT))
        for folder in packages
        if not any(p.name != "__init__.py" for p in folder.rglob("*.py"))
        and not _imports(_module(folder / "__init__.py"))
    ]
