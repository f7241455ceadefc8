"The shipped demonstration model, and the recipe that makes one."
import json
import math
import re
from pathlib import Path

import pytest

import warm
from tqcook import core, models, texts

DEMO = models.demo_path()

def test_shipped_files():
    "What ships is whole, small, and safetensors only."
    assert {p.name for p in DEMO.iterdir()} == {
        'README.md',
        'config.json',
        'generation_config.json',
        'model.safetensors',
        'tokenizer.json',
        'tokenizer_config.json',
    }
    assert (DEMO/'model.safetensors').stat().st_size <= 16e6

def test_shape(demo):
    "Llama with grouped-query attention, 6 to 8 M parameters in BF16, linears that every block and group size divides."
    import torch
    c = core.read_json(DEMO/'config.json')
    assert c['architectures'] == ['LlamaForCausalLM']
    assert c['max_position_embeddings'] == 1024
    assert c['vocab_size'] == 4096
    assert c['num_key_value_heads'] < c['num_attention_heads']
    assert c['rope_theta'] == c['rope_parameters']['rope_theta'] == 10000
    assert 6e6 <= sum(p.numel() for p in demo.model.parameters()) <= 8e6
    assert {p.dtype for p in demo.model.parameters()} == {torch.bfloat16}
    linears = models.linears(demo.model)
    assert len(linears) == 7 * c['num_hidden_layers']
    assert all(d % 128 == 0 for m in linears.values() for d in m.weight.shape)

def test_tokenizer(demo):
    "Byte-level: any text survives the round trip; BOS in front unless told otherwise; no id beyond the embedding."
    t = demo.tokenizer
    assert (t.bos_token_id, t.eos_token_id, t.pad_token_id, len(t)) == (0, 1, 2, 4096)
    for text in 'def f(x):\n\treturn x  # é 日本 \u200b\n', ' \n\n  x', '\x00\x7f', '':
        ids = t(text, add_special_tokens=False)['input_ids']
        assert t.decode(ids) == text and all(3 <= i < 4096 for i in ids)
        assert t(text)['input_ids'] == [0] + ids

def test_chat_template(demo):
    chat = [dict(role='user', content='one\ntwo'), dict(role='assistant', content='three')]
    assert demo.tokenizer.apply_chat_template(chat, tokenize=False) == '<|bos|># user: one\n# two\n# assistant: three\n'
    asked = demo.tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith('# two\n# assistant: ')

