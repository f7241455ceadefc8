"The gallery holds finished runs of recipes that exist, small enough to read, and its table is theirs."
import json
import re

import pytest

import make_gallery
import make_matrix
import make_measured
from make_gallery import GALLERY, ROOT
from make_matrix import matrix
from tqcook.schemes import SCHEMES

RUNS = sorted(path.parent for path in GALLERY.rglob('results.json'))
each_run = pytest.mark.parametrize('run', RUNS, ids=lambda p: p.relative_to(GALLERY).as_posix())


def test_the_table_is_current():
    assert (GALLERY/'README.md').read_text() == make_gallery.readme(), 'run python tests/make_gallery.py'
    rows = [line for line in make_gallery.table().splitlines() if line.startswith('| [')]
    assert all(any(f'({run.relative_to(GALLERY).as_posix()})' in row for row in rows) for run in RUNS)


def test_the_matrix_has_every_format_and_only_what_was_measured():
    "A cell is empty or links to the run that it is from; of two runs the one of the exported file stands there."
    lines = matrix().splitlines()
    cells = [cell.strip() for line in lines[2:] for cell in line.split('|')[2:-1]]
    links = [re.fullmatch(r'(?s)\[[\d.]+\]\((.+?)\).*', cell) for cell in cells if cell]
    assert links and all(links) and '' in cells
    assert all((GALLERY/link[1]).is_dir() for link in links)
    assert [line.split('`')[1] for line in lines[2:]] == ['bf16', *SCHEMES]
    ratio = json.loads((GALLERY/'h200/01_fp8/results.json').read_text())['quality']['ppl_ratio']
    assert f'[{ratio:.4f}](h200/01_fp8)' in matrix()


def test_what_a_server_answered_is_not_fake(tmp_path):
    "Its file was run, by the engine that loaded it."
    quality = dict(ppl_ratio=1.01, ppl_ratio_ci95=[1., 1.02], verdict='PASS', windows=8, source='code', kld_mean=.01)
    run = dict(model=dict(name='demo'), scheme='int8_token', quality=quality)
    for more, fake in ({}, True), (dict(served=dict(engine='vllm')), False):
        (tmp_path/'results.json').write_text(json.dumps(run | more))
        (*_, cell), = make_matrix.from_results(tmp_path/'results.json')
        assert cell.endswith('fake') == fake


def test_fake_quantization_says_so():
    "Negative control: the same comparison, told of what was run."
    said = {how: make_matrix.quality(1.01, (1., 1.02), 'PASS', how) for how in make_matrix.HOW}
    assert len(set(said.values())) == len(said)
    assert said['fake quantization'].endswith('fake')


def results(recipe, **keys):
    "A run's results with a quality that passed, as far as the tables look."
    quality = dict(ppl_ratio=1.01, ppl_ratio_ci95=[1., 1.02], verdict='PASS', windows=8, kld_mean=.1)
    quality['source'] = 'code (Python 3)'
    return dict(recipe=recipe, scheme='fp8', model=dict(name='demo'), quality=quality) | keys


def variant(scheme, ratio, kld, **keys):
    return dict(scheme=scheme, quality=results('')['quality'] | dict(ppl_ratio=ratio, kld_mean=kld), **keys)


def cells_of(tmp_path, found):
    (tmp_path/'results.json').write_text(json.dumps(found))
    return list(make_matrix.from_results(tmp_path/'results.json'))


def test_variants_stand_for_their_scheme(tmp_path):
    "Not those of another model, nor with layers left out, nor badly calibrated; the least divergent strength leads."
    tried = [variant('int8_sq', 1.2, .5, alpha='off'), variant('int8_sq', 1.1, .2, alpha=.9),
             variant('int8_wo', 1.3, .1, model='demo + outliers'), variant('nvfp4', 1.4, .1, keep=['lm_head'])]
    found = cells_of(tmp_path, results('int8', runtime=dict(parity={}), variants=tried))
    assert [(scheme, cell.split()[0]) for _, scheme, _, _, cell in found] == [
        ('fp8', '1.0100'), ('int8_sq', '1.2000'), ('int8_sq', '1.1000')]
    own, off, best = found
    assert own[3] > best[3] > off[3] and own[2] == 'perplexity ratio, code'
    assert 'fake' not in own[4] and best[4].endswith('fake, SmoothQuant 0.9') and 'SmoothQuant' not in off[4]
    texts = [variant('fp8', 1.2, .1, name='wrong'), variant('fp8', 1.1, .1, name='right')]
    found = cells_of(tmp_path, results('calibration_data', variants=texts, details=dict(reference='right')))
    assert [cell.split()[0] for *_, cell in found] == ['1.0100', '1.1000']


