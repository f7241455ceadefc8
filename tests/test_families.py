"Many families of models in miniature, each in every scheme: it works and keeps its promise, or is refused by name."
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tqcook import export, formats, models, quantize, schemes
from tqcook.core import CookError
from tqcook.device import detect

pytestmark = pytest.mark.slow
TABLE = Path(__file__).parent/'data'/'families.json'
SMALL = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=512, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)
OLD = dict(n_embd=128, n_layer=2, n_head=4, n_positions=256, vocab_size=512, bos_token_id=0, eos_token_id=1)
LATENT = dict(kv_lora_rank=32, q_lora_rank=64, qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32,
              n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, first_k_dense_replace=1, n_group=1,
              topk_group=1, head_dim=16)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=32, mamba_d_state=16, mamba_n_groups=1, mamba_chunk_size=16)
FAMILIES = {
    'llama': {},
    'mistral': {},
    'qwen2': {},
    'qwen3': dict(head_dim=32),
    'phi3': {},
    'phi': {},
    'gemma': dict(head_dim=32),
    'gemma2': dict(head_dim=32, query_pre_attn_scalar=32),
    'gemma3_text': dict(head_dim=32, query_pre_attn_scalar=32),
    'olmo': {},
    'olmo2': {},
    'granite': {},
    'cohere': {},
    'cohere2': {},
    'glm': dict(head_dim=32),
    'glm4': dict(head_dim=32),
    'stablelm': {},
    'starcoder2': {},
    'nemotron': dict(head_dim=32),
    'smollm3': {},
    'ernie4_5': {},
    'exaone4': {},
    'helium': dict(head_dim=32),
    'seed_oss': dict(head_dim=32),
    'hunyuan_v1_dense': dict(head_dim=32),
    'arcee': {},
    'opt': dict(ffn_dim=256, word_embed_proj_dim=128),
    'gpt2': OLD | dict(n_inner=256),
    'gpt_neox': {},
    'gptj': OLD | dict(rotary_dim=16, n_inner=256),
    'bloom': dict(n_layer=2, n_head=4),
    'falcon': dict(new_decoder_architecture=False),
    'mpt': dict(d_model=128, n_layers=2, n_heads=4, max_seq_len=256),
    'gpt_bigcode': OLD | dict(n_inner=256),
    'codegen': OLD | dict(rotary_dim=16, n_inner=256),
    'mixtral': dict(num_local_experts=4, num_experts_per_tok=2),
    'phimoe': dict(num_local_experts=4),
    'qwen2_moe': MOE | dict(shared_expert_intermediate_size=128, decoder_sparse_step=1),
    'qwen3_moe': MOE | dict(head_dim=32),
    'olmoe': MOE,
    'granitemoe': dict(num_local_experts=4, num_experts_per_tok=2),
    'deepseek_v2': LATENT | dict(num_key_value_heads=4),
    'deepseek_v3': LATENT | dict(num_key_value_heads=4),
    'glm4_moe': LATENT | dict(head_dim=32),
    'jamba': dict(num_experts=4, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
    'bamba': MAMBA | dict(attn_layer_indices=[1]),
    'falcon_h1': MAMBA | dict(mamba_d_ssm=256),
    'lfm2': dict(layer_types=['conv', 'full_attention']),
    'mamba2': dict(
        hidden_size=128,
        num_heads=8,
        head_dim=32,
        state_size=16,
        n_groups=1,
        num_hidden_layers=2,
        vocab_size=512,
        chunk_size=16,
    ),
    'llama4_text': dict(num_local_experts=4, intermediate_size_mlp=256, head_dim=32, attention_chunk_size=64),
    'gpt_oss': dict(num_local_experts=4, head_dim=32),
    'dbrx': dict(
        d_model=128,
        n_heads=4,
        n_layers=2,
        max_seq_len=256,
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
        ffn_config=dict(ffn_hidden_size=128, moe_num_experts=4, moe_top_k=2),
    ),
    'qwen3_next': MOE
    | dict(
        head_dim=32,
        shared_expert_intermediate_size=128,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        layer_types=['linear_attention', 'full_attention'],
    ),
}
SCHEMES = list(schemes.SCHEMES)


def family(name):
    "A tiny random model of a family; its gains are not all one, as in trained models."
    import transformers as tr
    with models.quiet():
        cfg = tr.AutoConfig.for_model(name, **(SMALL | FAMILIES[name]))
        torch.manual_seed(0)
        m = tr.AutoModelForCausalLM.from_config(cfg, dtype=torch.bfloat16)
    m.eval().requires_grad_(False)
    for n, p in m.named_parameters():
        if p.ndim == 1 and 'norm' in n.lower():
            p.add_(.1 * torch.randn_like(p))
    return models.Loaded(m, None, f'tiny:{name}', weights='random', device=detect('cpu'))


def witness(path, scheme, like):
    "Plain transformers' own loading of the directory, dequantized and relabeled."
    import transformers as tr
    t, plain = load_file(path/'model.safetensors'), path.parent/'plain'
    shutil.copytree(path, plain)
    out = {}
    for n, v in t.items():
        module, _, leaf = n.rpartition('.')
        parts = {k.rpartition('.')[2]: x for k, x in t.items() if k.rpartition('.')[0] == module}
        if 'weight_scale' not in parts or leaf == 'bias':
            out[n] = v
        elif leaf in ('weight', 'weight_packed'):
            if leaf == 'weight_packed':
                parts = formats.unpack(parts, 8 if scheme == 'int8_wo' else 4)
            w = formats.dequantize(scheme, parts)
            if 'pre_quant_scale' in parts: # x * p through W is W * p
                w = w * parts['pre_quant_scale'].float()
            out[f'{module}.weight'] = (w.T if like.get(f'{module}.weight') == 'Conv1D' else w).bfloat16().contiguous()
    save_file(out, plain/'model.safetensors', metadata=dict(format='pt'))
    cfg = json.loads((plain/'config.json').read_text())
    del cfg['quantization_config']
    (plain/'config.json').write_text(json.dumps(cfg))
    with models.quiet():
        m, told = tr.AutoModelForCausalLM.from_pretrained(plain, output_loading_info=True, dtype=torch.bfloat16)
    assert not told['missing_keys'] and not told['unexpected_keys'] and not told['mismatched_keys'], told
    return m.eval()


def cook(name, scheme, tmp):
    "'works', or the sentence of the refusal; anything else fails."
    base = family(name)
    rng = np.random.default_rng(0)
    text = SimpleNamespace(windows=[rng.integers(2, 512, 48) for _ in range(12)])
    try:
        q = quantize.quantize(base, text, scheme, progress=False)
        path = export.export(q, tmp/'x')
    except CookError as e:
        assert 'promises' not in str(e) # found while writing: that is ours to refuse before
        return str(e)
    like = {f'{n}.weight': type(m).__name__ for n, m in models.linears(base.model).items()}
    ids = torch.from_numpy(text.windows[0])[None]
    off = [m for n, m in quantize.quantizers(q.loaded.model, 'any').items() if not quantize._is_weight(n)]
    for m in off: # weights only, as the witness has them
        m.disable_quant()
    with torch.no_grad():
        a = base.model(ids).logits.float()
        b = q.loaded.model(ids).logits.float()
        c = witness(path, scheme, like)(ids).logits.float()
    # the same weights: what differs is BF16's rounding, which a router that flips can make visible
    assert (b - c).norm() <= .35 * (a - b).norm() + .03 * a.norm(), float((b - c).norm() / a.norm())
    return 'works'


def kind(result):
    return 'works' if result == 'works' else 'refused'


@pytest.mark.parametrize('name', FAMILIES)
def test_family(name, tmp_path):
    "As the committed table says, which a run of this file as a program writes anew."
    known = json.loads(TABLE.read_text())[name]
    for scheme in SCHEMES:
        (tmp_path/scheme).mkdir()
        result = cook(name, scheme, tmp_path/scheme)
        assert kind(result) == kind(known[scheme]), (scheme, result)


def markdown(table):
    "Families that fare alike share a row."
    rows = {}
    for name, results in table.items():
        rows.setdefault(tuple(kind(results[s]) for s in SCHEMES), []).append(name)
    lines = [['families', *SCHEMES], ['---'] * (len(SCHEMES) + 1)]
    lines += [[', '.join(names), *('yes' if k == 'works' else 'refused' for k in key)] for key, names in rows.items()]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


if __name__ == '__main__': # all schemes, or those that are named
    import sys
    import tempfile
    made = json.loads(TABLE.read_text())
    for name in FAMILIES:
        for scheme in sys.argv[1:] or SCHEMES:
            with tempfile.TemporaryDirectory() as tmp:
                made.setdefault(name, {})[scheme] = cook(name, scheme, Path(tmp))
        print(name, {s: kind(r) for s, r in made[name].items()}, flush=True)
    TABLE.write_text(json.dumps(made, indent=1) + '\n')
    print(markdown(made))
