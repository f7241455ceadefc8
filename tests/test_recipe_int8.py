"The INT8 recipe end to end in smoke size."
import pytest

from test_recipes import cook, whole


@pytest.fixture(scope='module')
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'int8'
    return whole(cook('int8', out=out), out), out


def test_int8_tells_its_story(int8):
    d, out = int8
    wild = next(v['model'] for v in d['variants'] if 'injected' in v['model'])
    def kld(model, name): # of the best variant whose name begins so
        return min(
            v['quality']['kld_mean'] for v in d['variants'] if v['model'] == model and v['name'].startswith(name)
        )
    static, token = 'INT8, one static scale', 'INT8, a scale a token'
    off = {(v['model'], v['scheme']): v['quality']['kld_mean'] for v in d['variants'] if v.get('alpha') == 'off'}
    assert off[wild, 'int8_sq'] > 10 * off['demo', 'int8_sq'] > 0 # outliers break it
    assert d['details']['recovered'] >= .9 and kld(wild, static) < .1 * off[wild, 'int8_sq'] # smoothing repairs it
    assert kld('demo', token) < .5 * kld('demo', static) # a scale a token is the better INT8
    assert kld('demo', token) < kld('demo', 'FP8') # and the better eight bits, on this model
    assert kld('demo', 'INT8, weights') < kld('demo', 'FP8') < .05
    assert kld(wild, 'FP8') < 2 * kld('demo', 'FP8') + 1e-3 # a relative grid does not mind
    assert d['details']['fp8_minus_token']['ci95'][0] > 0 and d['details']['static_minus_token']['ci95'][0] > 0
    assert any('INT8 is measurably closer' in a for a in d['details']['advice'])


def test_int8_sweeps_each_arithmetic_at_its_own_optimum(int8):
    d, _ = int8
    for scheme, default in (('int8_sq', 1.), ('int8_token', .5)):
        rows = {r['alpha']: r['quality'] for r in d['details']['sweep'] if r['scheme'] == scheme}
        assert rows.keys() >= {'off', default, .5, .7} and rows[default]['difference_to_default'] == 0
        best = min((a for a in rows if a != 'off'), key=lambda a: rows[a]['kld_mean'])
        assert d['details']['alpha'][scheme] == best


def test_int8_reports_and_exports(int8):
    d, out = int8
    c, p = d['calibration'], d['runtime']['parity']
    assert c['samples'] == 24 and c['leak_share'] < .01 and all('o_proj' in n for n in c['unsmoothed'])
    assert p['passed'] and p['linears'] == p['expected'] == 56 and 0 < p['worst'] <= 4e-3
    assert (out/'checkpoint'/'config.json').exists() and not (out/'checkpoint'/'hf_quant_config.json').exists()
    assert (out/'trtllm_legacy'/'rank0.safetensors').exists()
    assert d['quality']['verdict'] in ('PASS', 'FAIL', 'INCONCLUSIVE') and d['scheme'] == 'int8_token'
