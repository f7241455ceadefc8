"The memory plan: what splits conserve, what quantization saves, and what fits where."
import pytest

from tqcook import memory, shapes
from tqcook.core import CookError
from tqcook.device import lookup

CONFIG = dict(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000,
              intermediate_size=512)
LITE = dict(model_type='deepseek_v2', hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
            vocab_size=102400, num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16,
            n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1,
            kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128)


def test_splits_conserve_bytes():
    whole = memory.memory_plan(CONFIG, 'fp8', batch=4, context=128)
    halves = memory.memory_plan(CONFIG, 'fp8', batch=4, context=128, tp=2)
    small = 2 * shapes.shape_of(CONFIG).other # norms stand on each GPU
    assert whole.weights - small == pytest.approx(2 * (halves.weights - small))
    assert whole.cache == pytest.approx(2 * halves.cache)
    # two KV heads on four slices: each keeps a whole one
    copied = memory.memory_plan(CONFIG, 'fp8', batch=4, context=128, tp=4)
    assert copied.cache == pytest.approx(halves.cache) and copied.weights < halves.weights


def test_quantization_never_needs_more():
    plans = [memory.memory_plan(CONFIG, s, device='h100') for s in ('none', 'fp8', 'nvfp4')]
    assert plans[0].weights > plans[1].weights > plans[2].weights and all(p.fits for p in plans)
    assert memory.memory_plan(CONFIG, kv='fp8').cache * 2 == memory.memory_plan(CONFIG).cache


def test_parallel_plan_grows_with_the_load():
    small, large = (memory.parallel_plan('shape:llama-3.1-8b', batch=b, context=8192, device='l4') for b in (1, 64))
    assert small.gpus < large.gpus and small.fits and large.fits
    assert memory.nodes(large, 2) == -(-large.gpus // 2)
    with pytest.raises(CookError, match='do not fit on 2'):
        memory.parallel_plan('shape:llama-3.1-8b', batch=64, context=8192, device='l4', max_gpus=2)


def test_a_mixture_of_experts_needs_all_of_them():
    "It was planned as a Llama: 2.2 GB, 'fits a T4'. It has 31.4 GB of weights."
    plan = memory.memory_plan(LITE, device='t4')
    assert plan.weights == pytest.approx(31.4e9, rel=.002) and plan.fits is False
    assert plan.cache == 31104 * 2048
    split = memory.memory_plan(LITE, tp=4) # the latent is copied to every slice
    assert split.cache == plan.cache


@pytest.mark.parametrize('config, before, now', [
    (dict(model_type='gpt_oss', hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64,
          num_key_value_heads=8, head_dim=64, vocab_size=201088, num_local_experts=32, num_experts_per_tok=4,
          sliding_window=128), 25.8e9, 12.9e9),
    (dict(model_type='gemma2', hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
          num_key_value_heads=4, head_dim=256, vocab_size=256000, sliding_window=4096), 14.0e9, 10.5e9)])
def test_windows_bound_the_cache(config, before, now):
    context = 32768 if config['model_type'] == 'gpt_oss' else 8192
    assert memory.memory_plan(config, batch=16, context=context).cache == pytest.approx(now, rel=.01)
    wide = dict(config, sliding_window=None)
    assert memory.memory_plan(wide, batch=16, context=context).cache == pytest.approx(before, rel=.01)


def test_memory_is_the_drivers():
    plan = memory.memory_plan('shape:llama-3.1-8b', device='h100')
    assert plan.memory == lookup('h100').memory_bytes and '85.5 GB' in plan._repr_markdown_()
    assert memory.memory_plan(CONFIG).fits is None and memory.memory_plan(CONFIG, device='sm90').fits is None


@pytest.mark.parametrize('wrong', [dict(tp=3), dict(tp=0), dict(pp=4), dict(batch=-1), dict(context=2.5),
                                   dict(batch=True), dict(scheme='fp9'), dict(kv='int8'), dict(device='h10')])
def test_what_cannot_be_planned(wrong):
    with pytest.raises(CookError):
        memory.memory_plan(CONFIG, **wrong)


def test_results_are_plain():
    d = memory.memory_plan('shape:llama-3.1-8b', 'fp8', device='h200').to_dict()
    assert d['fits'] is True and d['requests'] > 100 and d['total'] == d['weights'] + d['cache'] + d['workspace']
