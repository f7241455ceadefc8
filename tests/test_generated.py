"Generated configs, headers and parameter files, 200 of each: accepted, or refused in one sentence and in time."
import json
import shutil
import struct

import pytest

hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings, strategies as st

import broken
from test_neighbours import in_time
from toy import PARAMS, write_recipe
from tqcook import contract, memory, models, recipe, shapes, sweep
from tqcook.checkpoint import BadCheckpoint, Checkpoint, read_header
from tqcook.core import CookError

pytestmark = pytest.mark.slow
MANY = settings(max_examples=200, deadline=None, database=None, derandomize=True,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-2, 4096), st.floats(), st.text(max_size=20),
                   st.sampled_from(['', 'llama', 'gemma2', 'auto', 'float16', 'full_attention', '../x', '9' * 400]))
VALUE = st.recursive(SCALAR, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=12), x, max_size=4),
                     max_leaves=12)
KEYS = '''architectures model_type hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim
    vocab_size num_hidden_layers
    tie_word_embeddings rope_theta rope_scaling rope_parameters layer_types sliding_window text_config
    quantization_config max_position_embeddings num_experts kv_lora_rank auto_map torch_dtype dtype pad_token_id
    hidden_act rms_norm_eps attention_bias use_cache'''.split()


def sentence(f):
    "Run it within ten seconds: what it returns, or None when it was refused in a sentence."
    try:
        with in_time():
            return f()
    except CookError as e:
        assert '\n' not in str(e) and len(str(e)) < 1300, str(e)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return broken.write(broken.good(), tmp_path_factory.mktemp('generated')/'ck')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return shutil.copytree(models.demo_path(), tmp_path_factory.mktemp('generated')/'demo')


EDITS = st.dictionaries(st.sampled_from(KEYS), VALUE, min_size=1, max_size=3)


@MANY
@given(edits=EDITS)
def test_configs(small, edits):
    file = small/'config.json'
    before = file.read_text()
    try:
        config = json.loads(before) | edits
        file.write_text(json.dumps(config))
        sentence(lambda: Checkpoint.open(small))
        sentence(lambda: str(contract.check(small)))
        sentence(lambda: shapes.expected_shapes(config))
        if str(config.get('model_type')) in shapes.FAMILIES: # others are built by transformers, whole
            sentence(lambda: memory.memory_plan(config, device='h100')._repr_markdown_())
    finally:
        file.write_text(before)


@MANY
@given(edits=EDITS)
def test_configs_that_are_loaded(whole, edits):
    file = whole/'config.json'
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | edits))
        sentence(lambda: models.load(whole, device='cpu'))
    finally:
        file.write_text(before)


ENTRY = st.fixed_dictionaries(dict(
    dtype=st.sampled_from(['F32', 'BF16', 'F8_E4M3', 'I8', 'U8', 'X', '', 'f32']) | SCALAR,
    shape=st.lists(st.integers(-2, 9) | st.integers(), max_size=4) | SCALAR,
    data_offsets=st.tuples(st.integers(-9, 99), st.integers(-9, 99)).map(list) | VALUE)) | VALUE
PLACES = 'model.layers.0.mlp.up_proj.weight', 'a', '', '__metadata__', '../x', 'a.weight_scale'
NAMES = st.sampled_from(PLACES) | st.text()


@MANY
@given(head=st.dictionaries(NAMES, ENTRY, max_size=5), size=st.none() | st.integers(0, 2**64 - 1),
       tail=st.binary(max_size=64), cut=st.none() | st.integers(0, 40))
def test_headers(small, head, size, tail, cut):
    file = small/'model.safetensors'
    before = file.read_bytes()
    raw = json.dumps(head).encode()
    try:
        file.write_bytes((struct.pack('<Q', len(raw) if size is None else size) + raw + tail)[:cut])
        try:
            with in_time():
                read_header(file)
        except BadCheckpoint as e:
            assert '\n' not in str(e)
        sentence(lambda: Checkpoint.open(small, judge=False))
        sentence(lambda: str(contract.check(small, deep=True)))
    finally:
        file.write_bytes(before)


KEY = st.sampled_from(['n', 'rate', 'fast', 'alphas', 'model', 'all', 'x', '? [a]', '*a', '<<'])
LINE = st.builds('{}: {}'.format, KEY,
                 st.text('abn019.:-[]{},&*!|>#"\'\\ \t%@`~?é', max_size=24) | SCALAR.map(str))
FILE = st.lists(LINE, max_size=6).map('\n'.join) | st.text(max_size=80)


@pytest.fixture(scope='module')
def toy_recipe(tmp_path_factory):
    where = tmp_path_factory.mktemp('recipes')
    write_recipe(where, name='01_toy.ipynb', params=PARAMS)
    (where/'params').mkdir()
    return recipe.read_recipe(where/'01_toy.ipynb')


@MANY
@given(text=FILE)
def test_parameter_files(toy_recipe, text):
    size, grid = toy_recipe.path.parent/'params/size.yaml', toy_recipe.path.parent/'grid.yaml'
    indented = '\n'.join(f'  {line}' for line in text.splitlines())
    size.write_text(f'toy:\n{indented}\n', errors='surrogatepass')
    grid.write_text(text, errors='surrogatepass')
    given = sentence(lambda: recipe.resolve(toy_recipe, 'size'))
    assert given is None or given.keys() <= toy_recipe.parameters.keys()
    found = sentence(lambda: sweep.points(toy_recipe, sweep.read_grid(grid))) or {}
    for name, values in found.items():
        assert '/' not in name and values.keys() <= toy_recipe.parameters.keys()


TYPE = st.sampled_from(['int', 'str', 'float', 'bool', 'list', 'x'])
CELL = st.text('abc=012.\'"[]()#: \ntyperinflosb,-', max_size=60)
CELL |= st.builds('{} = {!r}  # type: {} help'.format, st.text(max_size=5), SCALAR, TYPE)


@MANY
@given(source=CELL)
def test_parameters_cells(source):
    for p in (sentence(lambda: recipe.read_parameters(source)) or {}).values():
        p.check(p.default)
