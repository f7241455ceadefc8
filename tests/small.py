"Tiny random models taken through quantize and export, and checkpoints changed on purpose."
import json
import shutil

import torch
from safetensors.torch import load_file, save_file

from tqcook import export, formats, models, quantize, schemes

SIZE = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=2)
SCHEMES = ['fp8', 'fp8_rowwise', 'fp8_block', 'int8_sq', 'int8_wo', 'int4_awq']


def rel(a, b):
    "Relative error."
    return float((a.double() - b.double()).norm() / b.double().norm())


def tokens(n=2, length=64, seed=1):
    return torch.randint(0, 4096, (n, length), generator=torch.Generator().manual_seed(seed))


class Windows:
    "The little of a Corpus that calibration needs."
    def __init__(self, n=4, length=64):
        self.windows = [w.numpy() for w in tokens(n, length, seed=5)] # of any model with 4,096 tokens or more


def cook(out, arch='llama', scheme='fp8', kv='none', **over):
    "A tiny random model taken through quantize and export -> (directory, base, logits of the fake-quantized model)."
    base = models.tiny(arch, **(SIZE | over if arch == 'llama' else over))
    q = quantize.quantize(base, Windows(), scheme, kv=kv, progress=False)
    with torch.no_grad():
        fake = q.loaded.model(tokens()).logits.float()
    return export.export(q, out), base, fake


def nearest(loaded, out, scheme='fp8', scale=.05):
    "A checkpoint by rounding to nearest, without ModelOpt or text; `scale` of the activations is a placeholder."
    s, tensors = schemes.get(scheme), {n: p.detach().clone() for n, p in loaded.model.state_dict().items()}
    for n in models.linears(loaded.model):
        tensors |= {f'{n}.{k}': v for k, v in formats.quantize(s.storage, tensors[f'{n}.weight']).items()}
        if not s.weight_only:
            tensors[f'{n}.input_scale'] = torch.tensor(scale)
    out.mkdir(parents=True)
    loaded.model.config.save_pretrained(out)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(out)
    if loaded.model.config.tie_word_embeddings:
        tensors.pop('lm_head.weight', None)
    save_file({k: v.contiguous() for k, v in tensors.items()}, out/'model.safetensors')
    about = dict(quant_algo=s.quant_algo, kv_cache_quant_algo=None, exclude_modules=['lm_head'], group_size=s.block)
    about = dict(producer=dict(name='test', version='0'), quantization=about)
    (out/'hf_quant_config.json').write_text(json.dumps(about))
    return out


def edit(src, dst, change):
    "A copy of a checkpoint whose tensors or config were changed, without passport."
    shutil.copytree(src, dst)
    for f in dst.glob('passport.json'):
        f.unlink()
    t, c = load_file(dst/'model.safetensors'), json.loads((dst/'config.json').read_text())
    change(t, c)
    save_file(t, dst/'model.safetensors', metadata={'format': 'pt'})
    (dst/'config.json').write_text(json.dumps(c))
    return dst


def edit_quantization(d, **changes):
    "Change hf_quant_config.json."
    f = d/'hf_quant_config.json'
    q = json.loads(f.read_text())
    q['quantization'] |= changes
    f.write_text(json.dumps(q))
    return d
