"""tqcook.trtllm against the stand-in: processes, traps, bad ends, and the contract."""
import json, os, re, signal, socket, subprocess, sys, time
from pathlib import Path
import pytest
from tqcook import serving, trtllm
from tqcook.core import CookError
from tqcook.device import lookup
from tqcook.trtllm import Workload
import trtllm_standin

HERE = Path(__file__).parent
if os.environ.get('PYTHONPATH', '').find(str(HERE)) < 0: sys.path.insert(0, str(HERE))


@pytest.fixture(scope='module')
def env(tmp_path_factory):
    return trtllm_standin.install(tmp_path_factory.mktemp('env')/'trt', '1.2.1')


@pytest.fixture
def runtime(env, monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(env))
    return trtllm.find()


def free_port():
    with socket.socket() as s: s.bind(('localhost', 0)); return s.getsockname()[1]


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError: return False


def gone(pid, seconds=5):
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end: time.sleep(.05)
    return not alive(pid)


def worker_of(log): return int(re.search(r'worker (\d+)', Path(log).read_text())[1])


def command(runtime, tmp_path, port, **kw):
    s = trtllm.llm_settings('fp8', Workload(64, 8, 4))
    return trtllm.serve_command(tmp_path/'ckpt', s, port, options=str(trtllm.write_options(s, tmp_path/'serve.yaml')),
                                runtime=runtime)


# --- finding it

def test_found_with_its_version(runtime): assert runtime.version == '1.2.1' and runtime.where == 'TQCOOK_TRTLLM_PYTHON'


@pytest.mark.parametrize('version', ['0.20.0', '2.0.0', 'unknown'])
def test_unknown_version_is_refused(version, tmp_path, monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(trtllm_standin.install(tmp_path/'e', version)))
    with pytest.raises(CookError, match='version|known'): trtllm.find()


def test_container_command_is_split_without_a_shell(env, monkeypatch):
    monkeypatch.delenv('TQCOOK_TRTLLM_PYTHON', raising=False)
    monkeypatch.setenv('TQCOOK_TRTLLM_COMMAND', f'/usr/bin/env PATH="{env.parent}:/usr/bin:/bin" A="$(touch '
                       f'/tmp/never)"')
    (env.parent/'python3').unlink(missing_ok=True); (env.parent/'python3').symlink_to(env)
    r = trtllm.find()
    assert r.version == '1.2.1' and r.tool('trtllm-serve')[-1] == 'trtllm-serve' and not Path('/tmp/never').exists()


def test_found_by_its_program_on_the_path(env, tmp_path, monkeypatch):
    for k in ('TQCOOK_TRTLLM_PYTHON', 'TQCOOK_TRTLLM_COMMAND'): monkeypatch.delenv(k, raising=False)
    tool = tmp_path/'trtllm-serve'; tool.write_text(f'#!{env}\nprint()\n'); tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    r = trtllm.find()
    assert r.python == [str(env)] and r.version == '1.2.1' and r.tool('trtllm-serve') == [str(tool)]
    with pytest.raises(CookError, match='trtllm-nothing'): r.tool('trtllm-nothing')


# --- serving

def test_serve_complete_and_load(runtime, tmp_path):
    port = free_port(); log = tmp_path/'log'
    with serving.serve(command(runtime, tmp_path, port), port, log, ready=60) as s:
        assert serving.complete(s, 'def', 3) == ' x x x'
        l = serving.load(s, [[1, 2, 3]] * 12, Workload(3, 5, 4))
        assert l.requests == 12 and l.failed == 0 and 0 < l.ttft['p50'] <= l.ttft['p95'] and l.gap['p50'] > 1e-3
        assert abs(l.tokens_per_second * l.seconds - 60) < 1e-6
        with pytest.raises(CookError, match='404'): s.request('/v1/nothing')
        with pytest.raises(CookError, match='400.*nosuch'):
            s.request('/v1/completions', dict(model='ckpt', prompt='a', max_tokens=1, nosuch=1))
        pids = s.process.pid, worker_of(log)
    assert all(gone(p) for p in pids), 'a process is left running'
    assert serving.port_is_free(port)


def test_port_in_use(runtime, tmp_path):
    with socket.socket() as s:
        s.bind(('localhost', 0)); s.listen(); port = s.getsockname()[1]
        with pytest.raises(CookError, match=f'port {port}.*in use'):
            with serving.serve(command(runtime, tmp_path, port), port, tmp_path/'log'): pass
    assert not (tmp_path/'log').exists()


