"The runner is strict: what papermill lets through ends here with one clear line and a non-zero exit."
import json, os, re, subprocess, sys
from pathlib import Path
import nbformat, pytest
from tqcook import cli, recipe
from test_interrupt import write_recipe

PARAMS = """n = 3  # type: int how many
rate = 0.5  # type: float how fast
fast = True  # type: bool whether to hurry
alphas = [0.5, 0.8]  # type: list strengths
model = 'demo'  # type: str which model
out_dir = 'runs/toy'  # type: str folder"""
START = "from tqcook import run, core\nstages = run.start('toy', globals())"
BODY = """import matplotlib.pyplot as plt
plt.plot([1, 2, 3]); plt.show()
print('n is', n)"""
FINISH = """with stages('work'): total = n * rate
stages.skip('kernels', 'no GPU here')
run.finish(dict(details=dict(total=total, kinds=[type(v).__name__ for v in (n, rate, fast, alphas, model)]), environment=dict(device=dict(name='none'))))"""

@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A folder with a toy recipe; the current directory."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('TQCOOK_RECIPES', raising=False)
    write_recipe(tmp_path/'recipes', START, BODY, FINISH, name='01_toy.ipynb', params=PARAMS)
    (tmp_path/'recipes/params').mkdir()
    return tmp_path

def cook(*args):
    return cli.main(['run', 'toy', '-q', *args])

def last_line(capsys):
    err = capsys.readouterr().err
    assert 'Traceback' not in err
    return err.strip().split('\n')[-1]

# good input

