"A sweep loses nothing: workers that are killed, interruptions, two sweeps in one folder; here and on a local Ray."
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from test_interrupt import wait
from toy import write_recipe
from tqcook import sweep as sweeps
from tqcook.core import CookError

PARAMS = "n = 1  # type: int which\nnap = 0.0  # type: float how long\nout_dir = 'runs/toy'  # type: str folder"
WORK = """import os, time
from pathlib import Path
from tqcook import recipe
log = Path(out_dir).parent/f'started-{n}'
log.write_text((log.read_text() if log.exists() else '') + f'{os.getppid()}\\n')
time.sleep(nap)
assert n < 9, 'n is too large'"""
FINISH = "recipe.finish({'size_bytes': {'base': n}, 'environment': {'device': {'name': 'none'}}})"


@pytest.fixture
def toy(tmp_path, monkeypatch):  # not conftest's: this one counts
    "A recipe that notes each of its starts, with the process id of its runner."
    write_recipe(tmp_path/'recipes', WORK, FINISH, name='01_toy.ipynb', params=PARAMS)
    monkeypatch.setenv('TQCOOK_RECIPES', str(tmp_path/'recipes'))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(folder):
    "{n: process ids of the runners that started it}."
    return {int(p.name.split('-')[1]): p.read_text().split() for p in folder.glob('started-*')}


def rows(folder):
    with open(folder/'sweep.csv', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def quiet(line):
    pass


def parent(pid):
    return int(Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[1])


def killer(folder, n, last=1, above=int):
    "A thread that kills the runner of point `n` with SIGKILL, or a process `above` it, `last` times."
    def work():
        for k in range(1, last + 1):
            assert wait(lambda k=k: len(started(folder).get(n, [])) >= k, 240)
            os.kill(above(int(started(folder)[n][k - 1])), signal.SIGKILL)
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize('ray', ['', 'local'], ids=['here', 'ray'])
def test_a_killed_run_is_started_again_and_nothing_else(toy, ray):
    "On Ray it is Ray's worker that is killed, and the run with it."
    thread = killer(toy/'out', 2, above=parent if ray else int)
    s = sweeps.sweep('toy', {'n': [1, 2, 3], 'nap': 1.0}, out_dir='out', workers=2, ray=ray, tell=quiet)
    thread.join()
    assert [r['status'] for r in s.rows] == ['done'] * 3 and s.open == []
    assert {n: len(ids) for n, ids in started(toy/'out').items()} == {1: 1, 2: 2, 3: 1}
    assert [(r['n'], r['size_bytes.base']) for r in rows(toy/'out')] == [(str(n), str(n)) for n in (1, 2, 3)]


def test_what_is_killed_again_and_again_is_named_and_the_rest_is_there(toy):
    thread = killer(toy/'out', 2, last=2)
    s = sweeps.sweep('toy', {'n': [1, 2], 'nap': 1.0}, out_dir='out', workers=2, retries=1, tell=quiet)
    thread.join()
    assert [r['status'] for r in s.rows] == ['done', 'killed'] and [r['n'] for r in s.open] == [2]
    again = sweeps.sweep('toy', {'n': [1, 2], 'nap': 1.0}, out_dir='out', workers=2, tell=quiet)
    assert again.open == [] and {n: len(ids) for n, ids in started(toy/'out').items()} == {1: 1, 2: 3}


def test_a_run_that_fails_keeps_no_other_from_running(toy):
    said = []
    s = sweeps.sweep('toy', {'n': [9, 1]}, out_dir='out', tell=said.append)
    assert [r['status'] for r in s.rows] == ['failed', 'done'], s.rows
    assert 'n is too large' in s.rows[0]['error']
    assert len(said) == 2 and said[-1].startswith('[2/2] ')
    assert len(started(toy/'out')[9]) == 1, 'what failed would fail again'


@pytest.mark.slow
def test_killed_as_a_whole_it_goes_on_where_it_stopped(toy):
    "kill -9 of the sweep itself: its runs end with it, and the next one does what is left."
    code = "from tqcook.sweep import sweep; sweep('toy', {'n': [1, 2, 3], 'nap': 4.0}, out_dir='out', workers=1)"
    p = subprocess.Popen([sys.executable, '-c', code], cwd=toy, stdout=subprocess.DEVNULL)
    assert wait(lambda: 2 in started(toy/'out'), 240)
    p.kill()
    p.wait()
    time.sleep(1)
    kept = (toy/'out/n-1/results.json').stat().st_mtime_ns
    s = sweeps.sweep('toy', {'n': [1, 2, 3], 'nap': 4.0}, out_dir='out', workers=3, tell=quiet)
    assert s.open == [] and (toy/'out/n-1/results.json').stat().st_mtime_ns == kept
    assert {n: len(ids) for n, ids in started(toy/'out').items()} == {1: 1, 2: 2, 3: 1}


def test_two_sweeps_do_not_share_a_folder(toy):
    from tqcook.runner import lock
    with lock(toy/'out'), pytest.raises(CookError, match='right now'):
        sweeps.sweep('toy', {'n': [1]}, out_dir='out')
    (toy/'mine').mkdir()
    (toy/'mine/thesis.txt').write_text('x')
    with pytest.raises(CookError, match='no sweep'):
        sweeps.sweep('toy', {'n': [1]}, out_dir='mine')
    other = {'recipe': 'toy', 'notebook': '', 'size': '', 'grid': {'n': [1]}}
    (toy/'out/sweep.json').write_text(json.dumps(other))
    with pytest.raises(CookError, match='another sweep: notebook differ'):
        sweeps.sweep('toy', {'n': [1]}, out_dir='out')
    assert started(toy/'out') == {}


WRONG = [
    ({'nn': [1]}, "did you mean 'n'"),
    ({'n': ['many']}, 'expected int'),
    ({'n': [1, 1]}, 'twice'),
    ({'n': []}, 'no value'),
    ('missing.yaml', 'does not exist'),
    ('list.yaml', 'must hold'),
    ('bad.yaml', 'not valid YAML'),
]


@pytest.mark.parametrize('grid,says', WRONG)
def test_a_wrong_grid_is_refused_before_anything_runs(toy, grid, says):
    Path('list.yaml').write_text('[1, 2]')
    Path('bad.yaml').write_text('n: [')
    with pytest.raises(CookError, match=says):
        sweeps.sweep('toy', grid, out_dir='out')
    assert not (toy/'out').exists()


def test_without_ray_the_extra_is_named(toy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(CookError, match=r"tqcook\[sweep\]"):
        sweeps.sweep('toy', {'n': [1]}, out_dir='out', ray='local')
    assert not (toy/'out').exists()


@pytest.mark.slow
def test_sigterm_ends_a_sweep_and_its_kernels_within_two_seconds(toy):
    from test_interrupt import alive
    code = "from tqcook.sweep import sweep; sweep('toy', {'n': [1, 2], 'nap': 60.0}, out_dir='out', workers=2)"
    p = subprocess.Popen([sys.executable, '-c', code], cwd=toy, stdout=subprocess.DEVNULL)
    assert wait(lambda: len(started(toy/'out')) == 2, 240)
    runners = [int(i) for ids in started(toy/'out').values() for i in ids]
    begun = time.monotonic()
    p.terminate()
    assert p.wait(10) and wait(lambda: not any(map(alive, runners)), 10) and time.monotonic() - begun < 2
