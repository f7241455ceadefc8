"README.md is made from nbs/index.ipynb, and what any page tells people to type exists."
import json
import re

import pytest

from make_readme import INDEX, LAUNCHER, ROOT, launcher, readme, refreshed, written

PAGES = [p for p in ('README.md', 'nbs/index.ipynb', 'CHANGELOG.md', 'CONTRIBUTING.md') if (ROOT/p).exists()]


def content(page):
    "The text of a page; of a notebook, of all its cells."
    text = (ROOT/page).read_text(encoding='utf-8')
    if page.endswith('.ipynb'):
        return '\n'.join(''.join(c['source']) for c in json.loads(text)['cells'])
    return text


def typed(text):
    "What stands in blocks of shell commands and between single backticks, a line each."
    blocks = re.findall(r'```(?:bash|sh|console|)\n(.*?)```', text, re.S) + re.findall(r'`([^`\n]+)`', text)
    return [line.strip().lstrip('$ ') for block in blocks for line in block.split('\n')]


def verbs():
    from tqcook import cli
    groups = cli.parser()._subparsers._group_actions
    return set(groups[0].choices)


def targets():
    return set(re.findall(r'^([a-z][\w-]*):', (ROOT/'Makefile').read_text(), re.M))


def test_readme_is_current():
    assert (ROOT/'README.md').read_text() == readme(), 'README.md and nbs/index.ipynb differ: run `make prepare`'
    assert INDEX.read_text() == written(refreshed()), 'outputs of nbs/index.ipynb are old: run `make prepare`'


def test_the_launcher_lists_every_recipe():
    "JupyterLab opens on it; it is none itself."
    from tqcook import recipe
    assert json.loads(LAUNCHER.read_text()) == launcher(), 'run `make prepare`'
    assert f'recipes/{LAUNCHER.name}' in (ROOT/'Makefile').read_text()
    names = recipe.recipe_paths()
    assert 'index' not in names and all(f'[{name}](' in LAUNCHER.read_text() for name in names)


@pytest.mark.parametrize('page', PAGES)
def test_documented_commands_exist(page):
    from tqcook import recipe
    for line in typed(content(page)):
        for target in re.findall(r'^make ([\w-]+)', line):
            assert target in targets(), line
        for verb, name in re.findall(r'^(?:python -m )?tqcook ([\w-]+)(?: ([\w./-]+))?', line):
            assert verb in verbs() or verb.startswith('-'), line
            if verb == 'run' and name and not name.startswith('-'):
                recipe.find_recipe(name)
        for path in re.findall(r'(?<![\w/.-])((?:recipes|nbs|tests)/[\w./-]+\.\w+)', line):
            assert (ROOT/path).exists(), line


def test_the_readme_names_the_verbs_that_matter():
    assert {'run', 'list'} <= {line.split()[1] for line in typed(readme()) if line.startswith('tqcook ')}


def test_make_targets_are_the_documented_ones():
    "The help at the top of the Makefile has every target but those that other targets and programs use."
    text = (ROOT/'Makefile').read_text()
    helped = set(re.findall(r'^# make ([\w-]+)', text, re.M))
    assert targets() == helped | {'help', 'install', 'readme'}
    assert targets() == set(re.search(r'^\.PHONY: (.*)', text, re.M)[1].split())
