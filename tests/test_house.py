"""The rules of the house: who imports whom, how a module looks, what the commands and README say.

Each rule is a function of sources that returns its violations, one line each; the tests at the end
plant a violation of every rule and see that it is found.
"""

import ast
import configparser
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {  # folder -> the name it is installed under
    "unclip": "unclip",
    "configs": "unclip_configs",
    "train": "unclip_train",
    "sample": "unclip_sample",
}
GENERIC_NAMES = {"train", "sample", "configs", "tests", "benchmarks", "docs"}
STAGES = ("clip", "prior", "decoder", "upsampler")
MAX_FUNCTION_LINES = 60
MAX_HELP_SECONDS = 0.5
HEAVY = {"torch", "diffusers", "transformers", "accelerate"}

# What each package may import of this project; the longest name that fits a module counts.
USERS_OF_THE_PIPELINE = [
    "unclip_train.assembly",  # it puts trained stages together
    "unclip_train.weights",  # it begins from whatever the pipeline can read
    "unclip_train.leading",  # embeddings are drawn as the pipeline draws them
    "unclip_train.previews",  # they are drawn as the pipeline draws
]
TRAINING = [
    "unclip_train",
    "unclip_configs",
    "unclip.models",
    "unclip.diffusion",
    "unclip.metrics",
    "unclip.pictures",
]
MAY_IMPORT = {
    "unclip": ["unclip"],
    "unclip.models": ["unclip.models"],
    "unclip.diffusion": ["unclip.diffusion"],
    "unclip.metrics": ["unclip.metrics"],
    "unclip.pictures": [],
    "unclip.pipeline": ["unclip.pipeline", "unclip.models", "unclip.diffusion", "unclip.pictures"],
    "unclip_configs": [],
    "unclip_train": TRAINING,
    **{name: [*TRAINING, "unclip.pipeline"] for name in USERS_OF_THE_PIPELINE},
    "unclip_sample": [
        "unclip_sample",
        "unclip_configs",
        "unclip.pipeline",
        "unclip.metrics",
        "unclip.models.clip",  # a judge, or a CLIP that ranks files, stands alone
        "unclip.pictures",
    ],
    "unclip_sample.evaluation": [
        "unclip_sample",
        "unclip_train.data",  # data sources and held-out lists
        "unclip.pipeline",
        "unclip.metrics",
        "unclip.models.clip",
        "unclip.pictures",
    ],
}

OTHER_SOURCES = ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile", ".ci/run")

# Sources that may hold other than ASCII characters because they are data.
NON_ASCII_DATA: set[str] = set()


# --- reading the sources ---------------------------------------------------------------------


def python_files(*folders: str) -> dict[str, Path]:
    """Every Python file under the folders, by its path from the root."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path for path in found}


def module_name(path: str) -> str:
    """The name that a file of a room is imported by: train/data/cli.py -> unclip_train.data.cli."""
    room, *rest = path.removesuffix(".py").split("/")
    return ".".join([ROOMS[room], *rest]).removesuffix(".__init__")


def sources(*folders: str) -> dict[str, str]:
    """Text of every Python file under the folders, by its path from the root."""
    return {path: file.read_text("utf-8") for path, file in python_files(*folders).items()}


def read_modules() -> dict[str, tuple[str, bool]]:
    """Module name -> (source, whether it is a package), for all that is installed."""
    return {
        module_name(path): (file.read_text("utf-8"), file.name == "__init__.py")
        for path, file in python_files(*ROOMS).items()
    }


def is_within(module: str, package: str) -> bool:
    """Whether the module is the package or lies in it."""
    return module == package or module.startswith(package + ".")


def read_setup() -> configparser.ConfigParser:
    """setup.cfg as a parser."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


# --- imports ---------------------------------------------------------------------------------


