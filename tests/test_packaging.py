"""The package: what is required and pinned, what the wheel carries, what the Makefile promises."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "unclip": "unclip",
    "unclip_configs": "configs",
    "unclip_train": "train",
    "unclip_sample": "sample",
}
WEIGHTS = ROOT / "unclip/weights"
MAX_WEIGHTS_BYTES = 60_000_000
MAX_SHARD_BYTES = 15_000_000
PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}
LIBRARIES_OF_IMPORTS = {"PIL": "pillow", "yaml": "pyyaml"}
ARTISTS = ("Noto Emoji", "Twemoji", "Fluent Emoji", "Material Design Icons", "emojibase", "Iconify")
make_is_here = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def core_requirements() -> list[Requirement]:
    """What setup.cfg installs without extras."""
    return [Requirement(r) for r in read_setup()["options"]["install_requires"].split("\n") if r]


def requirements() -> list[Requirement]:
    """Everything setup.cfg may install, extras included."""
    extras = read_setup()["options.extras_require"]
    lines = {line for name in extras for line in extras[name].split("\n") if line}
    return core_requirements() + [Requirement(line) for line in sorted(lines)]


def pins() -> dict[str, Version]:
    """The lines of constraints.txt, in order."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def is_source(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts


def room_files() -> dict[str, Path]:
    """Every file of the rooms by the path that it must have once installed."""
    return {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}": path
        for installed, folder in ROOMS.items()
        for path in sorted((ROOT / folder).rglob("*"))
        if is_source(path)
    }


# --- requirements ----------------------------------------------------------------------------


def test_every_requirement_is_pinned_within_its_range():
    pinned = pins()
    assert next(iter(pinned)) == "torch"
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert pinned[name] in requirement.specifier, f"{requirement} excludes {pinned[name]}"


def _top_level_imports(path: Path) -> set[str]:
    """Names imported by a module, whether at its top or in its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_every_library_imported_is_required():
    required = {canonicalize_name(requirement.name) for requirement in requirements()}
    own = set(ROOMS)
    for installed, path in room_files().items():
        if path.suffix == ".py":
            foreign = _top_level_imports(path) - sys.stdlib_module_names - own
            names = {canonicalize_name(LIBRARIES_OF_IMPORTS.get(name, name)) for name in foreign}
            assert names <= required, f"{installed} imports {sorted(names - required)}"


def test_the_installed_version_is_that_of_setup_cfg():
    import unclip

    version = read_setup()["metadata"]["version"]
    assert unclip.__version__ == importlib.metadata.version("unclip") == version
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(version)})\]", changelog, flags=re.MULTILINE)


# --- what is shipped -------------------------------------------------------------------------


def test_licences_are_whole():
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    notice = (ROOT / "NOTICE").read_text("utf-8")
    for artist in ARTISTS:
        assert artist in notice, f"NOTICE does not credit {artist}"
    metadata = read_setup()["metadata"]
    assert metadata["license_expression"] == "Apache-2.0"
    assert metadata["license_files"].split() == ["LICENSE", "NOTICE"]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_the_wheel_carries_every_file_of_the_rooms(tmp_path):
    tree, built = tmp_path / "tree", tmp_path / "built"
    tree.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy2(ROOT / name, tree)
    for folder in ROOMS.values():
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored, copy_function=_link_or_copy)
    code = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-P", "-c", code, "-q", "build_py", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    carried = {path.relative_to(built).as_posix() for path in built.rglob("*") if is_source(path)}
    assert carried == set(room_files())


def test_the_embedded_model_keeps_its_budget():
    files = [path for path in WEIGHTS.rglob("*") if is_source(path)]
    assert any(path.suffix == ".safetensors" for path in files), "unclip/weights holds no weights"
    assert sum(path.stat().st_size for path in files) <= MAX_WEIGHTS_BYTES
    for path in files:
        assert path.stat().st_size <= MAX_SHARD_BYTES, f"{path.name} is over 15 MB"
        assert path.suffix not in PICKLE_SUFFIXES, f"{path.name} may hold a pickle"


def test_no_shipped_text_names_a_place_on_someones_machine():
    somewhere = re.compile(r"(?<![\w./-])/(?:home|root|Users|work|mnt)/\w")
    for installed, path in room_files().items():
        if path.suffix in {".py", ".json", ".yaml", ".md", ".txt"}:
            assert not somewhere.search(path.read_text("utf-8")), f"{installed} names such a place"


def test_commands_lead_to_functions():
    for line in read_setup()["options.entry_points"]["console_scripts"].split("\n"):
        if not line:
            continue
        module, function = line.split("=")[1].strip().split(":")
        room, *rest = module.split(".")
        source = (ROOT / ROOMS[room]).joinpath(*rest).with_suffix(".py").read_text("utf-8")
        functions = [node.name for node in ast.parse(source).body if hasattr(node, "name")]
        assert function in functions, f"{module} has no {function}"


# --- the Makefile, with stand-ins for Python and its environment -----------------------------

STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$*" in
  *version_info*) exit {old} ;;
  --version) echo "Python 3.{minor}.0" ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/unclip-sample" ;;
  *--output*) for last; do :; done; printf '%s' "$2" > "$last" ;;
esac
"""


