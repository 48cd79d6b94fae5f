"""The wheel, an installation without a compiler, and the image's build steps."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hfh_embed
from tests.service.conftest import serving

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _wheel(folder: Path, **environment: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def _files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_has_the_packages_and_nothing_else(tmp_path: Path) -> None:
    files = _files(_wheel(tmp_path))
    assert {name.split("/")[0] for name in files} == {"hfh_embed", "service"}
    sources = {
        str(path.relative_to(ROOT)) for package in ("hfh_embed", "service") for path in ROOT.glob(f"{package}/**/*.py")
    }
    assert sources <= files
    assert {"hfh_embed/py.typed", "service/py.typed"} <= files
    others = {name for name in files - sources if not name.endswith((".pyi", "py.typed"))}
    console = {str(path.relative_to(ROOT)) for path in ROOT.glob("service/console/*")}
    assert console <= others
    others -= console
    assert all(name.startswith("hfh_embed/kernels/_native") for name in others), others
    if shutil.which("c++") or shutil.which("g++"):
        assert others, "the compiled kernels are missing"


def test_without_a_compiler_it_installs_works_on_numpy_and_says_so_once(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, CMAKE_ARGS="-DCMAKE_CXX_COMPILER=CMAKE_CXX_COMPILER-NOTFOUND", CXX="/nowhere/c++")
    assert not any("_native." in name and not name.endswith(".pyi") for name in _files(wheel))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        f"import hfh_embed; assert 'site' in hfh_embed.__file__, hfh_embed.__file__\n"
        f"path = {str(ROOT / 'tests/golden/format1/line-dim-64.hfh')!r}\n"
        "for _ in range(2):\n    print(hfh_embed.open(path)['users'].lookup([1]).shape)\n"
        "from hfh_embed.kernels import backends; print(backends())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split("\n")[:3] == ["(1, 64)", "(1, 64)", "('numpy',)"], done.stderr
    assert done.stderr.count("compiled kernels are not installed") == 1


def test_the_version_the_changelog_and_the_package_agree() -> None:
    version = PROJECT["project"]["version"]
    assert hfh_embed.__version__ == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_torch_is_a_range_and_pinned_for_ci() -> None:
    assert PROJECT["project"]["optional-dependencies"]["torch"] == ["torch>=2.6"]
    assert "torch" not in " ".join(
        PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["serve"]
    )
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()
    assert "torch==2.13.0" in (ROOT / "Makefile").read_text()


def test_the_image_runs_the_script_that_is_tested() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "/src/deploy/build_image.sh /src /opt/hfh" in dockerfile
    assert "USER 10001" in dockerfile
    assert "HEALTHCHECK" in dockerfile


@pytest.mark.slow
def test_the_images_build_steps_make_a_service_without_torch(tmp_path: Path) -> None:
    source, target = tmp_path / "src", tmp_path / "hfh"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "var", ".*_cache", ".hypothesis", ".stamps", "*.so")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [source / "deploy" / "build_image.sh", source, target], check=True, timeout=600, stdout=subprocess.DEVNULL
    )
    golden = str(ROOT / "tests/golden/format1/line-dim-64.hfh")
    with serving(golden, executable=str(target / "bin" / "python")) as (url, _):
        code = f"import urllib.request; print(urllib.request.urlopen('{url}/readyz').status)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"200\n"
