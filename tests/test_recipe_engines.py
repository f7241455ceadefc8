"What `--for` writes, to the end: made, checked, compared in the loader's arithmetic, reported; no engine runs here."
import pytest

from test_recipes import cook, whole
from tqcook import contract

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('engine', ['trtllm', 'vllm', 'sglang'])
@pytest.mark.parametrize('recipe', ['fp8', 'int8'])
def test_each_engine_gets_a_directory_that_it_takes(recipe, engine, tmp_path):
    d = whole(cook(recipe, '--for', engine, out=tmp_path/recipe), tmp_path/recipe)
    assert d['parameters']['engine_for'] == engine and d['quality']['verdict']
    assert d['runtime']['parity']['passed']
    made = 'trtllm_legacy' if (recipe, engine) == ('int8', 'trtllm') else 'checkpoint'
    found = contract.check(tmp_path/recipe/made, trtllm=d['parameters'].get('trtllm', '1.2.1'))
    assert not found.errors and found.about['engines'][engine] == ''
    if recipe == 'fp8':
        serve = dict(trtllm='trtllm-serve', vllm='vllm serve', sglang='sglang.launch_server')
        assert serve[engine] in (tmp_path/'fp8/report.html').read_text()
