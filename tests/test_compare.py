"Comparison and verdict: what is counted, what is said, what is refused."

import copy
import dataclasses
import json
import math
import sys

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from pairs import disturbed, quiet, random_corpus, sharp
from tqcook import compare, models, perplexity
from tqcook.attribution import Attribution
from tqcook.core import CookError
from tqcook.stats import Interval


def test_batches_and_chunks_change_nothing(pair):
    a, b = pair
    c = random_corpus(9)
    c.windows[4], c.scored[4] = c.windows[4][:30], c.scored[4][:30]  # unequal lengths are not padded
    one = compare.compare(a, b, c, batch_size=1, chunk=1000, **quiet)
    for kw in (dict(batch_size=3, chunk=17), dict(batch_size=8, chunk=64)):
        o = compare.compare(a, b, c, **kw, **quiet)
        assert (o.tokens['window'] == one.tokens['window']).all()
        assert (o.tokens['position'] == one.tokens['position']).all()
        assert np.abs(o.tokens['nll_quant'] - one.tokens['nll_quant']).max() < 1e-4
    alone = perplexity.score(b, c, **quiet)
    assert np.abs(alone.tokens['nll'] - one.tokens['nll_quant']).max() < 1e-4


def test_model_against_itself(pair):
    a, _ = pair
    c = compare.compare(a, a, random_corpus(), noise_floor='none', **quiet)
    r, k = c.stats['ppl_ratio'], c.stats['kld_mean']
    assert (r.value, r.lo, r.hi, k.value, k.hi) == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert c.verdict == 'PASS' and c.flips['lost'] == c.flips['gained'] == 0 and c.stats['top1_agreement'].value == 1


def test_verdicts_and_budgets(pair):
    a, b = pair
    c = compare.compare(a, b, random_corpus(16), max_ppl_ratio=1.2, max_kld=1.0, min_top1=0.2, **quiet)
    assert c.verdict == 'PASS'
    bad = compare.compare(a, disturbed(a, 0.5), random_corpus(16), **quiet)
    assert bad.verdict == 'FAIL' and bad.what_now()
    few = compare.compare(a, b, random_corpus(4), max_ppl_ratio=1.5, max_kld=1.0, min_top1=0.1, **quiet)
    assert few.verdict == 'INCONCLUSIVE' and few.settle_tokens >= 8 * 63
    one = compare.compare(a, b, random_corpus(1), **quiet)
    assert one.verdict == 'INCONCLUSIVE'
    json.dumps(one.to_dict(), allow_nan=False)


def test_nonfinite_logits_fail_and_are_counted(pair):
    a, b = pair

    class Broken:
        "One token in a hundred gets a NaN, one an infinity."

        def __init__(self):
            self.lm = perplexity.as_logits(b)
            self.n = 0

        def __getattr__(self, k):
            return getattr(self.lm, k)

        def hidden(self, ids):
            return self.lm.hidden(ids)

        def head(self, h):
            z = self.lm.head(h)
            i = torch.arange(self.n, self.n + len(z))
            self.n += len(z)
            z[i % 100 == 7, 5], z[i % 100 == 8, 6] = math.nan, -math.inf
            return z

    c = compare.compare(a, Broken(), random_corpus(16), max_ppl_ratio=2.0, max_kld=9.0, min_top1=0.0, **quiet)
    assert c.nonfinite['quant'] == pytest.approx(0.02, abs=0.002) and c.nonfinite['base'] == 0
    assert c.verdict == 'FAIL' and 'not finite' in c.judged.reasons[0] and 'not finite' in c.what_now()[0]
    assert math.isfinite(c.stats['ppl_quant'].value) and c.ok.sum() < c.n_tokens
    json.dumps(c.to_dict(), allow_nan=False)
    assert 'FAIL' in c.summary() and 'FAIL' in c._repr_markdown_()


def test_all_nan(pair):
    a, b = pair
    nan = dataclasses.replace(b, model=copy.deepcopy(b.model), name='nan')
    with torch.no_grad():
        nan.model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    c = compare.compare(a, nan, random_corpus(), **quiet)
    assert c.verdict == 'FAIL' and c.nonfinite['quant'] == 1 and c.stats == {}
    json.dumps(c.to_dict(), allow_nan=False)
    c.summary()
    c._repr_markdown_()
    with pytest.raises(CookError, match='every logit of the base model'):
        compare.compare(nan, a, random_corpus(), **quiet)


def test_plain_logits_speak_the_protocol(pair):
    "An engine that has only logits returns them from hidden and lets head pass them on."
    a, b = pair

    class Engine:
        name, vocab_size, context, tokenizer_sha, device = 'engine', 4096, 512, None, torch.device('cpu')

        def hidden(self, ids):
            return b.model(input_ids=ids, use_cache=False).logits

        def head(self, h):
            return h.float()

    c = random_corpus()
    e, o = compare.compare(a, Engine(), c, **quiet), compare.compare(a, b, c, **quiet)
    assert e.stats['kld_mean'].value == pytest.approx(o.stats['kld_mean'].value, rel=1e-5)
    assert e.quant['kind'] == 'logits' and e.verdict == o.verdict
    assert compare.compare(Engine(), a, c, **quiet).floor == dict(why='the base model shows no decoder layers')


