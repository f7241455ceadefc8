"No link of a page or notebook is dead, offline: files are there, and so are the headings that anchors name."
import json
import re

import pytest

from make_readme import ROOT

PAGES = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('recipes/gallery/**/README.md'))
PAGES += sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob('nbs/*.ipynb'), *ROOT.glob('recipes/*.ipynb')])


def prose(path):
    "A page without code; of a notebook, its cells of text and what they show."
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb':
        cells = json.loads(text)['cells']
        text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return re.sub(r'(?s)```.*?```|`[^`\n]*`', '', text)


def anchor(heading):
    "A heading as GitHub's anchor: lower case, no punctuation, hyphens for blanks."
    return re.sub(r'[^\w -]', '', heading.lower().strip()).replace(' ', '-')


def anchors(path):
    "Anchors of a page: those of its headings, as they stand with their code."
    text = path.read_text(encoding='utf-8')
    return {anchor(h) for h in re.findall(r'(?m)^#+ (.*)$', text)}


def dead(path):
    "Links of a page that lead nowhere."
    found = re.findall(r'\]\(([^)\s]+)', prose(path))
    for link in found:
        if re.match(r'https?:|mailto:|data:', link) or '{' in link:
            continue
        name, _, place = link.partition('#')
        target = path.parent/name if name else path
        if not target.exists() or place and target.suffix == '.md' and place not in anchors(target):
            yield link


@pytest.mark.parametrize('page', PAGES)
def test_no_link_is_dead(page):
    assert list(dead(ROOT/page)) == []


def test_dead_links_are_found(tmp_path):
    "Negative control: a file that is not there, a heading that is not there."
    page = tmp_path/'page.md'
    page.write_text('# A *first* page, `x`\n[a](#a-first-page-x) [b](page.md#no) [c](no.md) [d](https://example.org)\n')
    assert list(dead(page)) == ['page.md#no', 'no.md']
