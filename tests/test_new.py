"A recipe that `tqcook new` wrote passes what every recipe passes, and runs, before anyone touches it."
import json
import shutil
import subprocess
import sys

import pytest

import test_notebooks as notebooks
import warm
from tqcook import cli


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A copy of the recipes with one more."
    folder = tmp_path_factory.mktemp('kitchen')
    left_out = shutil.ignore_patterns('gallery', 'runs', '.ipynb_checkpoints')
    shutil.copytree(notebooks.REPO/'recipes', folder/'recipes', ignore=left_out)
    shutil.copy(notebooks.REPO/'settings.ini', folder/'settings.ini')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQCOOK_RECIPES', str(folder/'recipes'))
        assert cli.main(['new', 'my_recipe']) == 0
    return next((folder/'recipes').glob('*_my_recipe.ipynb'))


def test_it_has_the_form_of_a_recipe(made, tmp_path):
    notebooks.test_recipe_form(made)
    notebooks.test_papermill_sees_every_parameter(made)
    notebooks.test_injected_cell_comes_after_the_defaults(made, tmp_path)
    notebooks.test_recipes_do_not_ask_or_leak(made)


def test_it_is_clean_and_in_the_same_handwriting(made):
    before = made.read_text()
    notebooks.nbdev('nbdev_clean', '--fname', str(made), cwd=made.parent.parent)
    assert made.read_text() == before
    command = [sys.executable, '-m', 'ruff', 'check', '--config', str(notebooks.REPO/'ruff.toml'), str(made)]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_it_runs(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('TQCOOK_RECIPES', str(made.parent))
    monkeypatch.chdir(tmp_path)
    with warm.kernels():
        assert cli.main(['run', 'my_recipe', '-q']) == 0
    results = json.loads((tmp_path/'runs/my_recipe/results.json').read_text())
    assert results['recipe'] == 'my_recipe' and 5 < results['details']['perplexity'] < 20


@pytest.mark.parametrize('name,says', [('My recipe', 'lower case'), ('../x', 'lower case'), ('fp8', 'already')])
def test_names_that_cannot_be(capsys, monkeypatch, name, says):
    monkeypatch.setenv('TQCOOK_RECIPES', str(notebooks.REPO/'recipes'))
    assert cli.main(['new', name]) == 1 and says in capsys.readouterr().err
