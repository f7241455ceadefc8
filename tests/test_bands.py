"A run is held against the gallery's: equal ones pass, and each regression that matters is found."
import copy
import json

import pytest

import bands

RUN = {
    'schema': 2,
    'recipe': 'fp8',
    'size': 'h200',
    'model': {'name': 'demo'},
    'environment': {'device': {'name': 'H200'}},
    'quality': {
        'verdict': 'PASS',
        'sha256': 'a',
        'ppl_base': 9.7124,
        'ppl_ratio': 1.0042,
        'ppl_ratio_ci95': [1.0036, 1.0049],
        'kld_mean': .0051,
        'kld_mean_ci95': [.005, .0052],
        'top1_agreement': .961,
        'top1_agreement_ci95': [.96, .962],
    },
    'size_bytes': {'base': 14_700_000, 'quantized': 8_400_000},
    'seconds': {'total': 35.},
}
CHANCE = {'quality.ppl_ratio': 1.0048, 'quality.kld_mean': .0053, 'seconds.total': 38.}
REGRESSIONS = {
    'quality.verdict': 'INCONCLUSIVE', 'quality.ppl_base': 9.75, 'quality.ppl_ratio': 1.0072, 'quality.kld_mean': .0059,
    'quality.top1_agreement': .955, 'size_bytes.quantized': 8_600_000, 'seconds.total': 60.,
}


def changed(path, value):
    new = copy.deepcopy(RUN)
    *above, last = path.split('.')
    place = new
    for k in above:
        place = place[k]
    place[last] = value
    return new


def test_equal_runs_pass():
    assert bands.deviations(RUN, RUN) == []


@pytest.mark.parametrize('path', REGRESSIONS)
def test_a_regression_is_found(path):
    found = bands.deviations(changed(path, REGRESSIONS[path]), RUN)
    assert len(found) == 1 and path.split('.')[-1] in found[0]


@pytest.mark.parametrize('path', CHANCE)
def test_chance_is_no_regression(path):
    assert bands.deviations(changed(path, CHANCE[path]), RUN) == []


def test_another_text_has_another_perplexity():
    new = changed('quality.ppl_base', 12.)
    new['quality']['sha256'] = 'b'
    assert bands.deviations(new, RUN) == []


def held(tmp_path, old, new):
    "The exit code of a comparison of these two runs."
    for folder, results in ('old', old), ('new', new):
        (tmp_path/folder).mkdir()
        (tmp_path/folder/'results.json').write_text(json.dumps(results))
    return bands.main(tmp_path/'new', tmp_path/'old')


@pytest.mark.parametrize('old', [RUN | {'schema': 1}, {k: v for k, v in RUN.items() if k != 'schema'} | {'engine': {}}],
                         ids=['named', 'unnamed'])
def test_another_schema_is_refused_with_a_sentence(tmp_path, capsys, old):
    assert held(tmp_path, old, RUN) == 1
    assert "the gallery's run has schema 1, this one 2: run the older one anew" in capsys.readouterr().out


def test_other_versions_are_named_and_compared(tmp_path, capsys):
    new = changed('environment.torch', '2.13.0')
    assert held(tmp_path, changed('environment.torch', '2.11.0'), new) == 0
    out = capsys.readouterr().out
    assert 'within its bands' in out and "(made with torch 2.13.0, the gallery's with 2.11.0)" in out


def test_a_run_without_seconds_is_compared():
    assert bands.deviations(changed('seconds', {}), RUN) == []


def test_the_gallery_is_within_its_own_bands(tmp_path, capsys):
    assert bands.main(bands.GALLERY) == 0
    out = capsys.readouterr().out
    assert 'within its bands' in out and 'nothing like it' not in out
    assert bands.main(tmp_path) == 0
    assert len(bands.read_all(bands.GALLERY)) == len(list(bands.GALLERY.rglob('results.json')))