def _imports_of(node: ast.AST, package: list[str]) -> list[str]:
    """The dotted names that one node of the tree imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return [f"unclip.{node.attr}"] if node.value.id == "unclip" else []
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = ast.unparse(node.func).split(".")[-1]
        name = node.args[0].value
        if called in {"import_module", "__import__"} and isinstance(name, str):
            return [name]
    return []


def imported_names(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever in the module; relative ones resolved.

    `from a import b` counts as a.b, since b may be a module.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        for name in _imports_of(node, package):
            yield node.lineno, name


def public_homes(source: str) -> dict[str, str]:
    """Where unclip/__init__.py finds its lazy names: UnCLIPPipeline -> unclip.pipeline.pipeline."""
    homes = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            homes |= {
                key.value: value.value
                for key, value in pairs
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
            }
    return homes


def _may_import(module: str, name: str) -> bool:
    fitting = [package for package in MAY_IMPORT if is_within(module, package)]
    allowed = MAY_IMPORT[max(fitting, key=len)] if fitting else []
    return any(is_within(name, package) for package in allowed)


def forbidden_imports(modules: dict[str, tuple[str, bool]]) -> list[str]:
    """Imports that go against the directions of MAY_IMPORT, or use a generic top-level name."""
    homes = public_homes(modules["unclip"][0]) if "unclip" in modules else {}
    found = []
    for module, (source, is_package) in modules.items():
        if module.count(".") and is_within(module, "unclip"):
            home = ".".join(module.split(".")[:2])
            if home not in MAY_IMPORT:
                found.append(f"{module}: say in MAY_IMPORT what {home} may import")
                continue
        for line, name in imported_names(source, module, is_package):
            top, _, rest = name.partition(".")
            if top in GENERIC_NAMES:
                found.append(f"{module}:{line} imports {name}, which is not an installed name")
            if top not in ROOMS.values() or rest == "__version__":
                continue
            if name == "unclip" and module.startswith(("unclip_train", "unclip_sample")):
                continue  # what is taken from it counts, see _imports_of
            name = homes.get(rest, name) if top == "unclip" else name
            if name.split(".")[0] in ROOMS.values() and not _may_import(module, name):
                found.append(f"{module}:{line} imports {name}")
    return found


def engine_and_stage_imports(modules: dict[str, tuple[str, bool]]) -> list[str]:
    """Imports between the engine and a stage, either way."""
    engine, stages = "unclip_train.engine", [f"unclip_train.{stage}" for stage in STAGES]
    found = []
    for module, (source, is_package) in modules.items():
        others = stages if is_within(module, engine) else []
        others = [engine] if any(is_within(module, stage) for stage in stages) else others
        for line, name in imported_names(source, module, is_package):
            if any(is_within(name, other) for other in others):
                found.append(f"{module}:{line} imports {name}")
    return found


def stage_names_compared(source: str) -> list[str]:
    """Comparisons with a stage's name, which have no place in the engine."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(c, ast.Constant) and c.value in STAGES for c in ast.walk(node))
    ]


# --- modules and functions -------------------------------------------------------------------


def long_functions(source: str) -> list[str]:
    """Functions of more than MAX_FUNCTION_LINES lines, docstring included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                found.append(f"{node.name} at line {node.lineno} has {num_lines} lines")
    return found


def lacks_docstring(source: str) -> bool:
    """Whether a module does not say what it is."""
    return not (ast.get_docstring(ast.parse(source)) or "").strip()


def network_classes(source: str) -> list[str]:
    """Classes that derive from a torch module."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split(".")[-1] in {"Module", "ModelMixin"} for base in node.bases)
    ]


def vague_file_names(paths: list[str]) -> list[str]:
    """Files and folders whose names say nothing."""
    vague = {"utils", "util", "misc", "helpers", "helper"}
    return [path for path in paths if vague & set(path.removesuffix(".py").split("/"))]


def non_ascii_lines(text: str) -> list[str]:
    """Lines with characters beyond ASCII, with the first of them."""
    return [
        f"line {number}: U+{ord(next(c for c in line if ord(c) > 127)):04X}"
        for number, line in enumerate(text.splitlines(), start=1)
        if not line.isascii()
    ]


# --- packages --------------------------------------------------------------------------------


def packages_in_tree(root: Path) -> tuple[set[str], list[str]]:
    """Names of all packages of the rooms, and the folders of code that are no package."""
    packages, strays = set(), []
    for room in ROOMS:
        for folder in sorted({path.parent for path in (root / room).rglob("*.py")}):
            relative = folder.relative_to(root).as_posix()
            if (folder / "__init__.py").exists():
                packages.add(module_name(f"{relative}/__init__.py"))
            else:
                strays.append(f"{relative} holds code but no __init__.py")
    return packages, strays


def generic_packages(packages: list[str]) -> set[str]:
    """Top-level names, other than ours, that these packages would put into site-packages."""
    return {package.split(".")[0] for package in packages} - set(ROOMS.values())


