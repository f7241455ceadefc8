"The recipe compile: what it refuses at once, and the whole way."
import json

import pytest

from test_recipes import cook

pytest.importorskip('torch')
pytest.importorskip('onnx')
rtx = pytest.mark.skipif(not __import__('importlib').util.find_spec('tensorrt_rtx'), reason='needs the extra rtx')


@pytest.mark.parametrize('value,says', [('sm90', 'Hopper'), ('sm100', 'data-center Blackwell'),
                                        ('sm86', 'fp8 needs sm89'), ('sm42', 'no target')])
def test_recipe_refuses_targets_at_once(value, says, tmp_path):
    r = cook('compile', '-p', f'target={value}', out=tmp_path/'run')
    assert r.returncode == 1
    assert says in r.stderr
    assert 'Traceback' not in r.stderr
    assert not (tmp_path/'run'/'results.json').exists()


@rtx
def test_recipe_end_to_end(tmp_path):
    r = cook('compile', '-p', 'calib_samples=4', '-p', 'repeats=2', out=tmp_path/'run')
    assert r.returncode == 0, r.stderr[-2000:]
    d = json.loads((tmp_path/'run'/'results.json').read_text())
    v = {x['scheme']: x for x in d['variants']}
    assert set(v) == {'none', 'fp8', 'int8_sq', 'int8_wo',
                      'int8_wo (pairs)'} and all(s['status'] == 'ran' for s in d['stages'])
    assert {k: set(x['engine']['stored']) for k,
            x in v.items()} == {'none': {'float16'}, 'fp8': {'e4m3'}, 'int8_sq': {'int8'}, 'int8_wo': {'int8'},
                                'int8_wo (pairs)': {'float16'}}
    size = {k: x['engine']['engine_bytes'] for k, x in v.items()}
    assert size['fp8'] < size['none']
    assert size['int8_wo'] < size['none']
    assert abs(size['int8_wo (pairs)'] / size['none'] - 1) < 0.02
    assert all(len(x['engine']['seconds']['builds']) == 2
               for x in v.values()) and v['none']['engine']['fixed_bytes'] > 0
