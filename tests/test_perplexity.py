"One model on one text, against independent arithmetic and other tools' definitions."

import dataclasses
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from pairs import naive_nll, quiet, random_corpus, sharp
from tqcook import data, models, perplexity


def llama64(model, ids):
    "Llama in plain float64 numpy, written from the architecture: log-probabilities [tokens, vocabulary]."
    c, w = model.config, {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    H, K, D = (
        c.num_attention_heads,
        c.num_key_value_heads,
        getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads,
    )
    theta = c.rope_parameters['rope_theta'] if getattr(c, 'rope_parameters', None) else c.rope_theta
    norm = lambda x, g: x / np.sqrt((x**2).mean(-1, keepdims=True) + c.rms_norm_eps) * g
    T = len(ids)
    angle = np.arange(T)[:, None] / theta ** (np.arange(0, D, 2) / D)[None]
    cos, sin = np.cos(np.r_['1', angle, angle]), np.sin(np.r_['1', angle, angle])
    turn = lambda x: x * cos + np.concatenate([-x[..., D // 2 :], x[..., : D // 2]], -1) * sin  # x [heads, T, D]
    x = w['model.embed_tokens.weight'][ids]
    for i in range(c.num_hidden_layers):
        p = f'model.layers.{i}.'
        h = norm(x, w[p + 'input_layernorm.weight'])
        q, k, v = ((h @ w[p + f'self_attn.{n}_proj.weight'].T).reshape(T, -1, D).transpose(1, 0, 2) for n in 'qkv')
        q, k = turn(q), turn(k)
        k, v = np.repeat(k, H // K, 0), np.repeat(v, H // K, 0)
        s = q @ k.transpose(0, 2, 1) / math.sqrt(D)
        s = np.where(np.tril(np.ones((T, T), bool)), s, -np.inf)
        s = np.exp(s - s.max(-1, keepdims=True))
        s /= s.sum(-1, keepdims=True)
        x = x + (s @ v).transpose(1, 0, 2).reshape(T, -1) @ w[p + 'self_attn.o_proj.weight'].T
        h = norm(x, w[p + 'post_attention_layernorm.weight'])
        g, u = h @ w[p + 'mlp.gate_proj.weight'].T, h @ w[p + 'mlp.up_proj.weight'].T
        x = x + (g / (1 + np.exp(-g)) * u) @ w[p + 'mlp.down_proj.weight'].T
    z = (
        norm(x, w['model.norm.weight'])
        @ (w['lm_head.weight'] if 'lm_head.weight' in w else w['model.embed_tokens.weight']).T
    )
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


@pytest.mark.parametrize('arch', list(models.TINY))
def test_split_head_equals_the_models_own_logits(arch):
    m = models.tiny(arch, dtype='float32')
    with torch.no_grad():
        m.model.get_output_embeddings().weight.mul_(100)  # large enough for a soft cap to bite
    lm, ids = perplexity.as_logits(m), torch.randint(0, 4096, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = m.model(input_ids=ids).logits
        got = lm.head(lm.hidden(ids).flatten(0, 1)).view_as(want)
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5
    assert lm.rule[0] == dict(gemma2='softcap').get(arch, 'none')


def _from(config, **kw):
    import transformers

    return getattr(transformers, config)(
        **dict(
            dict(
                vocab_size=512,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            ),
            **kw,
        )
    )


@pytest.mark.parametrize(
    'config,extra,rule',
    [
        ('CohereConfig', dict(logit_scale=0.0625), 'logit_scale'),
        ('GraniteConfig', dict(logits_scaling=8.0), 'logits_scaling'),
    ],
)
def test_scaled_logits(config, extra, rule):
    import transformers

    m = transformers.AutoModelForCausalLM.from_config(_from(config, **extra)).float().eval()
    with torch.no_grad():
        m.get_output_embeddings().weight.mul_(50)
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
    m.model.forward = lambda *a, **k: (lambda o: (setattr(o, 'logits', o.logits**3 / 100), o)[1])(own(*a, **k))
    lm = perplexity.as_logits(m)
    assert lm.rule[0] == 'whole'
    c = random_corpus(2, 16)
    w = torch.as_tensor(c.windows[0])[None]
    with torch.inference_mode():
        lp = m.model(input_ids=w[:, :-1]).logits[0].log_softmax(-1)
    want = -lp.gather(-1, w[0, 1:, None])[:, 0].numpy()
    got = perplexity.score(m, c, **quiet).tokens
    assert np.abs(got['nll'][got['window'] == 0] - want).max() < 1e-5


def test_lm_eval_policy_equals_lm_eval(recorded):
    mod, ld, rec = recorded
    for text, want, n in zip(mod.texts(), rec['loglikelihood'], rec['tokens']):
        c = data.corpus('recorded', ld.tokenizer, context=rec['context'], policy='lm_eval', documents=[text])
        s = perplexity.score(ld, c, **quiet)
        assert len(s.tokens['nll']) == n
        assert -s.tokens['nll'].astype(float).sum() == pytest.approx(want, rel=1e-4)
    c = data.corpus('recorded', ld.tokenizer, context=rec['context'], policy='lm_eval', documents=mod.texts())
    s = perplexity.score(ld, c, **quiet)
    bits = -sum(rec['loglikelihood']) / sum(rec['bytes']) / math.log(2)  # lm-eval's bits_per_byte
    assert s.bits_per_byte == pytest.approx(bits, rel=1e-4)
    plain = data.corpus('recorded', ld.tokenizer, context=rec['context'], documents=mod.texts())
    other = perplexity.score(ld, plain, **quiet).ppl.value
    assert abs(other / s.ppl.value - 1) > 1e-4  # another policy is another number


def test_sliding_policy_equals_hugging_face(recorded):
    "The loop of transformers' page on fixed-length models: labels masked with -100, the first token not scored."
    mod, ld, _ = recorded
    ids = np.asarray([0] + ld.tokenizer(mod.texts()[0], add_special_tokens=False)['input_ids'])
    for context, stride in ((64, 32), (64, 48), (64, 64)):
        total, count, prev = 0.0, 0, 0
        for begin in range(0, len(ids), stride):
            end = min(begin + context, len(ids))
            labels = ids[begin:end].copy()
            labels[: -(end - prev)] = -100
            nll = naive_nll(ld.model, ids[begin:end])[labels[1:] != -100]
            total, count, prev = total + nll.sum(), count + len(nll), end
            if end == len(ids):
                break
        c = data.corpus(
            'recorded',
            ld.tokenizer,
            context=context,
            stride=stride,
            policy='sliding',
            bos='doc',
            documents=[mod.texts()[0]],
        )
        s = perplexity.score(ld, c, **quiet)
        assert len(s.tokens['nll']) == count
        assert s.tokens['nll'].astype(float).mean() == pytest.approx(total / count, rel=1e-5)


def test_half_policy_equals_llama_cpp(recorded):
    "Chunks of n_ctx, first token replaced by BOS, logits from n_ctx/2 to n_ctx - 2 predict the token after each."
    mod, ld, _ = recorded
    ids, n_ctx, total, count = (
        np.asarray([0] + ld.tokenizer(mod.texts()[0], add_special_tokens=False)['input_ids']),
        64,
        0.0,
        0,
    )
    for i in range(len(ids) // n_ctx):
        chunk = ids[i * n_ctx : (i + 1) * n_ctx].copy()
        chunk[0] = 0
        nll = naive_nll(ld.model, chunk)[n_ctx // 2 :]
        total, count = total + nll.sum(), count + len(nll)
    c = data.corpus('recorded', ld.tokenizer, context=n_ctx, policy='half', bos='doc', documents=[mod.texts()[0]])
    s = perplexity.score(ld, c, **quiet)
    assert len(s.tokens['nll']) == count
    assert s.tokens['nll'].astype(float).mean() == pytest.approx(total / count, rel=1e-5)


def test_sums_over_a_large_vocabulary_are_float64():
    "float32 log-softmax over 49,152 tokens is biased in the sixth digit; a perplexity is a mean of many."
    z = torch.randn(64, 49152, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.arange(64)
    exact = -perplexity.at(z.double().log_softmax(-1), y)
    assert (perplexity.score_one(z, y)['nll'] - exact).abs().max() < 2e-7
    odd = z[:, :49151].contiguous()
    assert (perplexity.log_norm(odd)[0] - odd.double().logsumexp(-1)).abs().max() < 2e-7


def test_pace_takes_less_than_two_seconds(demo):
    "On the demonstration model by the clock."
    begun = time.perf_counter()
    found = perplexity.pace(demo, 512)
    assert time.perf_counter() - begun < 2 and found > 100


@pytest.mark.parametrize('rate', [1e2, 1e3, 1e4, 1e6])
def test_pace_stops_in_time_however_slow_the_model_is(rate, monkeypatch):
    "A model with a clock of its own; a whole window of the slowest would take 20 seconds."
    class Slow:
        vocab_size, now, read = 64, 0., 0

        def hidden(self, ids):
            Slow.read += ids.shape[1]
            Slow.now += ids.shape[1] / rate
            return torch.zeros(*ids.shape, 4)

        def head(self, h):
            return h

    monkeypatch.setattr(perplexity, 'time', SimpleNamespace(perf_counter=lambda: Slow.now))
    assert perplexity.pace(Slow(), 2048) == pytest.approx(rate)
    assert Slow.now < 2 and (rate < 1e4) == (Slow.read < 4096)
