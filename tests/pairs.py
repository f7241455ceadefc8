"Pairs of tiny random models that differ a little, and texts for them."

import copy
import dataclasses

import numpy as np
import torch

from tqcook import models
from tqcook.data import Corpus


def random_corpus(n=12, context=64, vocab=4096, seed=0, sha=None):
    rng = np.random.default_rng(seed)
    return Corpus(
        [rng.integers(0, vocab, context) for _ in range(n)],
        [np.r_[False, np.ones(context - 1, bool)] for _ in range(n)],
        np.arange(n) // 2,
        'random tokens',
        '0' * 64,
        sha,
        context,
        0,
        'disjoint',
        'none',
        n * (context - 1) * 3,
        (n + 1) // 2,
        n,
    )


def sharp(arch='llama', dtype='float32', factor=3.0, **kw):
    "A tiny random model with distributions far from uniform; called trained, so that it gets a verdict."
    m = models.tiny(arch, dtype=dtype, **kw)
    with torch.no_grad():
        for p in m.model.parameters():
            p.mul_(factor)
    m.weights = 'trained'
    return m


def disturbed(m, amount=0.01, seed=1, name='disturbed'):
    g, q = torch.Generator().manual_seed(seed), copy.deepcopy(m.model)
    with torch.no_grad():
        for n, p in q.named_parameters():
            if 'proj' in n:
                p.mul_(1 + amount * torch.randn(p.shape, generator=g))
    return dataclasses.replace(m, model=q, name=name, kind='fake_quant')


def naive_nll(model, ids):
    "Plain logits -> nll of ids[1:]."
    with torch.inference_mode():
        lp = model(input_ids=torch.as_tensor(ids)[None]).logits[0].float().log_softmax(-1)
    return -lp[:-1].gather(-1, torch.as_tensor(ids)[1:, None])[:, 0].double().numpy()


quiet = dict(progress=False)
