"Recipes end to end in smoke size: what they leave behind, and how they end when something is wrong."
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import warm

ROOT = Path(__file__).resolve().parent.parent

def cook(recipe, *args, out, cwd=None):
    "Run it in a forked kernel, from a folder that is not the checkout."
    return warm.command('run', recipe, '--size', 'smoke', *args, '-o', out, cwd=cwd or out.parent)

def results(out):
    return json.loads((out/'results.json').read_text())

def whole(r, out):
    "What every finished run leaves."
    assert r.returncode == 0, r.stderr[-2000:]
    assert {'executed.ipynb', 'report.html', 'results.json', 'figures'} <= {p.name for p in out.iterdir()}
    html = (out/'report.html').read_text()
    assert 'src="http' not in html and 'data:image/png;base64' in html
    d = results(out)
    assert d['schema'] == 2 and d['size'] == 'smoke' and all(s['status'] in ('ran', 'skipped') for s in d['stages'])
    assert all(s.get('reason') for s in d['stages'] if s['status'] == 'skipped')
    return d

# ---- fp8

@pytest.fixture(scope='module')
def fp8(tmp_path_factory):
    "The command as a user runs it, a process that starts its own kernel."
    out = tmp_path_factory.mktemp('runs')/'fp8'
    command = [sys.executable, '-m', 'tqcook', 'run', 'fp8', '--size', 'smoke', '-o', str(out)]
    env = dict(os.environ, PYTHONPATH=str(ROOT), TQCOOK_RECIPES=str(ROOT/'recipes'))
    return subprocess.run(command, cwd=out.parent, env=env, capture_output=True, text=True, timeout=420), out

def test_fp8_results(fp8):
    d = whole(*fp8)
    q = d['quality']
    assert d['model']['weights'] == 'trained' and d['scheme'] == 'fp8'
    assert 5 < q['ppl_base'] < 20
    assert 0.99 < q['ppl_ratio'] < 1.05
    assert abs(q['ppl_quant'] / q['ppl_base'] / q['ppl_ratio'] - 1) < 1e-6
    lo, hi = q['ppl_ratio_ci95']
    assert lo < q['ppl_ratio'] < hi and q['verdict'] in ('PASS', 'FAIL', 'INCONCLUSIVE')
    assert 0 < q['kld_mean'] < .05 and .9 < q['top1_agreement'] < 1
    p = d['runtime']['parity']
    assert p['passed']
    assert p['linears'] == p['expected'] == 56
    assert 0 < p['worst'] <= 4e-3
    assert p['logits'] <= 0.5 * p['cost']
    assert .5 < d['size_bytes']['quantized'] / d['size_bytes']['base'] < .65
    assert d['environment']['torch'] and d['seconds']['total'] > 0

def test_fp8_steps_add_up(fp8):
    s = {k: math.log(v['ppl_ratio']) for k, v in results(fp8[1])['quality']['steps'].items()}
    assert abs(s['format'] + s['export'] + s['kernels'] - s['total']) < 1e-6

def test_fp8_checkpoint_loads_with_safetensors(fp8):
    from safetensors.torch import load_file
    ckpt = fp8[1]/'checkpoint'
    t = load_file(ckpt/'model.safetensors')
    w = t['model.layers.0.self_attn.q_proj.weight']
    assert str(w.dtype) == 'torch.float8_e4m3fn' and t['model.layers.0.self_attn.q_proj.weight_scale'].ndim == 0
    assert json.loads((ckpt/'hf_quant_config.json').read_text())['quantization']['quant_algo'] == 'FP8'
    assert {'tokenizer.json', 'README.md', 'passport.json'} <= {p.name for p in ckpt.iterdir()}

def test_fp8_checkpoint_has_no_errors(fp8):
    assert not [f for f in results(fp8[1])['details']['findings']['findings'] if f['level'] == 'error']

def test_executed_notebook_tells_no_secrets(fp8):
    text = (fp8[1]/'executed.ipynb').read_text()
    assert 'HF_TOKEN' not in text and str(Path.home()) not in text.replace(str(fp8[1]), '')

@pytest.mark.slow
def test_fp8_on_a_gpu_without_fp8(tmp_path):
    "On Ampere the file is dequantized instead of run, and the recipe says so; the table's A100 stands in for one."
    nb = (ROOT/'recipes/01_fp8.ipynb').read_text()
    a100 = "__import__('tqcook.device').device.lookup('a100')"
    spoilt = nb.replace('here = schemes.runs_on(s, dev)', f'here = schemes.runs_on(s, {a100})')
    assert spoilt != nb
    (tmp_path/'01_fp8.ipynb').write_text(spoilt)
    out = tmp_path/'run'
    shutil.copytree(ROOT/'recipes/params', tmp_path/'params') # sizes stand beside a recipe
    d = whole(cook(str(tmp_path/'01_fp8.ipynb'), '-p', 'max_windows=8', '-p', 'calib_samples=8', out=out), out)
    skipped = {s['name']: s['reason'] for s in d['stages'] if s['status'] == 'skipped'}
    assert 'sm80' in skipped['parity'] and 'parity' not in d['runtime'] and d['runtime']['how'] == 'fake'
    assert set(d['quality']['steps']) == {'format', 'export', 'total'}

