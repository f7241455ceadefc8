"""vLLM itself, where TQCOOK_VLLM_PYTHON or TQCOOK_VLLM_COMMAND names it: scores, chat template, KV cache, time.

    TQCOOK_VLLM_PYTHON=/env/bin/python make gpu-test
    TQCOOK_REQUIRE_VLLM=1 make gpu-test  # fail, instead of skipping, where none is named

None of this has run where it was written: vLLM could not be installed there. The stand-in of test_served.py has.
"""
import contextlib
import os
import time

import pytest

from served_standin import LEGACY
from test_serving import free_port
from tqcook import data, fidelity, models, runtime, serving
from tqcook.endpoint import connect
from tqcook.served import answers, compare_served

pytestmark = pytest.mark.gpu


@pytest.fixture(scope='module')
def vllm(tmp_path_factory):
    "Directory, more flags -> the endpoint of a vLLM, for the length of a block."
    if not serving.engine_at('vllm'):
        stop = pytest.fail if os.environ.get('TQCOOK_REQUIRE_VLLM') == '1' else pytest.skip
        stop('TQCOOK_VLLM_PYTHON names no environment with vLLM')

    @contextlib.contextmanager
    def start(path, *flags, length=1100):
        port = free_port()
        command = serving.engine_command('vllm', path, length, 32, port, host='127.0.0.1')
        memory = '--gpu-memory-utilization', '0.5'
        log = tmp_path_factory.mktemp('vllm')/'log'
        with serving.serve([*command, *memory, *flags], port, log, host='127.0.0.1') as server:
            yield connect(server.url)
    return start


def test_it_serves_the_file_and_not_the_base(vllm, demo, demo_fp8, held_out):
    "A negative control: it is nearer to the file than to the model that the file was made from."
    file = runtime.load(demo_fp8, device='cuda', kernels='reference')
    with vllm(demo_fp8) as end:
        assert end.dialect == 'vllm' and fidelity.admitted(end, file.tokenizer, 'none') == {}
        same, other = (compare_served(m, end, held_out, progress=False) for m in (file, demo))
    assert abs(same.stats['ppl_ratio'].value - 1) < 2e-3, same.stats['ppl_ratio']
    assert same.stats['kld_mean'].value < other.stats['kld_mean'].value / 2


def test_another_cache_and_another_template_are_named(vllm, demo_fp8, demo, tmp_path):
    (tmp_path/'other.jinja').write_text(LEGACY)
    with vllm(demo_fp8, '--kv-cache-dtype', 'fp8', '--chat-template', str(tmp_path/'other.jinja')) as end:
        assert set(fidelity.admitted(end, demo.tokenizer, 'none')) == {'kv', 'template'}


def test_64_windows_of_1024_tokens_in_a_minute(vllm):
    model = models.load('smollm2-135m', device='cuda')
    corpus = data.corpus('code', model.tokenizer, context=1024, max_windows=64)
    with vllm(model.path) as end:
        begun = time.monotonic()
        answers(end, corpus, at_once=32)
        assert time.monotonic() - begun < 60
