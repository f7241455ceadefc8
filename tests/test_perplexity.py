"The comparison against independent arithmetic, other tools' definitions, and what must be refused."
import copy, dataclasses, json, math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from tqcook import attribution, compare, data, models, paired, perplexity, reference, verdict
from tqcook.core import CookError
from tqcook.data import Corpus

HERE = Path(__file__).parent


def random_corpus(n=12, context=64, vocab=4096, seed=0, sha=None):
    rng = np.random.default_rng(seed)
    return Corpus([rng.integers(0, vocab, context) for _ in range(n)], [np.r_[False, np.ones(context - 1, bool)] for _ in range(n)],
                  np.arange(n) // 2, 'random tokens', '0' * 64, sha, context, 0, 'disjoint', 'none', n * (context - 1) * 3, (n + 1) // 2, n)


def sharp(arch='llama', dtype='float32', factor=3., **kw):
    "A tiny random model with distributions far from uniform; called trained, so that it gets a verdict."
    m = models.tiny(arch, dtype=dtype, **kw)
    with torch.no_grad():
        for p in m.model.parameters(): p.mul_(factor)
    m.weights = 'trained'
    return m


def disturbed(m, amount=.01, seed=1, name='disturbed'):
    g, q = torch.Generator().manual_seed(seed), copy.deepcopy(m.model)
    with torch.no_grad():
        for n, p in q.named_parameters():
            if 'proj' in n: p.mul_(1 + amount * torch.randn(p.shape, generator=g))
    return dataclasses.replace(m, model=q, name=name, kind='fake_quant')


@pytest.fixture(scope='module')
def pair():
    m = sharp()
    return m, disturbed(m)


quiet = dict(progress=False)

# ---- correctness against independent arithmetic


def llama64(model, ids):
    "Llama in plain float64 numpy, written from the architecture: log-probabilities [tokens, vocabulary]."
    c, w = model.config, {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    H, K, D = c.num_attention_heads, c.num_key_value_heads, getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads
    theta = c.rope_parameters['rope_theta'] if getattr(c, 'rope_parameters', None) else c.rope_theta
    norm = lambda x, g: x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_norm_eps) * g
    T = len(ids)
    angle = np.arange(T)[:, None] / theta ** (np.arange(0, D, 2) / D)[None]
    cos, sin = np.cos(np.r_['1', angle, angle]), np.sin(np.r_['1', angle, angle])
    turn = lambda x: x * cos + np.concatenate([-x[..., D//2:], x[..., :D//2]], -1) * sin        # x [heads, T, D]
    x = w['model.embed_tokens.weight'][ids]
    for i in range(c.num_hidden_layers):
        p = f'model.layers.{i}.'
        h = norm(x, w[p + 'input_layernorm.weight'])
        q, k, v = ((h @ w[p + f'self_attn.{n}_proj.weight'].T).reshape(T, -1, D).transpose(1, 0, 2) for n in 'qkv')
        q, k = turn(q), turn(k)
        k, v = np.repeat(k, H // K, 0), np.repeat(v, H // K, 0)
        s = q @ k.transpose(0, 2, 1) / math.sqrt(D)
        s = np.where(np.tril(np.ones((T, T), bool)), s, -np.inf)
        s = np.exp(s - s.max(-1, keepdims=True)); s /= s.sum(-1, keepdims=True)
        x = x + (s @ v).transpose(1, 0, 2).reshape(T, -1) @ w[p + 'self_attn.o_proj.weight'].T
        h = norm(x, w[p + 'post_attention_layernorm.weight'])
        g, u = h @ w[p + 'mlp.gate_proj.weight'].T, h @ w[p + 'mlp.up_proj.weight'].T
        x = x + (g / (1 + np.exp(-g)) * u) @ w[p + 'mlp.down_proj.weight'].T
    z = norm(x, w['model.norm.weight']) @ (w['lm_head.weight'] if 'lm_head.weight' in w else w['model.embed_tokens.weight']).T
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def reference_ppl(model, corpus):
    nll = []
    for w, keep in zip(corpus.windows, corpus.scored):
        lp = llama64(model, w[:-1])
        j = np.nonzero(keep)[0]
        nll += list(-lp[j - 1, w[j]])
    return math.exp(np.mean(nll))


def test_demo_perplexity_equals_float64():
    m = models.load('demo', device='cpu', dtype='float32')
    c = data.corpus('code', m.tokenizer, context=128, max_windows=4)
    assert perplexity.score(m, c, **quiet).ppl.value == pytest.approx(reference_ppl(m.model, c), rel=1e-5)


def test_tiny_perplexity_equals_float64():
    m = sharp(head_dim=32)
    c = random_corpus(3)
    assert perplexity.score(m, c, **quiet).ppl.value == pytest.approx(reference_ppl(m.model, c), rel=1e-5)


def test_pair_equals_float64_arithmetic():
    from scipy.special import log_softmax, rel_entr
    g = torch.Generator().manual_seed(0)
    za = torch.randn(200, 5000, generator=g) * 4
    zb = za + .3 * torch.randn(200, 5000, generator=g)
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
    assert .2 < np.mean(top5) < np.mean(p['same_top']) + .5 and (p['top5'] != p['same_top']).any()    # the fifth is not the first again
    assert np.abs(p['confidence'] - np.exp(la.max(-1))).max() < 1e-5


def test_identical_logits_diverge_by_exactly_zero():
    z = torch.randn(50, 3000) * 5
    assert float(paired.score_two(z, z.clone(), torch.zeros(50, dtype=torch.long))['kld'].abs().max()) == 0.


@pytest.mark.parametrize('arch', list(models.TINY))
def test_split_head_equals_the_models_own_logits(arch):
    m = models.tiny(arch, dtype='float32')
    with torch.no_grad(): m.model.get_output_embeddings().weight.mul_(100)                   # large enough for a soft cap to bite
    lm, ids = perplexity.as_logits(m), torch.randint(0, 4096, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = m.model(input_ids=ids).logits
        got = lm.head(lm.hidden(ids).flatten(0, 1)).view_as(want)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    assert lm.rule[0] == dict(gemma2='softcap').get(arch, 'none')


def _from(config, **kw):
    import transformers
    return getattr(transformers, config)(**dict(dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                                     num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=1), **kw))


@pytest.mark.parametrize('config,extra,rule', [('CohereConfig', dict(logit_scale=.0625), 'logit_scale'), ('GraniteConfig', dict(logits_scaling=8.), 'logits_scaling')])
def test_scaled_logits(config, extra, rule):
    import transformers
    m = transformers.AutoModelForCausalLM.from_config(_from(config, **extra)).float().eval()
    with torch.no_grad(): m.get_output_embeddings().weight.mul_(50)
    ld = dataclasses.replace(sharp(), model=m, tokenizer=None)
    lm, ids = perplexity.as_logits(ld), torch.arange(40)[None]
    with torch.inference_mode():
        want = m(input_ids=ids).logits[0]
        assert lm.rule[0] == rule and float((lm.head(lm.hidden(ids)[0]) - want).abs().max() / want.abs().max()) < 1e-5


def test_head_of_a_bf16_model_is_not_rounded_to_16_bits():
    m = sharp(dtype='bfloat16')
    lm, was = perplexity.as_logits(m), torch.get_float32_matmul_precision()
    with torch.inference_mode():
        h = lm.hidden(torch.arange(100)[None])[0]
        z, exact = lm.head(h), h.double() @ m.model.get_output_embeddings().weight.double().t()
    assert z.dtype == torch.float32 and float((z - exact).abs().max() / exact.abs().max()) < 2e-6
    assert torch.get_float32_matmul_precision() == was


def test_unknown_head_rule_falls_back_to_whole_logits():
    m = sharp()
    own = m.model.forward
    m.model.forward = lambda *a, **k: (lambda o: (setattr(o, 'logits', o.logits ** 3 / 100), o)[1])(own(*a, **k))
    lm = perplexity.as_logits(m)
    assert lm.rule[0] == 'whole'
    c = random_corpus(2, 16)
    w = torch.as_tensor(c.windows[0])[None]
    with torch.inference_mode():
        lp = m.model(input_ids=w[:, :-1]).logits[0].log_softmax(-1)
    want = -lp.gather(-1, w[0, 1:, None])[:, 0].numpy()
    got = perplexity.score(m, c, **quiet).tokens
    assert np.abs(got['nll'][got['window'] == 0] - want).max() < 1e-5

# ---- other tools' definitions


def naive_nll(model, ids):
    "Plain logits -> nll of ids[1:]."
    with torch.inference_mode(): lp = model(input_ids=torch.as_tensor(ids)[None]).logits[0].float().log_softmax(-1)
    return -lp[:-1].gather(-1, torch.as_tensor(ids)[1:, None])[:, 0].double().numpy()


@pytest.fixture(scope='module')
def recorded():
    import importlib.util
    spec = importlib.util.spec_from_file_location('make_lm_eval_record', HERE/'make_lm_eval_record.py')
    mod = importlib.util.module_from_spec(spec); spec.loader.exec_module(mod)
    ld = dataclasses.replace(sharp(), model=mod.model(), tokenizer=mod.tokenizer(), name='recorded')
    return mod, ld, json.loads(mod.RECORD.read_text())


def test_lm_eval_policy_equals_lm_eval(recorded):
    mod, ld, rec = recorded
    for text, want, n in zip(mod.texts(), rec['loglikelihood'], rec['tokens']):
        c = data.corpus('recorded', ld.tokenizer, context=rec['context'], policy='lm_eval', documents=[text])
        s = perplexity.score(ld, c, **quiet)
        assert len(s.tokens['nll']) == n
        assert -s.tokens['nll'].astype(float).sum() == pytest.approx(want, rel=1e-4)
    c = data.corpus('recorded', ld.tokenizer, context=rec['context'], policy='lm_eval', documents=mod.texts())
    s = perplexity.score(ld, c, **quiet)
    bits = -sum(rec['loglikelihood']) / sum(rec['bytes']) / math.log(2)                       # lm-eval's bits_per_byte
    assert s.bits_per_byte == pytest.approx(bits, rel=1e-4)
    plain = data.corpus('recorded', ld.tokenizer, context=rec['context'], documents=mod.texts())
    assert abs(perplexity.score(ld, plain, **quiet).ppl.value / s.ppl.value - 1) > 1e-4        # another policy is another number


def test_sliding_policy_equals_hugging_face(recorded):
    "The loop of transformers' page on fixed-length models: labels masked with -100, the first token of the text not scored."
    mod, ld, _ = recorded
    ids = np.asarray([0] + ld.tokenizer(mod.texts()[0], add_special_tokens=False)['input_ids'])
    for context, stride in ((64, 32), (64, 48), (64, 64)):
        total, count, prev = 0., 0, 0
        for begin in range(0, len(ids), stride):
            end = min(begin + context, len(ids))
            labels = ids[begin:end].copy(); labels[:-(end - prev)] = -100
            nll = naive_nll(ld.model, ids[begin:end])[labels[1:] != -100]
            total, count, prev = total + nll.sum(), count + len(nll), end
            if end == len(ids): break
        c = data.corpus('recorded', ld.tokenizer, context=context, stride=stride, policy='sliding', bos='doc', documents=[mod.texts()[0]])
        s = perplexity.score(ld, c, **quiet)
        assert len(s.tokens['nll']) == count and s.tokens['nll'].astype(float).mean() == pytest.approx(total / count, rel=1e-5)


def test_half_policy_equals_llama_cpp(recorded):
    "Chunks of n_ctx, first token replaced by BOS, logits from n_ctx/2 to n_ctx - 2 predict the token after each."
    mod, ld, _ = recorded
    ids, n_ctx, total, count = np.asarray([0] + ld.tokenizer(mod.texts()[0], add_special_tokens=False)['input_ids']), 64, 0., 0
    for i in range(len(ids) // n_ctx):
        chunk = ids[i * n_ctx:(i + 1) * n_ctx].copy(); chunk[0] = 0
        nll = naive_nll(ld.model, chunk)[n_ctx // 2:]
        total, count = total + nll.sum(), count + len(nll)
    c = data.corpus('recorded', ld.tokenizer, context=n_ctx, policy='half', bos='doc', documents=[mod.texts()[0]])
    s = perplexity.score(ld, c, **quiet)
    assert len(s.tokens['nll']) == count and s.tokens['nll'].astype(float).mean() == pytest.approx(total / count, rel=1e-5)

# ---- comparison


def test_batches_and_chunks_change_nothing(pair):
    a, b = pair
    c = random_corpus(9)
    c.windows[4], c.scored[4] = c.windows[4][:30], c.scored[4][:30]                            # unequal lengths are not padded
    one = compare.compare(a, b, c, batch_size=1, chunk=1000, **quiet)
    for kw in (dict(batch_size=3, chunk=17), dict(batch_size=8, chunk=64)):
        o = compare.compare(a, b, c, **kw, **quiet)
        assert (o.tokens['window'] == one.tokens['window']).all() and (o.tokens['position'] == one.tokens['position']).all()
        assert np.abs(o.tokens['nll_quant'] - one.tokens['nll_quant']).max() < 1e-4
    alone = perplexity.score(b, c, **quiet)
    assert np.abs(alone.tokens['nll'] - one.tokens['nll_quant']).max() < 1e-4


def test_model_against_itself(pair):
    a, _ = pair
    c = compare.compare(a, a, random_corpus(), noise_floor='none', **quiet)
    r, k = c.stats['ppl_ratio'], c.stats['kld_mean']
    assert (r.value, r.lo, r.hi, k.value, k.hi) == (1., 1., 1., 0., 0.)
    assert c.verdict == 'PASS' and c.flips['lost'] == c.flips['gained'] == 0 and c.stats['top1_agreement'].value == 1


@pytest.mark.parametrize('arch', ['llama', 'gemma2'])
def test_the_ways_agree(arch, tmp_path):
    a = sharp(arch, dtype='bfloat16', factor=1.5)
    with torch.no_grad(): a.model.get_output_embeddings().weight.mul_(20)
    b, c = disturbed(a), random_corpus(6)
    direct = compare.compare(a, b, c, **quiet)
    for way in ('hidden-memory', 'hidden-file'):
        loads = []
        o = compare.compare(lambda: loads.append('base') or a, lambda: loads.append('quant') or b, c, way=way, folder=str(tmp_path), **quiet)
        assert o.way == way and loads == ['base', 'quant'] and list(tmp_path.iterdir()) == []
        for k in ('ppl_base', 'ppl_quant', 'ppl_ratio'): assert o.stats[k].value == pytest.approx(direct.stats[k].value, rel=1e-6)
        assert o.stats['kld_mean'].value == pytest.approx(direct.stats['kld_mean'].value, rel=1e-5)
        assert o.floor['kld_mean'].value == direct.floor['kld_mean'].value
    assert direct.way == 'lockstep' and direct.to_dict()['way'] == 'lockstep'


def test_verdicts_and_budgets(pair):
    a, b = pair
    c = compare.compare(a, b, random_corpus(16), max_ppl_ratio=1.2, max_kld=1., min_top1=.2, **quiet)
    assert c.verdict == 'PASS'
    bad = compare.compare(a, disturbed(a, .5), random_corpus(16), **quiet)
    assert bad.verdict == 'FAIL' and bad.what_now()
    few = compare.compare(a, b, random_corpus(4), max_ppl_ratio=1.5, max_kld=1., min_top1=.1, **quiet)
    assert few.verdict == 'INCONCLUSIVE' and few.settle_tokens >= 8 * 63
    one = compare.compare(a, b, random_corpus(1), **quiet)
    assert one.verdict == 'INCONCLUSIVE'
    json.dumps(one.to_dict(), allow_nan=False)


def test_a_noise_floor_excuses_nothing(pair):
    "A budget of zero cannot be met: BF16 rounding moves the base model itself by more, so nothing is decided, and never passed."
    a, _ = pair
    c = random_corpus(16)
    zero = dict(max_ppl_ratio=1., max_kld=0., min_top1=1.)
    quant = compare.compare(a, disturbed(a, 1e-4), c, **zero, **quiet)
    assert 0 < quant.floor['kld_mean'].value < .1 and quant.floor['windows'] >= 4
    check = quant.judged.checks[1]
    assert (check.budget, check.noisy, check.state) == (0, True, 'undecided') and quant.verdict == 'INCONCLUSIVE'
    assert 'noise floor of mean KL divergence' in ' '.join(quant.judged.reasons) and math.isnan(quant.settle_tokens)
    assert 'More text will not settle this' in quant.what_now()[0]
    loud = compare.compare(a, disturbed(a, .5), c, **zero, **quiet)
    assert loud.verdict == 'FAIL'                                                              # beyond all noise
    without = compare.compare(a, disturbed(a, 1e-4), c, **zero, noise_floor='none', **quiet)
    assert without.judged.checks[1].state == 'outside' and without.to_dict()['noise_floor'] == dict(why='not asked for')
    eager = compare.compare(a, a, c, noise_floor='attention', **quiet)
    assert eager.floor['kld_mean'].value < quant.floor['kld_mean'].value and a.model.config._attn_implementation == 'sdpa'


def test_noise_moves_a_bf16_number_at_all():
    "Half a step of noise rounded away would be a floor of zero."
    x = torch.randn(20000).bfloat16()
    moved = reference.round_again(x, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.bfloat16 and .15 < float((moved != x).float().mean()) < .19
    same = reference.round_again(x, torch.Generator().manual_seed(0))
    assert (same == moved).all()


def test_nonfinite_logits_fail_and_are_counted(pair):
    a, b = pair
    class Broken:
        "One token in a hundred gets a NaN, one an infinity."
        def __init__(self): self.lm = perplexity.as_logits(b); self.n = 0
        def __getattr__(self, k): return getattr(self.lm, k)
        def hidden(self, ids): return self.lm.hidden(ids)
        def head(self, h):
            z = self.lm.head(h)
            i = torch.arange(self.n, self.n + len(z)); self.n += len(z)
            z[i % 100 == 7, 5], z[i % 100 == 8, 6] = math.nan, -math.inf
            return z
    c = compare.compare(a, Broken(), random_corpus(16), max_ppl_ratio=2., max_kld=9., min_top1=0., **quiet)
    assert c.nonfinite['quant'] == pytest.approx(.02, abs=.002) and c.nonfinite['base'] == 0
    assert c.verdict == 'FAIL' and 'not finite' in c.judged.reasons[0] and 'not finite' in c.what_now()[0]
    assert math.isfinite(c.stats['ppl_quant'].value) and c.ok.sum() < c.n_tokens
    json.dumps(c.to_dict(), allow_nan=False); assert 'FAIL' in c.summary() and 'FAIL' in c._repr_markdown_()


def test_all_nan(pair):
    a, b = pair
    nan = dataclasses.replace(b, model=copy.deepcopy(b.model), name='nan')
    with torch.no_grad(): nan.model.model.layers[0].mlp.down_proj.weight[0, 0] = math.nan
    c = compare.compare(a, nan, random_corpus(), **quiet)
    assert c.verdict == 'FAIL' and c.nonfinite['quant'] == 1 and c.stats == {}
    json.dumps(c.to_dict(), allow_nan=False); c.summary(); c._repr_markdown_()
    with pytest.raises(CookError, match='every logit of the base model'): compare.compare(nan, a, random_corpus(), **quiet)


def test_plain_logits_speak_the_protocol(pair):
    "An engine that has only logits returns them from hidden and lets head pass them on."
    a, b = pair
    class Engine:
        name, vocab_size, context, tokenizer_sha, device = 'engine', 4096, 512, None, torch.device('cpu')
        def hidden(self, ids): return b.model(input_ids=ids, use_cache=False).logits
        def head(self, h): return h.float()
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
    "What is common to a document widens the interval and lowers the number of effective blocks; too few of them never PASS."
    a, b = pair
    corpus = random_corpus(40)
    corpus.doc = np.repeat(np.arange(5), [20, 5, 5, 5, 5])
    wide = dict(max_ppl_ratio=9., max_kld=9., min_top1=0.)
    c = compare.compare(a, b, corpus, **wide, **quiet)
    d = c.to_dict()
    assert c.verdict == 'PASS' and d['documents'] == 5 and d['blocks'] == 40 and 8 < d['effective_blocks'] <= 40
    again = compare.compare(a, b, corpus, **wide, **quiet)
    shift = np.random.default_rng(0).normal(0, .5, 5)[again.tokens['document']]
    again.tokens['nll_quant'] = again.tokens['nll_quant'] + shift
    assert again.stats['ppl_ratio'].width > 3 * c.stats['ppl_ratio'].width
    assert again.effective_blocks == pytest.approx(40**2 / (20**2 + 4 * 25), rel=.2) and again.verdict == 'INCONCLUSIVE'
    assert 'effective blocks' in ' '.join(again.judged.reasons)
    assert 'of 5 documents (' in again.summary() and 'effective blocks' in again.summary()


def test_tables(pair):
    c = compare.compare(*pair, random_corpus(16), **quiet)
    for t in (c.by_confidence(), c.by_position(), c.by_document(100)):
        assert sum(r['tokens'] for r in t.rows) == c.n_tokens
        assert sum(r['share_of_kld'] for r in t.rows) == pytest.approx(1)
        assert '|' in t._repr_markdown_()
    d = c.to_dict()
    for k in ('ppl_ratio', 'ppl_ratio_ci95', 'kld_mean', 'kld_mean_ci95', 'top1_agreement', 'noise_floor', 'min_detectable_ppl_ratio', 'verdict', 'policy',
              'ppl_base', 'ppl_quant', 'kld_p99', 'kld_max', 'top5_overlap', 'rms_dp', 'flips', 'bpb_base'): assert d[k] is not None, k
    json.dumps(d, allow_nan=False)
    lo, hi = d['ppl_ratio_ci95']
    assert lo < d['ppl_ratio'] < hi and c.tokens_needed(1.001) > 0


def test_figures(pair):
    import matplotlib; matplotlib.use('agg')
    c = compare.compare(*pair, random_corpus(16), **quiet)
    for ax in (c.plot(), c.plot_pairing()): assert ax.get_xlabel()

# ---- bad input


def test_refusals(pair):
    a, b = pair
    for kw, what in ((dict(max_ppl_ratio=.99), 'max_ppl_ratio is 0.99'), (dict(max_kld=-1.), 'max_kld'), (dict(min_top1=1.2), 'min_top1'),
                     (dict(way='teleport'), 'way is'), (dict(noise_floor='loud'), 'noise_floor'), (dict(noise_floor=False), 'noise_floor')):
        with pytest.raises(CookError, match=what): compare.compare(a, b, random_corpus(), **kw, **quiet)
    with pytest.raises(CookError, match='positions: use a context of at most 512'): compare.compare(a, b, random_corpus(2, 600), **quiet)
    with pytest.raises(CookError, match='no windows'): compare.compare(a, b, dataclasses.replace(random_corpus(), windows=[], scored=[]), **quiet)
    with pytest.raises(CookError, match='another tokenizer'): compare.compare(a, b, random_corpus(sha='ab'), **quiet)
    other = sharp(vocab_size=4224)
    with pytest.raises(CookError, match='vocabulary of 4096 and .* of 4224'): compare.compare(a, other, random_corpus(), **quiet)
    with pytest.raises(CookError, match='no quantizers'): attribution.attribute(a, b, random_corpus(), **quiet)
    with pytest.raises(CookError, match='the ratio to show'): compare.compare(a, b, random_corpus(), **quiet).tokens_needed(1.)


def test_two_tokenizers_are_refused(recorded):
    mod, ld, _ = recorded
    t = mod.tokenizer(); t.add_tokens(['<more>'])
    with pytest.raises(CookError, match='different tokenizers'):
        compare.compare(ld, dataclasses.replace(ld, tokenizer=t), random_corpus(vocab=257), **quiet)


def test_calibration_overlap_is_warned_of(pair):
    a, b = pair
    c = random_corpus(16)
    o = compare.compare(a, b, c, calibration=dataclasses.replace(c, windows=c.windows[:4]), **quiet)
    assert any('25.0%' in w for w in o.warnings) and '25.0%' in o.summary()
    assert compare.compare(a, b, c, calibration=random_corpus(seed=9), **quiet).warnings == []

# ---- the demonstration model


@pytest.fixture(scope='module')
def code(demo): return data.corpus('code', demo.tokenizer, context=512, max_windows=16)


def few_of(c, n): return c.take(range(n))


def test_demo_fp8_sharpness_and_verdict(demo, code):
    pytest.importorskip('modelopt')
    from tqcook import quantize
    q = quantize.quantize(demo, data.calibration('code-train', demo.tokenizer, samples=16, length=256), progress=False).loaded
    c = compare.compare(demo, q, code, **quiet)
    assert c.verdict == 'PASS', c.summary()
    assert c.sharpness >= 50, c.sharpness
    assert c.stats['kld_mean'].value > 3 * c.floor['kld_mean'].value                                  # it sees FP8, not noise
    few = few_of(code, 4)
    assert compare.compare(demo, q, few, **quiet).verdict == 'INCONCLUSIVE'
    at = attribution.attribute(demo, q, code, by='kind', max_windows=2, **quiet)
    assert at.control.value == 0. and .5 < at.additivity < 2 and set(at.groups) >= {'q_proj', 'down_proj'}
    assert all(x.is_enabled for _, x in attribution.quantizers(q.model).values())
    worst = at.exclude(at.leave_out(.5))
    less = quantize.quantize(demo, data.calibration('code-train', demo.tokenizer, samples=16, length=256), exclude=worst, progress=False).loaded
    assert compare.compare(demo, less, few, **quiet).stats['kld_mean'].value < compare.compare(demo, q, few, **quiet).stats['kld_mean'].value


# ---- what to do next, and what happens on the way


class Report:
    "An attribution by kind, as far as advice reads it."
    groups = dict(down_proj=verdict.Interval(.03, .02, .04), q_proj=verdict.Interval(.005, .004, .006))
    patterns = dict(down_proj='*.down_proj', q_proj='*.q_proj')


def test_advice_starts_where_the_numbers_point(pair):
    a, b = pair
    c = random_corpus(16)
    bad = compare.compare(a, disturbed(a, .2), c, **quiet)
    assert bad.verdict == 'FAIL'
    said = bad.what_now(calibration=['the range of down_proj settled only after 60 of 64 samples'], attribution=Report)
    assert said[0].startswith('Start with the calibration: the range of down_proj')
    assert "exclude = ['*.down_proj']" in said[1] and '86%' in said[1]
    assert not any('fp8_rowwise' in x or 'Serve' in x for x in said)                            # nothing that was not tried
    better = compare.compare(a, b, c, **quiet)
    assert any(x.startswith('int8_token does better') for x in bad.what_now(tried=dict(int8_token=better)))
    assert 'fp8_rowwise were tried and are no better.' in bad.what_now(tried=dict(fp8_rowwise=bad))
    good = compare.compare(a, b, c, max_ppl_ratio=9., max_kld=9., min_top1=0., **quiet)
    assert good.what_now(calibration=['late'], attribution=Report) == []


def test_a_token_beyond_the_embedding_table(pair):
    a, b = pair
    c = random_corpus(2, 16)
    c.windows[1][3] = 4096
    with pytest.raises(CookError, match='token 4096, and the scored model .* embeds only 4096'): perplexity.score(a, c, **quiet)
    with pytest.raises(CookError, match='token 4096, and the base model'): compare.compare(a, b, c, **quiet)


def test_short_memory_halves_the_batches(pair):
    "Statistics and noise floor are those of a run that had enough."
    a, b = pair
    class Tight:
        def __init__(self, lm): self.lm = lm
        def __getattr__(self, k): return getattr(self.lm, k)
        def head(self, h): return self.lm.head(h)
        def hidden(self, ids):
            if len(ids) > 2: raise RuntimeError('out of memory')
            return self.lm.hidden(ids)
    c = random_corpus(9)
    whole = compare.compare(a, b, c, batch_size=2, **quiet)
    with pytest.warns(UserWarning, match='out of memory'):
        tight = compare.compare(Tight(perplexity.as_logits(a)), Tight(perplexity.as_logits(b)), c, batch_size=8, **quiet)
    assert np.abs(tight.tokens['kld'] - whole.tokens['kld']).max() < 1e-6
    assert tight.floor['tokens'] == whole.floor['tokens'] and len(tight.tokens['window']) == c.n_scored


def test_sums_over_a_large_vocabulary_are_float64():
    "float32 log-softmax over 49,152 tokens is biased in the sixth digit; a perplexity is a mean of many."
    z = torch.randn(64, 49152, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.arange(64)
    exact = -perplexity.at(z.double().log_softmax(-1), y)
    assert (perplexity.score_one(z, y)['nll'] - exact).abs().max() < 2e-7
    odd = z[:, :49151].contiguous()
    assert (perplexity.log_norm(odd)[0] - odd.double().logsumexp(-1)).abs().max() < 2e-7
