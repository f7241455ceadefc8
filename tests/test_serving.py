"Serving, scoring and benchmarking against the stand-in: processes, traps and bad ends."
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import reduce
from pathlib import Path

import pytest

import trtllm_standin
from tqcook import serving, trtllm
from tqcook.core import CookError
from tqcook.endpoint import ask, connect, continued
from tqcook.trtllm import Workload

HERE = Path(__file__).parent

def free_port():
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]

def alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False

def gone(pid, seconds=5):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(.05)
    return not alive(pid)

def worker_of(log):
    return int(re.search(r'worker (\d+)', Path(log).read_text())[1])

def command(found, tmp_path, port):
    s = trtllm.llm_settings('fp8', Workload(64, 8, 4))
    options = trtllm.write_options(s, tmp_path/'serve.yaml')
    return trtllm.serve_command(tmp_path/'ckpt', s, port, options=str(options), found=found)

# serving

def test_serve_and_continue(found, tmp_path):
    port, log = free_port(), tmp_path/'log'
    with serving.serve(command(found, tmp_path, port), port, log, ready=60) as s:
        end = connect(s.url)
        assert end.dialect == 'tensorrt_llm' and continued(end, [1, 2], 3) == ' x x x'
        with pytest.raises(CookError, match='404'):
            ask(f'{s.url}/v1/nothing')
        with pytest.raises(CookError, match='400.*nosuch'):
            ask(f'{s.url}/v1/completions', dict(model='ckpt', prompt='a', max_tokens=1, nosuch=1))
        pids = s.process.pid, worker_of(log)
    assert all(gone(p) for p in pids), 'a process is left running'
    assert serving.port_is_free(port)

