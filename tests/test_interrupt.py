"Killed at any moment: no results, no orphan kernel, and the next run succeeds."
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from toy import write_recipe

NAP = ["""import os, subprocess, sys, time
from pathlib import Path
from tqcook import core, recipe
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'])
(Path(out_dir)/'pids').write_text(f'{os.getpid()} {child.pid}')""",
"""with core.atomic_dir(Path(out_dir)/'checkpoint') as d:
    (d/'config.json').write_text('{}')
    (Path(out_dir)/'sleeping').write_text('')
    time.sleep(nap)
child.kill()""",
"recipe.finish(dict(environment=dict(device=dict(name='none'))))"]

def alive(pid):
    "True while the process runs; a zombie is dead."
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False

def wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(.05)
    return True

@pytest.fixture
def nap(tmp_path):
    "A folder with the recipe, and a function that starts the runner there."
    write_recipe(tmp_path/'recipes', *NAP)
    started = []
    def go(*args):
        p = subprocess.Popen([sys.executable, '-m', 'tqcook', 'run', 'nap', *args], cwd=tmp_path, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(p)
        return p
    yield tmp_path, go
    for p in started:
        if p.poll() is None:
            p.kill()
            p.wait()

def asleep(folder, p):
    "Wait until the recipe is in the middle of writing its checkpoint; returns the ids of its kernel and its child."
    there = folder/'runs/nap.unfinished/sleeping'
    assert wait(lambda: there.exists() or p.poll() is not None), 'the recipe never got there'
    assert p.poll() is None, p.stderr.read()
    return [int(x) for x in (folder/'runs/nap.unfinished/pids').read_text().split()]

def nothing_finished(folder):
    left = folder/'runs/nap.unfinished'
    return not (folder/'runs/nap').exists() and not (left/'results.json').exists() and not (left/'checkpoint').exists()

def next_run_succeeds(folder, go):
    p = go('-p', 'nap=0')
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err
    assert (folder/'runs/nap/results.json').exists() and (folder/'runs/nap/checkpoint/config.json').exists()
    assert json.loads((folder/'runs/nap/results.json').read_text())['parameters']['nap'] == 0
    assert [p.name for p in (folder/'runs').iterdir()] == ['nap'], 'what the killed run left is still there'

@pytest.mark.parametrize('sig,code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_the_runner(nap, sig, code):
    folder, go = nap
    p = go()
    pids = asleep(folder, p)
    p.send_signal(sig)
    out, err = p.communicate(timeout=20)
    assert p.returncode == code
    assert f'interrupted by {sig.name}' in err.strip().split('\n')[-1] and 'Traceback' not in err
    assert wait(lambda: not any(alive(x) for x in pids), 5), 'the kernel or its child lives on'
    assert nothing_finished(folder) and (folder/'runs/nap.unfinished/failed.ipynb').exists()
    next_run_succeeds(folder, go)

def test_kill_9_of_the_runner(nap):
    folder, go = nap
    p = go()
    kernel, child = asleep(folder, p)
    p.kill()
    p.wait()
    assert wait(lambda: not alive(kernel), 10), 'the kernel outlived its runner'
    os.kill(child, signal.SIGKILL) # nothing can be left to clean up after kill -9 but the process itself
    assert nothing_finished(folder)
    next_run_succeeds(folder, go)
    assert not list(Path(tempfile.gettempdir()).glob(f'tqcook-{p.pid}-*')), 'its temporary folder is still there'

def test_kill_9_of_the_kernel(nap):
    folder, go = nap
    p = go()
    kernel, child = asleep(folder, p)
    os.kill(kernel, signal.SIGKILL)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 1 and 'kernel died' in err.strip().split('\n')[-1]
    assert wait(lambda: not alive(child), 5), "the kernel's child lives on"
    assert nothing_finished(folder)
    next_run_succeeds(folder, go)

def test_two_runs_do_not_share_a_folder(nap):
    folder, go = nap
    p = go()
    asleep(folder, p)
    q = go('-p', 'nap=0')
    out, err = q.communicate(timeout=30)
    assert q.returncode != 0 and 'another run' in err
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=20)
    next_run_succeeds(folder, go)

@pytest.mark.parametrize('busy', ["print('y' * 30_000_000)", "while True: print('z' * 10_000)",
                                  "import signal\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(60)"])
def test_sigterm_ends_a_run_within_two_seconds_whatever_it_does(nap, busy):
    folder, go = nap
    start = ("from pathlib import Path\nimport time\nPath(out_dir, 'pids').write_text('0 0')\n"
             "Path(out_dir, 'sleeping').write_text('')")
    write_recipe(folder/'recipes', start, busy + '\ntime.sleep(60)')
    p = go()
    asleep(folder, p)
    time.sleep(1)
    begun = time.monotonic()
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=20)
    assert p.returncode == 143 and time.monotonic() - begun < 2.5
