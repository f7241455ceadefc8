"""Stand-ins for running servers, for tests only: vLLM, SGLang, OpenAI's older completions, from a model in-process.

Argument names and reply forms are typed by hand from those servers' sources, and vLLM's are held against what 0.32.0
answered (tests/gpu/test_served_gpu.py); unknown arguments are refused, and the traps are reproduced. `install` writes
an environment whose `vllm` and `sglang` start such a server."""
import argparse
import contextlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from tqcook.perplexity import as_logits

GREEDY = {'model', 'prompt', 'max_tokens', 'temperature'}
CHAT = {'model', 'messages', 'max_tokens', 'temperature'}
SCORES = dict(
    vllm=('/v1/completions', GREEDY | {'prompt_logprobs'}),
    sglang=('/generate', {'input_ids', 'sampling_params', 'return_logprob', 'logprob_start_len', 'top_logprobs_num'}),
    echo=('/v1/completions', GREEDY | {'echo', 'logprobs'}),
)
OWNER = dict(vllm='vllm', sglang='sglang', echo='somebody', tensorrt_llm='tensorrt_llm')
LEGACY = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"  # a chat template of somebody else
METRICS = '''# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",cache_dtype="auto",kv_cache_dtype_skip_layers="[]",mamba_cache_dtype="float16",\
mamba_ssm_cache_dtype="float32",num_gpu_blocks="2048"} 1.0
'''  # trap: of the line that vLLM 0.32.0 writes, three entries sound alike


class Server:
    "A server that can be told to misbehave by its attributes."

    def __init__(self, loaded, dialect, max_model_len=1024):
        self.logits, self.tokenizer = as_logits(loaded), loaded.tokenizer
        self.dialect, self.max_model_len = dialect, max_model_len
        self.key = ''           # answers 401 to any other
        self.busy = 0           # so many requests are answered 429 first
        self.limited = False    # answers 429 for ever
        self.dies_after = None  # so many requests, then HTTP 500
        self.cached = 0         # trap: so many tokens bring no log-probabilities
        self.cut = 0            # trap: prompts are truncated to so many tokens
        self.mute = False       # trap: a version that returns no log-probabilities of a prompt
        self.shift = 0          # trap: another vocabulary, whose ids are larger by so much
        self.kv = 'auto'        # what it says of its KV cache
        self.template = None    # a chat template other than the tokenizer's
        self.other = None       # another tokenizer than the model's
        self.bos = ()           # ids in front of a tokenized prompt
        self.penalty = 1.       # divides the logits of what has been written
        self.plain = False      # has no routes but OpenAI's
        self.requests = 0
        self.lock = threading.Lock()

    def logprobs(self, ids):
        "float64 log-probabilities [len(ids), vocabulary] of the next token."
        with self.lock, torch.no_grad():
            return torch.log_softmax(self.logits.head(self.logits.hidden(torch.tensor([ids]))[0]).double(), -1)

    def likely(self, row, k, token=None):
        "The k likeliest ids of one place, and the token itself."
        p, i = row.topk(k)
        best = {i + self.shift: p for i, p in zip(i.tolist(), p.tolist(), strict=True)}
        return best if token is None else {token: float(row[token])} | best  # trap: it stands first

    def vllm(self, d):
        ids = d['prompt'][-self.cut:] if self.cut else d['prompt']
        lp = self.logprobs(ids[:-1])
        rows = [None]
        for j in range(1, len(ids)):
            best = self.likely(lp[j - 1], d['prompt_logprobs'], ids[j])
            rows.append({str(i): dict(logprob=p, rank=int((lp[j - 1] > p).sum()) + 1) for i, p in best.items()})
        return dict(choices=[dict(index=0, text=' x', prompt_logprobs=None if self.mute else rows)])

    def sglang(self, d):
        ids, k = d['input_ids'], d['top_logprobs_num']
        lp = self.logprobs(ids[:-1])
        own = [[None, ids[0], None]] + [[float(lp[j - 1, ids[j]]), ids[j], None] for j in range(1, len(ids))]
        top = [None] + [[[p, i, None] for i, p in self.likely(row, k).items()] for row in lp]
        meta = dict(input_token_logprobs=own[self.cached:], input_top_logprobs=top[self.cached:])
        return dict(text=' x', meta_info={} if self.mute else meta)

    def echo(self, d):
        ids = d['prompt']
        lp = self.logprobs(ids[:-1])
        text = lambda i: self.tokenizer.decode([i])
        own = [None] + [float(lp[j - 1, ids[j]]) for j in range(1, len(ids))]
        likely = [self.likely(row, d['logprobs'], y) for row, y in zip(lp, ids[1:], strict=True)]
        top = [None] + [{text(i): p for i, p in row.items()} for row in likely]
        own, top = [*own, -.1], [*top, {}]  # trap: the generated token is there, too
        found = None if self.mute else dict(token_logprobs=own, top_logprobs=top)
        return dict(choices=[dict(index=0, text='', logprobs=found)])

    def written(self, d):
        "Greedy continuation, with a repetition penalty where its configuration has one."
        ids, new = list(d['prompt']), []
        while len(new) < d['max_tokens']:
            row = self.logprobs(ids + new)[-1]
            row[sorted({*ids, *new})] *= self.penalty
            new.append(int(row.argmax()))
        return dict(choices=[dict(index=0, text=self.tokenizer.decode(new, skip_special_tokens=True))])

    def rendered(self, messages):
        text = self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False,
                                                  add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)['input_ids']

    def chat(self, d):
        return dict(choices=[], usage=dict(prompt_tokens=len(self.rendered(d['messages']))))

    def tokenize(self, d):
        if 'messages' in d:
            ids = self.rendered(d['messages'])
        else:
            special = d.get('add_special_tokens', True)
            ids = (self.other or self.tokenizer)(d['prompt'], add_special_tokens=special)['input_ids']
            ids = [*self.bos, *ids] if special else ids
        return dict(tokens=ids, count=len(ids), max_model_len=self.max_model_len)

    def models(self):
        card = dict(id='demo', owned_by=OWNER[self.dialect])
        return dict(data=[card | (dict(max_model_len=self.max_model_len) if self.dialect != 'echo' else {})])

    def told(self, path):
        "What it says of itself; None where it has no such route."
        there = {'/v1/models': self.models, '/health': dict}
        if self.dialect == 'vllm':
            there['/metrics'] = lambda: METRICS.replace('auto', self.kv)
            there['/version'] = lambda: dict(version='0.32.0')
        if self.dialect == 'sglang':
            there['/server_info'] = lambda: dict(kv_cache_dtype=self.kv, version='0.5.23', tp_size=1)
        return there[path]() if path in there else None

    def route(self, path, d):
        "(what answers a request, the names it knows)"
        where, names = SCORES.get(self.dialect, ('', set()))
        if path == where and not set(d) <= GREEDY:
            return getattr(self, self.dialect), names
        there = {'/v1/completions': (self.written, GREEDY), '/v1/chat/completions': (self.chat, CHAT)}
        if self.dialect in ('vllm', 'sglang') and not self.plain:
            there['/tokenize'] = self.tokenize, {'model', 'messages', 'prompt', 'add_special_tokens'}
        return there.get(path, (None, set()))

    def refused(self, d, names):
        "What vLLM 0.32.0 refuses; it takes names that it does not know, and this one refuses them, too."
        if not set(d) <= names:
            return f'refused {sorted(set(d) - names)}'
        ids, k = d.get('prompt', []), max(d.get('prompt_logprobs', 0), d.get('logprobs', 0))
        if k > 20:
            return f'Requested prompt logprobs of {k}, which is greater than max allowed: 20'
        if isinstance(ids, list) and len(ids) + d.get('max_tokens', 0) > self.max_model_len:
            return f"This model's maximum context length is {self.max_model_len} tokens"
        return ''

    def answer(self, path, d, key):
        "-> (HTTP status, body)"
        if self.key and key != f'Bearer {self.key}':
            return 401, dict(error='no')
        if d is None:
            said = self.told(path)
            return (404, {}) if said is None else (200, said)
        f, names = self.route(path, d)
        if f is None:
            return 404, dict(error='Not Found')
        wrong = self.refused(d, names)
        if wrong:
            return 400, dict(error=dict(message=wrong, type='BadRequestError', param=None, code=400))
        if f in (self.tokenize, self.chat):
            return 200, f(d)
        self.requests += 1
        if self.busy or self.limited:
            self.busy -= 1
            return 429, dict(error='rate limit')
        if self.dies_after is not None and self.requests > self.dies_after:
            return 500, dict(error='out of memory')
        return 200, f(d)


