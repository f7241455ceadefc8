"The gallery holds finished runs of recipes that exist, small enough to read, and its table is theirs."
import json
import re

import pytest

import make_gallery
import make_matrix
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
    quality = dict(ppl_ratio=1.01, ppl_ratio_ci95=[1., 1.02], verdict='PASS', windows=8)
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


@each_run
def test_an_entry_is_whole_and_small(run):
    results = json.loads((run/'results.json').read_text())
    assert any(p.stem.split('_', 1)[1] == results['recipe'] for p in (ROOT/'recipes').glob('[0-9]*.ipynb'))
    assert results['environment']['torch'] and results['environment']['device']['name']
    assert (run/'executed.ipynb').stat().st_size < 500_000
    text = (run/'executed.ipynb').read_text()
    assert '"ename"' not in text and str(ROOT) not in text
    assert not list(run.rglob('*.safetensors'))


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
