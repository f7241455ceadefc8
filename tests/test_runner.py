"The runner is strict: what papermill lets through ends here with one clear line and a non-zero exit."
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from toy import FINISH, NOWHERE, PARAMS, START, write_recipe
from tqcook import cli, core, recipe, runner
from tqcook.core import CookError


def results(folder):
    return json.loads((folder/'results.json').read_text())

# good input

def test_a_run_leaves_everything(toy, capsys):
    (toy/'recipes/params/smoke.yaml').write_text('toy:\n  n: 4\n  rate: 1e-3\n')
    assert cli.main(['run', 'toy', '--size', 'smoke', '-p', 'fast=no', '-p', 'alphas=[0.1, 0.2]']) == 0
    folder, io = toy/'runs/toy', capsys.readouterr()
    left = sorted(p.name for p in folder.iterdir() if p.name != 'kernel.log')
    assert left == ['executed.ipynb', 'figures', 'report.html', 'results.json']
    assert [p.name for p in (folder/'figures').iterdir()] == ['1.png']
    assert [p.name for p in (toy/'runs').iterdir()] == ['toy']
    r = results(folder)
    assert r['schema'] == 2 and r['recipe'] == 'toy' and r['size'] == 'smoke' and r['name'] == 'toy'
    assert r['parameters'] == dict(n=4, rate=.001, fast=False, alphas=[.1, .2], model='demo', out_dir='runs/toy')
    assert r['details']['kinds'] == ['int', 'float', 'bool', 'list', 'str']
    assert r['details']['total'] == pytest.approx(.004)
    assert [s['status'] for s in r['stages']] == ['ran', 'skipped']
    assert r['seconds']['total'] > 0 and 'python' in r['environment']
    assert 'report.html' in io.out and 'no GPU here' in io.out
    lines = [line for line in io.err.split('\n') if line.startswith('[')]
    assert len(lines) == 5 and all(re.search(r'\d+\.\d s$', line) for line in lines), lines # the injected cell too
    nb = nbformat.read(folder/'executed.ipynb', as_version=4)
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    assert nb.metadata.kernelspec.name == 'python3' and not any(o.output_type == 'error' for o in outputs)
    carried = [o.data[recipe.MIME] for o in outputs if recipe.MIME in o.get('data', {})]
    assert len(carried) == 1 and carried[0]['details'] == r['details']

def test_without_a_size_a_recipe_runs_with_what_list_shows(toy, cook, capsys):
    (toy/'recipes/params/smoke.yaml').write_text('toy: {n: 4}')
    assert cook()[0] == 0
    r = results(toy/'runs/toy')
    cli.main(['list', '--json'])
    (shown,) = json.loads(capsys.readouterr().out)
    assert {p['name']: p['default'] for p in shown['parameters']} == r['parameters'] and 'size' not in r

def test_an_earlier_run_is_moved_aside_when_the_next_has_succeeded(toy, cook):
    assert cook('-p', 'n=1')[0] == cook('-p', 'n=2')[0] == 0
    assert {f: results(toy/'runs'/f)['parameters']['n'] for f in ('toy', 'toy.1')} == {'toy': 2, 'toy.1': 1}

def test_a_run_that_fails_leaves_the_earlier_one_in_its_place(toy, cook):
    assert cook('-p', 'n=1')[0] == 0
    write_recipe(toy/'recipes', START, '1/0', name='01_toy.ipynb', params=PARAMS)
    code, line = cook('-p', 'n=2')
    assert code == 1 and 'toy.unfinished/failed.ipynb' in line and results(toy/'runs/toy')['parameters']['n'] == 1
    write_recipe(toy/'recipes', START, FINISH, name='01_toy.ipynb', params=PARAMS)
    assert cook('-p', 'n=3')[0] == 0 and sorted(p.name for p in (toy/'runs').iterdir()) == ['toy', 'toy.1']

