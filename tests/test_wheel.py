"""The wheel, as a user installs it: one top-level name, all its data, next to any other package."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.palette import CLASSES, photo
from tests.support.tiny import write_photos

ROOT = Path(__file__).parents[1]
SOURCES = ("taillift", "models", "training", "service")
DATA = {
    "taillift/py.typed",
    "taillift/models/default/model.safetensors",
    "taillift/models/default/open_clip_config.json",
    "taillift/training/data/samples/wardrobe-lt.tar",
    "taillift/training/recipe/lift.yaml",
    "taillift/training/report/templates/bundle.html",
    "taillift/service/page/files/index.html",
    "taillift/service/page/files/page.js",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip wheel .` builds from the sources alone."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(target), str(source)], check=True)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment that has the wheel, and this one's packages to depend on."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    # The path alone: an editable taillift in these packages is not followed.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    python = str(folder / "bin" / "python")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", str(wheel)], check=True)
    return folder / "bin"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory with packages of the names that taillift's own folders have."""
    for name in ("models", "training", "service"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('this is the app')\n")
    return tmp_path


def run(app: Path, *command: str | Path) -> str:
    """Run a command in the app's directory, which Python searches first; return what it prints."""
    variables = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        list(map(str, command)), cwd=app, env=variables, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_wheel_has_one_top_level_name_and_all_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"taillift"}
    assert set(names) >= DATA
    recipes = [name for name in names if name.startswith("taillift/training/recipe/")]
    shipped = [path.name for path in (ROOT / "training" / "recipe").glob("*.yaml")]
    assert sorted(Path(name).name for name in recipes if name.endswith(".yaml")) == sorted(shipped)


def test_the_command_runs_in_an_app_that_has_packages_of_the_same_names(
    environment: Path, app: Path, bundle: Path
) -> None:
    (app / "red.png").write_bytes(photo(CLASSES["red"][0]))
    answer = run(app, environment / "taillift", "classify", bundle, "red.png")
    assert "red" in answer


def test_the_module_runs_there_and_comes_from_the_wheel(environment: Path, app: Path) -> None:
    python = environment / "python"
    assert "lift-plus" in run(app, python, "-m", "taillift", "recipes")
    place = run(app, python, "-c", "import taillift.models, sys; print(taillift.models.__file__)")
    assert Path(place.strip()).is_relative_to(environment.parent)


def test_torchrun_trains_the_embedded_backbone_there(environment: Path, app: Path) -> None:
    write_photos(app / "photos", {"red": 6, "green": 4, "blue": 3})
    launcher = (environment / "python", "-m", "torch.distributed.run", "--standalone")
    arguments = ("photos", "--recipe", "head", "--set", "epochs=1", "--out", "head.safetensors")
    run(app, *launcher, "--nproc-per-node", "2", "-m", "taillift", "train", *arguments)
    assert (app / "head.safetensors").stat().st_size > 0
