"The comparison on a GPU: its price against bare passes at the 8 B shape, memory, one set of numbers on every way."
import copy
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from pairs import random_corpus
from tqcook import compare, data, models, perplexity

pytestmark = pytest.mark.gpu
quiet = dict(progress=False)


def show(capsys, *lines):
    with capsys.disabled():
        print('', *lines, sep='\n')


def clock(f):
    torch.cuda.synchronize()
    t = time.perf_counter()
    f()
    torch.cuda.synchronize()
    return time.perf_counter() - t


def interleaved(rounds, *fs):
    "Best time of each, in turns, after one round to warm up."
    for f in fs:
        f()
    return [min(t) for t in zip(*[[clock(f) for f in fs] for _ in range(rounds)])]


def bare(m, corpus, batch):
    with torch.inference_mode():
        for i in range(0, len(corpus), batch):
            m.model(
                input_ids=torch.as_tensor(np.stack(corpus.windows[i : i + batch])[:, :-1]).cuda(), use_cache=False
            ).logits


def as_lm_eval(m, corpus, batch):
    "What lm-eval's HF backend does with a batch: log_softmax of whole logits, a gather and two copies for each window."
    with torch.inference_mode():
        for i in range(0, len(corpus), batch):
            ids = torch.as_tensor(np.stack(corpus.windows[i:i+batch])).cuda()
            lp = torch.log_softmax(m.model(ids[:, :-1]).logits, -1)
            for row, y in zip(lp, ids[:, 1:]):
                (row.argmax(-1) == y).all().item()
                row.gather(1, y[:, None]).sum().item()


@pytest.fixture(scope='module')
def big():
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip('the 8 B shape twice needs a GPU with 60 GB free')
    a = models.load('shape:llama-3.1-8b', device='cuda')
    g = torch.Generator('cuda').manual_seed(1)
    b = dataclasses.replace(a, model=copy.deepcopy(a.model), name='disturbed')
    with torch.no_grad():
        for n, p in b.model.named_parameters():
            if 'proj' in n:
                p.mul_(1 + .01 * torch.randn(p.shape, generator=g, device='cuda', dtype=p.dtype))
    return a, b


def test_price_of_compare_at_8b(big, capsys):
    a, b = big
    corpus = random_corpus(48, 2048, a.vocab_size)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    weights = torch.cuda.memory_allocated()
    out = []
    price = lambda: out.append(compare.compare(a, b, corpus, batch_size=4, **quiet))
    t_bare, t_compare = interleaved(3, lambda: (bare(a, corpus, 4), bare(b, corpus, 4)), price)
    torch.cuda.reset_peak_memory_stats()
    price()
    extra = torch.cuda.max_memory_allocated() - weights
    show(
        capsys,
        f'{torch.cuda.get_device_name()}: compare {t_compare:.2f} s, two bare forward passes {t_bare:.2f} s, '
        f'ratio {t_compare / t_bare:.3f}, '
        f'extra memory {extra / 1e9:.2f} GB (llama-3.1-8b shape, 48 windows of 2048, vocabulary {a.vocab_size}, '
        'noise floor included)',
    )
    c = out[-1]
    assert c.verdict is None and 0 < c.stats['kld_mean'].value < 1 and c.floor['kld_mean'].value > 0
    assert t_compare <= 1.25 * t_bare and extra <= 6e9


def test_score_is_as_fast_as_lm_eval(big, capsys):
    a, _ = big
    corpus = random_corpus(16, 2048, a.vocab_size)
    t_ours, t_theirs = interleaved(
        3, lambda: perplexity.score(a, corpus, batch_size=4, **quiet), lambda: as_lm_eval(a, corpus, 4)
    )
    show(
        capsys,
        f"{torch.cuda.get_device_name()}: score {t_ours:.2f} s, lm-eval's arithmetic {t_theirs:.2f} s "
        'on 16 windows of 2048 at 8 B',
    )
    assert t_ours <= 1.02 * t_theirs                                                   # 2 % for the clock


def test_ways_and_chunks_agree():
    a = models.load('demo', device='cuda')
    b = disturbed_on_gpu(a)
    corpus = data.corpus('code', a.tokenizer, context=512, max_windows=16)
    direct = compare.compare(a, b, corpus, **quiet)
    for way in ('hidden-memory', 'hidden-file'):
        o = compare.compare(lambda: a, lambda: b, corpus, way=way, **quiet)
        for k in ('ppl_base', 'ppl_quant', 'ppl_ratio'):
            assert o.stats[k].value == pytest.approx(direct.stats[k].value, rel=1e-6)
    # the caller keeps the base: it steps aside
    o = compare.compare(a, lambda: b, corpus, way='hidden-memory', **quiet)
    assert o.stats['ppl_ratio'].value == pytest.approx(direct.stats['ppl_ratio'].value, rel=1e-6)
    assert next(a.model.parameters()).is_cuda                                          # and is back on the GPU
    small = compare.compare(a, b, corpus, chunk=100, **quiet)
    assert small.stats['ppl_ratio'].value == pytest.approx(direct.stats['ppl_ratio'].value, rel=1e-5)


def disturbed_on_gpu(m, amount=.01):
    b = dataclasses.replace(m, model=copy.deepcopy(m.model), name='disturbed')
    g = torch.Generator('cuda').manual_seed(1)
    with torch.no_grad():
        for n, p in b.model.named_parameters():
            if 'proj' in n:
                p.mul_(1 + amount * torch.randn(p.shape, generator=g, device='cuda', dtype=p.dtype))
    return b


def test_gpu_equals_cpu():
    "The base model's perplexity agrees with the CPU's to BF16 kernels' rounding; itself is exactly itself."
    g, c = models.load('demo', device='cuda'), models.load('demo', device='cpu')
    corpus = data.corpus('code', g.tokenizer, context=512, max_windows=48)  # blocks enough for a verdict
    assert perplexity.score(g, corpus, **quiet).ppl.value == pytest.approx(
        perplexity.score(c, corpus, **quiet).ppl.value, rel=5e-3
    )
    same = compare.compare(g, g, corpus, **quiet)
    assert same.stats['ppl_ratio'].value == 1. and same.tokens['kld'].max() == 0. and same.verdict == 'PASS'
    assert same.floor['kld_mean'].value > 0
    assert compare.compare(g, g, corpus, noise_floor='attention', **quiet).floor['kld_mean'].value > 0


def test_head_is_not_rounded_to_16_bits():
    m = models.load('demo', device='cuda')
    lm, ids = perplexity.as_logits(m), torch.arange(64)[None]
    with torch.inference_mode():
        h = lm.hidden(ids)[0]
        z = lm.head(h)
        exact = h.double() @ m.model.get_output_embeddings().weight.double().t()
    assert z.dtype == torch.float32 and float((z - exact).abs().max() / exact.abs().max()) < 1e-5
