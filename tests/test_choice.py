"From FAIL to PASS: what is tried, what is refused, what is chosen, and on which text."
import dataclasses
import math
from types import SimpleNamespace

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('modelopt')
from tqcook import (
    attribution,
    candidates,
    choice,
    compare,
    contract,
    data,
    export,
    mixed,
    models,
    quantize,
    runtime,
    schemes,
)
from tqcook.attribution import named
from tqcook.candidates import Candidate
from tqcook.core import CookError
from tqcook.device import lookup
from tqcook.models import linears, tiny
from tqcook.stats import Interval

QUIET = dict(noise_floor='none', progress=False)


@pytest.fixture(scope='module')
def texts(demo):
    return data.calibration('code-train', demo.tokenizer, 8, 64), *data.halves('code', demo.tokenizer, 64, (12, 12))


@pytest.fixture(scope='module')
def fp8(demo, texts):
    return quantize.quantize(demo, texts[0], 'fp8', progress=False, details=False)


@pytest.fixture(scope='module')
def parts(fp8, texts):
    return mixed.second_order(fp8, texts[1], max_windows=2)


# ---- texts

def test_halves_share_no_document(demo):
    a, b = data.halves('code', demo.tokenizer, 128)
    assert data.overlap(a, b) < .02 and a.sha256 != b.sha256
    assert abs(a.n_tokens - b.n_tokens) < .1 * a.n_tokens  # dealt out evenly
    assert not {w.tobytes() for w in a.windows} & {w.tobytes() for w in b.windows}


def test_one_document_is_cut_in_the_middle(demo, tmp_path):
    (tmp_path/'one.txt').write_text('\n'.join(f'line {i} of one long document' for i in range(2000)))
    a, b = data.halves(str(tmp_path/'one.txt'), demo.tokenizer, 128)
    assert len(a) and len(b) and data.overlap(a, b) < .5
    (tmp_path/'chat.jsonl').write_text('{"messages": [{"role": "user", "content": "hello"}]}')
    with pytest.raises(CookError, match='two halves|chat template'):
        data.halves(str(tmp_path/'chat.jsonl'), demo.tokenizer, 16)


def test_a_recorded_base_judges_as_the_live_one_does(demo, fp8, texts):
    _, search, confirm = texts
    once = compare.record(demo, search, progress=False)
    live = compare.compare(demo, fp8.loaded, search, **QUIET)
    again = [compare.compare(once, fp8.loaded, search, **QUIET) for _ in range(2)]
    for c in again:
        assert math.isclose(c.stats['ppl_ratio'].value, live.stats['ppl_ratio'].value, rel_tol=1e-6)
        assert math.isclose(c.stats['kld_mean'].value, live.stats['kld_mean'].value, rel_tol=1e-3)
    with pytest.raises(CookError, match='other windows'):
        compare.compare(once, fp8.loaded, confirm, **QUIET)


# ---- bits and layers

def test_effective_bits_are_those_of_the_file(demo, fp8):
    count = sum(m.weight.numel() for m in linears(demo.model).values())
    scale = 8 * 4 * 56 / count  # a float32 a layer
    assert math.isclose(mixed.effective_bits(demo, 'fp8'), 8 + scale)
    assert mixed.effective_bits(demo, 'none') == mixed.effective_bits(demo, 'int8_wo', ['model.layers']) == 16
    down = sum(m.weight.numel() for n, m in linears(demo.model).items() if n.endswith('down_proj')) / count
    assert abs(mixed.effective_bits(demo, 'fp8', ['*.down_proj']) - (8 + 8 * down)) < 1e-3


def test_products_stay_whole_and_the_worst_for_their_bytes_come_first(demo, parts):
    order = mixed.worth_keeping(demo, 'fp8', parts)
    assert len(order) == 32 and sum('qkv_proj' in k for k in order) == sum('gate_up_proj' in k for k in order) == 8
    assert len(parts.exclude(order)) == len(set(parts.exclude(order))) == 56
    size = {n: m.weight.numel() for n, m in linears(demo.model).items()}
    worth = [parts.groups[k].value / sum(size[n] for n in parts.exclude([k])) for k in order]
    assert worth == sorted(worth, reverse=True)


def test_an_estimate_leaves_the_model_as_it_was(demo, fp8, texts, parts):
    assert parts.control is None and 'estimated' in str(parts._repr_markdown_()) and 'control' not in parts.to_dict()
    assert all(q.is_enabled for _, q in attribution.quantizers(fp8.loaded.model).values())
    assert all(p.grad is None for p in fp8.loaded.model.parameters())
    assert not any(m._forward_hooks for m in linears(fp8.loaded.model).values())
    again = mixed.second_order(fp8, texts[1], max_windows=2)
    assert all(again.groups[k].value == i.value for k, i in parts.groups.items())


