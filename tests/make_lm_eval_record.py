"""Make tests/data/lm_eval_record.json: lm-eval's own rolling log-likelihoods of a small deterministic model.

Run where lm-eval is installed (it is no dependency of this project):
    pip install lm_eval==0.4.13 && python tests/make_lm_eval_record.py
The model, the tokenizer and the texts are made here from fixed seeds with numpy: the test makes the same ones anywhere.
"""
import json
from pathlib import Path

import numpy as np

CONTEXT = 64
RECORD = Path(__file__).parent/'data'/'lm_eval_record.json'


def tokenizer():
    "Bytes as tokens (1..256) after a BOS (0)."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    vocab = {'<bos>': 0} | {c: i + 1 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    t = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<bos>', eos_token='<bos>')


def model():
    "A Llama of two layers whose weights are numpy's: far from uniform, so the numbers are not trivial."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    m = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=257,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
        .float()
        .eval()
    )
    rng = np.random.RandomState(7)
    with torch.no_grad():
        for n, p in sorted(m.named_parameters()):
            w = rng.standard_normal(tuple(p.shape)).astype(np.float32)
            p.copy_(torch.from_numpy(1 + .1 * w if p.ndim == 1 else w * .15))
    return m


def texts():
    "Three texts: many windows, less than one window, and a length that is a whole number of windows."
    rng = np.random.RandomState(3)
    words = [
        'the',
        'stove',
        'salt',
        'a',
        'of',
        'simmer',
        'naïve',
        'twice',
        'scale',
        '448',
        'and',
        'zwölf',
        'lid',
        'on',
        '.\n',
    ]
    long = ' '.join(rng.choice(words, 120))
    return [long, 'short text', ('x' + long.encode('ascii', 'ignore').decode())[:3 * CONTEXT]]


if __name__ == '__main__':
    import lm_eval
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    torch.set_num_threads(1)
    lm = HFLM(
        pretrained=model(), tokenizer=tokenizer(), backend='causal', max_length=CONTEXT, batch_size=4, device='cpu'
    )
    requests = [
        Instance(request_type='loglikelihood_rolling', doc={}, arguments=(t,), idx=i) for i, t in enumerate(texts())
    ]
    ll = lm.loglikelihood_rolling(requests)
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(
        json.dumps(
            dict(
                lm_eval=lm_eval.__version__,
                torch=torch.__version__.split('+')[0],
                context=CONTEXT,
                tokens=[len(lm.tok_encode(t)) for t in texts()],
                bytes=[len(t.encode()) for t in texts()],
                loglikelihood=ll,
            ),
            indent=1,
        )
        + '\n'
    )
    print(RECORD.read_text())
