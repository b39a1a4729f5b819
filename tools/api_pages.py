"""The API reference: one page for each folder of jaxdl, made from its modules.

A hook of mkdocs (see `hooks` in mkdocs.yml). A page is a list of `::: module` lines,
which mkdocstrings fills from the docstrings; a new module needs no page of its own.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parents[1] / "jaxdl"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    assert config.nav is not None
    config.nav.append({"API": [{title: f"api/{title}.md"} for title in pages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for title, modules in pages().items():
        content = "\n\n".join([f"# {title}", *map(reference, modules)])
        files.append(File.generated(config, f"api/{title}.md", content=content))
    return files


def reference(module: str) -> str:
    """The line that mkdocstrings replaces by a module's documentation."""
    # What a package exports is documented once, where it is defined.
    is_package = (PACKAGE.parent / Path(*module.split("."))).is_dir()
    options = "\n    options: {members: false}" if is_package else ""
    return f"::: {module}{options}"


def pages() -> dict[str, list[str]]:
    """The public modules by page: `{"jaxdl.nn": ["jaxdl.nn", "jaxdl.nn.linear"]}`."""
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        module = module_name(file)
        if not any(part.startswith("_") for part in module.split(".")):
            found.setdefault(".".join(module.split(".")[:2]), []).append(module)
    return found


def module_name(file: Path) -> str:
    """Names the module in a file: `jaxdl/core/__init__.py` -> `jaxdl.core`."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")
