"""Checkpoints: what was saved comes back, on any mesh; what is damaged does not."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from jaxdl.train import CheckpointError, Checkpoints, TrainState

OPTIMIZER = optax.adam(0.1)


def state_of(key, width=4, **options):
    params = {
        "up": {"kernel": jax.random.normal(key, (8, width)), "none": None, "empty": {}},
        "half": jnp.arange(3, dtype=jnp.bfloat16),
    }
    return TrainState.create(params, OPTIMIZER, key=key, **options)


@pytest.fixture(scope="module")
def state(key):
    return state_of(key, ema=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """Steps 1 and 2 of a run; tests that change the directory copy it."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("saved") / "run", every=1)
    checkpoints.save(1, state.replace(step=jnp.int32(1)), data={"position": 7})
    checkpoints.save(2, state.replace(step=jnp.int32(2)), data=b"\x00\xff")
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved.directory, tmp_path / "copy")
    checkpoints = Checkpoints(tmp_path / "copy", every=1)
    yield checkpoints
    checkpoints.close()


def assert_same(one, other):
    chex.assert_trees_all_equal_structs(one, other)
    chex.assert_trees_all_equal_shapes_and_dtypes(one, other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a == b).all()


def test_everything_comes_back_into_a_concrete_or_abstract_target(saved, state):
    expected = state.replace(step=jnp.int32(2))
    assert_same(saved.restore(state), expected)
    abstract = jax.eval_shape(lambda: state)
    assert_same(saved.restore(abstract), expected)
    assert saved.restore(state, step=1).step == 1
    assert jax.random.uniform(saved.restore(abstract).key) == jax.random.uniform(
        state.key
    )


def test_the_data_iterators_state_comes_back(saved):
    assert saved.read_data(1) == {"position": 7}
    assert saved.read_data() == b"\x00\xff"


def test_any_container_and_any_key_round_trips(tmp_path, key):
    checkpoints = Checkpoints(tmp_path, every=1)
    tree = {
        "list": [jnp.ones(2), (jnp.zeros(1, jnp.int8), None)],
        "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "numpy": np.arange(3),
        "a.b/c": jnp.bool_(True),
    }
    checkpoints.save(1, tree)
    with pytest.raises(TypeError, match="float: expected an array, got float"):
        checkpoints.save(2, {"float": 1.0})
    restored = checkpoints.restore(tree)
    assert_same(restored, tree)
    with pytest.raises(ValueError, match="keys: expected key<urbg>.*has key<rbg>"):
        other = jax.random.split(jax.random.key(1, impl="unsafe_rbg"), 3)
        checkpoints.restore({**tree, "keys": other})
    checkpoints.close()


def test_an_array_that_follows_the_batch_still_does(saved, state):
    restored = saved.restore(state)
    assert [x.committed for x in jax.tree.leaves(restored)] == [
        x.committed for x in jax.tree.leaves(state)
    ]


def test_the_target_decides_the_mesh_and_the_dtype(tmp_path, key):
    two = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    four = jax.make_mesh((2, 2), ("x", "y"), devices=jax.devices()[4:])
    kernel = jax.random.normal(key, (8, 4))
    on_two = jax.device_put(kernel, NamedSharding(two, PartitionSpec("x")))
    on_four = NamedSharding(four, PartitionSpec("y", "x"))
    checkpoints = Checkpoints(tmp_path, every=1)
    checkpoints.save(1, {"kernel": on_two, "key": key})
    target = {
        "kernel": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16, sharding=on_four),
        "key": jax.device_put(key, NamedSharding(four, PartitionSpec())),
    }
    restored = checkpoints.restore(target)
    checkpoints.close()
    assert restored["kernel"].sharding == on_four
    assert restored["key"].sharding == target["key"].sharding
    np.testing.assert_array_equal(restored["kernel"], kernel.astype(jnp.bfloat16))
    assert restored["key"] == key


def test_a_part_is_restored_and_the_rest_is_the_targets(saved, state):
    target = jax.tree.map(lambda leaf: leaf, state).replace(
        params=jax.tree.map(jnp.zeros_like, state.params), step=jnp.int32(40), ema=None
    )
    restored = saved.restore(target, only="params/up/**")
    assert restored.step == 40 and restored.ema is None
    np.testing.assert_array_equal(
        restored.params["up"]["kernel"], state.params["up"]["kernel"]
    )
    assert not restored.params["half"].any()
    with pytest.raises(ValueError, match="pattern 'parms/\\*\\*' fits no path"):
        saved.restore(target, only="parms/**")


def test_every_fault_of_a_target_is_in_one_message(saved, state):
    params = {
        "up": {"kernel": jnp.zeros((8, 5))},
        "half": jnp.arange(3),
        "extra": jnp.zeros(2),
    }
    with pytest.raises(ValueError) as caught:
        saved.restore(state.replace(params=params, ema=None))
    message = str(caught.value)
    for fault in (
        "missing from the checkpoint: params/extra",
        "not in the target: ema/up/kernel",
        "params/up/kernel: expected shape (8, 5), the checkpoint has (8, 4)",
        "params/half: expected int32, the checkpoint has bfloat16",
    ):
        assert fault in message