def test_without_gradients_products_are_measured_and_it_says_why(demo, fp8, texts, parts, monkeypatch):
    measured = dataclasses.replace(parts, control=Interval(0., 0., 0.))
    monkeypatch.setattr(mixed, 'attribute', lambda *a, **kw: measured)
    assert not mixed.by_product(demo, fp8, texts[1], 1).why
    with monkeypatch.context() as m:
        m.setattr(type(fp8.loaded), 'spread', True)
        assert 'spread' in mixed.by_product(demo, fp8, texts[1], 1).why
    def fails(*a):
        raise RuntimeError('derivative for aten::nosuch is not implemented')
    monkeypatch.setattr(mixed, 'second_order', fails)
    got = mixed.by_product(demo, fp8, texts[1], 1)
    assert 'nosuch' in got.why and 'measured one by one, because gradients failed' in str(got._repr_markdown_())


@pytest.mark.slow
def test_the_estimate_is_what_is_measured_where_nothing_else_rounds(demo, fp8, texts):
    "In float32 both agree; in BF16 every measured product carries the rounding of the whole model besides."
    wide = models.load('demo', device='cpu', dtype='float32')
    q = quantize.quantize(wide, texts[0], 'fp8', progress=False, details=False)
    pairs = [(wide, q, .7, 1.4)]
    if demo.dtype == 'bfloat16':  # not widened, as a CPU that emulates it has it
        pairs.append((demo, fp8, 1.4, 3))
    for base, quant, least, most in pairs:
        a = mixed.second_order(quant, texts[0], 8)
        b = attribution.attribute(base, quant.loaded, texts[0], 'product', 8, progress=False)
        assert least < b.total / a.total < most
        assert .75 < a.whole.value / b.whole.value < 1.33
        if base is wide:
            assert sum(a.groups[k].lo < 1.5 * b.groups[k].value for k in a.groups) > 28
            assert sum(a.groups[k].hi > .67 * b.groups[k].value for k in a.groups) > 28


def test_a_budget_of_bits_is_kept_and_used(demo, fp8, texts):
    keep = mixed.spend(demo, fp8, texts[1], 9., ['*.0.self_attn.o_proj'], max_windows=1)
    bits = mixed.effective_bits(demo, 'fp8', keep)
    assert 8.9 < bits <= 9. and keep[0] == '*.0.self_attn.o_proj'
    q = [n for n in linears(demo.model) if n.endswith('q_proj')]
    assert all(named(n, keep) == named(n.replace('q_proj', 'k_proj'), keep) for n in q)


@pytest.mark.parametrize('budget, keep, words', [(7.5, [], 'takes 8.0'), (9., ['*.down_proj'], r'down_proj in BF16')])
def test_a_budget_below_the_scheme_names_the_nearest(demo, budget, keep, words):
    with pytest.raises(CookError, match=words):
        mixed.check_bits(demo, 'fp8', budget, keep)


def test_random_weights_have_no_worst_layer():
    with pytest.raises(CookError, match='random weights'):
        mixed.check_bits(tiny(), 'fp8', 12.)


# ---- candidates

def test_what_is_refused_and_why(demo):
    found = candidates.candidates(demo, gpu=lookup('a100'), alphas=[.4, .5])
    why = {c.scheme: c.why for c in found}
    assert 'sm80' in why['fp8'] and not why['int8_token'] and not why['int8_wo']
    assert [c.alpha for c in found if c.scheme == 'int8_token'] == [.4, .5, 'layerwise']
    served = candidates.candidates(demo, engine='vllm')
    assert {c.scheme for c in served if not c.why} <= {s.name for s in schemes.SCHEMES.values() if 'vllm' in s.layouts}


@pytest.mark.parametrize('kw, words', [
    (dict(schemes=['nvfp4'], gpu=lookup('a100')), 'no scheme is left .*nvfp4.*sm80'),
    (dict(schemes=['fp8', 'nvfp4'], engine='trtllm', gpu=lookup('a100')), 'no scheme is left .*fp8.*nvfp4'),
    (dict(schemes=['int8_sq'], engine='sglang'), 'sglang loads it in no layout'),
    (dict(keep=['*.nosuch']), "'\\*.nosuch' .*matches no linear layer"),
    (dict(engine='onnx'), "engine is 'onnx'; expected one of auto, trtllm"),
])
def test_bad_input_ends_before_anything_is_computed(demo, kw, words):
    with pytest.raises(CookError, match=words):
        candidates.candidates(demo, **kw)


