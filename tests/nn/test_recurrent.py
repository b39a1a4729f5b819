import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import nn
from jaxdl.testing import check_module
from tests.drawn import drawn

rng = np.random.default_rng(0)
BATCH, SEQ, IN, HIDDEN = 3, 5, 4, 6
x = jnp.asarray(rng.normal(size=(BATCH, SEQ, IN)), jnp.float32)
lengths = jnp.array([5, 2, 0])
cells = [nn.RNNCell(IN, HIDDEN), nn.LSTMCell(IN, HIDDEN), nn.GRUCell(IN, HIDDEN)]
each_cell = pytest.mark.parametrize("cell", cells, ids=lambda cell: type(cell).__name__)
close = dict(rtol=1e-5, atol=1e-5)


def split(params, part, names):
    """A stacked gate kernel and bias as Flax's layers of their own names."""
    kernels = jnp.split(params[part]["kernel"], len(names), axis=-1)
    biases = jnp.split(params[part]["bias"], len(names))
    return {
        name: {"kernel": kernel, "bias": bias}
        for name, kernel, bias in zip(names, kernels, biases, strict=True)
    }


def test_lstm_is_that_of_flax():
    cell = nn.LSTMCell(IN, HIDDEN)
    params = drawn(cell)
    ours, theirs = split(params, "input", ["ii", "if", "ig", "io"]), {}
    for name, layer in split(params, "recurrent", ["hi", "hf", "hg", "ho"]).items():
        # Flax has one bias for a gate, on the recurrent side.
        bias = layer["bias"] + ours[f"i{name[1]}"].pop("bias")
        theirs[name] = {"kernel": layer["kernel"], "bias": bias}
    flax_layer = flax.linen.RNN(flax.linen.LSTMCell(HIDDEN))
    variables = {"params": {"cell": {**ours, **theirs}}}
    expected = jax.jit(flax_layer.apply)(variables, x)
    found = jax.jit(nn.Recurrent(cell))(params, x)
    np.testing.assert_allclose(found, expected, **close)


def test_gru_is_that_of_flax():
    cell = nn.GRUCell(IN, HIDDEN)
    params = drawn(cell)
    ours = split(params, "input", ["ir", "iz", "in"])
    theirs = split(params, "recurrent", ["hr", "hz", "hn"])
    for gate in "rz":  # Flax has these biases on the input's side only
        ours[f"i{gate}"]["bias"] += theirs[f"h{gate}"].pop("bias")
    flax_layer = flax.linen.RNN(flax.linen.GRUCell(HIDDEN))
    variables = {"params": {"cell": {**ours, **theirs}}}
    expected = jax.jit(flax_layer.apply)(variables, x)
    found = jax.jit(nn.Recurrent(cell))(params, x)
    np.testing.assert_allclose(found, expected, **close)


def test_a_simple_rnn_is_that_of_flax():
    cell = nn.RNNCell(IN, HIDDEN)
    params = drawn(cell)
    i, h = dict(params["input"]), dict(params["recurrent"])
    i["bias"] = i["bias"] + h.pop("bias")
    flax_layer = flax.linen.RNN(flax.linen.SimpleCell(HIDDEN))
    variables = {"params": {"cell": {"i": i, "h": h}}}
    expected = jax.jit(flax_layer.apply)(variables, x)
    found = jax.jit(nn.Recurrent(cell))(params, x)
    np.testing.assert_allclose(found, expected, **close)


@each_cell
@pytest.mark.parametrize("reverse", [False, True])
def test_the_scan_is_the_cell_step_by_step_within_each_length(cell, reverse):
    layer = nn.Recurrent(cell, reverse)
    params, one_step = drawn(layer), jax.jit(cell)
    y, last = jax.jit(layer.run)(params, x, lengths=lengths)
    y, last = jax.device_get((y, last))
    for row, length in enumerate(lengths.tolist()):
        carry = cell.zeros(1, jnp.float32)
        times = range(length)
        for time in reversed(times) if reverse else times:
            step, carry = one_step(params, x[row : row + 1, time], carry)
            np.testing.assert_allclose(y[row, time], step[0], **close)
        assert (y[row, length:] == 0).all()
        for ours, theirs in zip(
            jax.tree.leaves(last), jax.tree.leaves(carry), strict=True
        ):
            np.testing.assert_allclose(ours[row], theirs[0], **close)


@each_cell
def test_a_carry_goes_on_where_it_stopped(cell):
    layer = nn.Recurrent(cell)
    params = drawn(layer)
    run = jax.jit(layer.run)
    whole, last = run(params, x)
    first, carry = run(params, x[:, :2])
    rest, end = run(params, x[:, 2:], carry)
    np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, **close)
    for ours, theirs in zip(jax.tree.leaves(end), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(ours, theirs, **close)


def test_bidirectional_and_stacked_layers_compose():
    def both(features):
        cell = nn.GRUCell(features, HIDDEN)
        return nn.Bidirectional(nn.Recurrent(cell), nn.Recurrent(cell, reverse=True))

    model = nn.Sequential([both(IN), both(2 * HIDDEN), nn.Linear(2 * HIDDEN, 2)])
    params = drawn(model)
    run = jax.jit(model)
    y = run(params, x, lengths=lengths)
    assert y.shape == (BATCH, SEQ, 2)
    first = jax.jit(both(IN))(params["0"], x, lengths=lengths)
    forward = jax.jit(nn.Recurrent(nn.GRUCell(IN, HIDDEN)))
    ahead = forward(params["0"]["forward"], x, lengths=lengths)
    np.testing.assert_allclose(first[..., :HIDDEN], ahead, **close)
    changed = run(params, x.at[1, 3].add(1.0), lengths=lengths)
    np.testing.assert_array_equal(changed, y)  # beyond its length nothing counts
    check_module(model, x, lengths=jnp.array([5, 2, 1]))
    with pytest.raises(ValueError, match="backward with reverse=True"):
        nn.Bidirectional(nn.Recurrent(cells[0]), nn.Recurrent(cells[0]))


@each_cell
def test_recurrent_layers_keep_the_contract(cell):
    check_module(nn.Recurrent(cell), x)


def test_recurrent_layers_refuse_what_does_not_fit():
    layer = nn.Recurrent(cells[1])
    params = layer.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"Recurrent: expected \[batch, seq, 4\]"):
        layer(params, x[0])
    with pytest.raises(ValueError, match=r"input: expected \[..., 4\]"):
        layer(params, x[..., :3])
    with pytest.raises(ValueError, match=r"lengths \[3\]"):
        layer(params, x, lengths=lengths[:2])