def test_values_rounded_in_a_file_are_fake_too(tmp_path):
    (native,) = cells_of(tmp_path, results('blackwell', runtime=dict(how='native', parity={})))
    (fake,) = cells_of(tmp_path, results('blackwell', runtime=dict(how='fake')))
    assert 'fake' not in native[4] and fake[4].endswith('fake')


def test_decoding_rates_come_from_every_recipe_that_measures_them(tmp_path):
    passing = dict(before=100., after=150., batch=1, context=512)
    found = cells_of(tmp_path, results('fp8', quality=None, kv='none', runtime=dict(speed=passing)))
    assert [(f[1], f[4]) for f in found] == [('bf16', '100'), ('fp8', '150 (1.50x)')]
    passing['context'] = 64
    assert cells_of(tmp_path, results('fp8', quality=None, kv='none', runtime=dict(speed=passing))) == []
    point = dict(model='a', phase='decode', kv='none', batch=1, context=512, scheme='none', tokens_per_second=7.)
    (found,) = cells_of(tmp_path, results('bandwidth', quality=None, roofline=dict(points=[point])))
    assert found[:3] == ('a', 'bf16', 'tokens/s') and found[4] == '7'


def test_one_model_is_one_column():
    names = '.Q4_1 (Q4_1, dequantized to bfloat16)', ', Q4_1 dequantized to BF16'
    assert {make_matrix.model_name('SmolLM2-135M-Instruct' + name) for name in names} == {'SmolLM2-135M-Instruct'}
    assert all(make_matrix.model_name(name) == name for name in ('demo', 'shape:llama-3.1-8b', 'Qwen/Qwen3-8B'))


def test_each_recipe_says_what_a_reader_looks_for():
    said = make_gallery.headline
    best = dict(name='int8_token, alpha 0.6', bits=8.104)
    assert said(results('choose', details=dict(choice=dict(chosen=best)))).startswith(
        'int8_token, alpha 0.6, 8.10 bits a weight: PASS, perplexity times 1.0100')
    assert said(results('choose', quality=None)).startswith('nothing stayed inside the budget')
    formats = [variant('nvfp4', 1.05, .1)]
    assert said(results('blackwell', variants=formats)).endswith('; of rounded values +5.0% in nvfp4')
    tried = [variant('fp8', 1, 0, difference=dict(ci95=ci)) for ci in ([.1, .2], [-.1, .1])]
    assert '; 1 of 2 calibrations measurably worse' in said(results('calibration_data', variants=tried))
    points = [dict(what='decode', scheme=s, kv='none', batch=1, tokens=512, tokens_per_second=r)
              for s, r in (('bf16', 100.), ('fp8', 150.))]
    fast = results('speed', runtime=dict(speed=dict(points=points)))
    assert said(fast) == 'one sequence: 150 tokens/s in fp8, 100 in bf16'
    at = dict(model='demo', phase='decode', kv='none', batch=1, context=512)
    points = [at | dict(scheme='none', measured=3.), at | dict(scheme='fp8', measured=2.)]
    roofline = dict(points=points, judged=dict(points=2, median=.1, worst=.25))
    assert said(results('bandwidth', roofline=roofline)) == (
        '2 predictions off by 10% in the median, 25% at worst; fp8 decodes 1.50 to 1.50 times as fast as BF16')


