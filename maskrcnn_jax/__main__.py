"""The command `maskrcnn`, also `python -m maskrcnn_jax`: runs the tools.

`maskrcnn TOOL ...` is the same as `python -m maskrcnn_jax.TOOL ...`, and
`maskrcnn --config=... ...` is the same as `python -m maskrcnn_jax.main ...`.
"""

import contextlib
import difflib
import io
import runpy
import sys

# {name of a tool: (its module in this package, its purpose)}, as in the help.
TOOLS = {
  'main': ('main', 'train, evaluate or predict ("main" may be left out)'),
  'check_data': ('check_data', 'find the errors in a data set'),
  'convert_to_coco': (
    'convert_to_coco',
    'convert annotations of other programs to COCO JSON',
  ),
  'build_tfds': (
    'build_tfds',
    'convert COCO files for tensorflow-datasets',
  ),
  'shapes': ('data.shapes', 'draw a small data set of shapes for a first try'),
  'convert_weights': (
    'convert_weights',
    'convert weights from and to other programs',
  ),
  'export': ('export', 'export a model for programs without this package'),
  'benchmark': (
    'benchmark',
    'measure the speed of training, inference or data loading',
  ),
  'plan': (
    'plan',
    'say before a training what it needs, here or on other GPUs',
  ),
  'doctor': (
    'doctor',
    'check this machine: versions, devices, results, GPU kernels',
  ),
  'explain': ('explain', 'explain the code of an error message, such as A07'),
}

# The arguments that ask a tool for its help.
_HELP = {'--help', '-help', '-h'}


def main() -> None:
  """Runs the tool that the command line names.

  The first argument is the name of the tool; if it begins with '-', the tool is
  `main`. Without arguments, and with --help, -help or -h as the first one,
  prints the list of all tools. An unknown name ends the program with status 2.
  """
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in _HELP:
    print(overview())
    return
  tool = 'main' if arguments[0].startswith('-') else arguments.pop(0)
  if tool not in TOOLS:
    near = difflib.get_close_matches(tool, TOOLS, 1)
    hint = f'did you mean {near[0]}? ' if near else ''
    print(
      f'error: there is no tool {tool!r}; {hint}maskrcnn --help lists all.',
      file=sys.stderr,
    )
    sys.exit(2)
  run_tool(tool, arguments)


def overview() -> str:
  """Returns the text of `maskrcnn --help`, which lists all tools."""
  lines = [f'  {name:<17}{purpose}' for name, (_, purpose) in TOOLS.items()]
  return '\n'.join(
    [
      'Mask R-CNN in JAX: finds the objects in pictures and draws their'
      ' outlines.',
      '',
      'usage: maskrcnn --config=RECIPE --workdir=DIR ...',
      '       maskrcnn TOOL ...',
      '',
      'maskrcnn TOOL --help explains how to use a tool. The tools:',
      *lines,
    ]
  )


def run_tool(tool: str, arguments: list[str]) -> None:
  """Runs a tool in this process as `python -m maskrcnn_jax.TOOL` does.

  The arguments replace those in `sys.argv`. If the tool fails, it ends the
  process itself with its exit status. If the arguments ask for help, the
  printed text is held back until the tool ends, and 'maskrcnn TOOL' replaces
  'python -m maskrcnn_jax.TOOL' in it.

  Args:
    tool: A key of `TOOLS`.
    arguments: The arguments of the tool, without its name.
  """
  module = f'maskrcnn_jax.{TOOLS[tool][0]}'
  sys.argv[1:] = arguments
  help_text = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
  asks_for_help = bool(_HELP & set(arguments))
  try:
    with (
      contextlib.redirect_stdout(help_text)
      if asks_for_help
      else contextlib.nullcontext()
    ):
      # alter_sys makes the tool the module __main__, as `python -m` does.
      # Worker processes import that module, and absl reads its flags.
      runpy.run_module(module, run_name='__main__', alter_sys=True)
  finally:
    help_text.seek(0)
    print(
      rename_program(
        help_text.read(), f'python -m {module}', f'maskrcnn {tool}'
      ),
      end='',
    )


def rename_program(text: str, old: str, new: str) -> str:
  """Replaces the name of the program in a help text.

  argparse indents the usage, which ends at the first empty line, by the length
  of the program's name. The indentation is adapted to the new name.

  Args:
    text: The help text.
    old: The name of the program in the text.
    new: A shorter name.
  """
  usage, empty, rest = text.partition('\n\n')
  usage = usage.replace('\n' + ' ' * (len(old) - len(new)), '\n')
  return (usage + empty + rest).replace(old, new)


if __name__ == '__main__':
  main()
