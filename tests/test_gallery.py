"The gallery holds finished runs of recipes that exist, small enough to read, and its table is theirs."
import json

import pytest

import make_gallery
from make_gallery import GALLERY, ROOT

RUNS = sorted(path.parent for path in GALLERY.rglob('results.json'))
each_run = pytest.mark.parametrize('run', RUNS, ids=lambda p: p.relative_to(GALLERY).as_posix())


def test_the_table_is_current():
    assert (GALLERY/'README.md').read_text() == make_gallery.readme(), 'run python tests/make_gallery.py'
    assert len(RUNS) == sum(line.startswith('| [') for line in make_gallery.table().splitlines())


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