def write_stand_in(folder: Path, minor: int) -> Path:
    """A program that acts as Python 3.minor and as the tools of its environment; logs its calls."""
    path = folder / "python-for-test"
    text = STAND_IN.format(log=folder / "calls.log", old=int(minor < 11), minor=minor)
    path.write_text(text, "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run_make(folder: Path, python: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL"}}
    environment |= {"MAKEFLAGS": "", "LC_ALL": "C"}
    command = ["make", f"PYTHON={python}", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The files that make reads, in an empty folder."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    return tmp_path


def calls(folder: Path) -> list[str]:
    """What the stand-ins were called with since the last look."""
    log = folder / "calls.log"
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


@make_is_here
def test_make_demo_draws_and_never_overwrites(checkout):
    python = write_stand_in(checkout, minor=12)
    prompt = """it's "5 $HOME" `worth`; noto style"""
    first = run_make(checkout, python, "demo", f"PROMPT={prompt}")
    assert first.returncode == 0, first.stderr
    assert (checkout / "demo.png").read_text() == prompt
    assert first.stdout.splitlines()[-1] == f"the picture is in {checkout}/demo.png"
    installs = [line for line in calls(checkout) if "pip install" in line]
    assert installs[0].endswith(f"torch=={pins()['torch']}")
    assert installs[1].endswith("--editable .")
    for number in (2, 3):
        again = run_make(checkout, python, "demo")
        assert again.stdout.splitlines()[-1] == f"the picture is in {checkout}/demo-{number}.png"
        assert not [line for line in calls(checkout) if "pip" in line]
    assert (checkout / "demo.png").read_text() == prompt
    assert (checkout / "demo-2.png").read_text() == "a red apple, noto style"


@make_is_here
def test_make_installs_again_when_requirements_change(checkout):
    python = write_stand_in(checkout, minor=11)
    assert run_make(checkout, python, "test").returncode == 0
    assert sum("pip install" in line for line in calls(checkout)) == 2
    assert run_make(checkout, python, "demo").returncode == 0  # the tests' environment serves
    assert not [line for line in calls(checkout) if "pip" in line]
    stamps = list((checkout / ".venv").glob(".*"))
    assert len(stamps) == 4
    for changed, num_installs in (("setup.cfg", 1), ("constraints.txt", 2)):
        for stamp in stamps:
            os.utime(stamp, (1e9, 1e9))
        for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
            os.utime(checkout / name, (1e9 - 1, 1e9 - 1))
        (checkout / changed).touch()
        assert run_make(checkout, python, "test").returncode == 0
        assert sum("pip install" in line for line in calls(checkout)) == num_installs, changed


@make_is_here
def test_make_refuses_an_old_python_in_one_line(checkout):
    python = write_stand_in(checkout, minor=10)
    done = run_make(checkout, python, "demo")
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if "3.11" in line)
    assert "Python 3.10.0" in line and "make demo PYTHON=" in line
    assert not (checkout / ".venv").exists()
    done = run_make(checkout, checkout / "nothing", "test")
    assert done.returncode != 0 and "3.11" in done.stderr and "not found" in done.stderr


@make_is_here
def test_make_passes_on_where_torch_comes_from(checkout):
    python = write_stand_in(checkout, minor=13)
    index = "TORCH_INDEX=https://download.example/cpu"
    assert run_make(checkout, python, "demo", index).returncode == 0
    torch, package = [line for line in calls(checkout) if "pip install" in line]
    assert "--index-url https://download.example/cpu" in torch
    assert "--index-url" not in package
