"The site: every notebook and recipe has its page, nothing hidden is shown, and nothing is fetched from elsewhere."
import importlib.util
import json
import re
import sys

import pytest

from make_readme import ROOT
from test_links import dead
from tqcook.recipe import EXIT

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
    assert llms.startswith('# tqcook\n\n> ') and '(recipes/gallery/README.html)' in llms
    assert '0 done or PASS' in llms and sorted(EXIT.values()) == [0, 10, 11]
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


def test_no_link_is_dead_or_leads_to_a_folder(source):
    "A folder is a page on GitHub and none here."
    folder, _ = source
    for path in [*folder.rglob('*.md'), *folder.rglob('*.ipynb')]:
        assert list(dead(path)) == [], path
    links = re.findall(r'\]\(([^)#\s]+)', (folder/'recipes/gallery/README.md').read_text())
    assert 'h200/01_fp8/executed.ipynb' in links and 'h100/speed/README.md' in links
    assert not [link for link in links if (folder/'recipes/gallery'/link).is_dir()]


def test_hidden_cells_and_noise():
    cell = {'cell_type': 'code', 'metadata': {}, 'source': '#| hide\n1', 'outputs': []}
    noise = {'output_type': 'stream', 'name': 'stderr', 'text': 'x'}
    noisy = cell | {'source': '#| echo: false\n1', 'outputs': [noise]}
    assert build.shown(cell) is None
    found = build.shown(noisy)
    assert (found['source'], found['outputs'], found['metadata']['tags']) == ('1', [], ['remove-input'])


def test_a_run_has_its_name_in_its_title(source):
    folder, _ = source
    pages = 'recipes/gallery/h100/01_fp8/executed.ipynb', 'recipes/01_fp8.ipynb'
    titles = [build.title(folder/name)[0] for name in pages]
    assert titles == ['FP8, from model to checkpoint (h100/01_fp8)', 'FP8, from model to checkpoint']
    untitled = [{'cell_type': 'code', 'source': '# no title'}]
    assert build.named(untitled, 'x') == untitled


def test_figures_have_names_and_those_too_wide_for_a_phone_are_marked(source):
    folder, _ = source
    cells = json.loads((folder/'recipes/01_fp8.ipynb').read_text())['cells']
    drawn = [c for c in cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    images = [c['metadata']['mystnb']['image'] for c in drawn]
    assert [image['classes'] for image in images] == ['wide', 'narrow']  # 651 and 472 pixels
    assert all(re.match('Figure: [A-Z]', image['alt']) for image in images)


def test_figures_follow_the_theme():
    "Paper turns to the dark page's color, #131416; nothing paints it white again."
    styles = {}
    exec((ROOT/'docs/conf.py').read_text(), styles)
    options = styles['html_theme_options']
    assert options['light_css_variables']['figure-filter'] == 'none'
    share = float(re.match(r'invert\((.*?)\) hue-rotate', options['dark_css_variables']['figure-filter'])[1])
    assert 0x13 <= 255 * (1 - share) <= 0x16
    css = (ROOT/'docs/_static/tqcook.css').read_text()
    assert re.search(r'article img \{[^}]*filter: var\(--figure-filter\)', css) and 'background: #' not in css


def test_front_matter_is_code():
    output = {'data': {'text/markdown': ['---\n', 'tags: x\n', '---\n', '# A\n', '---\n']}}
    assert build.card(output)['data']['text/markdown'] == '```yaml\ntags: x\n```\n# A\n---\n'
    assert build.card({'data': {'text/plain': '1'}}) == {'data': {'text/plain': '1'}}


def broken(site):
    "Links and anchors of the pages that lead nowhere, as (page, link)."
    pages = {path: path.read_text(encoding='utf-8') for path in site.rglob('*.html')}
    ids = {path: set(re.findall(r'\sid="([^"]+)"', text)) | {''} for path, text in pages.items()}
    for path, text in pages.items():
        for link in re.findall(r'<(?:a|img|link|script)\b[^>]*?\s(?:href|src)="([^"]+)"', text):
            name, _, place = link.partition('#')
            target = (path.parent/name.partition('?')[0]).resolve() if name else path
            if re.match(r'https?:|data:|mailto:|#$', link):
                continue
            if not target.exists() or target in ids and place not in ids[target]:
                yield path.name, link


def test_broken_links_of_the_site_are_found(tmp_path):
    "Negative control."
    (tmp_path/'a.html').write_text('<p id="here"><a href="#here"> <a href="a.html#no"> <img src="no.png">')
    assert list(broken(tmp_path)) == [('a.html', 'a.html#no'), ('a.html', 'no.png')]


@pytest.mark.skipif(not importlib.util.find_spec('furo'), reason='`make site` installs what this needs')
def test_it_builds_without_a_network(tmp_path):
    assert build.main(['-W', '--keep-going'], tmp_path) == 0  # a warning is a failure
    pages = list((tmp_path/'site').rglob('*.html'))
    assert len(pages) > 30 and (tmp_path/'site/llms.txt').exists() and (tmp_path/'site/searchindex.js').exists()
    assert [b for b in broken(tmp_path/'site') if b[1] != '#harmful-link'] == []  # what a report makes of some links
    home = (tmp_path/'site/index.html').read_text()
    assert home.count('--figure-filter: invert') == 2 and '--figure-filter: none' in home  # chosen, or asked for
    elsewhere = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(?:https?:)?//[^"]+')
    assert [page.name for page in pages if elsewhere.search(page.read_text())] == []
