import os
import subprocess
import sys

import jax
import pytest

from jaxdl.planning.chips import CHIPS
from jaxdl.planning.targets import target, target_of


def test_cpu_devices_are_jax_s_own():
    assert target("cpu").devices == tuple(jax.devices("cpu")[:1])
    assert target("cpu:8").devices == tuple(jax.devices("cpu")[:8])
    assert target_of(tuple(jax.devices())).platform == "cpu"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", "expected cpu, cpu:8, a TPU as v5e:4x8"),
        ("v5e-8", "expected cpu"),
        ("v9:2x2", "expected cpu"),
        ("h100:2x2x2", "expected cpu"),
        ("h100:8*2", "expected cpu"),
        ("cpu:0", "CPU devices at most"),
        ("cpu:999", r'jax.config.update\("jax_num_cpu_devices", 999\)'),
        ("a100:8", "a GPU that is described, h100"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        target(name)


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "jaxdl\[plan\]"'):
        target("v5e:16x8")
    with pytest.raises(ImportError, match="jax-cuda12-plugin"):
        target("h100:4")


class TestOfTPU:
    @pytest.fixture(autouse=True)
    def compiler(self):
        pytest.importorskip("libtpu")

    @pytest.mark.parametrize(
        ("name", "number"),
        [
            ("v5e:1x1", 1), ("v5e:4x8", 32), ("v5e:2x4*2", 16), ("v4:2x2x1", 4),
            ("v5p:2x2x2", 8), ("v6e:1x1", 1), ("tpu7x:2x2x1", 8), ("v3:2x2", 8),
        ],
    )  # fmt: skip
    def test_a_topology_has_its_devices(self, name, number):
        found = target(name)
        assert len(found.devices) == number
        assert found.chip == CHIPS[name.split(":")[0]]
        # What a device calls itself leads to the same chip.
        assert target_of(found.devices).chip == found.chip
        slices = {getattr(d, "slice_index", 0) for d in found.devices}
        assert len(slices) == (2 if "*2" in name else 1)

    @pytest.mark.parametrize("name", ["v5e:2x2x2", "v5p:4", "v5e:3x5"])
    def test_sides_that_no_pod_has_are_refused(self, name):
        with pytest.raises(ValueError, match="target: "):
            target(name)

    @pytest.mark.slow
    def test_the_environment_is_left_as_it_was(self):
        code = (
            "import os; before = dict(os.environ)\n"
            "from jaxdl.planning.targets import target\n"
            "target('v5e:2x2')\n"
            "new = {k for k in os.environ if k not in before}\n"
            "assert not {k for k in new if 'LOAD' in k or 'HOSTNAMES' in k}, new\n"
            "import jax; assert jax.default_backend() == 'cpu'\n"
        )
        environment = {k: v for k, v in os.environ.items() if "TPU" not in k}
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, env=environment
        )
        assert run.returncode == 0, run.stderr.decode()