# --- README ----------------------------------------------------------------------------------


def tree_paths(readme: str) -> list[str]:
    """Paths of the annotated tree: the fenced block whose first line is unclip/.

    A line is an entry and what it is for; deeper entries are indented, by spaces or by lines drawn.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.DOTALL | re.MULTILINE)
    block = next((b for b in blocks if re.match(r"unclip/\s", b)), "")
    paths, parents = [], []
    for line in block.splitlines():
        entry = re.match(r"^([^\w.]*)([\w./-]+)(?:\s|$)", line)
        if entry is None:
            continue
        indent, name = len(entry[1]), entry[2]
        is_remark = indent >= 16 or (indent and not name.endswith("/") and "." not in name)
        if is_remark:
            continue  # carried over from the line above
        while parents and parents[-1][0] >= indent:
            parents.pop()
        paths.append("".join(parent for _, parent in parents) + name)
        if name.endswith("/"):
            parents.append((indent, name))
    return paths


def readme_faults(readme: str, root: Path) -> list[str]:
    """Top-level rooms that the README's tree leaves out, and entries of it that are not there."""
    paths = tree_paths(readme)
    rooms = [*ROOMS, "tests", "docs", "benchmarks"]
    missing = [room for room in rooms if (root / room).is_dir() and f"{room}/" not in paths]
    absent = [path for path in paths if not (root / path).exists()]
    return [f"the tree does not name {room}/" for room in missing] + [
        f"the tree names {path}, which does not exist" for path in absent
    ]


# --- commands --------------------------------------------------------------------------------


def commands() -> list[str]:
    """Names of the installed commands, from setup.cfg."""
    lines = read_setup()["options.entry_points"]["console_scripts"].split("\n")
    return [line.split("=")[0].strip() for line in lines if line.strip()]


def heavy_imports(importtime: str) -> set[str]:
    """Heavy libraries in what `python -X importtime` reported."""
    modules = re.findall(r"^import time:.*\|\s*([\w.]+)\s*$", importtime, flags=re.MULTILINE)
    return {module.split(".")[0] for module in modules} & HEAVY