def test_random_weights_get_no_verdict():
    m = models.tiny('llama')
    c = compare.compare(m, m, random_corpus(), **quiet)
    d = c.to_dict()
    assert c.verdict is None and 'verdict' not in d and 'random' in d['no_verdict']


def test_documents_that_differ_count(pair):
    "What is common to a document widens the interval and leaves fewer effective blocks; too few of them never PASS."
    a, b = pair
    corpus = random_corpus(40)
    corpus.doc = np.repeat(np.arange(5), [20, 5, 5, 5, 5])
    wide = dict(max_ppl_ratio=9.0, max_kld=9.0, min_top1=0.0)
    c = compare.compare(a, b, corpus, **wide, **quiet)
    d = c.to_dict()
    assert c.verdict == 'PASS' and d['documents'] == 5 and d['blocks'] == 40 and 8 < d['effective_blocks'] <= 40
    again = compare.compare(a, b, corpus, **wide, **quiet)
    shift = np.random.default_rng(0).normal(0, 0.5, 5)[again.tokens['document']]
    again.tokens['nll_quant'] = again.tokens['nll_quant'] + shift
    assert again.stats['ppl_ratio'].width > 3 * c.stats['ppl_ratio'].width
    assert again.effective_blocks == pytest.approx(40**2 / (20**2 + 4 * 25), rel=0.2)
    assert again.verdict == 'INCONCLUSIVE'
    assert 'effective blocks' in ' '.join(again.judged.reasons)
    assert 'of 5 documents (' in again.summary() and 'effective blocks' in again.summary()


def test_figures(pair):
    import matplotlib

    matplotlib.use('agg')
    c = compare.compare(*pair, random_corpus(16), **quiet)
    for ax in (c.plot(), c.plot_pairing()):
        assert ax.get_xlabel()


def test_refusals(pair):
    a, b = pair
    for kw, what in (
        (dict(max_ppl_ratio=0.99), 'max_ppl_ratio is 0.99'),
        (dict(max_kld=-1.0), 'max_kld'),
        (dict(min_top1=1.2), 'min_top1'),
        (dict(way='teleport'), 'way is'),
        (dict(noise_floor='loud'), 'noise_floor'),
        (dict(noise_floor=False), 'noise_floor'),
    ):
        with pytest.raises(CookError, match=what):
            compare.compare(a, b, random_corpus(), **kw, **quiet)
    with pytest.raises(CookError, match='positions: use a context of at most 512'):
        compare.compare(a, b, random_corpus(2, 600), **quiet)
    with pytest.raises(CookError, match='no windows'):
        compare.compare(a, b, dataclasses.replace(random_corpus(), windows=[], scored=[]), **quiet)
    with pytest.raises(CookError, match='another tokenizer'):
        compare.compare(a, b, random_corpus(sha='ab'), **quiet)
    other = sharp(vocab_size=4224)
    with pytest.raises(CookError, match='vocabulary of 4096 and .* of 4224'):
        compare.compare(a, other, random_corpus(), **quiet)
    with pytest.raises(CookError, match='the ratio to show'):
        compare.compare(a, b, random_corpus(), **quiet).tokens_needed(1.0)


def test_two_tokenizers_are_refused(recorded):
    mod, ld, _ = recorded
    t = mod.tokenizer()
    t.add_tokens(['<more>'])
    with pytest.raises(CookError, match='different tokenizers'):
        compare.compare(ld, dataclasses.replace(ld, tokenizer=t), random_corpus(vocab=257), **quiet)


def test_calibration_overlap_is_warned_of(pair):
    a, b = pair
    c = random_corpus(16)
    o = compare.compare(a, b, c, calibration=dataclasses.replace(c, windows=c.windows[:4]), **quiet)
    assert any('25.0%' in w for w in o.warnings) and '25.0%' in o.summary()
    assert compare.compare(a, b, c, calibration=random_corpus(seed=9), **quiet).warnings == []


KINDS = dict(down_proj=Interval(0.03, 0.02, 0.04), q_proj=Interval(0.005, 0.004, 0.006))
REPORT = Attribution('kind', KINDS, {k: f'*.{k}' for k in KINDS}, Interval(.03, .02, .04), Interval(0, 0, 0), 8, 8)