def listener(server, port=0, host='127.0.0.1'):
    "An HTTP server around it."
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def reply(self, d):
            code, body = server.answer(self.path, d, self.headers.get('Authorization'))
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        def do_GET(self): self.reply(None)
        def do_POST(self): self.reply(json.loads(self.rfile.read(int(self.headers['Content-Length']))))

    class Http(ThreadingHTTPServer):
        request_queue_size = 128  # connections that wait

    return Http((host, port), Handler)


@contextlib.contextmanager
def running(loaded, dialect, **attributes):
    "A stand-in on a free port: yields (url, Server)."
    server = Server(loaded, dialect)
    for name, value in attributes.items():
        setattr(server, name, value)
    http = listener(server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{http.server_port}', server
    finally:
        http.shutdown()
        http.server_close()


FLAGS = dict(
    vllm='tensor-parallel-size pipeline-parallel-size max-model-len max-num-seqs host port',
    sglang='model-path tp-size pp-size context-length max-running-requests host port',
)


def program(engine, argv):
    "`vllm serve PATH ...`, `python -m sglang.launch_server ...`: a file as loaders have it, or an unquantized model."
    from tqcook import models, runtime
    from tqcook.checkpoint import Checkpoint
    p = argparse.ArgumentParser(engine, allow_abbrev=False)
    if engine == 'vllm':
        p.add_argument('verb', choices=['serve'])
        p.add_argument('model_path')
    for flag in FLAGS[engine].split():
        p.add_argument(f'--{flag}', required=True)
    a = p.parse_args(argv)
    if Checkpoint.open(a.model_path).scheme:
        loaded = runtime.load(a.model_path, device='cpu', kernels='reference')
    else:
        loaded = models.load(a.model_path, device='cpu')
    listener(Server(loaded, engine), int(a.port), a.host).serve_forever()


def install(folder):
    "Write an environment; returns its Python."
    here = Path(__file__).resolve()
    package = folder/'site/sglang'
    package.mkdir(parents=True)
    (package/'__init__.py').write_text('')
    (package/'launch_server.py').write_text("import sys, served_standin as s; s.program('sglang', sys.argv[1:])\n")
    head = f'#!/bin/sh\nexport PYTHONPATH="{folder}/site:{here.parent}:{here.parents[1]}"\nexec "{sys.executable}" '
    start = '-c "import sys, served_standin as s; s.program(\'vllm\', sys.argv[1:])" "$@"\n'
    (folder/'bin').mkdir()
    for name, rest in dict(python='"$@"\n', vllm=start).items():
        (folder/'bin'/name).write_text(head + rest)
        (folder/'bin'/name).chmod(0o755)
    return folder/'bin/python'