LOG = """\
A GPU: compare 6.98 s, two bare forward passes 6.12 s, ratio 1.142, extra memory 2.83 GB (8 B)
fp8 none                 worst linear 2.02e-03  logits in step 2.62e-03
fp8 fp8                  worst linear 9.99e-03  logits in step 2.62e-03
A GPU, driver 580.1, PyTorch 2.11.0: microseconds (median of 9)
    M              N     K              BF16      FP8 product  FP8 slow accum.
    1 qkv       6144  4096       25.0  1.00x      50.0  0.50x      48.4  0.52x
   16 o         4096  4096       30.5  1.00x      45.3  0.67x      44.9  0.68x
"""


def test_a_log_of_the_gpu_tests_becomes_figures():
    "What stands in it, and nothing else: the cache in FP8 is another run, and a score was not printed."
    found = make_measured.parsed(LOG)
    assert found['compare'] == dict(seconds=6.98, two_forward_passes=6.12, ratio=1.142, extra_bytes=2_830_000_000)
    assert (found['device'], found['driver'], found['parity']) == ('A GPU', '580.1', {'fp8': 2.02e-3})
    shapes = [(p['rows'], p['layer'], p['n'], p['k']) for p in found['products']]
    assert shapes == [(1, 'qkv', 6144, 4096), (16, 'o', 4096, 4096)] and 'score' not in found
    assert found['products'][0]['microseconds'] == {'BF16': 25., 'FP8 product': 50., 'FP8 slow accum.': 48.4}
    assert make_measured.parsed('no figures') == {}


def test_measured_tables_hold_each_device():
    for path in GALLERY.glob('*/gpu_tests.json'):
        found = json.loads(path.read_text())
        assert found['device'] in make_measured.measured() and found['source'] in make_measured.measured()
        (p,) = [p for p in found['products'] if (p['rows'], p['layer']) == (8192, 'down')]
        times = p['microseconds']
        assert f"{times['FP8 product']:.4g} ({times['BF16'] / times['FP8 product']:.2f}x)" in make_measured.matmuls()


@each_run
def test_an_entry_is_whole_and_small(run):
    results = json.loads((run/'results.json').read_text())
    assert any(p.stem.split('_', 1)[1] == results['recipe'] for p in (ROOT/'recipes').glob('[0-9]*.ipynb'))
    assert results['environment']['torch'] and results['environment']['device']['name']
    assert (run/'executed.ipynb').stat().st_size < 500_000
    text = (run/'executed.ipynb').read_text()
    assert '"ename"' not in text and str(ROOT) not in text
    assert not list(run.rglob('*.safetensors'))
    report = run/'report.html'
    links = re.findall(r'href="([^"]*)"', report.read_text()) if report.exists() else []
    assert all(link.startswith(('#', 'http')) for link in links)


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match='only finished runs'):
        make_gallery.take(tmp_path, tmp_path/'entry')
    assert not (tmp_path/'entry').exists()


def test_what_an_entry_keeps(tmp_path):
    run, entry = tmp_path/'run', tmp_path/'entry'
    (run/'checkpoint').mkdir(parents=True)
    (run/'figures').mkdir()
    (run/'results.json').write_text(json.dumps({'where': str(ROOT/'runs')}))
    (run/'report.html').write_text('<p>')
    noise = {'output_type': 'stream', 'name': 'stderr', 'text': 'x'}
    cell = {'cell_type': 'code', 'metadata': {'tags': ['a'], 'b': 1}, 'source': '1'}
    cell |= {'execution_count': 3, 'outputs': [noise]}
    (run/'executed.ipynb').write_text(json.dumps({'cells': [cell], 'metadata': {'papermill': {}}, 'nbformat': 4}))
    make_gallery.take(run, entry)
    assert sorted(p.name for p in entry.iterdir()) == ['executed.ipynb', 'figures', 'report.html', 'results.json']
    assert json.loads((entry/'results.json').read_text()) == {'where': '/path/to/tqcook/runs'}
    (kept,) = json.loads((entry/'executed.ipynb').read_text())['cells']
    assert kept == cell | {'metadata': {'tags': ['a']}, 'execution_count': None, 'outputs': []}
