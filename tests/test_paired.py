"What is measured at each token, against float64; tables that add up."

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from pairs import quiet, random_corpus
from tqcook import compare, paired


def test_pair_equals_float64_arithmetic():
    from scipy.special import log_softmax, rel_entr

    g = torch.Generator().manual_seed(0)
    za = torch.randn(200, 5000, generator=g) * 4
    zb = za + 0.3 * torch.randn(200, 5000, generator=g)
    y = torch.randint(0, 5000, (200,), generator=g)
    p = {k: v.numpy() for k, v in paired.score_two(za, zb, y).items()}
    la, lb = (log_softmax(z.double().numpy(), -1) for z in (za, zb))
    kld = rel_entr(np.exp(la), np.exp(lb)).sum(-1)
    assert np.abs(p['kld'] - kld).max() <= 1e-5 and np.abs(p['kld'] / kld - 1).max() < 1e-3
    assert np.abs(paired.kl_divergence(za, zb).numpy() - kld).max() < 1e-6
    rows = np.arange(200)
    assert np.abs(p['nll_base'] + la[rows, y]).max() < 1e-5 and np.abs(p['nll_quant'] + lb[rows, y]).max() < 1e-5
    ta, tb = np.argsort(-la, -1)[:, :5], np.argsort(-lb, -1)[:, :5]
    assert (p['same_top'] == (ta[:, 0] == tb[:, 0])).all()
    top5 = [len(set(a) & set(b)) / 5 for a, b in zip(ta, tb)]
    assert np.abs(p['top5'] - top5).max() < 1e-6
    assert 0.2 < np.mean(top5) < np.mean(p['same_top']) + 0.5
    assert (p['top5'] != p['same_top']).any()  # the fifth is not the first again
    assert np.abs(p['confidence'] - np.exp(la.max(-1))).max() < 1e-5


def test_identical_logits_diverge_by_exactly_zero():
    z = torch.randn(50, 3000) * 5
    assert float(paired.score_two(z, z.clone(), torch.zeros(50, dtype=torch.long))['kld'].abs().max()) == 0.0


def test_tables(pair):
    c = compare.compare(*pair, random_corpus(16), **quiet)
    for t in (c.by_confidence(), c.by_position(), c.by_document(100)):
        assert sum(r['tokens'] for r in t.rows) == c.n_tokens
        assert sum(r['share_of_kld'] for r in t.rows) == pytest.approx(1)
        assert '|' in t._repr_markdown_()
        parts = [r['tokens'] * math.log(r['ppl_ratio']) for r in t.rows]
        assert sum(parts) == pytest.approx(c.n_tokens * c.stats['ln_ratio'].value)
    first, last = c.by_position(2).rows
    assert first['group'].startswith('0-') and first['ppl_ratio'] != last['ppl_ratio']
    assert all(r['ppl_ratio_ci95'][0] < r['ppl_ratio'] < r['ppl_ratio_ci95'][1] for r in (first, last))
    d = c.to_dict()
    for k in (
        'ppl_ratio',
        'ppl_ratio_ci95',
        'kld_mean',
        'kld_mean_ci95',
        'top1_agreement',
        'noise_floor',
        'min_detectable_ppl_ratio',
        'verdict',
        'policy',
        'ppl_base',
        'ppl_quant',
        'kld_p99',
        'kld_max',
        'top5_overlap',
        'rms_dp',
        'flips',
        'bpb_base',
    ):
        assert d[k] is not None, k
    json.dumps(d, allow_nan=False)
    lo, hi = d['ppl_ratio_ci95']
    assert lo < d['ppl_ratio'] < hi and c.tokens_needed(1.001) > 0
