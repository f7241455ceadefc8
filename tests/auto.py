"ModelOpt's `auto_quantize` beside `mixed.spend`, both on FP8 or BF16 for each product, at the same effective bits."
import contextlib
import copy
import io
import time

from tqcook import compare, mixed, quantize, stats
from tqcook.models import linears, quiet


def theirs(base, calib, method, bits=10.):
    "Layers that auto_quantize leaves in BF16. Its own count of bits takes the output head in; `bits` here does not."
    import modelopt.torch.quantization as mtq
    import torch
    windows = [torch.tensor(w)[None] for w in calib.windows]
    def loss(out, ids):
        logits = out if torch.is_tensor(out) else out.logits
        return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
    def step(model, ids):
        return model(input_ids=ids, use_cache=False).logits
    begun, model = time.perf_counter(), copy.deepcopy(base.model)
    n = len(windows)
    with quiet(prints=True), contextlib.redirect_stdout(io.StringIO()):
        mtq.auto_quantize(model, constraints=dict(effective_bits=bits), quantization_formats=[mtq.FP8_DEFAULT_CFG],
                          data_loader=windows, forward_step=step, loss_func=loss if method == 'gradient' else None,
                          disabled_layers=['*lm_head*'], num_calib_steps=n, num_score_steps=n, method=method)
    on = quantize.quantizers(model, 'weight')
    keep = [name for name in linears(model) if f'{name}.weight_quantizer' not in on]
    return dict(keep=keep, bits=mixed.effective_bits(base, 'fp8', keep), seconds=time.perf_counter() - begun)


def ours(base, calib, bits):
    "Layers that `spend` leaves in BF16, with the same text and no more bits."
    begun = time.perf_counter()
    q = quantize.quantize(base, calib, 'fp8', details=False, progress=False)
    keep = mixed.spend(base, q, calib, bits, max_windows=len(calib))
    return dict(keep=keep, bits=mixed.effective_bits(base, 'fp8', keep), seconds=time.perf_counter() - begun)


def beside(base, calib, judge, a, b):
    "KL divergence of each on a text that neither has seen, and the paired difference, ours less theirs."
    once, found = compare.record(base, judge, progress=False), {}
    for name, x in dict(theirs=a, ours=b).items():
        q = quantize.quantize(base, calib, 'fp8', exclude=x['keep'], details=False, progress=False)
        found[name] = compare.compare(once, q.loaded, judge, noise_floor='none', progress=False)
    t, o = found['theirs'], found['ours']
    gap = stats.mean(o['kld'].astype(float) - t['kld'], o.blocks)
    return dict(theirs=t.stats['kld_mean'], ours=o.stats['kld_mean'], difference=gap)