def test_time_of_a_mixture_lies_between(demo):
    steps = candidates.predicted('shape:llama-3.1-8b', lookup('h100'), ['fp8'])
    some = candidates.candidate(demo, 'fp8', keep=['*.down_proj'], steps=steps)
    assert steps['fp8'].value < some.step.value < steps['none'].value and some.step.lo < some.step.value
    assert candidates.candidate(demo, 'int8_wo', steps=steps).step is None


# ---- the pick, on candidates whose numbers are known

def judged(scheme, bits, verdict, kld, step=None):
    "A candidate with a verdict that was not measured."
    c = Candidate(scheme, bits, step=step)
    wide = SimpleNamespace(verdict=verdict, checks=[SimpleNamespace(state='undecided')])
    c.quality = SimpleNamespace(judged=wide, stats=dict(kld_mean=Interval(kld, kld, kld)))
    return c


def ms(value, spread=.2):
    return Interval(value, value * (1 - spread), value * (1 + spread))


def test_the_cheapest_that_passes_is_picked():
    found = [judged('a', 4, 'FAIL', .5), judged('b', 8, 'PASS', .01), judged('c', 8, 'PASS', .005),
             judged('d', 7, 'INCONCLUSIVE', .001), judged('e', 16, 'PASS', 0.)]
    assert choice._pick(found, 'bits').scheme == 'c'
    assert choice._pick(found[:1], 'bits') is None


def test_times_that_overlap_leave_the_choice_to_the_damage():
    found = [judged('fast', 8, 'PASS', .01, ms(1.)), judged('near', 8, 'PASS', .001, ms(1.1)),
             judged('slow', 16, 'PASS', 0., ms(2.))]
    assert choice._pick(found, 'time').scheme == 'near'
    assert choice._pick([found[0], found[2]], 'time').scheme == 'fast'


def test_excess_names_the_statistic_that_spends_most():
    one = lambda v: Interval(v, v, v)
    c = SimpleNamespace(stats=dict(ppl_ratio=one(1.02), kld_mean=one(.01), top1_agreement=one(.97)),
                        budget=dict(max_ppl_ratio=1.01, max_kld=.02, min_top1=.94))
    times, which = candidates.excess(c)
    assert math.isclose(times, 2) and which == 'perplexity ratio'
    c.budget['max_kld'] = 0.
    assert candidates.excess(c) == (math.inf, 'mean KL divergence')


def test_few_blocks_are_enough_to_choose_by():
    "On one model 8.05 bits kept the budget with 4 effective blocks, and a mixture of 9.7 bits with 11 was taken."
    few, wide = judged('int8_wo', 8., 'INCONCLUSIVE', .004), judged('int8_token', 8., 'INCONCLUSIVE', .01)
    few.quality.judged.checks = [SimpleNamespace(state='inside')] * 3
    wide.quality.judged.checks = [SimpleNamespace(state='inside'), SimpleNamespace(state='undecided')]
    assert few.keeps and not wide.keeps and not Candidate('fp8', 8.).keeps
    assert choice._pick([wide, few, judged('int8_wo', 9.7, 'PASS', .002)], 'bits') is few


# ---- the whole

def test_choose_refuses_what_no_search_would_mend(demo, texts):
    found = candidates.candidates(demo, ['fp8', 'int8_wo'])
    for kw, words in ((dict(most=5.), 'nearest is fp8 with 8.0'), (dict(by='time'), 'no GPU is named'),
                      (dict(by='beauty'), 'expected one of bits, time')):
        with pytest.raises(CookError, match=words):
            choice.choose(demo, *texts, found, **kw)
    with pytest.raises(CookError, match='random weights'):
        choice.choose(dataclasses.replace(demo, weights='random'), *texts, found)


def test_it_ends_in_the_cheapest_that_passes_and_confirms_it(demo, texts, tmp_path):
    found = candidates.candidates(demo, ['int8_wo'], keep=['*.0.*'])
    got = choice.choose(demo, *texts, found, keep=['*.0.*'], mixtures=0)
    assert got.chosen.scheme == 'int8_wo' and got.confirmed.corpus['sha256'] == texts[2].sha256
    assert got.chosen.quality.corpus['sha256'] == texts[1].sha256
    assert got.sentences[0].startswith('Take int8_wo') or got.confirmed.verdict != 'PASS'
    path = export.export(got.made, tmp_path/'mixed')
    assert not contract.check(path).errors
    ran = compare.compare(demo, runtime.load(path, device='cpu'), texts[2], **QUIET)
    assert abs(ran.stats['kld_mean'].value - got.confirmed.stats['kld_mean'].value) < 1e-3


