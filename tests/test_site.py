"The site: every notebook and recipe has its page, nothing hidden is shown, and nothing is fetched from elsewhere."
import importlib.util
import json
import re
import sys

import pytest

from make_readme import ROOT

sys.path.insert(0, str(ROOT/'docs'))
import build


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')/'source'
    return folder, build.assemble(folder)


def test_every_notebook_has_a_page(source):
    folder, llms = source
    for name in 'nbs', 'recipes':
        for path in (ROOT/name).glob('[0-9]*.ipynb'):
            assert (folder/name/path.name).exists()
            assert f'({name}/{path.stem}.html)' in llms
    index = (folder/'index.md').read_text()
    assert 'recipes/gallery/README' in index and index.count('```{toctree}') == 3


def test_directives_and_hidden_cells_are_gone(source):
    folder, _ = source
    for path in folder.rglob('*.ipynb'):
        for cell in json.loads(path.read_text())['cells']:
            text = ''.join(cell['source'])
            assert not re.search(r'^#\|', text, re.M) and 'nbdev_export()' not in text, path.name


def test_recipes_are_shown_as_they_ran(source):
    "The gallery's notebook where there is one: its figures are in the page."
    folder, _ = source
    assert (ROOT/'recipes/gallery/h200/01_fp8/executed.ipynb').exists()
    assert 'image/png' in (folder/'recipes/01_fp8.ipynb').read_text()


def test_hidden_cells_and_noise():
    cell = {'cell_type': 'code', 'metadata': {}, 'source': '#| hide\n1', 'outputs': []}
    noise = {'output_type': 'stream', 'name': 'stderr', 'text': 'x'}
    noisy = cell | {'source': '#| echo: false\n1', 'outputs': [noise]}
    assert build.shown(cell) is None
    assert build.shown(noisy) == cell | {'source': '1', 'metadata': {'tags': ['remove-input']}}


@pytest.mark.skipif(not importlib.util.find_spec('furo'), reason='`make site` installs what this needs')
def test_it_builds_without_a_network(tmp_path):
    assert build.main([], tmp_path) == 0
    pages = list((tmp_path/'site').rglob('*.html'))
    assert len(pages) > 30 and (tmp_path/'site/llms.txt').exists() and (tmp_path/'site/searchindex.js').exists()
    elsewhere = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(?:https?:)?//[^"]+')
    assert [page.name for page in pages if elsewhere.search(page.read_text())] == []
