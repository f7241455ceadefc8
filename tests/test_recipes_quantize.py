"The INT8 and the calibration recipe end to end in smoke size."
import pytest

from test_recipes import cook, whole


@pytest.fixture(scope='module')
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'int8'
    return whole(cook('int8', out=out), out), out


def test_int8_tells_its_story(int8):
    d, out = int8
    row = {
        (v['model'], v['name'].split(',')[0] if v['name'].startswith('Smooth') else v['name']): v for v in d['variants']
    }
    wild = next(m for m, _ in row if 'injected' in m)
    kld = lambda m, n: min(
        v['quality']['kld_mean'] for v in d['variants'] if v['model'] == m and v['name'].startswith(n)
    )
    assert kld(wild, 'INT8, one scale') > 10 * kld('demo', 'INT8, one scale') > 0  # outliers break it
    # smoothing repairs it
    assert d['details']['recovered'] >= .9 and kld(wild, 'SmoothQuant') < .1 * kld(wild, 'INT8, one scale')
    assert kld('demo', 'INT8, weights') < kld('demo', 'FP8') < .05
    assert kld(wild, 'FP8') < 2 * kld('demo', 'FP8') + 1e-3  # a relative grid does not mind
    assert {v['alpha'] for v in d['variants'] if v['scheme'] == 'int8_sq'} >= {'off', 1.}
    if 'chosen_minus_default' in d['details']:
        assert d['details']['chosen_minus_default']['ci95'][0] <= 0  # never wholly above zero
    sweep = d['details']['sweep']
    assert any(r['alpha'] == 1.0 and r['quality']['difference_to_default'] == 0 for r in sweep) and any(
        r['granularity'] == 'token' for r in sweep
    )


def test_int8_reports_and_exports(int8):
    d, out = int8
    c, p = d['calibration'], d['engine']['parity']
    assert 0 <= c['saturation_max'] < .2 and 1 <= c['converged_at_samples'] <= c['samples'] and c['leak_share'] < .01
    assert p['passed'] and p['linears'] == p['expected'] == 56 and 0 < p['worst'] <= 4e-3
    assert (out/'checkpoint'/'hf_quant_config.json').exists() and (out/'trtllm_legacy'/'rank0.safetensors').exists()
    assert d['quality']['verdict'] in ('PASS', 'FAIL', 'INCONCLUSIVE') and d['scheme'] == 'int8_sq'


def test_calibration_data_measures_what_matters(tmp_path):
    out = tmp_path/'cd'
    d = whole(cook('calibration_data', out=out), out)
    v = {(x['scheme'], x['name']): x for x in d['variants']}
    names = [n for s, n in v if s == 'fp8']
    assert {'one window', 'random tokens', 'one line repeated', 'the evaluation text itself'} <= set(names) and len(
        v
    ) == 2 * len(names)
    assert v['fp8', 'the evaluation text itself']['calibration']['leak_share'] > .9 > d['calibration']['leak_share']
    bad = v['int8_sq', 'one line repeated']
    assert (
        bad['difference']['ci95'][0] > 0 and bad['calibration']['saturation_max'] > d['calibration']['saturation_max']
    )
    assert any('over and over' in w or 'repeat' in w for w in d['details']['warnings']['one line repeated'])
    assert any('of another kind' in w for w in d['details']['warnings']['random tokens'])
    assert abs(v['fp8', names[1]]['difference']['kld']) < 2e-3  # for FP8 the amount of text hardly matters
