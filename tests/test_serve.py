"The recipe serve: a server that runs already, what runs without an engine, the whole way with stand-ins, bad files."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from served_standin import LEGACY, install, running
from test_served import AIPERF, tool
from test_serving import free_port, gone, worker_of

ROOT = Path(__file__).resolve().parent.parent
slow = pytest.mark.slow  # whole runs by the command, a minute each


def results(out):
    return json.loads((out/'results.json').read_text())


def skipped(d):
    return {s['name']: s['reason'] for s in d['stages'] if s['status'] == 'skipped'}


# in this process, without a kernel: seconds instead of a minute

def cells(out, **values):
    "Run the recipe's cells here with these parameters; what it found."
    space = {}
    for c in json.loads((ROOT/'recipes/08_serve.ipynb').read_text())['cells']:
        if c['cell_type'] == 'code':
            exec(''.join(c['source']), space)
        if 'parameters' in c['metadata'].get('tags', []):
            space |= dict(values, out_dir=str(out), device='cpu')
    return results(out)


@pytest.fixture(scope='module')
def loaded(demo_fp8):
    "The checkpoint as loaders have it."
    from tqcook import runtime
    return runtime.load(demo_fp8, device='cpu', kernels='reference')


SMALL = dict(context=48, max_windows=8, input_len=32, output_len=8, requests=4, bench=False)


def test_a_faithful_server_that_runs_already(demo_fp8, loaded, tmp_path):
    with running(loaded, 'vllm') as (url, server):
        d = cells(tmp_path/'run', endpoint=url, checkpoint=str(demo_fp8), **SMALL)
    rungs, served = d['details']['rungs'], d['served']
    assert list(rungs) == ['base and file', 'file and server', 'base and server']
    assert served['faithful'] == 'PASS' and served['causes'] == [] and served['engine'] == 'vllm'
    assert abs(rungs['file and server']['ppl_ratio'] - 1) < 1e-6
    assert rungs['base and server']['ppl_ratio'] == pytest.approx(d['quality']['ppl_ratio'])
    assert set(skipped(d)) == {'quantize', 'parity', 'load', 'bench', 'tp 1 and 2'}
    assert not (tmp_path/'run/answers.jsonl').exists()


def test_a_scheme_that_tensorrt_llm_refuses_is_judged_at_an_endpoint(demo, tmp_path):
    "INT8 as vLLM takes it: the check is vLLM's, and settings for TensorRT-LLM are skipped with its reason."
    from tqcook import data, export, quantize, runtime
    calib = data.calibration('code-train', demo.tokenizer, samples=4, length=128)
    quantized = quantize.quantize(demo, calib, 'int8_token', progress=False)
    path = export.export(quantized, tmp_path/'int8', engine_for='vllm')
    loaded = runtime.load(path, device='cpu', kernels='reference')
    with running(loaded, 'vllm') as (url, server):
        d = cells(tmp_path/'run', endpoint=url, checkpoint=str(path), **SMALL)
    assert d['served']['faithful'] == 'PASS' and d['served']['version'] == '0.32.0'
    assert 'SmoothQuant' in skipped(d)['settings'] and 'settings' not in d['details']


def test_requests_longer_than_the_model_are_refused_before_a_server_starts(demo_fp8, tmp_path):
    from tqcook.core import CookError
    with pytest.raises(CookError, match='1026 tokens are planned and the model takes 1024'):
        cells(tmp_path/'run', checkpoint=str(demo_fp8), **SMALL | dict(context=1024))


@slow
def test_a_server_with_another_cache_and_another_template(demo_fp8, tmp_path):
    "In an FP8 model's own noise an FP8 cache hides; what the server says of it does not."
    from tqcook import runtime
    other = runtime.load(demo_fp8, device='cpu', kernels='reference')
    other.model.set_attn_implementation(runtime.fp8_kv_attention('sdpa'))
    with running(other, 'sglang', kv='fp8_e4m3', template=LEGACY) as (url, server):
        d = cells(tmp_path/'run', endpoint=url, checkpoint=str(demo_fp8), **SMALL)
    named = d['served']['causes']
    assert d['served']['faithful'] == 'FAIL' and named[0].startswith('KV cache format (the server keeps fp8_e4m3')
    assert named[1].startswith('Chat template (') and 'not the file' in d['details']['advice'][0]


