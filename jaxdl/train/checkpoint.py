"""Checkpoints: asynchronous, atomic, checked; a thin layer over orbax-checkpoint.

A checkpoint is one directory a step. The arrays are saved by path (nested dicts of
`params/blocks/kernel`), so that a tree of other containers, an abstract tree or a part
of it restores from them, and plain orbax reads them too. A directory appears under its
final name only when it is whole, with a manifest of its files; `latest` believes
nothing else.
"""

from collections.abc import Callable, Mapping
import contextlib
from pathlib import Path
from typing import Any

from etils import epath
import jax
import numpy as np

from jaxdl.core import tree
from jaxdl.train import manifest

PyTree = Any


class CheckpointError(RuntimeError):
    """A checkpoint could not be written. The earlier ones are as they were."""


class Checkpoints:
    """The checkpoints of one run in one directory.

    ```python
    checkpoints = Checkpoints("runs/gpt", every=1000, keep_last=3)
    state, history = fit(state, step, data, steps=100_000, checkpoints=checkpoints)
    params = checkpoints.restore(state, only="params/**").params
    ```

    every: `fit` saves when the step is a multiple of it, and at its end.
    keep_last: how many of the newest to keep.
    keep_best: how many of the best by `metric` to keep beside them; one saved without
      that metric, or with NaN, is no candidate.
    mode: "min" or "max", which values of the metric are better.
    checksums: record and check the CRC-32 of every file, about a second a gigabyte when
      `latest` looks for a whole checkpoint; False records and checks the sizes only.

    Several processes of one run share the directory; two runs must not. Raises
    ValueError for options that do not fit together.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every: int,
        keep_last: int = 3,
        keep_best: int | None = None,
        metric: str | None = None,
        mode: str = "min",
        checksums: bool = True,
    ):
        _check_options(every, keep_last, keep_best, metric, mode)
        if "://" in str(directory):
            raise ValueError(
                f"{directory}: expected a directory of a file system; mount the bucket"
            )
        self.directory = Path(directory).absolute()
        self.every = every
        self.metric = metric
        self._keep = (keep_last, keep_best, mode)
        self._checksums = checksums
        self._manager: Any = None

    def __repr__(self) -> str:
        return f"Checkpoints({str(self.directory)!r}, every={self.every})"

    def due(self, step: int) -> bool:
        """Tells whether `fit` saves after this many steps."""
        return step % self.every == 0

    def steps(self) -> list[int]:
        """Lists the steps that have a directory, oldest first, whole or not."""
        return manifest.steps(self.directory)

    def latest(self) -> int | None:
        """Finds the newest step whose checkpoint is whole, or None.

        Half-written, truncated and altered ones are passed over.
        """
        whole = (s for s in reversed(self.steps()) if not self.problems(s))
        return next(whole, None)

    def problems(self, step: int) -> list[str]:
        """Says what is wrong with the files of a checkpoint; [] if it is whole."""
        return manifest.problems(self.directory / str(step))

    def save(
        self,
        step: int,
        state: PyTree,
        metrics: Mapping[str, float] | None = None,
        data: Any = None,
    ) -> None:
        """Starts to save; returns when the arrays are copied, before they are on disk.

        The state may be donated right after. A step that is saved already is left
        alone.

        metrics: floats, which `metric` ranks.
        data: the state of the data iterator, JSON or bytes; `read_data` returns it.

        Raises CheckpointError when this or the previous save failed, ValueError when
        `metrics` lack `metric`.
        """
        if self.metric and metrics is not None and self.metric not in metrics:
            raise ValueError(
                f"metric {self.metric!r} is not among the metrics of step {step}; "
                + tree.suggestion(self.metric, metrics)
            )
        import orbax.checkpoint as ocp

        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_by_path(state)),
            data=ocp.args.JsonSave(manifest.to_json(data)),
        )
        with self._failures(step):
            manifest.check_writable(self.directory)
            manager = self._open()
            if step not in manager.all_steps():
                numbers = metrics and {k: float(v) for k, v in metrics.items()}
                manager.save(step, args=items, metrics=numbers, force=True)

    def restore(
        self,
        target: PyTree,
        step: int | None = None,
        *,
        only: str | list[str] | None = None,
    ) -> PyTree:
        """Reads a checkpoint into the structure, dtypes and shardings of `target`.

        target: the tree wanted, of arrays or `jax.ShapeDtypeStruct`. Floating arrays
          are converted to its floating dtypes; a leaf without a sharding goes to the
          default device. The mesh may be another one than at the time of saving.
        step: which checkpoint; the latest whole one by default.
        only: patterns of the paths to read (`"params/**"`); the other leaves of
          `target` are returned as they are.

        Raises FileNotFoundError when there is no checkpoint, ValueError when it is
        damaged or when its paths, shapes or dtypes are not those of the target: one
        message with all of them, before anything is read.
        """
        step = self._existing(step)
        path = self.directory / str(step) / "state"
        wanted, saved = tree.flatten(target), _saved(path)
        _check_leaves(target, wanted)
        if only is not None:
            chosen = set(tree.matching(only, [*wanted, *saved]))
            wanted = {path: leaf for path, leaf in wanted.items() if path in chosen}
            saved = {path: leaf for path, leaf in saved.items() if path in chosen}
        _check_fits(f"checkpoint {step} in {self.directory}", wanted, saved)
        read = tree.flatten(_read(path, tree.unflatten(wanted)))
        leaves = {path: _like(path, read[path], leaf) for path, leaf in wanted.items()}
        return tree.map_with_path(lambda path, leaf: leaves.get(path, leaf), target)

    def read_data(self, step: int | None = None) -> Any:
        """Returns the `data` that was given to `save`, or None."""
        import orbax.checkpoint as ocp

        path = self.directory / str(self._existing(step)) / "data"
        saved = ocp.JsonCheckpointHandler().restore(epath.Path(path))
        return manifest.from_json(saved)

    def check(self) -> None:
        """Raises CheckpointError if a save in the background has failed."""
        if self._manager is not None:
            with self._failures(None):
                self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when everything is on disk; raises CheckpointError if it is not."""
        if self._manager is not None:
            with self._failures(None):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the threads; the next save opens them again."""
        if self._manager is not None:
            try:
                self.wait()
                self._manager.close()
            finally:
                self._manager = None

    def _open(self) -> Any:
        """The manager that writes; only a writer may set damaged directories aside."""
        if self._manager is None:
            if jax.process_index() == 0:
                manifest.set_aside_damaged(self.directory)
            self._manager = _manager(
                self.directory,
                create=True,
                cleanup_tmp_directories=True,
                async_options=_async_options(self._write_manifest),
                **_retention(*self._keep, self.metric),
            )
        return self._manager

    def _write_manifest(self) -> None:
        manifest.write_unfinished(self.directory, self._checksums)

    @contextlib.contextmanager
    def _failures(self, step: int | None):
        try:
            yield
        except Exception as error:
            # Opened anew by the next save, without the failed one and its leftovers.
            self._manager = None
            which = (
                "A checkpoint" if step is None else f"Checkpoint {step}, or the last,"
            )
            raise CheckpointError(
                f"{which} could not be written in {self.directory}: {error}\nThe whole "
                f"ones are untouched; the latest is of step {self.latest()}."
            ) from error

    def _existing(self, step: int | None) -> int:
        self.wait()
        chosen = self.latest() if step is None else step
        if chosen is None or chosen not in self.steps():
            raise FileNotFoundError(
                f"{self.directory}: expected a whole checkpoint"
                + ("" if step is None else f" of step {step}")
                + f"; there are steps {self.steps()}"
            )
        if problems := self.problems(chosen):
            raise ValueError(
                f"checkpoint {chosen} in {self.directory} is damaged: "
                + "; ".join(problems)
                + f"; the latest whole one is of step {self.latest()}"
            )
        return chosen


def _saved(path: Path) -> dict:
    """What the checkpoint holds, by path: anything with shape and dtype."""
    import orbax.checkpoint as ocp

    metadata = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path))
    return tree.flatten(metadata.tree, is_leaf=lambda node: hasattr(node, "shape"))


def _read(path: Path, wanted: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    wanted = jax.tree.map(_abstract, wanted)
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    return ocp.PyTreeCheckpointHandler().restore(epath.Path(path), args=arguments)


def _manager(directory: Path, **options: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(**options),
        item_names=("state", "data"),
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "data": ocp.JsonCheckpointHandler(),
        },
    )


def _async_options(before_commit: Callable[[], None]) -> Any:
    import orbax.checkpoint as ocp

    # Called when every file is written, just before the directory gets its final name.
    return ocp.AsyncOptions(post_finalization_callback=before_commit)


def _retention(keep_last: int, keep_best: int | None, mode: str, metric: Any) -> dict:
    from orbax.checkpoint import checkpoint_managers as policies

    newest = policies.LatestN(keep_last)
    if keep_best is None:
        return {"preservation_policy": newest}

    def goodness(metrics: Any) -> float:
        value = float((metrics or {}).get(metric, np.nan))
        value = value if mode == "max" else -value
        return -np.inf if np.isnan(value) else value

    best = policies.BestN(
        get_metric_fn=goodness, n=keep_best, keep_checkpoints_without_metrics=False
    )
    # best_fn is what makes orbax write the metrics down.
    return {
        "preservation_policy": policies.AnyPreservationPolicy([newest, best]),
        "best_fn": goodness,
    }


def _by_path(state: PyTree) -> dict:
    """Nested dicts of arrays: on disk there are no containers, None or empty dicts."""
    leaves = tree.flatten(state)
    _check_leaves(state, leaves)
    return tree.unflatten(leaves)


def _check_leaves(state: PyTree, leaves: dict) -> None:
    for path, leaf in leaves.items():
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{path}: expected an array, got {type(leaf).__name__}")
    if "" in leaves or len(leaves) != len(jax.tree.leaves(state)):
        raise ValueError("expected a tree in which every leaf has a path of its own")


def _check_fits(name: str, wanted: dict, saved: dict) -> None:
    faults = [f"missing from the checkpoint: {p}" for p in wanted if p not in saved]
    faults += [f"not in the target: {p}" for p in saved if p not in wanted]
    for path in wanted.keys() & saved.keys():
        target, source = _stored_as(wanted[path]), saved[path]
        if tuple(target.shape) != tuple(source.shape):
            faults.append(
                f"{path}: expected shape {tuple(target.shape)}, "
                f"the checkpoint has {tuple(source.shape)}"
            )
        elif not _converts(source.dtype, target.dtype):
            faults.append(
                f"{path}: expected {target.dtype}, the checkpoint has {source.dtype}"
            )
    if faults:
        raise ValueError(
            f"{name} does not fit the target:\n  "
            + "\n  ".join(sorted(faults))
            + '\nRestore a part of it with only=["params/**", ...].'
        )


def _stored_as(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype on disk: a typed key is stored as its uint32 data."""
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        shape = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.eval_shape(jax.random.key_data, shape)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _converts(source: Any, target: Any) -> bool:
    both_floating = all(jax.numpy.issubdtype(d, np.floating) for d in (source, target))
    return source == target or both_floating


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _like(path: str, value: Any, target: Any) -> Any:
    if value.dtype != target.dtype:
        raise ValueError(
            f"{path}: expected {target.dtype}, the checkpoint has {value.dtype}"
        )
    # An uncommitted array follows the batch onto its mesh, as it did before saving.
    if isinstance(target, jax.Array) and not target.committed:
        return _uncommitted(value)
    return value


def _uncommitted(value: jax.Array) -> jax.Array:
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = jax.numpy.asarray(np.asarray(jax.random.key_data(value)))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    return jax.numpy.asarray(np.asarray(value))


def _check_options(every, keep_last, keep_best, metric, mode) -> None:
    for name, value in {"every": every, "keep_last": keep_last}.items():
        if value < 1:
            raise ValueError(f"{name}: expected an integer from 1, got {value!r}")
    if (keep_best is None) != (metric is None):
        raise ValueError(
            "keep_best and metric: expected both or neither, "
            f"got {keep_best!r} and {metric!r}"
        )
    if mode not in ("min", "max"):
        raise ValueError(f'mode: expected "min" or "max", got {mode!r}')
