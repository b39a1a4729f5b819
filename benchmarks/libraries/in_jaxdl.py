"""In jaxdl: the models that the library has, trained like any function of params."""

import jax
import jax.numpy as jnp
import optax

from benchmarks import work as given
from benchmarks.libraries import by_hand
from benchmarks.work import Program, Work
from jaxdl import Module, losses, models, nn


def mlp(work: Work) -> Program:
    layers = []
    for before, after in zip(work.config, work.config[1:], strict=False):
        layers += [nn.Linear(before, after), jnp.tanh]
    model = nn.Sequential(layers)
    # A function has no parameters, but it has a place: the layers are "0", "2", "4".
    params = {str(2 * int(name)): layer for name, layer in work.weights.items()}
    return regression(model, params, work)


def repeated_mlp(work: Work) -> Program:
    """Layers of one shape, in one scan."""
    layers = list(work.weights.values())
    width = len(layers[0]["bias"])
    block = nn.Sequential([nn.Linear(width, width), jnp.tanh])
    params = {"0": given.stack(layers)}
    return regression(nn.Repeat(block, len(layers)), params, work)


def regression(model: Module, params: dict, work: Work) -> Program:
    def loss_fn(params, batch):
        x, target = batch
        return jnp.mean((model(params, x) - target) ** 2)

    return by_hand.train(
        loss_fn, fitted(model, params), work.batch, optax.sgd(given.LEARNING_RATE)
    )


def resnet(work: Work) -> Program:
    config = work.config
    model = models.ResNet(
        config.depths,
        config.widths,
        num_classes=config.num_classes,
        small_images=True,
    )

    def loss_fn(params, state, batch):
        images, labels = batch
        logits, state = model(params, images, state, train=True)
        return losses.cross_entropy(logits, labels), state

    return by_hand.train_with_state(
        loss_fn,
        fitted(model, work.weights),
        model.init_state(),
        work.batch,
        optax.sgd(given.LEARNING_RATE, given.MOMENTUM),
    )


def gpt(work: Work) -> Program:
    model = models.Decoder(work.config)

    def loss_fn(params, batch):
        tokens, labels = batch
        return losses.cross_entropy(model(params, tokens, key=None), labels)

    optimizer = optax.adamw(given.LEARNING_RATE, weight_decay=given.WEIGHT_DECAY)
    return by_hand.train(loss_fn, fitted(model, work.weights), work.batch, optimizer)


def fitted(model: Module, weights: dict) -> dict:
    """The weights in the model's own tree, whose parts without any are empty dicts."""
    own = jax.eval_shape(model.init, jax.random.key(0))

    def fill(own: dict, given: dict) -> dict:
        return {
            name: fill(part, given.get(name, {}))
            if isinstance(part, dict)
            else given[name]
            for name, part in own.items()
        }

    return fill(own, weights)
