"""The rules of the house that code can check: who imports whom, what is public, how long files are."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*ROOT.glob("hfh_embed/**/*.py"), *ROOT.glob("service/**/*.py")])
LONGEST = 380
PUBLIC = {
    "hfh_embed": {
        *(
            "DamagedError",
            "HFHError",
            "InputError",
            "MissingDependencyError",
            "RatioError",
            "Snapshot",
            "SnapshotError",
        ),
        *("SnapshotInfo", "SpecError", "Table", "TableNotFoundError", "UnknownIdError", "__version__", "inspect"),
        *("key_ids", "open", "verify"),
    },
    "hfh_embed.nn": {
        *("HFHConv2d", "HFHEmbedding", "HFHEmbeddingBag", "HFHLinear", "Pool", "PoolAdam", "PoolSGD"),
        *("VocabularyHead", "compress", "load", "replicate", "save"),
    },
    "hfh_embed.codec": {"Update", "compress", "update"},
    "hfh_embed.kernels": {"Kernel", "backends", "json_rows", "native_chosen", "prepare"},
    "service.client": {"AsyncClient", "Client", "ServiceError"},
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _under(imported: str, *packages: str) -> bool:
    return any(imported == package or imported.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_one_way(path: Path) -> None:
    name, imports = _name(path), _imports(path)
    forbidden: tuple[str, ...] = ()
    if _under(name, "hfh_embed"):
        forbidden += ("service",)
        if not _under(name, "hfh_embed.nn"):
            forbidden += ("hfh_embed.nn",)
            if name != "hfh_embed.tables":  # reads torch checkpoints
                forbidden += ("torch",)
    if _under(name, "hfh_embed.kernels"):
        forbidden += ("hfh_embed.snapshot", "hfh_embed.lookup", "hfh_embed.codec", "hfh_embed.cli", "hfh_embed.verbs")
    if name in (
        "hfh_embed.hashing",
        "hfh_embed.packing",
        "hfh_embed.layout",
        "hfh_embed.spec",
        "hfh_embed.parts",
        "hfh_embed.reference",
    ):
        forbidden += ("hfh_embed.kernels", "hfh_embed.snapshot", "hfh_embed.lookup", "hfh_embed.codec")
    if name in ("hfh_embed.spec", "hfh_embed.parts"):
        forbidden += ("numpy", "hfh_embed.hashing", "hfh_embed.layout")
    if name == "hfh_embed.errors":
        forbidden += ("hfh_embed",)
    if _under(name, "service"):
        forbidden += ("torch", "hfh_embed.nn", "hfh_embed.codec", "hfh_embed.verbs")
    wrong = {imported for imported in imports if _under(imported, *forbidden)} if forbidden else set()
    assert not wrong


@pytest.mark.parametrize("module", PUBLIC)
def test_what_is_public_is_what_is_exported(module: str) -> None:
    loaded = importlib.import_module(module)
    assert set(loaded.__all__) == PUBLIC[module]
    assert all(hasattr(loaded, name) for name in loaded.__all__)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_module_says_what_it_is_and_exports(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    names = {
        target.id for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) for target in _targets(node)
    }
    assert "__all__" in names


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.Name]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_functions_and_classes_are_documented(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", [*MODULES, *ROOT.glob("hfh_embed/kernels/native/*")], ids=lambda path: path.name)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("module", ["hfh_embed", "hfh_embed.codec", "service.app", "service.client"])
def test_torch_is_not_loaded(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_unpickles() -> None:
    for path in MODULES:
        imports = _imports(path)
        assert not imports & {"pickle", "marshal", "shelve", "dill"}, path