def run_help(script: Path, *python_options: str) -> tuple[subprocess.CompletedProcess, float]:
    """Run an installed command with --help; also its seconds of processor time.

    On a machine that does nothing else these are the seconds on the clock; on a busy one the clock
    would measure the others.
    """
    environment = {**os.environ, "COLUMNS": "100"}
    start = processor_seconds()
    done = subprocess.run(
        [sys.executable, *python_options, str(script), "--help"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    return done, processor_seconds() - start


def processor_seconds() -> float:
    """Processor time of all finished child processes so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --- the house itself ------------------------------------------------------------------------


def listing(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def test_imports_keep_their_directions():
    found = forbidden_imports(read_modules())
    assert not found, listing(found)


def test_engine_and_stages_do_not_import_each_other():
    modules = read_modules()
    found = engine_and_stage_imports(modules)
    assert not found, listing(found)
    absent = [name for name in ("engine", *STAGES) if f"unclip_train.{name}" not in modules]
    assert not absent, f"train/ lacks {absent}"


def test_engine_does_not_ask_which_stage_it_trains():
    found = stage_names_compared((ROOT / "train/engine.py").read_text("utf-8"))
    assert not found, listing(found)


def test_functions_are_short():
    files = sources(*ROOMS, "tests", "benchmarks")
    found = [f"{path}: {name}" for path, text in files.items() for name in long_functions(text)]
    assert not found, listing(found)


def test_modules_say_what_they_are():
    files = sources(*ROOMS, "tests", "benchmarks")
    found = [path for path, text in files.items() if lacks_docstring(text)]
    assert not found, listing(found)


def test_diffusion_holds_no_networks_and_configs_no_code():
    files = sources("unclip/diffusion")
    found = [f"{path}: {name}" for path, text in files.items() for name in network_classes(text)]
    assert not found, listing(found)
    assert set(python_files("configs")) == {"configs/__init__.py"}


def test_file_names_say_something():
    found = vague_file_names(list(python_files(*ROOMS, "tests", "benchmarks")))
    assert not found, listing(found)


def test_sources_are_ascii():
    others = [ROOT / name for name in OTHER_SOURCES] + sorted((ROOT / "configs").rglob("*.yaml"))
    files = sources(*ROOMS, "tests", "benchmarks")
    files |= {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in others}
    found = [
        f"{path} {line}"
        for path, text in files.items()
        if path not in NON_ASCII_DATA
        for line in non_ascii_lines(text)
    ]
    assert not found, listing(found)


def test_packages_listed_are_the_packages_there():
    options = read_setup()["options"]
    in_tree, strays = packages_in_tree(ROOT)
    assert not strays, listing(strays)
    assert set(options["packages"].split()) == in_tree
    places = [line.split("=") for line in options["package_dir"].strip().splitlines()]
    renamed = {name.strip(): folder.strip() for name, folder in places}
    assert renamed == {name: folder for folder, name in ROOMS.items() if name != folder}


def test_no_generic_name_reaches_site_packages():
    assert generic_packages(read_setup()["options"]["packages"].split()) == set()


def test_readme_tree_is_true():
    found = readme_faults((ROOT / "README.md").read_text("utf-8"), ROOT)
    assert not found, listing(found)


@pytest.mark.parametrize("command", commands())
def test_help_is_quick_and_light(command):
    script = Path(sys.executable).parent / command
    assert script.exists(), f"{command} is not installed; run: pip install --editable ."
    done, _ = run_help(script, "-X", "importtime")
    said = re.sub("^import time:.*\n", "", done.stderr, flags=re.MULTILINE)
    assert done.returncode == 0, said
    assert command in done.stdout and "--help" in done.stdout
    assert heavy_imports(done.stderr) == set()
    seconds = min(run_help(script)[1] for _ in range(3))
    assert seconds < MAX_HELP_SECONDS, f"{command} --help took {seconds:.2f} s"


# --- each rule finds a planted violation -----------------------------------------------------

PUBLIC = '_HOME = {"Prior": "unclip.models.prior", "UnCLIPPipeline": "unclip.pipeline.pipeline"}'


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unclip.models.prior", "from unclip.diffusion import schedule"),
        ("unclip.models.prior", "from unclip.diffusion.schedule import make_schedule"),
        ("unclip.models.prior", "from ..diffusion import schedule"),
        ("unclip.models.prior", "def f():\n    import unclip.diffusion.gaussian"),
        ("unclip.models.prior", "import importlib\nimportlib.import_module('unclip.diffusion')"),
        ("unclip.diffusion.losses", "from unclip.models import prior"),
        ("unclip.diffusion.losses", "from unclip import Prior"),
        ("unclip.diffusion.losses", "from .. import models"),
        ("unclip.diffusion.losses", "import unclip"),
        ("unclip.metrics.cmmd", "from unclip.diffusion.gaussian import q_sample"),
        ("unclip.metrics.cmmd", "from unclip.models.clip import CLIP"),
        ("unclip.pipeline.pipeline", "import unclip_train.config"),
        ("unclip.pipeline.pipeline", "from unclip_sample import cli"),
        ("unclip.pipeline.pipeline", "import train"),
        ("unclip.pipeline.pipeline", "from sample.cli import main"),
        ("unclip.pipeline.pipeline", "from unclip.metrics import cmmd"),
        ("unclip", "from unclip_train import engine"),
        ("unclip.attic.old", "import torch"),
        ("unclip_configs", "import unclip"),
        ("unclip_train.cli", "from unclip_sample.cli import main"),
        ("unclip_train.engine", "from unclip.pipeline.pipeline import UnCLIPPipeline"),
        ("unclip_train.engine", "from unclip import UnCLIPPipeline"),
        ("unclip_train.engine", "import unclip\npipe = unclip.UnCLIPPipeline"),
        ("unclip_train.engine", "from configs import emoji"),
        ("unclip_sample.cli", "from unclip_train.config import load"),
        ("unclip_sample.cli", "from unclip.diffusion.sampling import denoise"),
    ],
)
def test_a_planted_import_is_found(module, source):
    assert len(forbidden_imports({"unclip": (PUBLIC, True), module: (source, False)})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "unclip.models.prior",
            "import torch\nfrom .clip import CLIP\nfrom unclip.models import x",
        ),
        ("unclip.models.prior", "from unclip import __version__"),
        (
            "unclip.pipeline.pipeline",
            "from unclip.models.prior import Prior\nimport unclip.diffusion",
        ),
        ("unclip_train.prior", "from unclip import Prior, __version__"),
        ("unclip_train.prior", "import unclip\nx = unclip.Prior"),
        ("unclip_train.assembly", "from unclip import UnCLIPPipeline"),
        ("unclip_train.data.cli", "from ..data import drawings"),
        ("unclip_sample.cli", "def f():\n    from unclip import UnCLIPPipeline"),
    ],
)
def test_a_lawful_import_is_not_found(module, source):
    assert forbidden_imports({"unclip": (PUBLIC, True), module: (source, False)}) == []


@pytest.mark.parametrize(
    ("module", "source", "num_found"),
    [
        ("unclip_train.engine", "from unclip_train.prior import PriorStage", 1),
        ("unclip_train.engine", "from . import decoder", 1),
        ("unclip_train.clip", "from unclip_train import engine", 1),
        ("unclip_train.upsampler", "from .engine import train", 1),
        ("unclip_train.engine", "from .checkpoint import save", 0),
        ("unclip_train.cli", "from . import engine, prior", 0),
    ],
)
def test_engine_and_stage_imports_are_found(module, source, num_found):
    assert len(engine_and_stage_imports({module: (source, False)})) == num_found


def test_a_question_for_the_stage_is_found():
    assert stage_names_compared("if stage == 'prior':\n    pass")
    assert stage_names_compared("x = 1 if stage in ('clip', 'decoder') else 2")
    assert not stage_names_compared("'''prior'''\nif step == 3 or name == 'step':\n    pass")


def test_a_long_function_is_found():
    def function(num_lines: int) -> str:
        return "class A:\n    async def f(self):\n" + "        x = 1\n" * (num_lines - 1)

    assert long_functions(function(MAX_FUNCTION_LINES)) == []
    assert long_functions(function(MAX_FUNCTION_LINES + 1)) == ["f at line 2 has 61 lines"]


def test_other_planted_sources_are_found():
    assert lacks_docstring("import torch") and lacks_docstring("''' '''")
    assert not lacks_docstring('"""What it is."""')
    assert network_classes("class Net(nn.Module):\n    pass") == ["Net"]
    assert network_classes("class Schedule:\n    pass") == []
    assert vague_file_names(["train/utils.py", "unclip/misc/a.py", "train/data/held_out.py"]) == [
        "train/utils.py",
        "unclip/misc/a.py",
    ]
    assert non_ascii_lines("a\nb \N{MULTIPLICATION SIGN} c\n") == ["line 2: U+00D7"]
    assert generic_packages(["unclip.models", "train", "configs.tiny"]) == {"train", "configs"}


def test_a_forgotten_package_is_found(tmp_path):
    for path in ("unclip/__init__.py", "unclip/models/__init__.py", "train/data/cli.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    packages, strays = packages_in_tree(tmp_path)
    assert packages == {"unclip", "unclip.models"}
    assert strays == ["train/data holds code but no __init__.py"]


def test_a_false_tree_is_found(tmp_path):
    for folder in ("unclip/models", "train", "sample"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "unclip/models/clip.py").touch()
    tree = """# unclip
```
$ make demo
```
```text
unclip/              the library
  models/            networks
    clip.py          CLIP
                     of our own
    gone.py          not there
train/               training
```
"""
    drawn = tree.replace("  models/", "|-- models/").replace("    gone.py", "|   `-- gone.py")
    for readme in (tree, drawn.replace("    clip.py", "|   |-- clip.py")):
        assert tree_paths(readme)[:3] == ["unclip/", "unclip/models/", "unclip/models/clip.py"]
        assert readme_faults(readme, tmp_path) == [
            "the tree does not name sample/",
            "the tree names unclip/models/gone.py, which does not exist",
        ]
    assert len(readme_faults("# unclip", tmp_path)) == 3


def test_a_heavy_command_is_found(tmp_path):
    script = tmp_path / "heavy"
    (tmp_path / "torch.py").touch()
    script.write_text("import torch")
    done, seconds = run_help(script, "-X", "importtime")
    assert done.returncode == 0 and seconds > 0
    assert heavy_imports(done.stderr) == {"torch"}
    script.write_text("import json")
    assert heavy_imports(run_help(script, "-X", "importtime")[0].stderr) == set()


def test_the_tests_themselves_reach_no_network():
    with pytest.raises(RuntimeError, match="do not use the network"):
        socket.create_connection(("example.com", 80), timeout=1)
    with pytest.raises(RuntimeError, match="192.0.2.1"):
        socket.socket().connect(("192.0.2.1", 80))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