# by the command

def serve(out, **values):
    p = [x for k, v in values.items() for x in ('-p', f'{k}={v}')]
    command = [sys.executable, '-m', 'tqcook', 'run', 'serve', '--size', 'smoke', '-o', str(out), *p]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def nowhere(monkeypatch):
    "No engine is named."
    for engine in ('TRTLLM', 'VLLM', 'SGLANG'):
        for kind in ('PYTHON', 'COMMAND'):
            monkeypatch.delenv(f'TQCOOK_{engine}_{kind}', raising=False)
    monkeypatch.delenv('TQCOOK_AIPERF', raising=False)


@slow
@pytest.mark.parametrize(
    'engine,why',
    [('trtllm', 'not installed'), ('vllm', 'TQCOOK_VLLM_PYTHON'), ('none', 'no engine')],
)
def test_it_skips_honestly(engine, why, demo_fp8, nowhere, tmp_path):
    r = serve(tmp_path/'run', engine=engine, checkpoint=demo_fp8, max_windows=4)
    assert r.returncode == 0, r.stderr[-2000:]
    d = results(tmp_path/'run')
    found = skipped(d)
    assert set(found) == {'quantize', 'serve', 'parity', 'load', 'bench', 'tp 1 and 2'}
    assert why in found['serve'] and why in found['load']
    assert 'trtllm-serve ' in str(d['details']['commands']) and 'vllm serve ' in d['details']['commands']['with vllm']
    assert 'quality' not in d and not {'runtime', 'engine', 'served'} & set(d)


@slow
def test_end_to_end_with_the_stand_in(standin, nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(standin))
    r = serve(tmp_path/'run', calib_samples=4, max_windows=4, requests=8, output_len=8, port=free_port())
    assert r.returncode == 0, r.stderr[-2000:]
    d = results(tmp_path/'run')
    assert set(skipped(d)) == {'load', 'tp 1 and 2'}
    served = d['served']
    assert served['version'] == '1.2.1' and set(served['bench']) == {'BF16', 'fp8'} and served['answer']
    # the stand-in rounds logits to BF16, as the real one may
    assert abs(d['details']['rungs']['file and server']['ppl_ratio'] - 1) < 1e-3
    assert gone(worker_of(tmp_path/'run'/'serve.log'))


@slow
@pytest.mark.parametrize('engine', ['vllm', 'sglang'])
def test_an_engine_in_its_own_environment(engine, demo_fp8, nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv(f'TQCOOK_{engine.upper()}_PYTHON', str(install(tmp_path/'env')))
    monkeypatch.setenv('TQCOOK_AIPERF', tool(tmp_path/'aiperf', AIPERF))
    r = serve(tmp_path/'run', engine=engine, checkpoint=demo_fp8, max_windows=12, port=free_port())
    assert r.returncode == 0, r.stderr[-2000:]
    d = results(tmp_path/'run')
    assert set(skipped(d)) == {'quantize', 'parity', 'bench', 'tp 1 and 2'}
    assert d['served']['faithful'] == 'PASS' and set(d['served']['load']) == {'BF16', 'fp8'}
    assert [row['concurrency'] for row in d['served']['load']['fp8']] == [1, 2, 8]


@slow
def test_a_damaged_checkpoint_is_refused(demo_fp8, tmp_path):
    bad = shutil.copytree(demo_fp8, tmp_path/'bad')
    f = bad/'model.safetensors'
    data = bytearray(f.read_bytes())
    data[-5] ^= 1
    f.write_bytes(data)
    r = serve(tmp_path/'run', checkpoint=bad)
    assert r.returncode == 1 and 'not served' in r.stderr and 'model.safetensors' in r.stderr
    assert not (tmp_path/'run'/'results.json').exists()


@slow
def test_no_server_at_the_endpoint(demo_fp8, tmp_path):
    r = serve(tmp_path/'run', checkpoint=demo_fp8, endpoint='http://127.0.0.1:9')
    assert r.returncode == 1 and 'no usable answer from http://127.0.0.1:9/v1/models' in r.stderr
