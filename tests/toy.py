"Throw-away recipes for the tests of the runner and the command."
import nbformat

SLEEPY = "nap = 60.0  # type: float how long to sleep\nout_dir = 'runs/nap'  # type: str folder"
PARAMS = """n = 3  # type: int how many
rate = 0.5  # type: float how fast
fast = True  # type: bool whether to hurry
alphas = [0.5, 0.8]  # type: list strengths
model = 'demo'  # type: str which model
out_dir = 'runs/toy'  # type: str folder"""
START = "from tqcook import core, recipe, runner\nstages = recipe.start('toy', globals())"
BODY = """import matplotlib.pyplot as plt
plt.plot([1, 2, 3]); plt.show()
print('n is', n)"""
NOWHERE = "environment=dict(device=dict(name='none'))"
FINISH = f"""with stages('work'): total = n * rate
stages.skip('kernels', 'no GPU here')
kinds = [type(v).__name__ for v in (n, rate, fast, alphas, model)]
recipe.finish(dict(details=dict(total=total, kinds=kinds), {NOWHERE}))"""

def write_recipe(folder, *cells, name='01_nap.ipynb', params=SLEEPY, title='# Nap\n\n> Sleeps'):
    "A recipe: its parameters, then `cells`."
    code = nbformat.v4.new_code_cell
    kernel = dict(name='python3', display_name='python3', language='python')
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=kernel), cells=[
        nbformat.v4.new_markdown_cell(title), code(params, metadata=dict(tags=['parameters'])), *map(code, cells)])
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder/name)
