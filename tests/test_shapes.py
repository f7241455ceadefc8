"Counts against transformers' own classes, parameter for parameter, over more than thirty families; refusals."
import json

import pytest

from tqcook import shapes
from tqcook.core import CookError
from tqcook.shapes import FAMILIES, SHAPES, shape_of

ODD = dict(hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
           vocab_size=250, pad_token_id=0, eos_token_id=1, bos_token_id=1)
WIDE = dict(ODD, head_dim=20) # heads wider than hidden / heads
GPT = dict(n_embd=96, n_layer=3, n_head=6, n_positions=64, vocab_size=250)
LATENT = dict(kv_lora_rank=24, q_lora_rank=30, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12)
ROUTED = dict(WIDE, n_routed_experts=8, n_shared_experts=2, moe_intermediate_size=48, first_k_dense_replace=1,
              num_experts_per_tok=2, n_group=2, topk_group=1)
QWEN_MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=48, shared_expert_intermediate_size=56)
LOCAL = dict(num_local_experts=5, num_experts_per_tok=2)
CASES = [
    *((k, WIDE) for k in ('llama', 'mistral', 'qwen3', 'gemma', 'gemma2', 'gemma3_text', 'nemotron', 'arcee', 'smollm3',
                          'glm', 'glm4', 'seed_oss', 'ernie4_5', 'hunyuan_v1_dense', 'cohere2')),
    *((k, ODD) for k in ('qwen2', 'phi3', 'phi', 'starcoder2', 'olmo', 'olmo2', 'granite', 'cohere')),
    ('llama', dict(WIDE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ('qwen3', dict(WIDE, attention_bias=True)), ('phi', dict(ODD, qk_layernorm=True)),
    ('cohere', dict(ODD, use_qk_norm=True)), ('gemma', dict(WIDE, tie_word_embeddings=False)),
    ('gpt2', GPT), ('gpt2', dict(GPT, n_inner=100)),
    ('bloom', dict(hidden_size=96, n_layer=3, n_head=6, vocab_size=250)),
    ('gpt_neox', {k: v for k, v in ODD.items() if k != 'num_key_value_heads'}),
    ('opt', dict(hidden_size=96, ffn_dim=160, num_hidden_layers=3, num_attention_heads=6, vocab_size=250,
                 max_position_embeddings=64, word_embed_proj_dim=96, pad_token_id=0)),
    ('mixtral', dict(WIDE, **LOCAL)), ('granitemoe', dict(ODD, **LOCAL)), ('phimoe', dict(ODD, **LOCAL)),
    ('gpt_oss', dict(WIDE, **LOCAL)), ('olmoe', dict(ODD, num_experts=5, num_experts_per_tok=2)),
    ('qwen2_moe', dict(ODD, **QWEN_MOE)), ('qwen2_moe', dict(ODD, **QWEN_MOE, mlp_only_layers=[1])),
    ('qwen2_moe', dict(ODD, **QWEN_MOE, decoder_sparse_step=2)),
    ('qwen3_moe', dict(WIDE, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=48)),
    ('deepseek_v2', dict(ROUTED, **LATENT)), ('deepseek_v2', dict(ROUTED, **dict(LATENT, q_lora_rank=None))),
    ('deepseek_v3', dict(ROUTED, **LATENT)), ('glm4_moe', ROUTED), ('glm4_moe', dict(ROUTED, use_qk_norm=True))]


def meta_model(kind, config):
    "transformers' class without memory."
    torch, tr = pytest.importorskip('torch'), pytest.importorskip('transformers')
    config = tr.AutoConfig.for_model(kind, **config)
    with torch.device('meta'):
        return tr.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize('kind, config', CASES, ids=[f'{k}{i}' for i, (k, _) in enumerate(CASES)])
def test_parameters_equal_the_class(kind, config):
    model = meta_model(kind, config)
    want = sum(p.numel() for p in model.parameters())
    of_class, of_file = shape_of(model.config), shape_of(dict(config, model_type=kind))
    assert of_class.total == of_file.total == want
    body = [p for n, p in model.named_parameters() if p.ndim > 1 and '.experts.' in n and not n.endswith('bias')]
    experts = sum(m.copies * m.out * m.inputs for m in of_file.matrices if m.kind == 'experts')
    assert sum(p.numel() for p in body) == experts
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (of_file.head == 0) == tied and of_file.active <= of_file.linear


def test_every_family_of_the_table_is_tested():
    assert {k for k, _ in CASES} == set(FAMILIES) and len(FAMILIES) >= 20


@pytest.mark.parametrize('kind', ['stablelm', 'helium', 'exaone4'])
def test_families_outside_the_table_are_counted_by_their_class(kind):
    config = dict(WIDE if kind != 'stablelm' else ODD, model_type=kind)
    assert kind not in FAMILIES
    model = meta_model(kind, {k: v for k, v in config.items() if k != 'model_type'})
    want = sum(p.numel() for p in model.parameters())
    s = shape_of(config)
    assert s.total == want and s.kv_width == 2 * 2 * (20 if kind != 'stablelm' else 16)


@pytest.mark.parametrize('kind, more, expected', [
    ('gemma2', {}, [64, None, 64, None, 64, None]), ('gemma3_text', {}, [64, 64, 64, 64, 64, None]),
    ('mistral', {}, [64] * 6),
    ('qwen2', dict(use_sliding_window=False), [None] * 6), ('llama', {}, [None] * 6),
    ('qwen2', dict(use_sliding_window=True, max_window_layers=4), [None] * 4 + [64] * 2),
    ('gpt_oss', dict(num_local_experts=2, num_experts_per_tok=1), [64, None] * 3),
    ('cohere2', dict(layer_types=['full_attention'] * 5 + ['sliding_attention']), [None] * 5 + [64])])
def test_windows(kind, more, expected):
    "Of each layer, from the rule of the family as from the list that transformers makes of it."
    config = dict(WIDE, num_hidden_layers=6, sliding_window=64, **more)
    assert shape_of(dict(config, model_type=kind)).windows == expected
    if kind != 'llama':
        assert shape_of(meta_model(kind, config).config).windows == expected


def test_latent_attention_has_a_narrow_cache():
    "DeepSeek-V2-Lite: 15.7e9 parameters and 31,104 bytes a token, not 221,184."
    lite = dict(model_type='deepseek_v2', hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408,
                vocab_size=102400, num_hidden_layers=27, num_attention_heads=16, num_key_value_heads=16,
                n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1,
                kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128,
                v_head_dim=128)
    s = shape_of(lite)
    assert s.total == pytest.approx(15.706e9, rel=1e-3) and 2 * s.layers * s.kv_width == 31104
    assert s.active == pytest.approx(2.2e9, rel=.05) and s.kv_heads == 1


@pytest.mark.parametrize('more', [dict(num_experts=8), dict(kv_lora_rank=64), dict(mamba_d_state=16),
                                  dict(n_routed_experts=4),
                                  dict(layer_types=['full_attention', 'linear_attention', 'full_attention']),
                                  dict(num_kv_shared_layers=1)])
def test_a_key_that_decides_and_that_nobody_reads_is_refused(more):
    with pytest.raises(CookError, match='counted without') as e:
        shape_of(dict(WIDE, model_type='llama', **more))
    assert next(iter(more)) in str(e.value)


def test_families_that_cannot_be_counted():
    pytest.importorskip('transformers')
    with pytest.raises(CookError, match='not in the table of families, and transformers cannot build'):
        shape_of(dict(WIDE, model_type='no_such_family'))
    with pytest.raises(CookError, match='cache and cost are not counted'):
        shape_of(dict(ODD, model_type='bamba', mamba_n_heads=12, mamba_d_head=16))


def test_without_transformers_the_table_is_all(monkeypatch):
    import builtins
    real = builtins.__import__
    def blocked(name, *args, **kw):
        if name.split('.')[0] in ('torch', 'transformers'):
            raise ImportError(name)
        return real(name, *args, **kw)
    monkeypatch.setattr(builtins, '__import__', blocked)
    assert shape_of(dict(WIDE, model_type='gemma2')).total
    with pytest.raises(CookError, match='known families: llama'):
        shape_of(dict(ODD, model_type='stablelm'))


@pytest.mark.parametrize('config', [{}, dict(WIDE, vocab_size='many'), dict(WIDE, num_hidden_layers=0),
                                    dict(WIDE, hidden_size=-1), dict(WIDE, vocab_size=10**400),
                                    dict(ODD, num_attention_heads=7), dict(WIDE, hidden_size=True),
                                    dict(ROUTED, model_type='deepseek_v2', kv_lora_rank=24),
                                    dict(WIDE, num_attention_heads=0)])
def test_configs_that_say_too_little_or_nonsense(config):
    with pytest.raises(CookError, match='config|divide'):
        shape_of(config)
    if config.get('model_type') is None:
        assert shapes.expected_shapes(dict(config, model_type='llama')) == {}


def test_reads_a_directory(tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(WIDE))
    assert shape_of(tmp_path) == shape_of(WIDE) == shape_of(tmp_path/'config.json')
    both = dict(model_type='gemma3', text_config=dict(WIDE, model_type='gemma3_text'))
    (tmp_path/'config.json').write_text(json.dumps(both))
    assert shape_of(tmp_path).family == 'gemma3_text'
    for bad in 'shape:lama-8b', tmp_path/'none':
        with pytest.raises(CookError):
            shape_of(bad)


@pytest.mark.parametrize('kind', shapes._LLAMA_LIKE)
def test_expected_shapes_are_the_models(kind):
    model = meta_model(kind, ODD if kind in ('phi3', 'qwen2') else WIDE)
    want = shapes.expected_shapes(dict(model.config.to_dict(), model_type=kind))
    have = {n.removesuffix('.weight'): tuple(p.shape) for n, p in model.named_parameters() if p.ndim == 2}
    have.pop('lm_head', None)
    assert want == have


def test_the_shapes_are_what_was_published():
    assert shape_of('shape:llama-3.1-8b').total == 8_030_261_248
    assert shape_of(SHAPES['llama-3.2-1b']).total == 1_235_814_400
    assert shape_of(SHAPES['llama-3.1-70b']).total == 70_553_706_496 # its card on the hub


# Published configs whose counts were once far off: parameters, exactly those of transformers' class.
WRONG = {
    'Phi-2, once +30 %': (2_779_683_840, dict(
        model_type='phi', hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=51200)),
    'Gemma-2-2b, once 3.20e9': (2_614_341_888, dict(
        model_type='gemma2', hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
        num_key_value_heads=4, head_dim=256, vocab_size=256000)),
    'Qwen1.5-MoE-A2.7B, once -6 %': (14_315_784_192, dict(
        model_type='qwen2_moe', hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=16, vocab_size=151936, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632)),
    'gpt-oss-20b': (20_914_757_184, dict(
        model_type='gpt_oss', hidden_size=2880, intermediate_size=2880, num_hidden_layers=24, num_attention_heads=64,
        num_key_value_heads=8, head_dim=64, vocab_size=201088, num_local_experts=32, num_experts_per_tok=4))}


@pytest.mark.parametrize('name', WRONG)
def test_models_that_were_counted_wrong(name):
    total, config = WRONG[name]
    assert shape_of(config).total == total
    rest = {k: v for k, v in config.items() if k != 'model_type'}
    assert sum(p.numel() for p in meta_model(config['model_type'], rest).parameters()) == total
