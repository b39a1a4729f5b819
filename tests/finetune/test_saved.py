import jax
import numpy as np
import pytest

from jaxdl import finetune, nn
from jaxdl.core import tree
from tests.finetune.test_adapters import moved

pytest.importorskip("safetensors")


def adapted(key, rank=2):
    model = nn.Sequential([nn.Linear(4, 4), nn.Repeat(nn.Linear(4, 4), 3)])
    return finetune.dora(model, model.init(key), "**", rank, key=key)


def test_adapters_alone_are_saved_and_come_back_to_the_bit(tmp_path, key):
    model, params = adapted(key)
    trained = moved(params)
    path = tmp_path / "adapters.safetensors"
    finetune.save_adapters(path, trained)
    assert [file.name for file in tmp_path.iterdir()] == ["adapters.safetensors"]
    loaded = finetune.load_adapters(path, model, params)
    jax.tree.map(np.testing.assert_array_equal, loaded, trained)
    finetune.save_adapters(path, trained, (finetune.ADAPTERS, "0/bias"))
    changed = {**params, "0": {**params["0"], "bias": params["0"]["bias"] + 1}}
    loaded = finetune.load_adapters(path, model, changed)
    np.testing.assert_array_equal(loaded["0"]["bias"], trained["0"]["bias"])


def test_adapters_of_another_model_are_refused_by_name(tmp_path, key):
    model, params = adapted(key)
    path = tmp_path / "adapters.safetensors"
    trained = tree.flatten(finetune.split(params)[0])
    del trained["0/lora/b"]
    finetune.save_adapters(path, tree.unflatten({**trained, "0/lora/c": np.ones(1)}))
    with pytest.raises(ValueError, match="lacks .*0/lora/b.* has .*0/lora/c"):
        finetune.load_adapters(path, model, params)
    finetune.save_adapters(path, adapted(key, rank=3)[1])
    with pytest.raises(ValueError, match=r"0/lora/a: expected float32\[4, 2\]"):
        finetune.load_adapters(path, model, params)
    with pytest.raises(ValueError, match="ends in .safetensors"):
        finetune.save_adapters(tmp_path / "adapters.bin", params)
    with pytest.raises(ValueError, match="fits no path"):
        finetune.save_adapters(path, {"kernel": np.ones(2)})
