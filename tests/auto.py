"ModelOpt's `auto_quantize` beside `mixed.spend`: one format or BF16 for each product, at the same effective bits."
import contextlib
import copy
import io
import time

from tqcook import compare, mixed, quantize, stats
from tqcook.models import linears, quiet

SCHEMES = dict(fp8='FP8_DEFAULT_CFG', int8_sq='INT8_DEFAULT_CFG')  # ours, and ModelOpt's


def with_head(base, bits):
    "Bits over all linear weights as auto_quantize counts them: the output head, which stays in BF16, with them."
    count = sum(m.weight.numel() for m in linears(base.model).values())
    head = base.model.get_output_embeddings().weight.numel()
    return (bits * count + 16 * head) / (count + head)


def theirs(base, calib, method, bits, scheme='fp8'):
    "Layers that auto_quantize leaves in BF16; seconds are those of the CPU."
    import modelopt.torch.quantization as mtq
    import torch
    windows = [torch.tensor(w)[None] for w in calib.windows]
    def loss(out, ids):
        logits = out if torch.is_tensor(out) else out.logits
        return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
    def step(model, ids):
        return model(input_ids=ids, use_cache=False).logits
    begun, model = time.process_time(), copy.deepcopy(base.model)
    n = len(windows)
    with quiet(prints=True), contextlib.redirect_stdout(io.StringIO()):
        mtq.auto_quantize(model, constraints=dict(effective_bits=with_head(base, bits)),
                          quantization_formats=[getattr(mtq, SCHEMES[scheme])], data_loader=windows, forward_step=step,
                          loss_func=loss if method == 'gradient' else None, disabled_layers=['*lm_head*'],
                          num_calib_steps=n, num_score_steps=n, method=method)
    on = quantize.quantizers(model, 'weight')
    keep = [name for name in linears(model) if f'{name}.weight_quantizer' not in on]
    return dict(keep=keep, bits=mixed.effective_bits(base, scheme, keep), seconds=time.process_time() - begun)


def fake(base, calib, scheme, keep=()):
    "Fake-quantized as auto_quantize has it: INT8 is not smoothed."
    plain = dict(alpha='off') if scheme == 'int8_sq' else {}
    return quantize.quantize(base, calib, scheme, exclude=keep, details=False, progress=False, **plain)


def ours(base, calib, bits, scheme='fp8'):
    "Layers that `spend` leaves in BF16, with the same text and no more bits."
    begun = time.process_time()
    keep = mixed.spend(base, fake(base, calib, scheme), calib, bits, max_windows=len(calib))
    return dict(keep=keep, bits=mixed.effective_bits(base, scheme, keep), seconds=time.process_time() - begun)


def beside(base, calib, judge, a, b, scheme='fp8'):
    "KL divergence of each on a text that neither has seen, and the paired difference, ours less theirs."
    once, found = compare.record(base, judge, progress=False), {}
    for name, x in dict(theirs=a, ours=b).items():
        q = fake(base, calib, scheme, x['keep'])
        found[name] = compare.compare(once, q.loaded, judge, noise_floor='none', progress=False)
    t, o = found['theirs'], found['ours']
    gap = stats.mean(o['kld'].astype(float) - t['kld'], o.blocks)
    return dict(theirs=t.stats['kld_mean'], ours=o.stats['kld_mean'], difference=gap)