def test_nothing_names_the_folder_that_a_run_was_built_in(toy, cook):
    write = ("from pathlib import Path\nPath(out_dir, 'checkpoint').mkdir()\n"
             "Path(out_dir, 'checkpoint/README.md').write_text(f'trtllm-serve {out_dir}/checkpoint')\nprint(out_dir)")
    finish = f"recipe.finish(dict(checkpoint=Path(out_dir)/'checkpoint', {NOWHERE}))"
    write_recipe(toy/'recipes', START, write, finish, name='01_toy.ipynb', params=PARAMS)
    assert cook()[0] == 0 and results(toy/'runs/toy')['checkpoint'] == 'runs/toy/checkpoint'
    assert (toy/'runs/toy/checkpoint/README.md').read_text() == 'trtllm-serve runs/toy/checkpoint'
    for f in (toy/'runs/toy').rglob('*.*'):
        assert b'unfinished' not in f.read_bytes(), f

def test_out_and_out_dir_are_one_thing(toy, cook):
    assert cook('-o', 'elsewhere/a b')[0] == 0
    assert results(toy/'elsewhere/a b')['parameters']['out_dir'] == 'elsewhere/a b'
    assert cook('-p', 'out_dir=other')[0] == 0 and (toy/'other/results.json').exists()
    code, line = cook('-o', 'x', '-p', 'out_dir=y')
    assert code == 2 and 'differ' in line

@pytest.mark.parametrize('how', ['papermill', 'jupyter'])
def test_runs_without_the_runner(toy, how):
    "Plain papermill and a notebook server in another working directory."
    (toy/'elsewhere').mkdir()
    if how == 'papermill':
        p = subprocess.run([sys.executable, '-m', 'papermill', '../recipes/01_toy.ipynb', 'out.ipynb', '-p', 'n', '7',
                            '-k', 'python3'], cwd=toy/'elsewhere', capture_output=True, text=True)
        assert p.returncode == 0, p.stderr
    else:
        nb = nbformat.read(toy/'recipes/01_toy.ipynb', 4)
        NotebookClient(nb, kernel_name='python3', resources=dict(metadata=dict(path=str(toy/'elsewhere')))).execute()
    r = results(toy/'elsewhere/runs/toy')
    assert r['parameters']['n'] == (7 if how == 'papermill' else 3) and 'size' not in r

def test_plain_papermill_does_not_smuggle_types(toy):
    p = subprocess.run([sys.executable, '-m', 'papermill', 'recipes/01_toy.ipynb', 'out.ipynb', '-p', 'fast', 'false',
                        '-k', 'python3'], capture_output=True, text=True)
    assert p.returncode != 0 and "parameter fast is 'false' (str), expected bool" in p.stderr
    assert not (toy/'runs').exists()

def test_gate(toy, cook):
    for verdict, code in dict(PASS=0, INCONCLUSIVE=11, FAIL=10).items():
        finish = f"recipe.finish(dict(quality=dict(verdict='{verdict}'), {NOWHERE}))"
        write_recipe(toy/'recipes', START, finish, name='01_toy.ipynb', params=PARAMS)
        assert cook('--gate')[0] == code
    assert cook()[0] == 0

# secrets

SECRETS = dict(HF_TOKEN='hf_abcdefghijklmnopqrstu', MY_PASSWORD='correct horse "battery"', parameter='ghp_' + 'k' * 36)
TELL = """import os, sys, subprocess
print(os.environ['HF_TOKEN'], model)
subprocess.run([sys.executable, '-c', 'import os, sys; print(os.environ["MY_PASSWORD"], file=sys.stderr)'])
os.write(2, os.environ['HF_TOKEN'].encode() + b'\\n')
display_text = dict(a=os.environ['MY_PASSWORD'])
display_text"""

@pytest.mark.parametrize('ending', ['recipe.finish(dict(details=dict(x=model), ' + NOWHERE + '))',
                                    "raise ValueError(os.environ['HF_TOKEN'] + model)",
                                    "raise core.CookError(os.environ['MY_PASSWORD'] + model)", 'os._exit(1)'])
def test_three_secrets_are_nowhere(toy, capfd, monkeypatch, ending):
    "In the environment, in a parameter, in an exception: on the terminal and in no file."
    for name in 'HF_TOKEN', 'MY_PASSWORD':
        monkeypatch.setenv(name, SECRETS[name])
    write_recipe(toy/'recipes', START, TELL, ending, name='01_toy.ipynb', params=PARAMS)
    cli.main(['run', 'toy', '-p', f'model={SECRETS["parameter"]}'])
    told = capfd.readouterr()
    files = {f: f.read_bytes().decode(errors='replace') for f in (toy/'runs').rglob('*') if f.is_file()}
    assert files and any('ipynb' in f.name for f in files)
    for where, text in {'out': told.out, 'err': told.err, **files}.items():
        for secret in SECRETS.values():
            assert secret not in text and json.dumps(secret)[1:-1] not in text, where