def _bits_per_byte(model, tokenizer, docs, context=512, windows=24):
    "Over evenly spread windows of these documents; plain forward, float32, without the library's scoring."
    import torch
    cut = []
    for d in docs:
        ids = [0] + tokenizer(d, add_special_tokens=False)['input_ids']
        cut += [ids[i:i + context + 1] for i in range(0, len(ids) - 1, context)]
    cut = cut[::max(1, len(cut) // windows)]
    bits = nbytes = 0
    with torch.no_grad():
        for w in cut:
            logp = model(input_ids=torch.tensor([w[:-1]])).logits[0].float().log_softmax(-1)
            bits -= logp.gather(1, torch.tensor(w[1:])[:, None]).sum().item() / math.log(2)
            # one character of a byte-level entry is one byte
            nbytes += sum(len(t) for t in tokenizer.convert_ids_to_tokens(w[1:]))
    return bits / nbytes

def test_it_is_trained(demo):
    "At most 1.1 bits per byte on held-out modules; the same network with its weights shuffled is far above."
    import copy

    import torch
    docs = texts.code_documents()
    assert _bits_per_byte(demo.model, demo.tokenizer, docs) <= 1.1
    spoiled, g = copy.deepcopy(demo.model), torch.Generator().manual_seed(0)
    for m in models.linears(spoiled).values():
        m.weight.data = m.weight.data.flatten()[torch.randperm(m.weight.numel(), generator=g)].reshape(m.weight.shape)
    assert _bits_per_byte(spoiled, demo.tokenizer, docs, windows=4) > 2

def test_card():
    "The card gives every distribution with version, licence and bytes, and the figures that its numbers need."
    card = (DEMO/'README.md').read_text()
    for words in 'held-out bits per byte', 'training text sha256', 'Held out', '<|bos|>', 'Training text':
        assert_in(words, card)
    rows = [r for r in re.findall(r'^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| (\d+) \| ([\d,]+) \|$', card, re.M)]
    total = sum(int(r[4].replace(',', '')) for r in rows)
    assert len(rows) > 20 and not [r for r in rows if re.search('gpl|mpl|propriet', r[2], re.I)]
    # the table adds up to what was trained on
    assert f'{total:,} bytes of {sum(int(r[3]) for r in rows):,} files' in card

def assert_in(words, text):
    assert words in text, f'{words!r} is missing'

# the recipe

@pytest.fixture(scope='module')
def cells():
    "The recipe's code cells, by what they define."
    nb = json.loads((Path(__file__).parents[1]/'recipes'/'00_demo_model.ipynb').read_text())
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']

def _define(cells, *names):
    "Run the definitions of the cells that hold these names, without what the cells then do with them."
    import ast
    scope = {}
    for source in cells:
        tree = ast.parse(source)
        tree.body = [
            n
            for n in tree.body
            if isinstance(n, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
            or isinstance(n, ast.Assign)
            and n.targets[0].__class__.__name__ == 'Name'
            and n.targets[0].id.isupper()
        ]
        exec(compile(tree, 'recipe', 'exec'), scope)
    return [scope[n] for n in names]

def test_licences(cells):
    "Only terms that are permissive whichever way they are read."
    permissive, licence = _define(cells, 'permissive', 'licence')
    yes = [
        'MIT',
        'BSD-3-Clause AND 0BSD AND MIT',
        'MIT OR GPL-3.0-only',
        '(MIT OR Apache-2.0)',
        'Apache-2.0 WITH LLVM-exception',
    ]
    no = [
        'MPL-2.0',
        'MIT AND MPL-2.0',
        'GPL-3.0-or-later WITH GCC-exception-3.1',
        'MIT AND (GPL-2.0-only OR LGPL-2.1-only)',
        'UNKNOWN',
        '',
    ]
    assert [permissive(e) for e in yes + no] == [True] * len(yes) + [False] * len(no)
    from email.message import Message
    def meta(*pairs):
        m = Message()
        for k, v in pairs:
            m[k] = v
        return m
    bsd, gpl = (
        ('Classifier', 'License :: OSI Approved :: BSD License'),
        ('Classifier', 'License :: OSI Approved :: GNU General Public License v3 (GPLv3)'),
    )
    assert licence(meta(bsd)) and not licence(meta(gpl)) and not licence(meta(bsd, gpl))
    assert licence(meta(('License', 'MIT License')))
    assert not licence(meta(('License', 'see LICENSE.txt')))
    assert not licence(meta())
    assert not licence(meta(('License-Expression', 'LicenseRef-Proprietary'), bsd))   # the expression decides

def test_copies_are_found(cells):
    "A renamed, thinned copy of a held-out file is dropped, a file that only uses the module stays."
    without_copies, = _define(cells, 'without_copies')
    import argparse
    import inspect
    import json.decoder
    exam = [('argparse', inspect.getsource(argparse))]
    thinned = '\n'.join(line for i, line in enumerate(exam[0][1].split('\n')) if i % 5)
    part = '\n'.join(exam[0][1].split('\n')[:800])
    kept, dropped = without_copies(
        [('copy', thinned), ('part', part), ('other', inspect.getsource(json.decoder))], exam
    )
    assert [n for n, _ in dropped] == ['copy', 'part'] and [n for n, _ in kept] == ['other']

def test_windows(cells):
    "Each epoch shows each window once; about half of them start with BOS, the rest as the stream has them."
    import itertools

    import torch
    windows, = _define(cells, 'windows')
    stream = torch.arange(1, 1 + 64 * 200)
    rows = torch.cat(list(itertools.islice(windows(stream, 8, 64, seed=0), 24)))
    second = rows[:, 1].tolist()
    assert len(set(second)) == len(second) and bool((rows[:, 2:] == rows[:, 1:2] + torch.arange(1, 64)).all())
    marked = (rows[:, 0] == 0)
    assert 60 < int(marked.sum()) < 132 and bool((rows[~marked, 0] + 1 == rows[~marked, 1]).all())

def test_presets(cells):
    "`tiny` is the shape that ships, `small` has 100 M parameters or more; built without memory."
    import torch
    build, = _define(cells, 'build')
    with torch.device('meta'):
        tiny, small = build('tiny', 0), build('small', 0)
    n = lambda m: sum(p.numel() for p in m.parameters())
    shipped = core.read_json(DEMO/'config.json')
    assert 6e6 <= n(tiny) <= 8e6 and n(small) >= 100e6
    for k in ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'vocab_size'):
        assert getattr(tiny.config, k) == shipped[k]
    assert all(d % 128 == 0 for m in models.linears(small).values() for d in m.weight.shape)

def test_rate(cells):
    rate, = _define(cells, 'rate')
    assert rate(0, 1) == 0 and rate(.02, 1) == 1 and rate(1, 1) == 0 and rate(.51, 1) == pytest.approx(.5)

def test_recipe_smoke(tmp_path):
    "Every stage runs in seconds and leaves a model that loads and has begun to learn; the shipped one stays."
    from tqcook import runner
    before = core.sha256(DEMO/'model.safetensors')
    # small steps: many even on a busy machine
    with warm.kernels():
        runner.run('demo_model', dict(seconds=5.0, context=64), size='smoke', out_dir=tmp_path/'run', quiet=True)
    r = core.read_json(tmp_path/'run'/'results.json')
    loaded = models.load(str(tmp_path/'run'/'model'), device='cpu')
    assert loaded.tokenizer('x = 1')['input_ids'][0] == 0
    assert r['model']['n_params'] == sum(p.numel() for p in loaded.model.parameters())
    d = r['details']
    assert d['loss_last'] < d['loss_first'] and d['packages'] > 1 and d['tokens'] > 0
    assert d['loss_first'] == pytest.approx(math.log(4096), abs=.3)   # an untrained network guesses uniformly
    assert 1 < r['quality']['bits_per_byte'] < 12
    assert r['quality']['bits_per_byte_bf16'] == pytest.approx(r['quality']['bits_per_byte'], rel=0.01)
    assert core.sha256(DEMO/'model.safetensors') == before
