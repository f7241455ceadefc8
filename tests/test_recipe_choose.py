"The recipe that chooses, end to end in smoke size, and its bad input."
import json
import os
import subprocess
import sys

import pytest

from test_recipes import ROOT, cook, whole


@pytest.fixture(scope='module')
def chosen(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'choose'
    return whole(cook('choose', out=out), out), out


@pytest.mark.slow
def test_it_ends_in_a_checkpoint_that_was_confirmed(chosen):
    d, out = chosen
    q = d['quality']
    assert d['scheme'] in {v['scheme'] for v in d['variants']} and q['verdict'] in ('PASS', 'INCONCLUSIVE')
    assert 'second half' in q['source'] and d['details']['shared'] < .02
    texts = d['details']['texts']
    assert texts['search']['sha256'] != texts['confirm']['sha256'] == q['sha256']
    assert (out/'checkpoint'/'passport.json').exists()
    assert not [f for f in d['details']['findings']['findings'] if f['level'] == 'error']
    r = subprocess.run([sys.executable, '-m', 'tqcook', 'check', str(out/'checkpoint')], capture_output=True, text=True,
                       env=dict(os.environ, PYTHONPATH=str(ROOT)), cwd=out)
    assert r.returncode == 0, r.stdout + r.stderr


@pytest.mark.slow
def test_every_variant_says_what_it_is_worth_and_what_it_took(chosen):
    d, _ = chosen
    names = {v['scheme'] for v in d['variants']}
    assert names >= {'fp8', 'fp8_rowwise', 'fp8_block', 'int8_token', 'int8_sq', 'int8_wo', 'int4_awq'}
    for v in d['variants']:
        lo, hi = v['quality']['kld_mean_ci95']
        assert lo < v['quality']['kld_mean'] < hi and v['seconds']['score'] > 0 and 4 < v['bits'] < 16
        assert v['step_ci95'][0] < v['step'] < v['step_ci95'][1] and v['size_bytes'] > 5e6
        assert 'first half' in v['quality']['source']
    assert any(v.get('keep') for v in d['variants'])  # a mixture was among them
    passed = [v for v in d['variants'] if v['quality']['verdict'] == 'PASS']
    mine = min(passed, key=lambda v: (v['bits'], v['quality']['kld_mean']))
    assert d['scheme'] == mine['scheme'] and d['details']['choice']['chosen']['bits'] == mine['bits']


@pytest.mark.slow
def test_it_recommends_in_sentences_and_one_page(chosen):
    d, out = chosen
    said = ' '.join(d['details']['recommendation'])
    assert d['scheme'] in said and 'too close to call' in said  # so small a model is no faster in any format
    assert d['advice']['options'] and 'nvfp4' in d['details']['refused']
    assert (out/'report.html').stat().st_size > 50_000 and len(list((out/'figures').iterdir())) >= 1
    assert next(s for s in d['stages'] if s['name'] == 'measure speed')['status'] == 'skipped'


@pytest.mark.slow
def test_random_weights_get_no_verdict(tmp_path):
    out = tmp_path/'run'
    r = cook('choose', '-p', 'model=shape:llama-100m', '-p', 'schemes=fp8,int8_wo', out=out)
    assert r.returncode == 0, r.stderr[-2000:]
    d = json.loads((out/'results.json').read_text())
    assert 'quality' not in d and 'checkpoint' not in d and len(d['variants']) == 2
    assert 'random' in d['details']['recommendation'][0]
    assert {s['name'] for s in d['stages'] if s['status'] == 'skipped'} >= {'search', 'export'}


@pytest.mark.parametrize('args, code, words', [
    (['-p', 'keep=*'], 2, ['keep', 'not all of them']),
    (['-p', 'by=beauty'], 2, ['by', 'bits, time']),
    (['-p', 'engine_for=onnx'], 2, ['engine_for', 'sglang']),
    (['-p', 'budget=17'], 2, ['budget', '0 to 16']),
])
def test_bad_parameters(tmp_path, args, code, words):
    r = cook('choose', *args, out=tmp_path/'run')
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode == code and all(w in last for w in words), last
    assert 'Traceback' not in r.stderr and not (tmp_path/'run'/'results.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('args, words', [
    (['-p', 'schemes=nvfp4'], ['no scheme is left', 'nvfp4']),
    (['-p', 'keep=*.nosuch'], ['*.nosuch', 'matches no linear layer']),
    (['-p', 'schemes=fp8', '-p', 'budget=5'], ['nearest is fp8 with 8.0']),
])
def test_what_cannot_be_chosen_ends_in_one_line(tmp_path, args, words):
    r = cook('choose', *args, out=tmp_path/'run')
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode == 1 and all(w in last for w in words), last
    assert not (tmp_path/'run'/'checkpoint').exists()


@pytest.mark.slow
def test_fp8_spends_a_budget_of_bits(tmp_path):
    out = tmp_path/'run'
    d = whole(cook('fp8', '-p', 'budget=9.0', '-p', 'keep=*.0.self_attn.o_proj', '-p', 'max_windows=8', out=out), out)
    more = d['details']
    assert 8.8 < more['bits'] <= 9 and more['keep'][0] == '*.0.self_attn.o_proj' and len(more['keep']) > 2
    p = d['runtime']['parity']
    assert p['passed'] and p['linears'] == p['expected'] < 56
    left = json.loads((out/'checkpoint'/'hf_quant_config.json').read_text())['quantization']['exclude_modules']
    assert set(more['keep'][1:]) <= set(left)
    assert not [f for f in more['findings']['findings'] if f['level'] == 'error']