# ---- bad input: one clear line, a non-zero exit, nothing half-made

@pytest.mark.parametrize('args, code, words', [
    (['-p', 'nosuch=1'], 2, ['nosuch']),
    (['-p', 'calib_samples=abc'], 2, ['calib_samples', 'int']),
    (['-p', 'model=/no/such/model'], 1, ['/no/such/model', 'does not exist']),
    (['-p', 'scheme=fp9'], 2, ['fp9', 'fp8']),
    (['-p', 'calib_samples=0'], 2, ['calib_samples', 'at least 1']),
    (['-p', 'device=cuda:7'], 1, ['cuda:7']),
])
def test_bad_parameters(tmp_path, args, code, words):
    out = tmp_path/'run'
    r = cook('fp8', *args, out=out)
    assert r.returncode == code, (r.returncode, r.stderr[-800:])
    last = r.stderr.strip().splitlines()[-1]
    for w in words:
        assert w in last, (w, last)
    assert 'Traceback' not in r.stderr
    assert not (out/'results.json').exists() and not (out/'checkpoint').exists()

def test_an_engine_that_takes_no_such_scheme_is_named_before_any_work(tmp_path):
    r = cook('fp8', '--for', 'sglang', '-p', 'scheme=mxfp8', '-p', 'model=shape:llama-3.1-8b', out=tmp_path/'out')
    assert r.returncode == 1 and 'sglang loads mxfp8 in no layout; it takes fp8' in r.stderr
    assert not (tmp_path/'out').exists()

@pytest.mark.slow
def test_a_format_that_fails_is_attributed(tmp_path):
    "A base that was read once is a record; what does the damage is asked of the model."
    out = tmp_path/'run'
    args = 'scheme=nvfp4 max_windows=8 calib_samples=8'.split()
    d = whole(cook('fp8', '--size', 'smoke', *(x for a in args for x in ('-p', a)), out=out), out)
    assert d['quality']['verdict'] == 'FAIL'
    assert next(s for s in d['stages'] if s['name'] == 'attribution')['status'] == 'ran'


def test_fp8_stops_early_and_its_steps_are_of_what_both_read(tmp_path):
    "The steps rest on the windows that both comparisons read."
    small = 'early=True max_windows=40 calib_samples=8 context=64 new_tokens=4 scheme=nvfp4'
    d = whole(cook('fp8', '--size', 'smoke', *(x for a in small.split() for x in ('-p', a)), out=tmp_path/'run'),
              tmp_path/'run')
    q = d['quality']
    assert q['verdict'] == 'FAIL' and q['early']['look'] < q['early']['looks']
    assert q['windows'] == q['early']['windows'] < q['early']['of'] == 40
    s = {k: math.log(v['ppl_ratio']) for k, v in q['steps'].items()}
    assert abs(sum(v for k, v in s.items() if k != 'total') - s['total']) < 1e-6
    assert s['total'] == pytest.approx(math.log(q['ppl_ratio']), abs=1e-3)


@pytest.mark.slow
def test_fp8_chooses_the_strength_of_a_scheme_that_smooths(tmp_path):
    small = 'max_windows=8 calib_samples=10 calib_length=64 context=64 new_tokens=4 scheme=int8_sq'
    d = whole(cook('fp8', '--size', 'smoke', *(x for a in small.split() for x in ('-p', a)), out=tmp_path/'run'),
              tmp_path/'run')
    assert next(s for s in d['stages'] if s['name'] == 'choose alpha')['status'] == 'ran'


def test_output_folder_that_cannot_be(tmp_path):
    (tmp_path/'file').write_text('in the way')
    r = cook('fp8', out=tmp_path/'file'/'run', cwd=tmp_path)
    assert r.returncode in (1, 2) and 'Traceback' not in r.stderr and 'file' in r.stderr

def test_an_earlier_run_is_moved_aside(tmp_path):
    out = tmp_path/'run'
    out.mkdir()
    (out/'results.json').write_text('{}')
    cook('fp8', '-p', 'scheme=fp9', out=out)
    assert any((p/'results.json').exists() for p in tmp_path.iterdir()), 'the earlier result is gone'