def test_a_budget_that_nothing_keeps_names_the_nearest(demo, texts):
    told = []
    found = candidates.candidates(demo, ['fp8'])
    got = choice.choose(demo, *texts, found, most=8.3, windows=1, max_kld=1e-6, tell=told.append)
    assert got.chosen is None and got.made is None and got.confirmed is None
    assert len(told) == len(got.tried) == 2 and any(c.keep for c in told)  # a mixture was tried as well
    assert f'None of the 2 tried keeps the budget. The nearest is {got.nearest.name}' in got.sentences[0]
    kept = next(c for c in told if c.keep)
    assert kept.bits <= 8.3 and kept.kld < next(c for c in told if not c.keep).kld * 1.2


def test_halving_finds_the_fewest_layers_that_pass(demo, texts, monkeypatch):
    "Against an oracle: a mixture passes from 11 products in BF16 on."
    order = []
    def oracle(o, c, loaded):
        c.quality = SimpleNamespace(judged=SimpleNamespace(verdict='PASS' if len(c.keep) >= 11 else 'FAIL'), stats={})
        order.append(len(c.keep))
    parts = SimpleNamespace(exclude=lambda labels: list(labels), why='')
    names = [n for n in linears(demo.model) if n.endswith(('o_proj', 'down_proj'))]
    monkeypatch.setattr(choice, '_judge', oracle)
    monkeypatch.setattr(choice, '_make', lambda o, c: SimpleNamespace(loaded=demo))
    monkeypatch.setattr(choice, 'by_product', lambda *a: parts)
    monkeypatch.setattr(choice, 'worth_keeping', lambda *a: names)
    o = SimpleNamespace(loaded=demo, search=None, windows=1, keep=[], steps=None, by='bits', most=16.)
    tried = choice._mixtures(o, Candidate('fp8', 8.), math.inf)
    assert min(len(c.keep) for c in tried if c.verdict == 'PASS') == 11 and len(tried) <= 6
    order.clear()
    assert choice._mixtures(o, Candidate('fp8', 8.), 8.) == []  # no room, nothing judged
    assert not order


@pytest.mark.slow
@pytest.mark.parametrize('scheme, bits, method', [
    ('fp8', 9., 'gradient'), ('fp8', 9., 'kl_div'), ('fp8', 8.6, 'gradient'), ('int8_sq', 8.6, 'gradient')])
def test_beside_auto_quantize_at_equal_bits(demo, scheme, bits, method):
    "ModelOpt's search and ours, on text that neither saw: no worse, and cheaper."
    import auto
    calib = data.calibration('code-train', demo.tokenizer, 8, 128)
    judge = data.corpus('code', demo.tokenizer, 256, max_windows=32)
    theirs = auto.theirs(demo, calib, method, bits, scheme)
    ours = auto.ours(demo, calib, theirs['bits'], scheme)
    assert theirs['bits'] - .2 < ours['bits'] <= theirs['bits'] + 1e-9
    row = auto.beside(demo, calib, judge, theirs, ours, scheme)
    print(scheme, bits, method, row, theirs['seconds'], ours['seconds'])
    assert row['ours'].value < 1.05 * row['theirs'].value
    assert ours['seconds'] < theirs['seconds']
    least = [n for n in linears(demo.model) if named(n, ['*.o_proj']) and n not in ours['keep']]
    control = dict(keep=least, bits=mixed.effective_bits(demo, scheme, least))  # other layers do less good
    assert auto.beside(demo, calib, judge, control, ours, scheme)['difference'].hi < 0


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['int8_token', 'int4_awq'])
def test_a_mixture_is_written_checked_and_run(demo, texts, tmp_path, scheme):
    "Smoothed and scaled layers beside layers in BF16: what was judged is what runs."
    calibration, _, confirm = texts
    keep = ['*.0.self_attn.[qkv]_proj', '*.7.mlp']
    q = quantize.quantize(demo, calibration, scheme, exclude=keep, progress=False)
    fake = compare.compare(demo, q.loaded, confirm, **QUIET)
    path = export.export(q, tmp_path/scheme)
    assert not contract.check(path).errors
    ran = compare.compare(demo, runtime.load(path, device='cpu'), confirm, **QUIET)
    gap = abs(ran.stats['kld_mean'].value - fake.stats['kld_mean'].value)
    assert gap < .2 * fake.stats['kld_mean'].value + 3e-4