def test_advice_starts_where_the_numbers_point(pair):
    a, b = pair
    c = random_corpus(16)
    bad = compare.compare(a, disturbed(a, 0.2), c, **quiet)
    assert bad.verdict == 'FAIL'
    said = bad.what_now(calibration=['the range of down_proj settled only after 60 of 64 samples'], attribution=REPORT)
    assert said[0].startswith('Start with the calibration: the range of down_proj')
    assert "exclude = ['*.down_proj']" in said[1] and '86%' in said[1]
    assert not any('fp8_rowwise' in x or 'Serve' in x for x in said)  # nothing that was not tried
    better = compare.compare(a, b, c, **quiet)
    assert any(x.startswith('int8_token does better') for x in bad.what_now(tried=dict(int8_token=better)))
    assert 'fp8_rowwise were tried and are no better.' in bad.what_now(tried=dict(fp8_rowwise=bad))
    good = compare.compare(a, b, c, max_ppl_ratio=9.0, max_kld=9.0, min_top1=0.0, **quiet)
    assert good.what_now(calibration=['late'], attribution=REPORT) == []


def test_a_token_beyond_the_embedding_table(pair):
    a, b = pair
    c = random_corpus(2, 16)
    c.windows[1][3] = 4096
    with pytest.raises(CookError, match='token 4096, and the scored model .* embeds only 4096'):
        perplexity.score(a, c, **quiet)
    with pytest.raises(CookError, match='token 4096, and the base model'):
        compare.compare(a, b, c, **quiet)


def test_short_memory_halves_the_batches(pair):
    "Statistics and noise floor are those of a run that had enough."
    a, b = pair

    class Tight:
        def __init__(self, lm):
            self.lm = lm

        def __getattr__(self, k):
            return getattr(self.lm, k)

        def head(self, h):
            return self.lm.head(h)

        def hidden(self, ids):
            if len(ids) > 2:
                raise RuntimeError('out of memory')
            return self.lm.hidden(ids)

    c = random_corpus(9)
    whole = compare.compare(a, b, c, batch_size=2, **quiet)
    with pytest.warns(UserWarning, match='out of memory'):
        tight = compare.compare(
            Tight(perplexity.as_logits(a)), Tight(perplexity.as_logits(b)), c, batch_size=8, **quiet
        )
    assert np.abs(tight.tokens['kld'] - whole.tokens['kld']).max() < 1e-6
    assert tight.floor['tokens'] == whole.floor['tokens'] and len(tight.tokens['window']) == c.n_scored


def test_the_bar_shows_the_running_ratio_on_a_terminal_only(pair, capsys, monkeypatch):
    for tty in True, False:
        monkeypatch.setattr(sys.stderr, 'isatty', lambda: tty)  # noqa: B023
        compare.compare(*pair, random_corpus(16), noise_floor='none', batch_size=2)
        assert ('ratio 1.' in capsys.readouterr().err) == tty


def test_a_settled_verdict_stops_early_and_says_so(pair):
    a, b = pair
    c = random_corpus(40)
    wide = dict(max_ppl_ratio=9.0, max_kld=9.0, min_top1=0.0)
    whole = compare.compare(a, b, c, **wide, **quiet)
    e = compare.compare(a, b, c, **wide, early=True, **quiet)
    assert e.verdict == 'PASS' and e.early == dict(look=1, looks=5, windows=8, of=40, level=0.99375)
    read = np.unique(e.tokens['window'])
    assert len(read) == 8 and e.floor['windows'] == 4 and read.tolist() != list(range(8))
    for k in 'nll_base', 'nll_quant':  # the same numbers, of fewer windows
        assert np.abs(e.tokens[k] - whole.tokens[k][np.isin(whole.tokens['window'], read)]).max() < 1e-4
    d, said = e.to_dict(), e.summary()
    json.dumps(d, allow_nan=False)
    assert 'ppl_ratio_ci99.375' in d and 'ppl_ratio_ci95' not in d and d['windows'] == 8 and d['early'] == e.early
    assert all(i.level == 0.99375 for i in e.stats.values()) and 'value [99.375 %]' in said
    assert 'Stopped early, at look 1 of 5, after 8 of 40 windows' in said and 'early' not in whole.summary()
    bad = compare.compare(a, disturbed(a, 0.5), c, early=True, way='hidden-memory', **quiet)
    assert bad.verdict == 'FAIL' and bad.early['look'] == 1
    other = compare.compare(a, b, c, **wide, early=True, seed=1, **quiet)
    assert np.unique(other.tokens['window']).tolist() != read.tolist()


def test_what_is_not_settled_is_read_to_the_end(pair):
    a, b = pair
    c = random_corpus(24)
    at = compare.compare(a, b, c, **quiet).stats['ppl_ratio'].value
    e = compare.compare(a, b, c, max_ppl_ratio=max(at, 1.0), max_kld=9.0, min_top1=0.0, early=True, **quiet)
    assert e.verdict == 'INCONCLUSIVE' and e.early['windows'] == 24 and e.early['level'] == 0.975
    assert e.stats['ppl_ratio'].value == pytest.approx(at) and 'Read to the end' in e.summary()
