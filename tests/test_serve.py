"The recipe serve: what runs without TensorRT-LLM, the whole way with the stand-in, and a damaged checkpoint."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_serving import free_port, gone, worker_of

pytestmark = pytest.mark.slow # whole runs of the recipe, a minute each

ROOT = Path(__file__).resolve().parent.parent

def serve(out, **values):
    p = [x for k, v in values.items() for x in ('-p', f'{k}={v}')]
    command = [sys.executable, '-m', 'tqcook', 'run', 'serve', '--size', 'smoke', '-o', str(out), *p]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

def results(out):
    return json.loads((out/'results.json').read_text())

def test_it_skips_honestly(tmp_path, monkeypatch):
    monkeypatch.delenv('TQCOOK_TRTLLM_PYTHON', raising=False)
    monkeypatch.delenv('TQCOOK_TRTLLM_COMMAND', raising=False)
    r = serve(tmp_path/'run', calib_samples=4, max_windows=4)
    assert r.returncode == 0, r.stderr[-2000:]
    d = results(tmp_path/'run')
    skipped = {s['name']: s['reason'] for s in d['stages'] if s['status'] == 'skipped'}
    assert set(skipped) == {'serve', 'parity', 'bench'} and all('not installed' in why for why in skipped.values())
    assert any(s['name'] == 'check and passport' and s['status'] == 'ran' for s in d['stages'])
    assert d['details']['commands']['serve'].startswith('trtllm-serve ') and 'quality' not in d
    assert not {'runtime', 'engine', 'served'} & set(d)

def test_end_to_end_with_the_stand_in(standin, tmp_path, monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(standin))
    r = serve(tmp_path/'run', calib_samples=4, max_windows=4, requests=8, output_len=8, port=free_port())
    assert r.returncode == 0, r.stderr[-2000:]
    d = results(tmp_path/'run')
    assert all(s['status'] == 'ran' for s in d['stages']), d['stages']
    served = d['served']
    assert served['trtllm'] == '1.2.1' and set(served['bench']) == {'BF16', 'fp8'} and served['answer']
    assert abs(served['parity']['ppl_ratio'] - 1) < 1e-3 # the stand-in rounds logits to BF16, as the real one may
    assert gone(worker_of(tmp_path/'run'/'serve.log'))

def test_a_damaged_checkpoint_is_refused(demo_fp8, tmp_path):
    bad = shutil.copytree(demo_fp8, tmp_path/'bad')
    f = bad/'model.safetensors'
    data = bytearray(f.read_bytes())
    data[-5] ^= 1
    f.write_bytes(data)
    r = serve(tmp_path/'run', checkpoint=bad)
    assert r.returncode == 1 and 'not served' in r.stderr and 'model.safetensors' in r.stderr
    assert not (tmp_path/'run'/'results.json').exists()