# what a cell prints

def test_progress_bars_and_long_lines_are_folded(toy, cook):
    body = ("import sys\nfor i in range(300): sys.stdout.write(f'\\r{i} %'); sys.stdout.flush()\n"
            "print()\nprint('y' * 3_000_000)")
    write_recipe(toy/'recipes', START, body, FINISH, name='01_toy.ipynb', params=PARAMS)
    assert cook()[0] == 0
    (text,) = [o.text for c in nbformat.read(toy/'runs/toy/executed.ipynb', 4).cells for o in c.get('outputs', [])
               if o.get('name') == 'stdout']
    assert text.startswith('299 %\nyyy') and len(text) < 12_000

def test_a_flood_is_bounded(toy, cook):
    body = "for i in range(100_000): print('line', i)"
    write_recipe(toy/'recipes', START, body, FINISH, name='01_toy.ipynb', params=PARAMS)
    assert cook()[0] == 0 and (toy/'runs/toy/executed.ipynb').stat().st_size < 500_000

# bad input: before anything starts

@pytest.mark.parametrize('args, said', [
    (['-p', 'nosuch=1'], "no parameter 'nosuch'"), (['-p', 'ratee=1'], "did you mean 'rate'?"),
    (['-p', 'n=abc'], "n is 'abc' (str), expected int"), (['-p', 'n=2.5'], 'expected int'),
    (['-p', 'rate=fast'], 'expected float'), (['-p', 'rate=nan'], 'expected float'),
    (['-p', 'fast=maybe'], 'expected bool'),
    (['-p', 'alphas=high'], 'expected list'), (['-p', 'n'], 'expected name=value'),
    (['-p', 'n=1', '-p', 'n=2'], 'given twice'), (['--size', 'huge'], "unknown size 'huge'"),
    (['--nosuch'], 'unrecognized arguments'), (['-o', ''], '-o is empty'), (['-p', 'n=012'], "n is '012'")])
def test_usage_errors(toy, cook, args, said):
    code, line = cook(*args)
    assert code == 2 and said in line and not (toy/'runs').exists()

def test_unknown_recipe_and_no_recipes(toy, cook, monkeypatch):
    code, line = cook(recipe='toi')
    assert code == 2 and "did you mean 'toy'?" in line
    code, line = cook(recipe='no/such.ipynb')
    assert code == 2 and 'does not exist' in line
    monkeypatch.setenv('TQCOOK_RECIPES', str(toy/'nowhere'))
    code, line = cook(verb='list')
    assert code == 1 and 'TQCOOK_RECIPES' in line

def test_folders_that_are_not_ours(toy, cook):
    (toy/'mine').mkdir()
    (toy/'mine/thesis.txt').write_text('x')
    (toy/'file').write_text('x')
    code, line = cook('-o', 'mine')
    assert code == 1 and 'not empty' in line and [p.name for p in (toy/'mine').iterdir()] == ['thesis.txt']
    code, line = cook('-o', 'file')
    assert code == 1 and 'is a file' in line
    code, line = cook('-o', 'file/below')
    assert code == 1 and 'cannot make the folder' in line

@pytest.mark.skipif(not Path('/proc').exists(), reason='needs Linux')
def test_a_folder_that_cannot_be_written(cook):
    code, line = cook('-o', '/proc/runs')
    assert code == 1 and 'cannot' in line

def test_what_is_the_readers_stays(tmp_path, monkeypatch):
    run_, mine = tmp_path/'r', tmp_path/'r.unfinished'
    mine.mkdir()
    (mine/'thesis.txt').write_text('mine')
    with runner.run_folder(run_) as building:
        (building/'results.json').write_text('{}')
    assert (tmp_path/'r.unfinished.1'/'thesis.txt').exists() and (run_/'results.json').exists()
    (run_/'sub').mkdir()
    for where, name in (run_, '.'), (run_/'sub', '..'):
        monkeypatch.chdir(where)
        with pytest.raises(CookError, match='the folder you are in'):
            runner.run_folder(name).__enter__()
    with pytest.raises(CookError):
        runner.run_folder('/').__enter__()

