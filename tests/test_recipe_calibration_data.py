"The recipe on calibration text end to end in smoke size."
from test_recipes import cook, whole


def test_calibration_data_measures_what_matters(tmp_path):
    out = tmp_path/'cd'
    d = whole(cook('calibration_data', out=out), out)
    v = {(x['scheme'], x['name']): x for x in d['variants']}
    names = [n for s, n in v if s == 'fp8']
    assert {'one window', 'random tokens', 'one line repeated', 'the evaluation text itself'} <= set(names)
    assert len(v) == 2 * len(names)
    assert v['fp8', 'the evaluation text itself']['calibration']['leak_share'] > .9 > d['calibration']['leak_share']
    bad = v['int8_sq', 'one line repeated']
    assert bad['difference']['ci95'][0] > 0
    assert bad['calibration']['saturation_max'] > d['calibration']['saturation_max']
    assert any('over and over' in w or 'repeat' in w for w in d['details']['warnings']['one line repeated'])
    assert any('of another kind' in w for w in d['details']['warnings']['random tokens'])
    assert abs(v['fp8', names[1]]['difference']['kld']) < 2e-3  # for FP8 the amount of text hardly matters
