import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerscope.errors import StudyError
from layerscope.study.trial import Trial, execute, function_of, signature_of

SCALARS = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False), st.text())


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), SCALARS, max_size=5))
def test_the_id_depends_on_the_configuration_alone(params):
    trial = Trial.of("m:f", params)
    assert trial.id == Trial.of("m:f", dict(reversed(params.items()))).id
    assert trial.id != Trial.of("m:g", params).id
    assert trial.arguments == params
    assert json.loads(trial.canonical) == {"function": "m:f", "params": params}


def test_the_id_is_the_same_in_every_process_and_version():
    trial = Trial.of("package.module:name", {"norm": "group:size=8", "lr": 0.1, "seed": 0})
    text = '{"function":"package.module:name","params":{"lr":0.1,"norm":"group:size=8","seed":0}}'
    assert trial.id == hashlib.sha256(text.encode()).hexdigest()[:16]
    code = (
        "from layerscope.study.trial import Trial;"
        "print(Trial.of('package.module:name', {'seed': 0, 'lr': 0.1, 'norm': 'group:size=8'}).id)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == trial.id


def test_a_trial_that_raises_is_an_outcome_with_its_traceback():
    outcome = execute(Trial.of("study.dummies:fails_on_odd", {"x": 3}))
    assert (outcome.state, outcome.error) == ("failed", "ValueError: 3 is odd")
    assert "fails_on_odd" in outcome.trace
    assert execute(Trial.of("study.dummies:fails_on_odd", {"x": 4})).result == {"y": 4.0}


def test_results_are_plain_values():
    outcome = execute(Trial.of("study.dummies:square", {"x": 3}))
    assert outcome.result["nan"] == "nan"
    assert "must return a mapping" in execute(Trial.of("study.dummies:no_mapping", {"x": 3})).error
    assert "not a plain value" in execute(Trial.of("study.dummies:no_plain", {"x": 3})).error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("square", "expected package.module:function"),
        ("no.such.module:f", "cannot be imported"),
        ("study.dummies:sqare", "did you mean 'square'"),
    ],
)
def test_functions_that_cannot_be_found(name, words):
    with pytest.raises(StudyError, match=words):
        function_of(name)


def test_signatures():
    signature = signature_of(function_of("study.dummies:slow"))
    assert signature.known == ("x", "seed", "seconds")
    assert signature.required == ("x",)
    assert signature_of(function_of("study.dummies:anything")).open