@pytest.mark.parametrize('package', ['nbconvert', 'ipykernel', 'nbclient'])
def test_a_missing_package_is_said_first(toy, cook, monkeypatch, package):
    real = runner.importlib.util.find_spec
    monkeypatch.setattr(runner.importlib.util, 'find_spec', lambda name: None if name == package else real(name))
    code, line = cook()
    assert code == 1 and f'{package} is not installed' in line and not (toy/'runs').exists()

def test_a_full_disk_is_said_first(toy, cook, monkeypatch):
    usage = runner.shutil.disk_usage('.')
    monkeypatch.setattr(runner.shutil, 'disk_usage', lambda path: usage._replace(free=1000))
    code, line = cook()
    assert code == 1 and str(toy/'runs') in line and '1 kB left' in line and not (toy/'runs/toy.unfinished').exists()

def test_a_disk_that_fills_up_names_its_path(toy, cook):
    full = ("import tqcook.core as c\ndef full(*a, **k): raise OSError(28, 'No space left on device')\n"
            'c.os.replace = full')
    write_recipe(toy/'recipes', START, full, FINISH, name='01_toy.ipynb', params=PARAMS)
    code, line = cook()
    assert code == 1 and 'results.json' in line and 'No space left' in line
    assert not list(toy.rglob('*results.json'))

# killed at the very end

KILLED = """import os, pathlib
from tqcook import core, runner
calls, real = [], {what}
def renamed(*args):
    calls.append(args)
    if len(calls) == {n}:
        os.kill(os.getpid(), 9)
    return real(*args)
{what} = renamed
with {maker}('toy') as d:
    (d/'results.json').write_text('2')"""

