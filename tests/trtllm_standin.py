"""A stand-in for TensorRT-LLM, for tests only: refuses what it does not know and reproduces known traps.

Its names are typed by hand from TensorRT-LLM's sources, not taken from tqcook's contract, so that the two can disagree.
It computes with tqcook's reference; its benchmark numbers are invented. `install` writes an environment around it:
bin/python, bin/trtllm-serve, ..., a package of that version.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

VERSION = os.environ.get('STANDIN_VERSION', '1.2.1')
KEY = tuple(int(x) for x in VERSION.split('rc')[0].split('.')[:2])


def strict(name, *known):
    class Strict:
        def __init__(self, **kw):
            bad = set(kw) - set(known)
            if bad:
                raise TypeError(f'{name}: unexpected {sorted(bad)[0]!r}')
            self.__dict__.update(dict.fromkeys(known), **kw)
    Strict.__name__, Strict.model_fields = name, dict.fromkeys(known)
    return Strict


KvCacheConfig = strict(
    'KvCacheConfig', 'enable_block_reuse', 'free_gpu_memory_fraction', 'max_tokens', 'dtype', 'host_cache_size'
)
CudaGraphConfig = strict('CudaGraphConfig', 'batch_sizes', 'max_batch_size', 'enable_padding')
TorchCompileConfig = strict(
    'TorchCompileConfig', 'enable_fullgraph', 'enable_inductor', 'enable_piecewise_cuda_graph', 'capture_num_tokens'
)
TorchLlmArgs = strict(
    'TorchLlmArgs',
    'model',
    'tokenizer',
    'tensor_parallel_size',
    'pipeline_parallel_size',
    'max_batch_size',
    'max_num_tokens',
    'max_seq_len',
    'kv_cache_config',
    'cuda_graph_config',
    'torch_compile_config',
    'attn_backend',
    *(['orchestrator_type'] if KEY >= (1, 2) else []),
)


class SamplingParams:
    def __init__(self, *, max_tokens=32, temperature=None, end_id=None, return_context_logits=False):
        self.max_tokens, self.logits = max_tokens, return_context_logits


class Output:
    def __init__(self, z):
        self.context_logits, self.outputs = z, []


class LLM:
    def __init__(self, **kw):
        a = TorchLlmArgs(**kw)
        assert isinstance(a.kv_cache_config, KvCacheConfig), 'kv_cache_config must be a KvCacheConfig'
        from tqcook import runtime
        self.a, self.seen = a, set()
        self.reuse = a.kv_cache_config.enable_block_reuse is not False
        self.model = runtime.load(a.model, device='cpu', kernels='reference').model

    def generate(self, inputs, sampling_params=None, use_tqdm=True):
        import torch
        return [Output(self._logits(torch.tensor(ids)) if sampling_params.logits else None) for ids in inputs]

    def _logits(self, ids):
        import torch
        if len(ids) > self.a.max_num_tokens:
            raise ValueError(f'prompt length {len(ids)} should not exceed max_num_tokens {self.a.max_num_tokens}')
        with torch.no_grad():
            z = self.model(ids[None]).logits[0].float()
        z, head = torch.nn.functional.pad(z, (0, 64), value=-1e4), tuple(ids[:32].tolist()) # a padded vocabulary
        if self.reuse and head in self.seen:
            z = z[32:] # trap: a cached block brings no logits
        self.seen.add(head)
        return z[None] if KEY < (1, 2) else z # trap: older versions keep a batch dimension

    def shutdown(self):
        pass


def parser(name, *flags, switches=()):
    p = argparse.ArgumentParser(name, allow_abbrev=False)
    for f in flags:
        p.add_argument(f)
    for f in switches:
        p.add_argument(f, action='store_true')
    return p


def serve(argv):
    if argv[:1] == ['serve']:
        argv = argv[1:]
    p = parser(
        'trtllm-serve',
        'model',
        '--tokenizer',
        '--host',
        '--port',
        '--tp_size',
        '--pp_size',
        '--ep_size',
        '--max_batch_size',
        '--max_num_tokens',
        '--max_seq_len',
        '--kv_cache_free_gpu_memory_fraction',
        '--extra_llm_api_options',
        '--log_level',
    )
    a, mode = p.parse_args(argv), os.environ.get('STANDIN_SERVE', '')
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']) # a worker, as the real one has
    print('loading', a.model, 'worker', child.pid, flush=True)
    if mode == 'die':
        print('torch.OutOfMemoryError: CUDA out of memory', flush=True)
        os._exit(1) # leaves the worker behind
    if mode == 'hang':
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)
    TorchLlmArgs(model=a.model, **json.loads(Path(a.extra_llm_api_options).read_text()))
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *x):
            pass
        def reply(self, code, body):
            self.send_response(code)
            self.send_header('Content-Type', 'application/json')
            self.end_headers()
            for b in body:
                self.wfile.write(b)
                self.wfile.flush()
                time.sleep(.002)
        def do_GET(self):
            card = dict(id=Path(a.model).name, owned_by='tensorrt_llm')
            ok = {'/health': b'', '/v1/models': json.dumps(dict(data=[card])).encode()}
            self.reply(200, [ok[self.path]]) if self.path in ok else self.reply(404, [b'{}'])
        def do_POST(self):
            d = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            bad = set(d) - {'model', 'prompt', 'max_tokens', 'temperature'}
            if self.path != '/v1/completions' or bad or d['model'] != Path(a.model).name:
                return self.reply(400, [f'refused {sorted(bad)}'.encode()])
            self.reply(200, [json.dumps(dict(choices=[dict(text=' x' * d['max_tokens'])])).encode()])
    ThreadingHTTPServer((a.host, int(a.port)), Handler).serve_forever()


def bench(argv):
    top, rest = parser('trtllm-bench', '--model', '--model_path', '--workspace', '--log_level'), [*argv]
    i = next((i for i, x in enumerate(rest) if x in ('throughput', 'latency')), len(rest))
    top.parse_args(rest[:i])
    flags = [
        '--dataset',
        '--backend',
        '--report_json',
        '--concurrency',
        '--num_requests',
        '--warmup',
        '--max_seq_len',
        '--kv_cache_free_gpu_mem_fraction',
        '--tp',
        '--pp',
    ]
    many = rest[i] == 'throughput'
    a = parser(
        rest[i],
        *flags,
        *(['--max_batch_size', '--max_num_tokens', '--extra_llm_api_options'] if many else []),
        switches=['--streaming'] if many else [],
    ).parse_args(rest[i + 1 :])
    with open(a.dataset, encoding='utf-8') as f:
        rows = [json.loads(line) for line in f]
    n = len(rows)
    pct = {k: 10. for k in ('p50', 'p90', 'p95', 'p99', 'minimum', 'maximum', 'average')}
    report = dict(
        engine=dict(
            model='m', version=VERSION, backend='Pytorch', dtype='bfloat16', kv_cache_dtype=None, quantization='FP8'
        ),
        world_info=dict(tp_size=int(a.tp), pp_size=int(a.pp), max_batch_size=8),
        request_info=dict(
            num_requests=n,
            avg_input_length=sum(len(r['input_ids']) for r in rows) / n,
            avg_output_length=sum(r['output_tokens'] for r in rows) / n,
        ),
        performance=dict(
            total_latency_ms=100.0,
            avg_request_latency_ms=50.0,
            request_throughput_req_s=n / 0.1,
            system_output_throughput_tok_s=1234.0,
            output_throughput_per_gpu_tok_s=1234.0,
        ),
        streaming_metrics=dict(avg_ttft_ms=5.0, avg_tpot_ms=1.0, ttft_percentiles=pct, tpot_percentiles=pct),
    )
    if many and not a.streaming:
        report.pop('streaming_metrics')
    Path(a.report_json).write_text(json.dumps(report))


def build(argv):
    a = parser(
        'trtllm-build',
        '--checkpoint_dir',
        '--output_dir',
        '--max_batch_size',
        '--max_input_len',
        '--max_seq_len',
        '--max_num_tokens',
        '--kv_cache_type',
        '--use_paged_context_fmha',
        '--use_fp8_context_fmha',
        '--workers',
        switches=['--gather_context_logits'],
    ).parse_args(argv)
    if not (Path(a.checkpoint_dir)/'config.json').exists():
        sys.exit(f'{a.checkpoint_dir} has no config.json')
    out = Path(a.output_dir)
    out.mkdir(parents=True)
    (out/'config.json').write_text(json.dumps(dict(version=VERSION)))
    (out/'rank0.engine').write_bytes(b'not an engine')


def quantize(argv):
    a = parser(
        'quantize.py',
        '--model_dir',
        '--qformat',
        '--kv_cache_dtype',
        '--dtype',
        '--calib_size',
        '--calib_max_seq_length',
        '--tp_size',
        '--pp_size',
        '--output_dir',
    ).parse_args(argv)
    out = Path(a.output_dir)
    out.mkdir(parents=True)
    (out/'config.json').write_text('{}')


def install(folder, version='1.2.1') -> Path:
    "Write an environment; returns its Python."
    here, site, bin_ = Path(__file__).resolve(), folder/'site', folder/'bin'
    for d in (
        bin_,
        site/'tensorrt_llm' / 'llmapi',
        site/'tensorrt_llm' / '_tensorrt_engine',
        site/f'tensorrt_llm-{version}.dist-info',
        folder/'examples' / 'quantization',
    ):
        d.mkdir(parents=True)
    (site/f'tensorrt_llm-{version}.dist-info' / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n'
    )
    (site/'tensorrt_llm'/'__init__.py').write_text('from trtllm_standin import LLM, SamplingParams\n')
    (site/'tensorrt_llm' / 'llmapi' / '__init__.py').write_text(
        'from trtllm_standin import KvCacheConfig, CudaGraphConfig, TorchCompileConfig, TorchLlmArgs\n'
    )
    (site/'tensorrt_llm'/'_tensorrt_engine'/'__init__.py').write_text('from trtllm_standin import LLM\n')
    (folder/'examples' / 'quantization' / 'quantize.py').write_text(
        'import sys, trtllm_standin as t; t.quantize(sys.argv[1:])\n'
    )
    paths = f'{site}:{here.parent}:{here.parents[1]}'
    head = f'#!/bin/sh\nexport PYTHONPATH="{paths}" STANDIN_VERSION={version}\nexec "{sys.executable}" '
    tools = {'python': '"$@"'} | {
        f'trtllm-{t}': f'-c "import sys, trtllm_standin as t; t.{t}(sys.argv[1:])" "$@"'
        for t in ('serve', 'bench', 'build')
    }
    for name, tail in tools.items():
        (bin_/name).write_text(head + tail + '\n')
        (bin_/name).chmod(0o755)
    return bin_/'python'
