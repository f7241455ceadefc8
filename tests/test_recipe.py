"What a recipe may look like, what its parameters may be, and sizes."
import ast
from pathlib import Path

import nbformat
import pytest
import yaml

from toy import FINISH, PARAMS, START, write_recipe
from tqcook import cli, core, parameters, recipe

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture
def ours(monkeypatch):
    "The recipes of this checkout."
    monkeypatch.setenv('TQCOOK_RECIPES', str(ROOT/'recipes'))
    return {name: recipe.read_recipe(p) for name, p in recipe.recipe_paths().items()}

@pytest.mark.parametrize('params, said', [
    ('n = 3', 'needs a comment'), ('n = int(3)  # type: int x', 'not a literal'),
    ('n = 3  # type: int keep x>=2', 'no equals sign'), ("n = 'a'  # type: int x", 'expected int')])
def test_recipes_that_papermill_would_misread_are_refused(toy, cook, params, said):
    write_recipe(toy/'recipes', START, FINISH, name='01_toy.ipynb', params=params)
    code, line = cook()
    assert code == 2 and said in line

def test_a_recipe_without_its_tag_is_refused(toy, cook):
    nb = nbformat.read(toy/'recipes/01_toy.ipynb', 4)
    for c in nb.cells:
        c.metadata.pop('tags', None)
    nbformat.write(nb, toy/'recipes/01_toy.ipynb')
    code, line = cook('-p', 'n=5')
    assert code == 2 and '0 cells tagged parameters' in line

@pytest.mark.parametrize('text, said', [
    ('toy: {nn: 1}', "did you mean 'n'?"), ('toy: {n: many}', 'expected int'), ('toy: {fast: 1}', 'expected bool'),
    ('toy: 3', 'one section'), ('toy: {n: [', 'not valid YAML'), ('toy: {n: 1}\ntoy: {n: 2}', "'toy' stands twice"),
    ('toy: {n: 1, n: 2}', "'n' stands twice"), ('all: {model: m, tokens: 3}', 'which has no parameter tokens'),
    ('toi: {n: 1}', "not for recipe toy (did you mean 'toi'?)"), ('toy: {n: 012}', "n is '012'"),
    ('toy: {n: 1:30}', "n is '1:30'"), ('toy: {rate: 1:30.5}', "rate is '1:30.5'"),
    ('toy: {rate: .nan}', 'expected float')])
def test_size_files_are_strict(toy, cook, text, said):
    (toy/'recipes/params/big.yaml').write_text(text)
    code, line = cook('--size', 'big')
    assert code == 2 and said in line and not (toy/'runs').exists()

def test_yaml_and_the_command_line_mean_the_same(toy):
    "YAML alone would read `no` as false, `1e-5` as a text and `012` as ten."
    (toy/'recipes/params/big.yaml').write_text('toy: {model: no, rate: 1e-5, fast: off, alphas: [0.1, 0.2]}')
    toy = recipe.find_recipe('toy')
    told = dict(model='no', rate='1e-5', fast='off', alphas='0.1, 0.2')
    expected = dict(model='no', rate=1e-5, fast=False, alphas=[.1, .2])
    assert recipe.resolve(toy, 'big') == recipe.resolve(toy, '', told) == expected

def test_every_size_fits_every_recipe(ours):
    "The parameter files that ship: every section is a recipe, every key a parameter of its type."
    for path in sorted((ROOT/'recipes/params').glob('*.yaml')):
        for section, values in yaml.safe_load(path.read_text()).items():
            if section == 'all':
                assert any(set(values) <= set(r.parameters) for r in ours.values()), path.name
            else:
                assert recipe.resolve(ours[section], path.stem)

def test_one_meaning_for_a_parameter_everywhere(ours):
    "Every number, choice and scheme of every recipe stands in the table, and its default keeps the rule."
    types = {}
    for r in ours.values():
        for p in r.parameters.values():
            parameters.check(p.name, p.default)
            assert p.name in parameters.PARAMETERS or p.type in ('str', 'bool', 'list'), (r.name, p.name)
            assert types.setdefault(p.name, p.type) == p.type, f'{p.name} has two types'

@pytest.mark.parametrize('values', ['alphas=2', 'alphas=nan', 'alphas=0.5,nan', 'calib_samples=0', 'outlier_share=2',
                                    'keep=*', 'device=gpu', 'context=1', 'seed=-1'])
def test_ranges_are_checked_before_anything_runs(cook, toy, values):
    code, line = cook('-p', values, recipe=str(ROOT/'recipes/02_int8.ipynb'))
    assert code == 2 and values.split('=')[0] in line and not (toy/'runs').exists()

def test_plain_papermill_is_held_to_the_ranges_too(toy):
    write_recipe(toy/'recipes', FINISH, name='01_toy.ipynb', params=PARAMS.replace('n = 3', 'seed = 3'))
    with pytest.raises(core.CookError, match='seed is -1'):
        recipe.start('toy', dict(seed=-1))

def test_long_values_are_not_echoed(cook):
    code, line = cook('-p', 'n=' + 'x' * 5000)
    assert code == 2 and len(line) < 300
    code, line = cook('-p', 'y' * 5000 + '=1')
    assert code == 2 and len(line) < 300
    code, line = cook(recipe='z' * 5000)
    assert code == 2 and len(line) < 300

@pytest.mark.parametrize('content', ['[]', '{"cells": 3}', '{"cells": [{}]}', '{"cells": [3]}', '\0',
                                     '{"cells": [{"cell_type": "code", "source": "x", "metadata": []}]}',
                                     '{"cells": [{"cell_type": "code", "source": "x", "metadata": {"tags": 7}}]}',
                                     '{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, '
                                     '"source": "x = ("}]}'])
def test_no_notebooks(tmp_path, capsys, content):
    (tmp_path/'r.ipynb').write_text(content)
    assert cli.main(['run', str(tmp_path/'r.ipynb')]) == 2
    assert capsys.readouterr().err.count('\n') == 1

def test_a_size_file_that_is_not_text(toy, cook):
    for raw in b'\xff\xfe\x00', b'[' * 5000:
        (toy/'recipes/params/big.yaml').write_bytes(raw)
        code, line = cook('--size', 'big')
        assert code == 2 and line.startswith('tqcook: ')

def test_the_shipped_parameter_cells_are_literals(ours):
    for r in ours.values():
        for p in r.parameters.values():
            assert ast.literal_eval(repr(p.default)) == p.default

def test_lists_of_lists():
    "Prefills as pairs: the same from the command line, from YAML and from Python."
    p = recipe.Parameter('prompts', 'list', [[1, 512]], '')
    assert p.coerce('[[1, 512], [4, 2048]]') == p.coerce([['1', '512'], ['4', '2048']]) == [[1, 512], [4, 2048]]
    for bad in '[[1, x]]', '[1', '[1]: 2', '[01]', 3:
        with pytest.raises(core.CookError):
            p.coerce(bad)


@pytest.mark.parametrize('text, items', [
    ('*.down_proj', ['*.down_proj']),
    ('[*.[qk]_proj, model.layers.0]', ['*.[qk]_proj', 'model.layers.0']),
    ("['*.a', b]", ['*.a', 'b']),
])
def test_patterns_of_layers_need_no_quotes(text, items):
    "To YAML a star begins an alias."
    assert recipe.Parameter('keep', 'list', [], 'layers').coerce(text) == items
