"The bandwidth recipe end to end in smoke size: ceilings, predicted beside measured, before and after, and the figure."
import pytest

from test_recipes import cook, whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def bandwidth(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'bandwidth'
    return whole(cook('bandwidth', out=out), out), out


def test_points_are_predicted_and_measured(bandwidth):
    d, out = bandwidth
    r = d['roofline']
    assert r['ceilings']['measured'] and r['ceilings']['bandwidth'] > 1e9 and set(r['ceilings']['rates']) >= {'bf16'}
    works = {(p['scheme'], p['phase'], p['batch']) for p in r['points']}
    decode = {(s, 'decode', b) for s in ('none', 'fp8', 'int8_sq') for b in (1, 8)}
    assert works == decode | {(s, 'prefill', 1) for s in ('none', 'fp8', 'int8_sq')} and not r['missed']
    for p in r['points']:
        assert p['predicted'] > 0 < p['measured'] and p['error'] == pytest.approx(p['predicted'] / p['measured'] - 1)
        assert 0 < p['rate_share'] < 1 and sum(p['kinds'].values()) == pytest.approx(1) and p['calls'] > 10
        assert (p['kinds']['quantization'] > 0) == (p['scheme'] != 'none') and p['kinds']['products'] > 0
    assert r['judged']['points'] == len(r['points']) == 9
    assert list((out/'figures').iterdir()) and d['size_bytes']['quantized'] < .65 * d['size_bytes']['base']


def test_it_says_what_the_numbers_say(bandwidth):
    d, _ = bandwidth
    told, advice = d['details']['says'], ' '.join(d['details']['advice'])
    assert 'operations a byte should wait for memory' in told and 'The predictions of 9 points' in told
    fp8, base = ({p['phase'] + str(p['batch']): p['measured'] for p in d['roofline']['points'] if p['scheme'] == s}
                 for s in ('fp8', 'none'))
    slow = all(base[k] / fp8[k] < 1.05 for k in ('decode1', 'decode8'))
    assert ('fp8 does not pay in decode on demo' in told) == slow
    assert 'quality' not in d # nothing was judged here
    if d['environment']['device']['kind'] == 'cpu':
        assert 'This was a CPU' in advice
    skipped = {s['name']: s['reason'] for s in d['stages'] if s['status'] == 'skipped'}
    assert set(skipped) == {'second shape'}


@pytest.mark.parametrize('given, words', [('scheme=nvfp4', 'does not run nvfp4'), ('batches=[0]', 'batches is 0')])
def test_what_cannot_be_profiled(tmp_path, given, words):
    r = cook('bandwidth', '-p', given, out=tmp_path/'run')
    assert r.returncode in (1, 2) and words in r.stderr.strip().splitlines()[-1] and 'Traceback' not in r.stderr