def files_of(checkpoints, step):
    paths = sorted((checkpoints.directory / str(step)).rglob("*"))
    return [path for path in paths if path.is_file()]


def truncate(checkpoints):
    data = [p for p in files_of(checkpoints, 2) if p.parent.name == "d"]
    largest = max(data, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


def flip_a_bit(checkpoints):
    data = [p for p in files_of(checkpoints, 2) if p.parent.name == "d"]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def lose_a_file(checkpoints):
    files_of(checkpoints, 2)[-1].unlink()


def lose_the_manifest(checkpoints):
    (checkpoints.directory / "2" / "MANIFEST.json").unlink()


def empty(checkpoints):
    shutil.rmtree(checkpoints.directory / "2")
    (checkpoints.directory / "2").mkdir()


def lose_the_metadata(checkpoints):
    (checkpoints.directory / "2" / "_CHECKPOINT_METADATA").write_text("{")


DAMAGES = [
    truncate,
    flip_a_bit,
    lose_a_file,
    lose_the_manifest,
    empty,
    lose_the_metadata,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_set_aside_and_replaced(
    copied, state, damage
):
    assert copied.latest() == 2
    damage(copied)
    assert copied.latest() == 1
    assert copied.restore(state).step == 1
    with pytest.raises(ValueError, match="checkpoint 2 in .* is damaged: .*step 1"):
        copied.restore(state, step=2)

    copied.save(2, state.replace(step=jnp.int32(2)))
    copied.wait()
    assert copied.latest() == 2 and copied.restore(state).step == 2
    assert (copied.directory / "2.damaged").is_dir()


def test_a_half_written_directory_is_no_checkpoint_and_is_cleaned_up(copied, state):
    half = copied.directory / "3.orbax-checkpoint-tmp"
    shutil.copytree(copied.directory / "2", half)
    assert copied.latest() == 2 and copied.steps() == [1, 2]
    copied.save(3, state)
    copied.wait()
    assert copied.latest() == 3 and not half.exists()


def test_a_step_that_is_saved_already_is_left_alone(copied, state):
    before = [path.read_bytes() for path in files_of(copied, 2)]
    copied.save(2, jax.tree.map(jnp.zeros_like, state.params))
    copied.wait()
    assert [path.read_bytes() for path in files_of(copied, 2)] == before


def test_the_newest_and_the_best_are_kept(tmp_path):
    losses = [0.5, 0.1, 0.9, float("nan"), 0.8, 0.7]
    for mode, best in {"min": [2], "max": [3]}.items():
        checkpoints = Checkpoints(
            tmp_path / mode, every=1, keep_last=2, keep_best=1, metric="loss", mode=mode
        )
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(step, {"x": jnp.ones(1)}, metrics={"loss": loss})
            if step == 4:
                # The ranking survives a restart.
                checkpoints.close()
        checkpoints.close()
        assert checkpoints.steps() == [*best, 5, 6]


def test_a_metric_that_is_not_there_is_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1, keep_best=1, metric="eval/los")
    with pytest.raises(ValueError, match="'eval/los' is not among.*'eval/loss'"):
        checkpoints.save(1, {"x": jnp.ones(1)}, metrics={"eval/loss": 1.0})


def test_a_save_that_fails_is_an_error_and_the_next_one_works(copied, state):
    # A file in the place of the directory: nothing can be written, even by root.
    copied.save(3, state)
    copied.wait()
    away = copied.directory.rename(copied.directory.with_name("away"))
    copied.directory.write_text("")
    with pytest.raises(CheckpointError, match="could not be written in .*/copy"):
        copied.save(4, state)
        copied.wait()
    copied.directory.unlink()
    away.rename(copied.directory)
    assert copied.latest() == 3
    copied.save(4, state)
    copied.wait()
    assert copied.latest() == 4


def test_a_manifest_may_list_sizes_alone(tmp_path, state):
    checkpoints = Checkpoints(tmp_path / "run", every=1, checksums=False)
    checkpoints.save(2, state)
    checkpoints.wait()
    manifest = json.loads((checkpoints.directory / "2" / "MANIFEST.json").read_text())
    assert {entry["crc32"] for entry in manifest.values()} == {None}
    truncate(checkpoints)
    assert checkpoints.latest() is None
    checkpoints.close()


def test_no_checkpoint_is_an_error_that_says_what_there_is(saved, state, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"of step 9; there are steps \[1, 2\]"):
        saved.restore(state, step=9)
    nothing = Checkpoints(tmp_path / "none", every=1)
    assert nothing.latest() is None
    with pytest.raises(FileNotFoundError, match="expected a whole checkpoint"):
        nothing.restore(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every"),
        ({"keep_last": 0}, "keep_last"),
        ({"keep_best": 2}, "keep_best and metric"),
        ({"metric": "loss"}, "keep_best and metric"),
        ({"keep_best": 2, "metric": "loss", "mode": "best"}, "mode"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints(tmp_path, **{"every": 1, **options})


def test_a_bucket_is_not_mistaken_for_a_directory():
    with pytest.raises(ValueError, match="gs://bucket/run: expected a directory"):
        Checkpoints("gs://bucket/run", every=1)
