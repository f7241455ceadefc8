"Intervals that hold what they promise, exact tests, power, and logs that must be refused."
import json, math

import numpy as np
import pytest

from tqcook import stats, tasks
from tqcook.core import CookError
from tqcook.stats import Blocks, Check, Interval

CORPORA = 500


def blocks_of(a): return Blocks(np.repeat(np.arange(len(a)), a.shape[1]))


def coverage(windows, interval, truth, seed=11, **sim):
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(CORPORA):
        a = stats.simulate(windows, rng=rng, **sim)
        i = interval(a.ravel(), blocks_of(a))
        hits += i.lo <= truth <= i.hi
    return hits / CORPORA


NORMAL_90 = 1.2815515594
CASES = {
    'signed mean': (lambda x, b: stats.mean(x, b), 0., {}),
    'ratio exp(mean)': (lambda x, b: stats.mean(x, b).map(math.exp), 1., {}),
    'difference of exp': (lambda x, b: stats.delta([x, 2 * x], lambda p, q: math.exp(q) - math.exp(p),
                                                  lambda p, q: (-math.exp(p), math.exp(q)), b), 0., {}),
    'skewed mean (KL-like)': (lambda x, b: stats.mean(x, b, skewed=True), math.exp(.5), dict(tail=1.)),
    'heavy mean (KL-like)': (lambda x, b: stats.mean(x, b, skewed=True), math.exp(1.5**2 / 2), dict(tail=1.5, between=.02, tokens=256)),
    'share': (lambda x, b: stats.share(x < NORMAL_90, b), .9, {}),
    'median': (lambda x, b: stats.quantile(x, .5, b), 0., {}),
    '90 % quantile': (lambda x, b: stats.quantile(x, .9, b), NORMAL_90, {}),
    '99 % quantile': (lambda x, b: stats.quantile(x, .99, b), math.exp(2.3263478740), dict(tail=1.)),
}


@pytest.mark.parametrize('windows', [8, 16, 64])
@pytest.mark.parametrize('case', CASES)
def test_block_intervals_cover(case, windows):
    f, truth, sim = CASES[case]
    assert .92 <= coverage(windows, f, truth, **sim) <= .98


@pytest.mark.parametrize('windows', [8, 16, 64])
def test_independent_tokens_do_not_cover(windows):
    "The negative control: the interval that everyone prints is far too narrow."
    assert coverage(windows, lambda x, b: stats.mean_iid(x), 0.) < .75


def test_unequal_blocks():
    "Windows of very different length: the ratio estimator still covers, and weighs tokens, not windows."
    rng, hits = np.random.default_rng(5), 0
    for _ in range(CORPORA):
        n = rng.integers(20, 200, 24)
        ids = np.repeat(np.arange(24), n)
        x = rng.standard_normal(24)[ids] * .4 + rng.standard_normal(len(ids))
        i = stats.mean(x, Blocks(ids))
        assert i.value == pytest.approx(x.mean())
        hits += i.lo <= 0 <= i.hi
    assert .92 <= hits / CORPORA <= .98


def test_identical_gives_exactly_nothing():
    b = Blocks(np.repeat(np.arange(10), 7))
    r = stats.mean(np.zeros(70), b).map(math.exp)
    assert (r.value, r.lo, r.hi) == (1., 1., 1.)
    k = stats.mean(np.zeros(70), b, skewed=True)
    assert (k.value, k.lo, k.hi) == (0., 0., 0.)
    q = stats.quantile(np.zeros(70), .99, b)
    assert (q.value, q.lo, q.hi) == (0., 0., 0.)


def test_one_block_has_no_interval():
    b = Blocks(np.zeros(50))
    for i in (stats.mean(np.arange(50.), b), stats.share(np.ones(50), b), stats.quantile(np.arange(50.), .5, b)):
        assert not i.known and i.ci == [None, None]
    assert math.isnan(stats.min_detectable(.1, 1))


def test_t_quantile_equals_scipy():
    from scipy.stats import norm, t
    for p in (.025, .8, .95, .975):
        assert stats.t_quantile(p, math.inf) == pytest.approx(norm.ppf(p), abs=1e-12)
        for df in (3, 7, 63): assert stats.t_quantile(p, df) == pytest.approx(t.ppf(p, df), rel=1e-9)


@pytest.mark.parametrize('lost,gained', [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (40, 61), (150, 100)])
def test_mcnemar_equals_scipy(lost, gained):
    from scipy.stats import binomtest
    n = lost + gained
    two, one = (binomtest(lost, n).pvalue, binomtest(lost, n, alternative='greater').pvalue) if n else (1., 1.)
    assert stats.mcnemar(lost, gained) == pytest.approx(two, rel=1e-9)
    assert stats.mcnemar(lost, gained, 'worse') == pytest.approx(one, rel=1e-9)


def test_clopper_pearson_equals_scipy():
    from scipy.stats import binomtest
    for k, n in ((0, 20), (3, 20), (20, 20), (981, 1000)):
        ci = binomtest(k, n).proportion_ci(.95)
        assert stats._clopper_pearson(k / n, n, .95) == pytest.approx((ci.low, ci.high), abs=1e-9)


@pytest.mark.parametrize('windows', [8, 32])
def test_power_is_what_it_says(windows):
    "A change of exactly the detectable size is found in 80 % of the corpora, no change in 5 %."
    rng = np.random.default_rng(2)
    se = np.std([stats.simulate(windows, rng=rng).mean() for _ in range(2000)])
    change = stats.min_detectable(se, windows)
    t, found, false = stats.t_quantile(.95, windows - 1), 0, 0
    for _ in range(2 * CORPORA):
        a = stats.simulate(windows, rng=rng)
        i = stats.mean(a.ravel(), blocks_of(a))
        found, false = found + (i.value + change > t * i.se), false + (i.value > t * i.se)
    assert .76 <= found / (2 * CORPORA) <= .86
    assert .03 <= false / (2 * CORPORA) <= .07