def test_server_that_dies_leaves_its_reason_and_no_process(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv('STANDIN_SERVE', 'die'); port = free_port()
    with pytest.raises(CookError, match='out of memory'):
        with serving.serve(command(runtime, tmp_path, port), port, tmp_path/'log', ready=30): pass
    assert gone(worker_of(tmp_path/'log'))


def test_server_that_never_gets_ready_is_killed(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv('STANDIN_SERVE',
                       'hang'); monkeypatch.setattr(serving._end, '__defaults__', (1,)); port = free_port()
    with pytest.raises(CookError, match='not ready after.*\n.*loading'):
        with serving.serve(command(runtime, tmp_path, port), port, tmp_path/'log', ready=4): pass
    assert gone(worker_of(tmp_path/'log'))


def test_an_error_in_the_block_ends_the_server(runtime, tmp_path):
    port = free_port()
    with pytest.raises(KeyboardInterrupt):
        with serving.serve(command(runtime, tmp_path, port), port, tmp_path/'log', ready=60) as s:
            raise KeyboardInterrupt
    assert gone(s.process.pid) and gone(worker_of(tmp_path/'log'))


def test_a_killed_parent_takes_the_server_along(runtime, tmp_path):
    port = free_port(); cmd = command(runtime, tmp_path, port)
    code = f'import time; from tqcook import trtllm\nwith trtllm.serve({cmd!r}, {port}, {str(tmp_path / "log")!r}, ready=60) as s: print(s.process.pid, flush=True); time.sleep(60)'
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    pid = int(p.stdout.readline()); p.kill(); p.wait()
    assert gone(pid)
    # the stand-in does not pass the signal on; the real server ends its workers
    os.kill(worker_of(tmp_path/'log'), signal.SIGKILL)


def test_settings_outside_the_contract_are_refused_by_the_stand_in(runtime, tmp_path):
    port = free_port()
    with pytest.raises(CookError, match='unrecognized arguments: --max_tokens'):
        with serving.serve([*command(runtime, tmp_path, port), '--max_tokens', '5'], port, tmp_path/'log', ready=30):
            pass


# --- scoring

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    pytest.importorskip('torch'); pytest.importorskip('transformers')
    from test_compile import checkpoint_of
    from tqcook import models
    d = checkpoint_of(models.tiny('llama'), tmp_path_factory.mktemp('score')/'fp8')
    return d


def scoring(length=48, **kw): return trtllm.llm_settings('fp8', Workload(length, 1, 4), scoring=True, **kw)


@pytest.mark.parametrize('version', ['1.1.0', '1.2.1'])
def test_context_logits_equal_the_reference(version, checkpoint, tmp_path, monkeypatch):
    import torch
    from tqcook import runtime
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(trtllm_standin.install(tmp_path/'e', version)))
    ref = runtime.load(checkpoint, device='cpu', kernels='reference')
    ids = torch.randint(0, 4096, (3, 48), generator=torch.Generator().manual_seed(0))
    with serving.Scorer(checkpoint, trtllm.find(), scoring(version=version), ref, work=tmp_path) as s:
        for _ in range(2): z = s.hidden(ids) # twice the same beginning: with block reuse the second would be short
        pid = s._p.pid
        with torch.no_grad(): want = ref.model(ids).logits.float()
        assert s.head(z[0]).shape == (48, 4096) and torch.allclose(s.head(z), want, atol=1e-5)
        with pytest.raises(CookError, match='max_num_tokens'): s.hidden(torch.zeros(1, 999, dtype=torch.long))
        assert s.hidden(ids[:1]).shape[0] == 1, 'an error must not end the worker'
    assert gone(pid) and not list(tmp_path.glob('tqcook-*'))


def test_parity_through_compare(checkpoint, runtime, tmp_path):
    from tqcook import runtime, compare, data
    ref = runtime.load(checkpoint, device='cpu', kernels='reference')
    if ref.tokenizer is None: pytest.skip('needs the demonstration model\'s tokenizer')
    corpus = data.corpus('code', ref.tokenizer, context=48, max_windows=6)
    with serving.Scorer(checkpoint, runtime, scoring(), ref, work=tmp_path) as s:
        c = compare.compare(ref, s, corpus, progress=False)
    assert c.to_dict()['ppl_ratio'] == pytest.approx(1, abs=1e-5)


def test_block_reuse_is_refused_and_would_be_noticed(checkpoint, runtime, tmp_path):
    import torch
    from tqcook import runtime
    ref, ids = runtime.load(checkpoint, device='cpu', kernels='reference'), torch.arange(48)[None]
    with pytest.raises(CookError, match='reuse'): serving.Scorer(checkpoint, runtime, trtllm.llm_settings('fp8'), ref)
    s = serving.Scorer(checkpoint, runtime, scoring(), ref, work=tmp_path)
    # past the guard, into the trap
    spec = json.loads(s._spec); spec['llm']['kv_cache_config']['enable_block_reuse'] = True; s._spec = json.dumps(spec)
    with s:
        s.hidden(ids)
        with pytest.raises(CookError, match='16 rows of logits for 48 tokens'): s.hidden(ids)


def test_a_checkpoint_that_cannot_be_loaded(runtime, tmp_path):
    class Ref: vocab_size, context, tokenizer_sha = 4096, 512, None
    (tmp_path/'empty').mkdir()
    with pytest.raises(CookError, match='TensorRT-LLM 1.2.1'):
        with serving.Scorer(tmp_path/'empty', runtime, scoring(), Ref, work=tmp_path): pass
    assert not list(tmp_path.glob('tqcook-*'))


# --- benchmark

def report(runtime, tmp_path, what='throughput'):
    w = Workload(16, 4, 2)
    data = serving.bench_dataset([range(64)], tmp_path/'r.jsonl', w, 6)
    serving.call(serving.bench_command(what, tmp_path, data, tmp_path/'report.json', w, runtime=runtime),
                tmp_path/'bench.log', 60)
    return tmp_path/'report.json'


@pytest.mark.parametrize('what', ['throughput', 'latency'])
def test_bench_runs_and_is_read(runtime, tmp_path, what):
    b = serving.read_report(report(runtime, tmp_path, what), '1.2.1')
    assert (b.requests, b.input_len,
            b.output_len) == (6, 16., 4.) and b.ttft == dict(p50=.01, p95=.01) and b.latency == .05
    assert '1.00' in serving.bench_table(dict(base=b, fp8=b))


def test_reports_of_others(runtime, tmp_path):
    f = report(runtime, tmp_path); d = json.loads(f.read_text())
    with pytest.raises(CookError, match='1.2.1 and 1.3.0rc7 was started'): serving.read_report(f, '1.3.0rc7')
    for path in ('performance.system_output_throughput_tok_s', 'engine.version', 'streaming_metrics.ttft_percentiles'):
        e = json.loads(json.dumps(d)); a, b = path.split('.'); del e[a][b]; f.write_text(json.dumps(e))
        with pytest.raises(CookError, match=path): serving.read_report(f)
    f.write_text(json.dumps(d | dict(engine=d['engine'] | dict(version='9.9.9'))))
    with pytest.raises(CookError, match='9.9.9'): serving.read_report(f)
    f.write_text('[]')
    with pytest.raises(CookError): serving.read_report(f)


def test_benchmarks_that_cannot_be_compared(runtime, tmp_path):
    from dataclasses import replace
    b = serving.read_report(report(runtime, tmp_path))
    with pytest.raises(CookError, match='differ'): serving.bench_table(dict(a=b, b=replace(b, output_len=8.)))


# --- engines

def test_legacy_engine_and_its_passport(runtime, tmp_path):
    seconds = serving.build_engine(tmp_path/'model', tmp_path/'out', lookup('a100'), runtime, 'int8_sq',
                                  workload=Workload(16, 4, 2), scoring=True,
                                  examples=str(Path(runtime.tools).parent/'examples'))
    p = json.loads((tmp_path/'out'/'engine'/'passport.json').read_text())
    assert set(seconds) == {'convert',
                            'build'} and p['kind'] == 'engine' and p['device']['sm'] == 80 and p['versions']['tensorrt_llm'] == '1.2.1'


def test_a_converted_checkpoint_needs_the_build_alone(tmp_path):
    (tmp_path/'rank0.safetensors').write_bytes(b'')
    (command, _), = trtllm.engine_commands(tmp_path, tmp_path/'out')
    assert command[0] == 'trtllm-build' and command[command.index('--checkpoint_dir') + 1] == str(tmp_path)


def test_no_engines_in_new_versions():
    with pytest.raises(CookError, match='no engine backend.*1.2.1'):
        trtllm.engine_commands('m', 'o', version='1.4.0rc1')


# --- refused before serving

def test_a_checkpoint_with_errors_is_not_served(checkpoint, tmp_path):
    import shutil
    bad = shutil.copytree(checkpoint, tmp_path/'bad')
    q = json.loads((bad/'hf_quant_config.json').read_text()); q['quantization']['quant_algo'] = 'FP9'; (bad/'hf_quant_config.json').write_text(json.dumps(q))
    with pytest.raises(CookError, match='not served'): serving.ready(bad)
    assert serving.ready(bad, force=True)


# --- the contract

def test_contract_agrees_with_the_stand_in(runtime): assert serving.check_contract(runtime) == []


def test_contract_check_can_fail(runtime, monkeypatch):
    more = [trtllm.Item('serve', '--max_tokens', '1.0', '', 'invented'),
            trtllm.Item('LLM', 'nosuch', '1.0', '', 'invented'),
            trtllm.Item('import', 'tensorrt_llm.Nothing', '1.0', '', 'invented')]
    monkeypatch.setattr(trtllm, 'CONTRACT', trtllm.CONTRACT + more)
    assert len(serving.check_contract(runtime)) == 3


def test_nothing_in_the_contract_is_unused_and_no_flag_is_outside_it():
    source = Path(trtllm.__file__).read_text()
    start = source.index('CONTRACT = ['); code = source[:start] + source[source.index('def known('):]
    unused = [i.name for i in trtllm.CONTRACT if i.name.rpartition('.')[2] not in code
              and i.kind not in ('report', 'RequestOutput')]
    assert not unused, unused
    own = {'--rm', '--init', '--gpus', '--ipc', '--network', '--ulimit', '--help',
           '--report_json'} | set(re.findall(r'(?:srun|#SBATCH) [^\n]*|container-[a-z]+', code))
    flags = set(re.findall(r"'(--[a-zA-Z_-]+)'", code)) - own
    assert flags <= {i.name for i in trtllm.CONTRACT}, flags - {i.name for i in trtllm.CONTRACT}


def test_imports_nothing_heavy():
    code = "import sys, tqcook.trtllm, tqcook.compile, tqcook.roofline; print([m for m in ('torch', 'modelopt', 'transformers', 'onnx', 'tensorrt_rtx') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          cwd=HERE.parent).stdout.strip() == '[]'


# --- the recipe

def _run(recipe, out, **values):
    p = [x for k, v in values.items() for x in ('-p', f'{k}={v}')]
    return subprocess.run([sys.executable, '-m', 'tqcook', 'run', recipe, '-o', str(out), *p], capture_output=True,
                          text=True, cwd=HERE.parent)


def test_recipe_serve_skips_honestly(tmp_path, monkeypatch):
    monkeypatch.delenv('TQCOOK_TRTLLM_PYTHON',
                       raising=False); monkeypatch.delenv('TQCOOK_TRTLLM_COMMAND', raising=False)
    r = _run('serve', tmp_path/'run', calib_samples=4, max_windows=4)
    assert r.returncode == 0, r.stderr[-2000:]
    d = json.loads((tmp_path/'run'/'results.json').read_text())
    status = {s['name']: s['status'] for s in d['stages']}
    assert {k for k, v in status.items()
            if v == 'skipped'} == {'serve', 'load', 'parity', 'bench'} and status['check and passport'] == 'ran'
    assert d['details']['commands']['serve'].startswith('trtllm-serve ') and 'quality' not in d and 'load' not in d['engine']
    assert all('not installed' in s['reason'] for s in d['stages'] if s['status'] == 'skipped')


def test_recipe_serve_end_to_end_with_the_stand_in(env, tmp_path, monkeypatch):
    monkeypatch.setenv('TQCOOK_TRTLLM_PYTHON', str(env))
    r = _run('serve', tmp_path/'run', calib_samples=4, max_windows=4, requests=8, output_len=8, port=free_port())
    assert r.returncode == 0, r.stderr[-2000:]
    d = json.loads((tmp_path/'run'/'results.json').read_text())
    assert all(s['status'] == 'ran' for s in d['stages']), d['stages']
    e = d['engine']
    assert e['runtime'] == 'TensorRT-LLM 1.2.1' and e['load']['requests'] == 8 and e['load']['failed'] == 0 and set(e['bench']) == {'BF16', 'fp8'}
    assert abs(e['parity']['ppl_ratio'] - 1) < 1e-3 # the stand-in rounds logits to BF16, as the real one may
    assert gone(worker_of(tmp_path/'run'/'serve.log'))


def test_recipe_serve_refuses_a_damaged_checkpoint(demo_fp8, tmp_path):
    import shutil
    bad = shutil.copytree(demo_fp8, tmp_path/'bad')
    f = bad/'model.safetensors'; data = bytearray(f.read_bytes()); data[-5] ^= 1; f.write_bytes(data)
    r = _run('serve', tmp_path/'run', checkpoint=bad)
    assert r.returncode == 1 and 'not served' in r.stderr and 'model.safetensors' in r.stderr and not (tmp_path/'run'/'results.json').exists()
