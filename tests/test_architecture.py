"""The house rules: the order of folders, short files, public JAX, a light import."""

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import subprocess
import sys

ROOT = Path(__file__).parents[1]
LONGEST = 450

# From the ground up; those on one line may import one another.
FLOORS = [
    ["core"],
    ["nn"],
    ["optim", "losses", "metrics"],
    ["shard", "planning"],
    ["train"],
    ["data"],
    ["models"],
    ["hub"],
    ["generate"],
    ["interpret"],
    ["finetune"],
    ["interop"],
    ["testing"],
    ["cli", "__main__"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# These serve any model, so they know none.
KNOW_NO_MODEL = {"core", "shard", "planning", "train", "interpret"}

HEAVY = [
    "PIL",
    "gguf",
    "grain",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "orbax",
    "pyarrow",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tokenizers",
    "torch",
    "transformers",
]


def files(*folders: str) -> list[Path]:
    return [
        file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))
    ]


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it: `jaxdl.core.tree`."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def attributes(file: Path) -> Iterator[str]:
    """Every attribute that a file reads, as it is written: `jax.nn.relu`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def room(module: str) -> str:
    """The room of a module of jaxdl: `jaxdl.core.tree` -> `core`; "" for any other."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jaxdl" and len(parts) > 1 else ""


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "jaxdl").parts[0].removesuffix(".py")


INSIDE = [file for file in files("jaxdl") if file != ROOT / "jaxdl" / "__init__.py"]
EVERYWHERE = files("jaxdl", "tests", "examples", "benchmarks")


def test_every_room_has_its_floor():
    assert {room_of(file) for file in INSIDE} <= FLOOR.keys()


def test_a_folder_imports_only_from_those_below_it():
    wrong = [
        f"{name(file)} imports {module}"
        for file in INSIDE
        for module in imports(file)
        if FLOOR.get(room(module), 0) > FLOOR[room_of(file)]
    ]
    assert not wrong


def test_the_parts_of_jaxdl_do_not_import_the_whole():
    wrong = [
        f"{name(file)} imports {module}"
        for file in INSIDE
        for module in imports(file)
        if module.split(".")[0] == "jaxdl" and room(module) not in FLOOR
    ]
    assert not wrong


def test_what_serves_any_model_imports_none():
    wrong = [
        name(file)
        for file in INSIDE
        if room_of(file) in KNOW_NO_MODEL and "models" in map(room, imports(file))
    ]
    assert not wrong


def test_files_are_short():
    lengths = {name(file): len(file.read_text().splitlines()) for file in EVERYWHERE}
    long = {file: length for file, length in lengths.items() if length > LONGEST}
    assert not long, "a long file is two rooms in one"


def test_only_public_jax_is_imported():
    wrong = [
        f"{name(file)} imports {module}"
        for file in EVERYWHERE
        for module in imports(file)
        if module.split(".")[0] in ("jax", "jaxlib") and "._" in module
    ]
    assert not wrong


def test_no_private_attribute_of_jax_is_read():
    wrong = [
        f"{name(file)} reads {attribute}"
        for file in EVERYWHERE
        for attribute in attributes(file)
        if re.match(r"(jax|jnp|jaxlib)\.(\w+\.)*_(?!_)", attribute)
    ]
    assert not wrong


def test_importing_jaxdl_imports_nothing_heavy():
    code = f"import sys, jaxdl; print(*(set({HEAVY}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_imports_are_found_whichever_way_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "jaxdl" / "nn" / "linear.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import jax._src.core\n"
        "from jaxdl.core import tree\n"
        "from . import conv\n"
        "from ..core.param import Param\n"
        "def f():\n"
        "    from jax import _src\n"
    )
    assert set(imports(file)) == {
        "jax._src.core",
        "jaxdl.core.tree",
        "jaxdl.nn.conv",
        "jaxdl.core.param.Param",
        "jax._src",
    }
