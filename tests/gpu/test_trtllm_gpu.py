"""TensorRT-LLM itself, where it is installed: the contract by introspection, then serving, parity, load and benchmark.

    make gpu-test                          # in nvcr.io/nvidia/tensorrt-llm/release:1.2.1 nothing else is needed
    TQCOOK_REQUIRE_TRTLLM=1 make gpu-test  # fail, instead of skipping, where it is not found

None of this has run where it was written: TensorRT-LLM could not be installed there.
"""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tqcook import serving, trtllm
from tqcook.trtllm import Workload
from trtllm_contract import check_contract

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def found():
    r = trtllm.find()
    if r is None and os.environ.get('TQCOOK_REQUIRE_TRTLLM') == '1':
        pytest.fail('TQCOOK_REQUIRE_TRTLLM=1, and ' + trtllm.missing())
    if r is None:
        pytest.skip(trtllm.missing())
    return r


@pytest.fixture(scope='module')
def gpu():
    from tqcook.device import detect
    return detect('cuda')


def scoring(found, gpu, scheme='fp8'):
    return trtllm.llm_settings(scheme, Workload(256, 1, 4), gpu, version=found.version, scoring=True)


def test_contract(found):
    assert check_contract(found) == []


def test_parity_with_a_negative_control(found, gpu, demo, demo_fp8, held_out, tmp_path):
    "It is nearer to the dequantized file than to the unquantized model, or it did not run the quantized weights."
    from tqcook import compare, runtime
    reference = runtime.load(demo_fp8, device='cuda', kernels='reference')
    with serving.Scorer(demo_fp8, found, scoring(found, gpu), reference, work=tmp_path) as s:
        same, other = (compare.compare(m, s, held_out, noise_floor='none', progress=False).stats
                       for m in (reference, demo))
    assert abs(same['ppl_ratio'].value - 1) < 2e-3, same['ppl_ratio']
    assert same['kld_mean'].value < other['kld_mean'].value / 2, (same['kld_mean'], other['kld_mean'])


def test_recipe_serve(found, demo_fp8, tmp_path):
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    r = subprocess.run([sys.executable, '-m', 'tqcook', 'run', 'serve', '-o', tmp_path/'run', '-p',
                        f'checkpoint={demo_fp8}', '-p', f'port={port}', '-p', 'device=cuda'],
                       capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 0, r.stderr[-3000:]
    d = json.loads((tmp_path/'run'/'results.json').read_text())
    skipped = {s['name'] for s in d['stages'] if s['status'] == 'skipped'}
    assert 'quantize' in skipped and skipped <= {'quantize', 'load', 'tp 1 and 2'}
    assert set(d['served']['bench']) == {'BF16', 'fp8'} and d['served']['answer']
    assert d['served']['bench']['fp8']['quantization'] == 'FP8'


def test_int8_smoothquant_engine(found, gpu, demo, held_out, tmp_path):
    "The legacy way, up to 1.2.1: checkpoint by ModelOpt, engine by trtllm-build, scored through its context logits."
    from tqcook import compare, data, export, quantize
    from tqcook.schemes import has_engine_backend
    if not has_engine_backend(found.version):
        pytest.skip(f'TensorRT-LLM {found.version} has no engine backend')
    calib = data.calibration('code-train', demo.tokenizer, samples=16, length=256)
    legacy = export.export(quantize.quantize(demo, calib, 'int8_sq', progress=False), tmp_path/'legacy',
                             layout='trtllm_legacy')
    commands = trtllm.engine_commands(legacy, tmp_path/'out', workload=Workload(256, 8, 4), version=found.version,
                                      scoring=True)
    (build, _), = commands
    serving.call([*found.tool(build[0]), *build[1:]], tmp_path/'build.log')
    with serving.Scorer(tmp_path/'out'/'engine', found, scoring(found, gpu, 'none'), demo, backend='tensorrt',
                       work=tmp_path) as s:
        c = compare.compare(demo, s, held_out, noise_floor='none', progress=False).stats
    assert abs(c['ppl_ratio'].value - 1) < .05 and c['kld_mean'].value > 0
