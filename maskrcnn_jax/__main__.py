"""The command `maskrcnn`, also `python -m maskrcnn_jax`: runs the tools.

`maskrcnn TOOL ...` is the same as `python -m maskrcnn_jax.TOOL ...`, and
`maskrcnn --config=... ...` is the same as `python -m maskrcnn_jax.main ...`.
"""

import contextlib
import difflib
import io
import runpy
import sys

# The module in this package of each tool, and its purpose.
TOOLS = {
  'main': ('main', 'train, evaluate or predict ("main" may be left out)'),
  'check_data': ('check_data', 'find out what is wrong with a data set'),
  'convert_to_coco': (
    'convert_to_coco',
    'make COCO JSON of VIA, LabelMe or mask pictures',
  ),
  'build_tfds': (
    'build_tfds',
    'write a data set as a set of tensorflow-datasets',
  ),
  'shapes': ('data.shapes', 'draw a small data set of shapes to try it out'),
  'convert_weights': (
    'convert_weights',
    'read weights of other programs, or write them',
  ),
  'benchmark': ('benchmark', 'time training, inference or the loading of data'),
  'doctor': ('doctor', 'check versions, devices, numbers and GPU kernels'),
}

_HELP = {'--help', '-help', '-h'}


def main() -> None:
  """Runs the tool that the command line names."""
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
  """Returns the help of the command itself."""
  lines = [f'  {name:<17}{what}' for name, (_, what) in TOOLS.items()]
  return '\n'.join(
    [
      'Mask R-CNN in JAX: finds the objects in pictures and draws their'
      ' outlines.',
      '',
      'usage: maskrcnn --config=RECIPE --workdir=DIR ...',
      '       maskrcnn TOOL ...',
      '',
      'The tools; maskrcnn TOOL --help says how to use one:',
      *lines,
    ]
  )


def run_tool(tool: str, arguments: list[str]) -> None:
  """Runs a tool as `python -m` does, and exits with its status.

  Args:
    tool: A key of `TOOLS`.
    arguments: The arguments of the tool.
  """
  module = f'maskrcnn_jax.{TOOLS[tool][0]}'
  sys.argv[1:] = arguments
  help_ = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
  asks_for_help = bool(_HELP & set(arguments))
  try:
    with (
      contextlib.redirect_stdout(help_)
      if asks_for_help
      else (contextlib.nullcontext())
    ):
      # alter_sys makes the tool the main module, as `python -m` does. Worker
      # processes look there for their imports, and absl for its flags.
      runpy.run_module(module, run_name='__main__', alter_sys=True)
  finally:
    help_.seek(0)
    print(
      renamed(help_.read(), f'python -m {module}', f'maskrcnn {tool}'), end=''
    )


def renamed(text: str, old: str, new: str) -> str:
  """Puts another name of the program into a help text.

  argparse indents the lines of the usage, as far as the first empty line, by
  the length of the name.
  """
  usage, empty, rest = text.partition('\n\n')
  usage = usage.replace('\n' + ' ' * (len(old) - len(new)), '\n')
  return (usage + empty + rest).replace(old, new)


if __name__ == '__main__':
  main()
