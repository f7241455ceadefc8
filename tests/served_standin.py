"""Stand-ins for running servers, for tests only: vLLM, SGLang, OpenAI's older completions, from a model in-process.

Argument names and reply forms are typed by hand from those servers' sources; unknown arguments are refused, and the
traps are reproduced."""
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from tqcook.perplexity import as_logits

KNOWN = dict(
    vllm={'model', 'prompt', 'max_tokens', 'temperature', 'prompt_logprobs'},
    sglang={'input_ids', 'sampling_params', 'return_logprob', 'logprob_start_len', 'top_logprobs_num'},
    echo={'model', 'prompt', 'max_tokens', 'temperature', 'echo', 'logprobs'},
)
OWNER = dict(vllm='vllm', sglang='sglang', echo='somebody', tensorrt_llm='tensorrt_llm')


class Server:
    "A server that can be told to misbehave by its attributes."

    def __init__(self, loaded, dialect, max_model_len=1024):
        self.logits, self.tokenizer = as_logits(loaded), loaded.tokenizer
        self.dialect, self.max_model_len = dialect, max_model_len
        self.key = ''           # answers 401 to any other
        self.busy = 0           # so many requests are answered 429 first
        self.dies_after = None  # so many requests, then HTTP 500
        self.cached = 0         # trap: so many tokens bring no log-probabilities
        self.cut = 0            # trap: prompts are truncated to so many tokens
        self.requests = 0
        self.lock = threading.Lock()

    def logprobs(self, ids):
        "float64 log-probabilities [len(ids) - 1, vocabulary] of the next token."
        with self.lock, torch.no_grad():
            return torch.log_softmax(self.logits.head(self.logits.hidden(torch.tensor([ids[:-1]]))[0]).double(), -1)

    def likely(self, row, k, token=None):
        "The k likeliest ids of one place, and the token itself."
        p, i = row.topk(k)
        best = dict(zip(i.tolist(), p.tolist()))
        return best if token is None else best | {token: float(row[token])}

    def vllm(self, d):
        ids = d['prompt'][-self.cut:] if self.cut else d['prompt']
        lp = self.logprobs(ids)
        rows = [None]
        for j in range(1, len(ids)):
            best = self.likely(lp[j - 1], d['prompt_logprobs'], ids[j])
            rows.append({str(i): dict(logprob=p, rank=int((lp[j - 1] > p).sum()) + 1) for i, p in best.items()})
        return dict(choices=[dict(index=0, text=' x', prompt_logprobs=rows)])

    def sglang(self, d):
        ids, k = d['input_ids'], d['top_logprobs_num']
        lp = self.logprobs(ids)
        own = [[None, ids[0], None]] + [[float(lp[j - 1, ids[j]]), ids[j], None] for j in range(1, len(ids))]
        top = [None] + [[[p, i, None] for i, p in self.likely(row, k).items()] for row in lp]
        meta = dict(input_token_logprobs=own[self.cached:], input_top_logprobs=top[self.cached:])
        return dict(text=' x', meta_info=meta)

    def echo(self, d):
        ids = d['prompt']
        lp = self.logprobs(ids)
        text = lambda i: self.tokenizer.decode([i])
        own = [None] + [float(lp[j - 1, ids[j]]) for j in range(1, len(ids))]
        top = [None] + [{text(i): p for i, p in self.likely(row, d['logprobs']).items()} for row in lp]
        own, top = [*own, -.1], [*top, {}]  # trap: the generated token is there, too
        return dict(choices=[dict(index=0, text='', logprobs=dict(token_logprobs=own, top_logprobs=top))])

    def answer(self, path, d, key):
        "-> (HTTP status, body)"
        if self.key and key != f'Bearer {self.key}':
            return 401, dict(error='no')
        if path == '/v1/models':
            card = dict(id='demo', owned_by=OWNER[self.dialect])
            return 200, dict(data=[card | (dict(max_model_len=self.max_model_len) if self.dialect != 'echo' else {})])
        self.requests += 1
        if self.busy:
            self.busy -= 1
            return 429, dict(error='busy')
        if self.dies_after is not None and self.requests > self.dies_after:
            return 500, dict(error='out of memory')
        wanted = '/generate' if self.dialect == 'sglang' else '/v1/completions'
        if path != wanted or (bad := set(d) - KNOWN[self.dialect]):
            return 400, dict(error=f'refused {sorted(bad) if path == wanted else path}')
        return 200, getattr(self, self.dialect)(d)


@contextlib.contextmanager
def running(loaded, dialect, **attributes):
    "A stand-in on a free port: yields (url, Server)."
    server = Server(loaded, dialect)
    for name, value in attributes.items():
        setattr(server, name, value)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def reply(self, d):
            code, body = server.answer(self.path, d, self.headers.get('Authorization'))
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        def do_GET(self): self.reply({})
        def do_POST(self): self.reply(json.loads(self.rfile.read(int(self.headers['Content-Length']))))

    class Http(ThreadingHTTPServer):
        request_queue_size = 128  # connections that wait

    http = Http(('127.0.0.1', 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{http.server_port}', server
    finally:
        http.shutdown()
        http.server_close()
