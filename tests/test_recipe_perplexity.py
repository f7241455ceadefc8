"The gate as a user meets it: the recipe in smoke size and `tqcook compare` with its exit codes."
import json
import shutil

import pytest

pytest.importorskip('modelopt')
from tqcook.cli import main
from warm import command


@pytest.fixture(scope='module')
def gate(tmp_path_factory):
    cwd = tmp_path_factory.mktemp('gate')
    logs = []
    for name, right in (('a', [1, 1, 0, 1, 0, 1, 1, 1]), ('b', [1, 0, 0, 1, 1, 1, 1, 0])):
        logs.append(cwd/f'{name}.jsonl')
        logs[-1].write_text(
            '\n'.join(json.dumps(dict(doc_id=i, doc_hash=str(i), acc=float(r))) for i, r in enumerate(right))
        )
    return command(
        'run', 'perplexity', '--size', 'smoke', '-p', f'tasks_base={logs[0]}', '-p', f'tasks_quant={logs[1]}',
        '-o', 'out', cwd=cwd
    ), cwd/'out'


def test_recipe_results(gate):
    r, out = gate
    assert r.returncode == 0, r.stderr[-3000:]
    d = json.loads((out/'results.json').read_text())
    q = d['quality']
    for k in (
        'ppl_ratio',
        'ppl_ratio_ci95',
        'kld_mean',
        'kld_mean_ci95',
        'top1_agreement',
        'noise_floor',
        'min_detectable_ppl_ratio',
        'verdict',
        'policy',
    ):
        assert k in q
    assert q['policy'] == 'disjoint'
    assert q['verdict'] in ('PASS', 'INCONCLUSIVE')
    assert q['sharpness'] >= 50
    assert q['way'] == 'lockstep'
    assert 0.99 < q['ppl_ratio'] < 1.02
    assert 1 < q['min_detectable_ppl_ratio'] < 1.01
    assert q['noise_floor']['kld_mean']['value'] < q['kld_mean']
    at = d['details']['attribution']
    assert set(at) == {'layer', 'kind'}
    assert at['kind']['control']['kld'] == 0
    assert 0.5 < at['kind']['additivity'] < 2
    assert len(at['layer']['groups']) == 8
    left = d['details']['left_out']
    assert left['kld_after'] < left['kld_before']
    assert 8 <= q['effective_blocks'] <= q['blocks'] == 24 and 1 < q['documents'] < 24
    t = d['details']['tasks']
    assert (t['lost'], t['gained'], t['n']) == (2, 1, 8)
    p = d['details']['policies']
    assert p['sliding'] < p['disjoint'] and len(set(p.values())) == 4
    assert 'data:image/png;base64' in (out/'report.html').read_text()


def test_documents_of_unequal_size_are_counted(tmp_path):
    "One huge document among small ones: the run says how many independent pieces that is worth."
    from tqcook import texts
    docs = sorted(texts.code_documents(), key=len)
    rows = [docs[-1]] + [d[:1500] for d in docs[:-1]]
    (tmp_path/'unequal.jsonl').write_text('\n'.join(json.dumps(dict(text=d)) for d in rows))
    args = 'text=unequal.jsonl context=128 max_windows=40 attribution_windows=0 new_tokens=4 on_fail=report'.split()
    r = command('run', 'perplexity', *(x for a in args for x in ('-p', a)), '-o', 'out', cwd=tmp_path)
    assert r.returncode == 0, r.stderr[-3000:]
    q = json.loads((tmp_path/'out'/'results.json').read_text())['quality']
    assert q['blocks'] == 40 and 3 < q['documents'] <= len(rows) and 1 < q['effective_blocks'] <= 40
    assert f"{q['effective_blocks']:.1f}" in r.stdout and 'effective blocks' in r.stdout


