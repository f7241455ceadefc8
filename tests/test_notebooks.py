"""Every notebook runs, is clean and exported; recipes are what papermill, git and GitHub expect.

The traps of nbdev and papermill that fail in silence were each reproduced once and must not come back.
"""
import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from warm import fresh

REPO = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPO/'recipes').glob('[0-9]*.ipynb'))
NBS = sorted((REPO/'nbs').glob('[!.]*.ipynb'))
each_recipe = pytest.mark.parametrize('path', RECIPES, ids=lambda p: p.stem)
HEAVY = 'torch transformers modelopt tensorrt_llm tensorrt_rtx matplotlib pandas datasets onnx triton ray scipy'.split()


def read_cells(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def text(cell):
    return cell['source'] if isinstance(cell['source'], str) else ''.join(cell['source'])


def parameters(path):
    "The cells tagged `parameters`."
    return [c for c in read_cells(path) if 'parameters' in c['metadata'].get('tags', [])]


def assigned(source):
    return [t.id for n in ast.parse(source).body if isinstance(n, ast.Assign) for t in n.targets]


def settings():
    found = configparser.ConfigParser(delimiters=['='])
    found.read(REPO/'settings.ini')
    return found['DEFAULT']


def nbdev(command, *args, cwd):
    "Run one of nbdev's commands; returns the finished process, which succeeded."
    command = str(Path(sys.executable).parent/command)
    out = subprocess.run([command, *args], cwd=cwd, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out


def tree(folder, *patterns):
    "{relative path: text} of the files that match."
    found = sorted(p for pattern in patterns for p in folder.glob(pattern))
    return {p.relative_to(folder).as_posix(): p.read_text(encoding='utf-8') for p in found}


# the notebooks test themselves

def execute(path, log):
    "In a process of its own: run the notebook as nbdev_test does; what it says goes to the file `log`."
    with open(log, 'w') as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    os.environ |= {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'TQCOOK_RECIPES': str(REPO/'recipes')}
    from nbdev.test import test_nb
    passed, _ = test_nb(path, skip_flags=settings()['tst_flags'].split(), basepath=REPO)
    sys.exit(not passed)


def outcome(path, log, limit=300):
    "Exit code of a notebook, None when it took more than `limit` seconds."
    process = fresh().Process(target=execute, args=(path, log))
    process.start()
    process.join(limit)
    if process.exitcode is None:
        process.kill()
        return None
    return process.exitcode


@pytest.mark.parametrize('path', NBS, ids=lambda p: p.stem)
def test_notebook(path, tmp_path):
    log = tmp_path/'log'
    assert outcome(path, log) == 0, log.read_text()[-6000:]


@pytest.mark.parametrize('code,says', [('1/0', 'ZeroDivisionError'), ('#| gpu\n1/0', None)], ids=['fails', 'skipped'])
def test_a_notebook_that_fails_is_noticed(tmp_path, code, says):
    "Negative control; a cell that needs a GPU is left out."
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path/'bad.ipynb')
    log = tmp_path/'log'
    assert outcome(tmp_path/'bad.ipynb', log) == (1 if says else 0)
    assert (says or '') in log.read_text()


@pytest.mark.parametrize('path', [p for p in NBS if p.stem != 'index'], ids=lambda p: p.stem)
def test_heavy_imports_stay_inside_functions(path):
    "nbdev runs exported cells when it builds docs, and every module must import where these packages are missing."
    code = [text(c) for c in read_cells(path) if c['cell_type'] == 'code']
    exported = [s for s in code if re.search(r'^#\| ?exports?\b', s, re.M)]
    nodes = [node for source in exported for node in ast.parse(source).body]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or '' for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not set(HEAVY) & {name.split('.')[0] for name in names}


# recipes are what papermill, git and GitHub expect

@each_recipe
def test_recipe_form(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    ids = [c['id'] for c in nb['cells']]
    assert len(parameters(path)) == 1 and parameters(path)[0]['cell_type'] == 'code'
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    assert 'widgets' not in nb['metadata'], 'GitHub refuses to draw damaged widget state'
    assert len(set(ids)) == len(ids) and nb['nbformat_minor'] >= 5
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    for c in code:
        assert not c['outputs'] and c['execution_count'] is None, 'recipes are committed without outputs'
    assert '.finish(' in ''.join(map(text, code))


@each_recipe
def test_papermill_sees_every_parameter(path):
    "An equals sign in a comment, or a union annotation, makes papermill drop a parameter from its list without a word."
    import papermill as pm
    found = pm.inspect_notebook(str(path))
    assert list(found) == assigned(text(parameters(path)[0]))
    for name, p in found.items():
        assert p['inferred_type_name'] in ('str', 'int', 'float', 'bool', 'list') and p['help'], name


@each_recipe
def test_injected_cell_comes_after_the_defaults(path, tmp_path):
    "Where the tag is lost papermill injects above the defaults, which then win: the run ignores its parameters."
    import papermill as pm
    name = assigned(text(parameters(path)[0]))[0]
    pm.execute_notebook(str(path), str(tmp_path/'out.ipynb'), parameters={name: 'other'}, prepare_only=True)
    tags = [c['metadata'].get('tags', []) for c in read_cells(tmp_path/'out.ipynb')]
    at = {tag: i for i, found in enumerate(tags) for tag in found}
    assert at['injected-parameters'] == at['parameters'] + 1


@each_recipe
def test_recipes_do_not_ask_or_leak(path):
    code = '\n'.join(text(c) for c in read_cells(path) if c['cell_type'] == 'code')
    forbidden = r'\binput\(|notebook_login|\blogin\(|trust_remote_code=True|tqdm\.notebook|tqdm\.auto|torch\.load\('
    assert not re.search(forbidden, code)


def test_progress_bars_are_text():
    "tqdm.auto makes widgets where ipywidgets is installed, and GitHub cannot draw what they leave."
    code = '\n'.join(path.read_text() for path in (REPO/'tqcook').glob('*.py'))
    assert 'from tqdm import tqdm' in code and not re.search(r'tqdm\.(auto|notebook)', code)


def test_the_tag_trap_is_real(tmp_path):
    "Negative control: the same notebook without its tag runs with the old value, and papermill exits 0."
    import papermill as pm
    kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    cells = [nbformat.v4.new_code_cell('n = 3  # type: int how many')]
    nbformat.write(nbformat.v4.new_notebook(metadata={'kernelspec': kernel}, cells=cells), tmp_path/'in.ipynb')
    pm.execute_notebook(str(tmp_path/'in.ipynb'), str(tmp_path/'out.ipynb'), parameters={'n': 5}, prepare_only=True)
    sources = [text(c) for c in read_cells(tmp_path/'out.ipynb')]
    assert [assigned(s) for s in sources] == [['n'], ['n']] and sources[0].strip().endswith('n = 5')


# the tree is clean and exported

@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of everything that nbdev reads and writes."
    to = tmp_path_factory.mktemp('tree')
    left_out = shutil.ignore_patterns('demo', '__pycache__', '.ipynb_checkpoints', 'runs', 'gallery')
    for name in 'settings.ini', 'pyproject.toml', 'setup.py', 'README.md':
        shutil.copy(REPO/name, to/name)
    for name in 'nbs', 'recipes', 'tqcook':
        shutil.copytree(REPO/name, to/name, ignore=left_out)
    subprocess.run(['git', 'init', '-q', str(to)], check=True)
    return to


def test_settings_that_keep_recipes_alive():
    s = settings()
    assert s['allowed_cell_metadata_keys'] == 'tags' and s['clear_all'] == 'False' and s['update_pyproject'] == 'False'
    assert set(s['tst_flags'].split()) >= {'gpu', 'slow'}


def test_clean_leaves_no_diff_and_keeps_tags(copy):
    before = tree(copy, 'nbs/*.ipynb', 'recipes/*.ipynb')
    for folder in 'nbs', 'recipes':
        nbdev('nbdev_clean', '--fname', folder, cwd=copy)
    after = tree(copy, 'nbs/*.ipynb', 'recipes/*.ipynb')
    assert [n for n in before if before[n] != after[n]] == [], 'run `make prepare`'
    assert all(len(parameters(copy/'recipes'/p.name)) == 1 for p in RECIPES)


def test_clean_without_the_setting_would_lose_the_tags(copy, tmp_path):
    "Negative control for the test above."
    shutil.copytree(copy/'recipes', tmp_path/'recipes')
    (tmp_path/'nbs').mkdir()
    (tmp_path/'tqcook').mkdir()
    allowed = 'allowed_cell_metadata_keys ='
    (tmp_path/'settings.ini').write_text((copy/'settings.ini').read_text().replace(f'{allowed} tags', allowed))
    nbdev('nbdev_clean', '--fname', 'recipes', cwd=tmp_path)
    assert not any(parameters(tmp_path/'recipes'/p.name) for p in RECIPES)


def test_export_leaves_no_diff(copy):
    before = tree(copy, 'tqcook/*.py')
    nbdev('nbdev_export', cwd=copy)
    after = tree(copy, 'tqcook/*.py')
    assert [n for n in after if before.get(n) != after[n]] == [], 'run `make prepare`; tqcook/ is never edited by hand'
    assert (copy/'pyproject.toml').read_text() == (REPO/'pyproject.toml').read_text()


def test_no_module_without_a_notebook():
    "A notebook that was renamed leaves its module behind."
    exports = {m[1] for p in NBS for m in re.finditer(r'#\| default_exp (\w+)', p.read_text(encoding='utf-8'))}
    assert {p.stem for p in (REPO/'tqcook').glob('[a-z]*.py')} == exports


def test_notebooks_hold_no_machine_and_no_widgets():
    for path in [*NBS, *RECIPES]:
        content = path.read_text(encoding='utf-8')
        assert '"widgets"' not in content and 'widget-view' not in content, path.name
        assert re.findall(r'/(?:home|Users|root)/[\w.-]+', content) == [], path.name