def test_a_run_leaves_everything(toy, capsys, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_very_secret_value')
    write_recipe(toy/'recipes', START, BODY, "import os\nprint(os.environ['HF_TOKEN'])", FINISH, name='01_toy.ipynb', params=PARAMS)
    (toy/'recipes/params/smoke.yaml').write_text('toy:\n  n: 4\n  rate: 1e-3\n')
    assert cli.main(['run', 'toy', '-p', 'fast=no', '-p', 'alphas=[0.1, 0.2]']) == 0
    folder, io = toy/'runs/toy', capsys.readouterr()
    assert sorted(p.name for p in folder.iterdir() if p.name != 'kernel.log') == ['executed.ipynb', 'figures', 'report.html', 'results.json']
    assert [p.name for p in (folder/'figures').iterdir()] == ['1.png']
    r = json.loads((folder/'results.json').read_text())
    assert r['schema'] == 1 and r['recipe'] == 'toy' and r['size'] == 'smoke' and r['name'] == 'toy'
    assert r['parameters'] == dict(n=4, rate=.001, fast=False, alphas=[.1, .2], model='demo', out_dir='runs/toy')
    assert r['details']['kinds'] == ['int', 'float', 'bool', 'list', 'str'] and r['details']['total'] == pytest.approx(.004)
    assert [s['status'] for s in r['stages']] == ['ran', 'skipped'] and r['seconds']['total'] > 0 and 'python' in r['environment']
    assert 'report.html' in io.out and 'no GPU here' in io.out
    lines = [l for l in io.err.split('\n') if l.startswith('[')]
    assert len(lines) == 6 and all(re.search(r'\d+\.\d s$', l) for l in lines), lines # one line per cell, the injected one too
    page = (folder/'report.html').read_text()
    assert 'data:image/png;base64' in page and 'n is 4' in page and 'stages.skip' not in page and 'plt.plot' not in page
    assert not re.search(r'(src|href)="(https?:)?//', page) and '<script' not in page
    nb = nbformat.read(folder/'executed.ipynb', as_version=4)
    assert nb.metadata.kernelspec.name == 'python3' and not any('error' == o.output_type for c in nb.cells if c.cell_type == 'code' for o in c.outputs)
    carried = [o.data[recipe.MIME] for c in nb.cells if c.cell_type == 'code' for o in c.outputs if recipe.MIME in o.get('data', {})]
    assert len(carried) == 1 and carried[0]['details'] == r['details']
    for f in folder.iterdir(): assert f.is_dir() or 'hf_very_secret_value' not in f.read_text(), f.name

def test_an_earlier_run_is_moved_aside(toy):
    assert cook('-p', 'n=1') == 0 and cook('-p', 'n=2') == 0
    ns = {f: json.loads((toy/'runs'/f/'results.json').read_text())['parameters']['n'] for f in ('toy', 'toy.1')}
    assert ns == {'toy': 2, 'toy.1': 1}

def test_out_and_out_dir_are_one_thing(toy, capsys):
    assert cook('-o', 'elsewhere/a b') == 0
    assert json.loads((toy/'elsewhere/a b/results.json').read_text())['parameters']['out_dir'] == 'elsewhere/a b'
    assert cook('-p', 'out_dir=other') == 0 and (toy/'other/results.json').exists()
    capsys.readouterr()
    assert cook('-o', 'x', '-p', 'out_dir=y') == 2 and 'differ' in last_line(capsys)

@pytest.mark.parametrize('how', ['papermill', 'jupyter'])
def test_runs_without_the_runner(toy, how):
    "Plain papermill and a notebook server in another working directory."
    (toy/'elsewhere').mkdir()
    if how == 'papermill':
        p = subprocess.run([sys.executable, '-m', 'papermill', '../recipes/01_toy.ipynb', 'out.ipynb', '-p', 'n', '7', '-k', 'python3'], cwd=toy/'elsewhere', capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
    else:
        from nbclient import NotebookClient
        NotebookClient(nbformat.read(toy/'recipes/01_toy.ipynb', 4), kernel_name='python3', resources=dict(metadata=dict(path=str(toy/'elsewhere')))).execute()
    r = json.loads((toy/'elsewhere/runs/toy/results.json').read_text())
    assert r['parameters']['n'] == (7 if how == 'papermill' else 3) and 'size' not in r

def test_plain_papermill_does_not_smuggle_types(toy):
    p = subprocess.run([sys.executable, '-m', 'papermill', 'recipes/01_toy.ipynb', 'out.ipynb', '-p', 'fast', 'false', '-k', 'python3'], capture_output=True, text=True)
    assert p.returncode != 0 and "parameter fast is 'false' (str), expected bool" in p.stderr and not (toy/'runs').exists()

def test_gate(toy):
    for verdict, code in dict(PASS=0, INCONCLUSIVE=11, FAIL=10).items():
        write_recipe(toy/'recipes', START, f"run.finish(dict(quality=dict(verdict='{verdict}'), environment=dict(device=dict(name='none'))))", name='01_toy.ipynb', params=PARAMS)
        assert cook('--gate') == code
    assert cook() == 0

# bad input: before anything starts

@pytest.mark.parametrize('args,said', [
    (['-p', 'nosuch=1'], "no parameter 'nosuch'"), (['-p', 'ratee=1'], "did you mean 'rate'?"), (['-p', 'n=abc'], "n is 'abc', expected int"),
    (['-p', 'n=2.5'], 'expected int'), (['-p', 'rate=fast'], 'expected float'), (['-p', 'rate=nan'], 'expected float'), (['-p', 'fast=maybe'], 'expected bool'),
    (['-p', 'alphas=high'], 'expected list'), (['-p', 'n'], 'expected name=value'), (['-p', 'n=1', '-p', 'n=2'], 'given twice'),
    (['--size', 'huge'], "unknown size 'huge'"), (['--nosuch'], 'unrecognized arguments')])
def test_usage_errors(toy, capsys, args, said):
    assert cook(*args) == 2
    assert said in last_line(capsys) and not (toy/'runs').exists()

@pytest.mark.parametrize('yaml,said', [('toy: {nn: 1}', "did you mean 'n'?"), ('toy: {n: many}', 'expected int'), ('toy: {fast: 1}', 'expected bool'), ('toy: {model: no}', 'quote it'),
                                       ('toy: 3', 'one section'), ('toy: {n: [', 'not valid YAML'), ('toy: {n: 1}\ntoy: {n: 2}', "'toy' twice"), ('toy: {n: 1, n: 2}', "'n' twice"), ('all: {model: m, tokens: 3}', 'is not for recipe toy, which has no parameter tokens'), ('toi: {n: 1}', "no section for recipe toy (did you mean 'toi'?)")])
def test_size_files_are_strict(toy, capsys, yaml, said):
    (toy/'recipes/params/big.yaml').write_text(yaml)
    assert cook('--size', 'big') == 2
    assert said in last_line(capsys) and not (toy/'runs').exists()

def test_unknown_recipe_and_no_recipes(toy, capsys, monkeypatch):
    assert cli.main(['run', 'toi']) == 2 and "did you mean 'toy'?" in last_line(capsys)
    assert cli.main(['run', 'no/such.ipynb']) == 2 and 'does not exist' in last_line(capsys)
    monkeypatch.setenv('TQCOOK_RECIPES', str(toy/'nowhere'))
    assert cli.main(['list']) == 1 and 'TQCOOK_RECIPES' in last_line(capsys)

def test_folders_that_are_not_ours(toy, capsys):
    (toy/'mine').mkdir(); (toy/'mine/thesis.txt').write_text('x'); (toy/'file').write_text('x')
    assert cook('-o', 'mine') != 0 and 'not empty' in last_line(capsys) and [p.name for p in (toy/'mine').iterdir()] == ['thesis.txt']
    assert cook('-o', 'file') != 0 and 'is a file' in last_line(capsys)
    assert cook('-o', 'file/below') != 0 and 'cannot make the folder' in last_line(capsys)

@pytest.mark.skipif(not Path('/proc').exists(), reason='needs Linux')
def test_a_folder_that_cannot_be_written(toy, capsys):
    assert cook('-o', '/proc/runs') != 0 and 'cannot' in last_line(capsys)

# bad ends

@pytest.mark.parametrize('cells,code,said', [
    ([START, "1/0"], 1, 'failed: ZeroDivisionError: division by zero'),
    ([START, "raise core.CookError('the model has no weights; expected safetensors')"], 1, 'recipe toy: the model has no weights; expected safetensors ['),
    ([START, "raise run.UsageError('n must be positive')"], 2, 'recipe toy: n must be positive ['),
    ([START, "import sys; sys.exit(0)", FINISH], 1, 'SystemExit'),
    ([START, "exit()"], 1, 'ended without results'),
    ([START, "import os; os._exit(0)", FINISH], 1, 'the kernel died'),
    ([START], 1, 'ended without results'),
    ([START, FINISH, "1/0"], 1, 'ZeroDivisionError'),
    ([START, "run.finish(dict(nosuch=1))"], 1, "unknown key 'nosuch'"),
    ([START, "run.finish(dict(quality=dict(ppl_base=float('inf'))))"], 1, 'quality.ppl_base is inf'),
    ([START, "run.finish(dict(model=dict(weights='random'), quality=dict(verdict='PASS')))"], 1, 'weights are random'),
], ids=['error', 'cook-error', 'usage-error', 'sys.exit', 'exit', 'kernel-gone', 'no-results', 'error-after-finish', 'unknown-key', 'infinite', 'random-verdict'])
def test_bad_ends(toy, capsys, cells, code, said):
    write_recipe(toy/'recipes', *cells, name='01_toy.ipynb', params=PARAMS)
    assert cook() == code
    assert said in last_line(capsys)
    assert sorted(p.name for p in (toy/'runs/toy').iterdir() if p.name not in ('kernel.log', '.run.json')) == ['failed.ipynb']

# what a recipe may look like

@pytest.mark.parametrize('params,said', [('n = 3', 'needs a comment'), ('n = int(3)  # type: int x', 'not a literal'), ('n = 3  # type: int keep x>=2', 'no equals sign'), ("n = 'a'  # type: int x", 'expected int')])
def test_recipes_that_papermill_would_misread_are_refused(toy, capsys, params, said):
    write_recipe(toy/'recipes', START, FINISH, name='01_toy.ipynb', params=params)
    assert cook() == 2 and said in last_line(capsys)

def test_a_recipe_without_its_tag_is_refused(toy, capsys):
    nb = nbformat.read(toy/'recipes/01_toy.ipynb', 4)
    for c in nb.cells: c.metadata.pop('tags', None)
    nbformat.write(nb, toy/'recipes/01_toy.ipynb')
    assert cook('-p', 'n=5') == 2 and '0 cells tagged parameters' in last_line(capsys)

def test_list_and_doctor_as_json(toy, capsys):
    assert cli.main(['list', '--json']) == 0
    (recipe,) = json.loads(capsys.readouterr().out)
    assert recipe['parameters'][0] == dict(name='n', type='int', default=3, help='how many')
    assert cli.main(['doctor', '--json']) == 0
    d = json.loads(capsys.readouterr().out)
    assert list(d['recipes']) == ['toy'] and d['device']['kind'] in ('cpu', 'cuda') and d['disk']['free'] > 0

def test_every_size_fits_every_recipe(monkeypatch, repo=Path(__file__).resolve().parent.parent):
    "The parameter files that ship: every section is a recipe, every key a parameter of its type."
    import yaml
    monkeypatch.setenv('TQCOOK_RECIPES', str(repo/'recipes'))
    found = {r.name: r for r in recipe.recipes()}
    for path in sorted((repo/'recipes/params').glob('*.yaml')):
        content = yaml.safe_load(path.read_text())
        for section, values in content.items():
            if section == 'all': assert any(set(values) <= set(r.parameters) for r in found.values()), path.name
            else: assert recipe.resolve(found[section], path.stem)

# the gates

def test_check_answers_by_exit_code(demo_fp8, tmp_path, capsys):
    import shutil
    code = cli.main(['check', str(demo_fp8), '--json'])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found['ok'] else 10)
    shutil.copytree(demo_fp8, tmp_path/'broken')
    (tmp_path/'broken/config.json').unlink()
    assert cli.main(['check', str(tmp_path/'broken')]) == 10
    assert cli.main(['check', str(tmp_path/'nowhere')]) == 1 and 'nowhere' in last_line(capsys)

def test_compare_answers_by_exit_code(demo_fp8, capsys):
    small = ['--context', '128', '--max-windows', '6', '--device', 'cpu', '--json']
    code = cli.main(['compare', 'demo', str(demo_fp8), *small])
    found = json.loads(capsys.readouterr().out)
    assert code == recipe.EXIT[found['verdict']] and found['ppl_ratio'] == pytest.approx(1, abs=.05)
    assert cli.main(['compare', 'demo', str(demo_fp8), *small, '--max-kld', '1e-6']) == 10 # a budget that FP8 cannot keep
    assert cli.main(['compare', 'demo', 'no/such/model', *small]) == 1 and 'no/such/model' in last_line(capsys)