@pytest.mark.slow
def test_kv_cache_by_position(tmp_path):
    "With kv=fp8 the cache is judged alone, at short and long context; its bytes a request are half."
    small = 'kv=fp8 kv_context=512 context=128 max_windows=32 attribution_windows=0 new_tokens=4 on_fail=report'
    args = [x for a in small.split() for x in ('-p', a)]
    r = command('run', 'perplexity', '--size', 'smoke', *args, '-o', 'o', cwd=tmp_path)
    assert r.returncode in (0, 11), r.stderr[-3000:]
    d = json.loads((tmp_path/'o'/'results.json').read_text())
    kv = d['details']['kv']
    assert list(kv) == ['128', '512'] and [len(x['by_position']) for x in kv.values()] == [4, 4]
    for x in kv.values():
        lo, hi = x['ppl_ratio_ci95']
        assert 0 < x['kld_mean'] < d['quality']['kld_mean'] and lo < x['ppl_ratio'] < hi
        assert x['requests']['fp8'] > 1.9 * x['requests']['none']
        assert sum(row['tokens'] for row in x['by_position']) == x['tokens']


def test_recipe_stops_early_once_the_verdict_is_settled(tmp_path):
    small = 'early=True max_kld=1e-5 max_windows=40 attribution_windows=0 context=64 new_tokens=4 on_fail=report'
    args = [x for a in small.split() for x in ('-p', a)]
    r = command('run', 'perplexity', '--size', 'smoke', *args, '-o', 'o', cwd=tmp_path)
    assert r.returncode == 0, r.stderr[-3000:]
    q = json.loads((tmp_path/'o'/'results.json').read_text())['quality']
    assert q['verdict'] == 'FAIL'
    assert q['early']['look'] < q['early']['looks']
    assert q['windows'] == q['early']['windows'] < q['early']['of'] == 40
    assert 'Stopped early, at look' in (tmp_path/'o'/'report.html').read_text()


def test_recipe_stops_on_fail(tmp_path):
    args = (
        '-p',
        'max_kld=1e-5',
        '-p',
        'max_windows=8',
        '-p',
        'attribution_windows=0',
        '-p',
        'context=128',
        '-p',
        'new_tokens=4',
    )
    r = command('run', 'perplexity', '--size', 'smoke', *args, '-o', 'raised', cwd=tmp_path)
    assert r.returncode == 1
    assert 'the quantized model failed: mean KL divergence' in r.stderr
    assert not (tmp_path/'raised'/'results.json').exists()


@pytest.mark.parametrize('windows,code,verdict', [(24, 0, 'PASS'), (4, 11, 'INCONCLUSIVE')])
def test_compare_exit_codes(demo_fp8, capsys, windows, code, verdict):
    assert main(['compare', 'demo', str(demo_fp8), '--device', 'cpu', '--max-windows', str(windows)]) == code
    assert verdict in capsys.readouterr().out


def test_compare_fails_a_broken_checkpoint(demo_fp8, tmp_path, capsys):
    "Halved weight scales: the file loads, the model talks, the verdict is FAIL."
    broken = halved(demo_fp8, tmp_path/'broken')
    assert main(['compare', 'demo', str(broken), '--device', 'cpu', '--max-windows', '8', '--context', '256']) == 10
    assert 'FAIL' in capsys.readouterr().out


def test_compare_refuses_an_impossible_budget(demo_fp8, tmp_path):
    r = command('compare', 'demo', str(demo_fp8), '--device', 'cpu', '--max-ppl-ratio', '0.9', cwd=tmp_path)
    assert r.returncode == 2 and '--max-ppl-ratio is 0.9' in r.stderr and 'Traceback' not in r.stderr


def halved(src, out):
    "A copy without its passport whose weight scales are half of what they should be."
    from safetensors import safe_open
    from safetensors.torch import save_file
    shutil.copytree(src, out, ignore=shutil.ignore_patterns('passport.json'))
    for f in out.glob('*.safetensors'):
        with safe_open(f, 'pt') as s:
            t, meta = {k: s.get_tensor(k) for k in s.keys()}, s.metadata()
        save_file({k: v / 2 if k.endswith('weight_scale') else v for k, v in t.items()}, f, metadata=meta)
    return out
