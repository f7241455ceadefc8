"Killed at any moment: no results, no orphan kernel, and the next run succeeds."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest

def write_recipe(folder, *cells, name='01_nap.ipynb', params="seconds = 60.0  # type: float how long to sleep\nout_dir = 'runs/nap'  # type: str folder"):
    "A throw-away recipe: its parameters, then `cells`."
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    code = nbformat.v4.new_code_cell
    nb.cells = [nbformat.v4.new_markdown_cell('# Nap\n\n> Sleeps'), code(params, metadata=dict(tags=['parameters'])), *map(code, cells)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder/name)

NAP = ["""import os, subprocess, sys, time
from pathlib import Path
from tqcook import run, core
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'])
(Path(out_dir)/'pids').write_text(f'{os.getpid()} {child.pid}')""",
"""with core.atomic_dir(Path(out_dir)/'checkpoint') as d:
    (d/'config.json').write_text('{}')
    (Path(out_dir)/'sleeping').write_text('')
    time.sleep(seconds)
child.kill()""",
"run.finish(dict(environment=dict(device=dict(name='none'))))"]

def alive(pid):
    "True while the process runs; a zombie is dead."
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError): return False

def wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end: return False
        time.sleep(.05)
    return True

@pytest.fixture
def nap(tmp_path):
    "A folder with the recipe, and a function that starts the runner there."
    write_recipe(tmp_path/'recipes', *NAP)
    started = []
    def go(*args):
        p = subprocess.Popen([sys.executable, '-m', 'tqcook', 'run', 'nap', *args], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(p)
        return p
    yield tmp_path, go
    for p in started:
        if p.poll() is None: p.kill(); p.wait()

def asleep(folder, p):
    "Wait until the recipe is in the middle of writing its checkpoint; returns its kernel's and that one's child's process ids."
    assert wait(lambda: (folder/'runs/nap/sleeping').exists() or p.poll() is not None), 'the recipe never got there'
    assert p.poll() is None, p.stderr.read()
    return [int(x) for x in (folder/'runs/nap/pids').read_text().split()]

def nothing_finished(folder):
    run = folder/'runs/nap'
    return not (run/'results.json').exists() and not (run/'checkpoint').exists() and not (run/'executed.ipynb').exists()

def next_run_succeeds(folder, go):
    out, err = (p := go('-p', 'seconds=0')).communicate(timeout=60)
    assert p.returncode == 0, err
    assert (folder/'runs/nap/results.json').exists() and (folder/'runs/nap/checkpoint/config.json').exists()
    assert json.loads((folder/'runs/nap/results.json').read_text())['parameters']['seconds'] == 0

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
    assert nothing_finished(folder) and (folder/'runs/nap/failed.ipynb').exists()
    next_run_succeeds(folder, go)

def test_kill_9_of_the_runner(nap):
    folder, go = nap
    p = go()
    kernel, child = asleep(folder, p)
    p.kill(); p.wait()
    assert wait(lambda: not alive(kernel), 10), 'the kernel outlived its runner'
    os.kill(child, signal.SIGKILL) # nothing can be left to clean up after kill -9 but the process itself
    assert nothing_finished(folder)
    next_run_succeeds(folder, go)
    assert (folder/'runs/nap.unfinished').is_dir()

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
    out, err = (q := go('-p', 'seconds=0')).communicate(timeout=30)
    assert q.returncode != 0 and 'another run' in err
    p.send_signal(signal.SIGINT); p.communicate(timeout=20)
    next_run_succeeds(folder, go)
