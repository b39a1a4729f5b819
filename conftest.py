"""What every test shares: tests/, the docstrings of jaxdl/, README.md and docs/.

The environment is set before JAX is first imported, and only where it is not set
already: `JAX_PLATFORMS=cuda pytest tests/nn` runs on a GPU. Processes that a test
starts inherit it.
"""

import os
from pathlib import Path
import sys

CACHE = Path(__file__).parent / ".cache" / "jax"

# Sharding is tested on 8 devices of one CPU. They may have two cores between them, so a
# collective waits far longer for its last device than XLA's 40 seconds.
XLA_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 120,
    "--xla_cpu_collective_call_terminate_timeout_seconds": 300,
    # The emitters of before compile small programs in half the time. Newer XLA has only
    # the new ones, and takes no notice.
    "--xla_backend_extra_options": "xla_cpu_disable_new_fusion_emitters",
    # One thread for one program: pytest already keeps every core busy.
    "--xla_cpu_parallel_codegen_split_count": 1,
}

# Compilation dominates these tests: optimise little, and keep what was compiled.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "MPLBACKEND": "agg",
}


def set_environment() -> None:
    """Sets what is not set; raises RuntimeError when JAX has already read its own."""
    if "jax" in sys.modules and "PYTEST_XDIST_WORKER" not in os.environ:
        raise RuntimeError("conftest.py: expected to be imported before jax")
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [
        f"{name}={value}" for name, value in XLA_FLAGS.items() if name not in flags
    ]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


set_environment()

import gc  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from sybil import Sybil  # noqa: E402
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser  # noqa: E402

# A module whose docstrings are tested alone must be the one that the package has.
import jaxdl  # noqa: E402, F401

# What tests import and what skips them without PyTorch: collected as files of doctests
# they would be left half imported, and the tests could not import them again.
collect_ignore = ["tests/nn/against_torch.py", "tests/hub/families/tiny.py"]

# Tracing makes many small objects and few cycles: look for them less often.
gc.freeze()
gc.set_threshold(100_000, 20, 50)

# The first example compiles, so there is no deadline; CI always draws the same ones.
hypothesis.settings.register_profile(
    "jaxdl", deadline=None, max_examples=25, derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("jaxdl")

# Python blocks of a Markdown file run in order in one namespace. A block that cannot
# run here is preceded by the invisible comment `<!-- skip: next "the reason" -->`.
pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    fixtures=["scratch_directory"],
).pytest()


@pytest.fixture(scope="session")
def key() -> jax.Array:
    """The random key that tests start from."""
    return jax.random.key(0)


@pytest.fixture
def optimized():
    """Compiles as for a user: for tests of memory, HLO, speed or exact numerics.

    Functions compiled before are forgotten, so that nothing unoptimised is measured.
    """
    usual = {
        "jax_disable_most_optimizations": False,
        # Without it an executable from the cache may carry another source's names.
        "jax_compilation_cache_include_metadata_in_key": True,
    }
    before = {name: jax.config.values[name] for name in usual}
    update_config(usual)
    yield
    update_config(before)


def update_config(values: dict) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    jax.clear_caches()


@pytest.fixture(scope="module")
def scratch_directory(tmp_path_factory):
    """Runs the code blocks of one Markdown file in an empty directory of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("scratch"))
        yield