def test_port_in_use(found, tmp_path):
    with socket.socket() as s:
        s.bind(('localhost', 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(CookError, match=f'port {port}.*in use'):
            with serving.serve(command(found, tmp_path, port), port, tmp_path/'log'):
                pass
    assert not (tmp_path/'log').exists()

def test_server_that_dies_leaves_its_reason_and_no_process(found, tmp_path, monkeypatch):
    monkeypatch.setenv('STANDIN_SERVE', 'die')
    port = free_port()
    with pytest.raises(CookError, match='out of memory'):
        with serving.serve(command(found, tmp_path, port), port, tmp_path/'log', ready=30):
            pass
    assert gone(worker_of(tmp_path/'log'))

def test_the_first_error_of_a_long_log_is_shown(tmp_path):
    "As vLLM 0.32.0 wrote one in a kernel, in colours: an error in a warning is none, and the end only points upwards."
    log = tmp_path/'log'
    head = '\x1b[0;36m(Worker pid=7)\x1b[0;0m \x1b[31mERROR\x1b[0m \x1b[90m[multiproc_executor.py:953]\x1b[0;0m '
    why = [f'{head}ValueError: Failed to find a kernel. Reasons: ', *(f'{head} reason {i}' for i in range(9))]
    above = ['WARNING [system_utils.py:255] This can cause errors like `OSError: [Errno 24]`.', *map(str, range(40))]
    end = 'RuntimeError: Engine core initialization failed. See root cause above.'
    log.write_text('\n'.join([*above, *why, *map(str, range(100)), end]))
    said = serving.tail(log).split('\n')
    assert len(said) == 4 + 15 and said[-1] == end
    assert said[0].endswith('ValueError: Failed to find a kernel. Reasons:') and said[3].endswith(' reason 2')
    log.write_text('\n'.join([why[0], end]))
    assert len(serving.tail(log).split('\n')) == 2


def test_server_that_never_gets_ready_is_killed(found, tmp_path, monkeypatch):
    monkeypatch.setenv('STANDIN_SERVE', 'hang')
    monkeypatch.setattr(serving._end, '__defaults__', (1,))
    port = free_port()
    with pytest.raises(CookError, match='not ready after.*\n.*loading'):
        with serving.serve(command(found, tmp_path, port), port, tmp_path/'log', ready=4):
            pass
    assert gone(worker_of(tmp_path/'log'))

def test_an_error_in_the_block_ends_the_server(found, tmp_path):
    port = free_port()
    with pytest.raises(KeyboardInterrupt):
        with serving.serve(command(found, tmp_path, port), port, tmp_path/'log', ready=60) as s:
            raise KeyboardInterrupt
    assert gone(s.process.pid) and gone(worker_of(tmp_path/'log'))

def test_a_killed_parent_takes_the_server_along(found, tmp_path):
    port, log = free_port(), tmp_path/'log'
    code = (f'import time; from tqcook import serving\n'
            f'with serving.serve({command(found, tmp_path, port)!r}, {port}, {str(log)!r}, ready=60) as s:\n'
            '    print(s.process.pid, flush=True)\n    time.sleep(60)')
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    pid = int(p.stdout.readline())
    p.kill()
    p.wait()
    assert gone(pid)
    # the stand-in does not pass the signal on; the real server ends its workers
    os.kill(worker_of(log), signal.SIGKILL)

def test_settings_outside_the_contract_are_refused_by_the_stand_in(found, tmp_path):
    port = free_port()
    with pytest.raises(CookError, match='unrecognized arguments: --max_tokens'):
        with serving.serve([*command(found, tmp_path, port), '--max_tokens', '5'], port, tmp_path/'log', ready=30):
            pass

# scoring

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    from small import nearest
    from tqcook import models
    return nearest(models.tiny('llama'), tmp_path_factory.mktemp('score')/'fp8')

@pytest.fixture(scope='module')
def reference(checkpoint):
    from tqcook import runtime
    return runtime.load(checkpoint, device='cpu', kernels='reference')

def scoring(length=48, **kw):
    return trtllm.llm_settings('fp8', Workload(length, 1, 4), scoring=True, **kw)

@pytest.mark.parametrize('version', ['1.1.0', '1.2.1'])
def test_context_logits_equal_the_reference(version, checkpoint, reference, tmp_path, monkeypatch):
    import torch
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(trtllm_standin.install(tmp_path/'e', version)))
    ids = torch.randint(0, 4096, (3, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = reference.model(ids).logits.float()
    with serving.Scorer(checkpoint, trtllm.find(), scoring(version=version), reference, work=tmp_path) as s:
        for _ in range(2): # twice the same beginning: with block reuse the second would be short
            z = s.hidden(ids)
        pid = s.process.pid
        assert s.head(z[0]).shape == (48, 4096) and torch.allclose(s.head(z), want, atol=1e-5)
        with pytest.raises(CookError, match='max_num_tokens'):
            s.hidden(torch.zeros(1, 999, dtype=torch.long))
        assert s.hidden(ids[:1]).shape[0] == 1, 'an error must not end the worker'
    assert gone(pid) and not list(tmp_path.glob('tqcook-*'))

def test_parity_through_compare(checkpoint, reference, found, tmp_path):
    from tqcook import compare, data
    if reference.tokenizer is None:
        pytest.skip("needs the demonstration model's tokenizer")
    corpus = data.corpus('code', reference.tokenizer, context=48, max_windows=6)
    with serving.Scorer(checkpoint, found, scoring(), reference, work=tmp_path) as s:
        c = compare.compare(reference, s, corpus, progress=False)
    assert c.to_dict()['ppl_ratio'] == pytest.approx(1, abs=1e-4) # one window at a time there, six at once here

def test_block_reuse_is_refused_and_would_be_noticed(checkpoint, reference, found, tmp_path):
    import torch
    ids = torch.arange(48)[None]
    with pytest.raises(CookError, match='reuse'):
        serving.Scorer(checkpoint, found, trtllm.llm_settings('fp8'), reference)
    s = serving.Scorer(checkpoint, found, scoring(), reference, work=tmp_path)
    s.spec['llm']['kv_cache_config']['enable_block_reuse'] = True # past the guard, into the trap
    with s:
        s.hidden(ids)
        with pytest.raises(CookError, match='16 rows of logits for 48 tokens'):
            s.hidden(ids)

def test_a_checkpoint_that_cannot_be_loaded(found, tmp_path):
    class Ref:
        vocab_size, context, tokenizer_sha = 4096, 512, None
    (tmp_path/'empty').mkdir()
    with pytest.raises(CookError, match='TensorRT-LLM 1.2.1'):
        with serving.Scorer(tmp_path/'empty', found, scoring(), Ref, work=tmp_path):
            pass
    assert not list(tmp_path.glob('tqcook-*'))

def test_a_worker_that_is_killed_is_told_with_its_log(checkpoint, reference, found, tmp_path):
    import torch
    with serving.Scorer(checkpoint, found, scoring(), reference, work=tmp_path) as s:
        os.kill(s.process.pid, signal.SIGKILL)
        s.process.wait()
        with pytest.raises(CookError, match='ended with code -9'):
            s.hidden(torch.arange(48)[None])

# benchmark

def report(found, tmp_path, what='throughput'):
    w = Workload(16, 4, 2)
    data = serving.bench_dataset([range(64)], tmp_path/'r.jsonl', w, 6)
    serving.call(serving.bench_command(what, tmp_path, data, tmp_path/'report.json', w, found=found),
                 tmp_path/'bench.log', 60)
    return tmp_path/'report.json'

@pytest.mark.parametrize('what', ['throughput', 'latency'])
def test_bench_runs_and_is_read(found, tmp_path, what):
    b = serving.read_report(report(found, tmp_path, what), '1.2.1')
    assert (b['requests'], b['input_len'], b['output_len']) == (6, 16., 4.)
    assert b['ttft'] == b['itl'] == .01 and b['latency'] == .05

def test_reports_of_others(found, tmp_path):
    f = report(found, tmp_path)
    d = json.loads(f.read_text())
    with pytest.raises(CookError, match='1.2.1 and 1.3.0rc7 was started'):
        serving.read_report(f, '1.3.0rc7')
    for path in ('performance.system_output_throughput_tok_s', 'engine.version',
                 'streaming_metrics.ttft_percentiles.p50'):
        e = json.loads(json.dumps(d))
        *steps, last = path.split('.')
        del reduce(dict.__getitem__, steps, e)[last]
        f.write_text(json.dumps(e))
        with pytest.raises(CookError, match=path):
            serving.read_report(f)
    f.write_text(json.dumps(d | dict(engine=d['engine'] | dict(version='9.9.9'))))
    with pytest.raises(CookError, match='9.9.9'):
        serving.read_report(f)
    f.write_text('[]')
    with pytest.raises(CookError):
        serving.read_report(f)

# refused before serving

def test_a_checkpoint_with_errors_is_not_served(checkpoint, tmp_path):
    bad = shutil.copytree(checkpoint, tmp_path/'bad')
    q = json.loads((bad/'hf_quant_config.json').read_text())
    q['quantization']['quant_algo'] = 'FP9'
    (bad/'hf_quant_config.json').write_text(json.dumps(q))
    with pytest.raises(CookError, match='not served'):
        serving.before_serving(bad)
    assert serving.before_serving(bad, force=True)