def test_blocks_needed_turns_power_round():
    for n in (2, 9, 100): assert stats.blocks_needed(.5, n, stats.min_detectable(.5, n)) == n
    with pytest.raises(CookError, match='positive'): stats.blocks_needed(.1, 8, 0)


def test_paired_task_test_is_sharper_than_the_published_suite():
    assert 100 * stats.detectable_accuracy(4096, .05) <= .9


def test_verdicts():
    inside, open_, outside = (Check('r', Interval(v, v - .001, v + .001, .0005, 16), 1.01) for v in (1.002, 1.0095, 1.02))
    assert stats.judge([inside], 16).verdict == 'PASS'
    assert stats.judge([inside], 7).verdict == 'INCONCLUSIVE'
    v = stats.judge([inside, open_], 16)
    assert v.verdict == 'INCONCLUSIVE' and v.settle > 16
    assert stats.judge([inside, open_, outside], 16).verdict == 'FAIL'
    assert stats.judge([inside], 16, nonfinite=1e-4).verdict == 'FAIL'
    assert stats.judge([Check('r', Interval(1., math.nan, math.nan), 1.01)], 1).verdict == 'INCONCLUSIVE'
    low = Check('top', Interval(.97, .96, .98, n=16), .985, side='min')
    assert low.state == 'outside'
    assert Check('top', low.interval, .985, 'min', floor=Interval(.96, .955, .965, n=8)).state == 'inside'


def test_noise_floor_loosens_only():
    floor = Interval(.001, .0005, .002, n=8)
    i = Interval(.0015, .001, .0019, n=16)
    assert Check('kld', i, .0001).state == 'outside'
    assert Check('kld', i, .0001, floor=floor).state == 'inside'
    assert Check('kld', i, .01, floor=floor).limit == .01


# ---- lm-eval logs

def log(path, right, metric='acc', ids=None, **extra):
    rows = [dict(doc_id=i, doc_hash=f'h{i}', filter='none', **{metric: float(r)}, **extra) for i, r in zip(ids or range(len(right)), right)]
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return path


def test_compare_tasks(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.random(400) < .7
    b = np.where(rng.random(400) < .05, ~a, a)
    c = tasks.compare_tasks(log(tmp_path/'a.jsonl', a), log(tmp_path/'b.jsonl', b))
    assert (c.lost, c.gained) == (int((a & ~b).sum()), int((~a & b).sum()))
    assert c.p_value == stats.mcnemar(c.lost, c.gained) and c.difference.lo < c.difference.value < c.difference.hi
    assert c.acc_quant - c.acc_base == pytest.approx(c.difference.value)
    json.dumps(c.to_dict(), allow_nan=False)
    assert 'McNemar' in c._repr_markdown_()


def test_compare_tasks_order_does_not_matter(tmp_path):
    a = log(tmp_path/'a.jsonl', [1, 0, 1], ids=[0, 1, 2])
    b = log(tmp_path/'b.jsonl', [1, 1, 0], ids=[2, 0, 1])
    c = tasks.compare_tasks(a, b)
    assert (c.lost, c.gained) == (0, 0)


def test_filters_are_not_mixed(tmp_path):
    rows = [dict(doc_id=i, filter=f, exact_match=float(f == 'strict')) for i in range(3) for f in ('strict', 'loose')]
    (tmp_path/'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert set(tasks.read_lm_eval(tmp_path/'a.jsonl', filter='strict')[0].values()) == {1}
    assert set(tasks.read_lm_eval(tmp_path/'a.jsonl', filter='loose')[0].values()) == {0}
    with pytest.raises(CookError, match='strict'): tasks.read_lm_eval(tmp_path/'a.jsonl', filter='strikt')


def test_bad_logs_are_refused(tmp_path):
    good = log(tmp_path/'a.jsonl', [1, 0, 1, 1])
    with pytest.raises(CookError, match='no lm-eval log'): tasks.compare_tasks(good, tmp_path/'none.jsonl')
    (tmp_path/'empty.jsonl').write_text('\n')
    with pytest.raises(CookError, match='is empty'): tasks.compare_tasks(good, tmp_path/'empty.jsonl')
    (tmp_path/'cut.jsonl').write_text(good.read_text()[:-20])
    with pytest.raises(CookError, match='line 4 .*truncated'): tasks.compare_tasks(good, tmp_path/'cut.jsonl')
    with pytest.raises(CookError, match='same samples: 1 ids'): tasks.compare_tasks(good, log(tmp_path/'b.jsonl', [1, 0, 1]))
    other = log(tmp_path/'c.jsonl', [1, 0, 1, 1])
    other.write_text(other.read_text().replace('h2', 'x2'))
    with pytest.raises(CookError, match='sample 2 is another question'): tasks.compare_tasks(good, other)
    with pytest.raises(CookError, match='has no score'): tasks.compare_tasks(good, good, metric='bleu')
    with pytest.raises(CookError, match='expected 0 or 1'): tasks.read_lm_eval(log(tmp_path/'d.jsonl', [.5, 1]))
    with pytest.raises(CookError, match='twice'): tasks.read_lm_eval(log(tmp_path/'e.jsonl', [1, 1], ids=[3, 3]))