def kill(folder, **how):
    done = subprocess.run([sys.executable, '-c', KILLED.format(**how)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return {p.name: (p/'results.json').read_text() for p in folder.iterdir() if p.is_dir() and p.name[0] != '.'}

@pytest.mark.parametrize('n, left',
                         [(1, {'toy': '1', 'toy.unfinished': '2'}), (2, {'toy.1': '1', 'toy.unfinished': '2'})])
def test_a_run_killed_between_its_renames_gets_its_name(tmp_path, n, left):
    "Before the first rename or between the two: both runs are whole, and the next run loses neither."
    (tmp_path/'toy').mkdir()
    (tmp_path/'toy/results.json').write_text('1')
    assert kill(tmp_path, what='pathlib.Path.rename', maker='runner.run_folder', n=n) == left
    with runner.run_folder(tmp_path/'toy') as building:
        assert not list(building.iterdir())
        (building/'results.json').write_text('3')
    now = {p.name: (p/'results.json').read_text() for p in tmp_path.iterdir() if p.is_dir()}
    assert now == {'toy': '3', 'toy.1': '1', 'toy.2': '2'}

def test_a_run_killed_before_its_end_does_not(tmp_path):
    "The negative control: `.run.json` still lies there, so it was not whole."
    left = tmp_path/'toy.unfinished'
    left.mkdir()
    for name in 'results.json', '.run.json':
        (left/name).write_text('2')
    with runner.run_folder(tmp_path/'toy') as building:
        (building/'results.json').write_text('3')
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ['toy']

def test_a_directory_killed_between_its_renames(tmp_path):
    "The one before stands under its number, nothing stands under the name, and what was not yet named is swept."
    with core.atomic_dir(tmp_path/'toy') as d:
        (d/'results.json').write_text('1')
    assert kill(tmp_path, what='os.replace', maker='core.atomic_dir', n=1) == {'toy.1': '1'}
    with core.atomic_dir(tmp_path/'toy') as d:
        (d/'results.json').write_text('3')
    assert {p.name: (p/'results.json').read_text() for p in tmp_path.iterdir()} == {'toy': '3', 'toy.1': '1'}

# bad ends

@pytest.mark.parametrize('cells, code, said', [
    ([START, '1/0'], 1, 'failed: ZeroDivisionError: division by zero'),
    ([START, "raise core.CookError('the model has no weights; expected safetensors')"], 1,
     'recipe toy: the model has no weights; expected safetensors ['),
    ([START, "raise runner.UsageError('n must be positive')"], 2, 'recipe toy: n must be positive ['),
    ([START, 'import sys; sys.exit(0)', FINISH], 1, 'SystemExit'),
    ([START, 'exit()'], 1, 'ended without results'),
    ([START, 'import os; os._exit(0)', FINISH], 1, 'the kernel died without a word in cell 4 (Nap)'),
    ([START], 1, 'ended without results'),
    ([START, FINISH, '1/0'], 1, 'ZeroDivisionError'),
    ([START, 'recipe.finish(dict(nosuch=1))'], 1, "unknown key 'nosuch'"),
    ([START, "recipe.finish(dict(quality=dict(ppl_base=float('inf'))))"], 1, 'quality.ppl_base is inf'),
    ([START, "recipe.finish(dict(model=dict(weights='random'), quality=dict(verdict='PASS')))"], 1,
     'weights are random'),
], ids=['error', 'cook-error', 'usage-error', 'sys.exit', 'exit', 'kernel-gone', 'no-results', 'error-after-finish',
        'unknown-key', 'infinite', 'random-verdict'])
def test_bad_ends(toy, cook, cells, code, said):
    write_recipe(toy/'recipes', *cells, name='01_toy.ipynb', params=PARAMS)
    got, line = cook()
    assert got == code and said in line
    assert not (toy/'runs/toy').exists()
    left = sorted(p.name for p in (toy/'runs/toy.unfinished').iterdir())
    assert [n for n in left if n not in ('kernel.log', '.run.json')] == ['failed.ipynb']

def test_temporary_folders_of_the_dead_are_cleared(toy, cook):
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    left = Path(tempfile.mkdtemp(prefix=f'tqcook-{dead.pid}-'))
    mine = Path(tempfile.mkdtemp(prefix=f'tqcook-{os.getpid()}-'))
    made = "import tempfile\nprint(tempfile.mkdtemp())"
    write_recipe(toy/'recipes', START, made, FINISH, name='01_toy.ipynb', params=PARAMS)
    assert cook()[0] == 0 and not left.exists() and mine.exists()
    mine.rmdir()
    assert not list(Path(tempfile.gettempdir()).glob(f'tqcook-{os.getpid()}-*'))
    outputs = [o for c in nbformat.read(toy/'runs/toy/executed.ipynb', 4).cells for o in c.get('outputs', [])]
    folder = next(o.text.strip() for o in outputs if o.get('name') == 'stdout')
    assert not Path(folder).exists(), "the kernel's own temporary files go with it"

def test_a_home_that_cannot_be_written(toy, cook, monkeypatch):
    (toy/'file').write_text('')
    monkeypatch.setenv('HOME', str(toy/'file'))
    monkeypatch.delenv('IPYTHONDIR', raising=False)
    assert cook('-o', 'sp ace/é')[0] == 0 and (toy/'sp ace/é/results.json').exists()

@pytest.mark.parametrize('metadata', [[], 'x', dict(kernelspec=7), dict(kernelspec=dict(name='nosuch'))])
def test_notebooks_with_odd_metadata_run_or_are_refused(toy, cook, metadata):
    path = toy/'recipes/01_toy.ipynb'
    nb = json.loads(path.read_text())
    nb['metadata'] = metadata
    path.write_text(json.dumps(nb))
    code, line = cook()
    assert code in (0, 1, 2) and (code == 0 or '01_toy.ipynb' in line)

@pytest.mark.parametrize('said, spins', [({}, '1000'), ({'OMP_WAIT_POLICY': 'active'}, None),
                                         ({'GOMP_SPINCOUNT': '7'}, '7')])
def test_threads_that_wait_sleep_unless_the_reader_has_said(tmp_path, monkeypatch, said, spins):
    for name in 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT':
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert runner._kernel_env(tmp_path, tmp_path).get('GOMP_SPINCOUNT') == spins

def test_figures_are_what_the_notebook_shows(toy, cook):
    assert cook()[0] == 0
    outputs = [o for c in nbformat.read(toy/'runs/toy/executed.ipynb', 4).cells for o in c.get('outputs', [])]
    (png,) = [o.data['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    assert (toy/'runs/toy/figures/1.png').read_bytes() == base64.b64decode(png)
